// The numbers behind a chart: axes and ticks, what is nearest, texts, CSV. Nothing here touches the page.
// What a chart is made of says the docstring of nodes/show.py `interactive`.

/** How many decades below its largest value a logarithmic axis goes. */
const DECADES = 9;
const LEADS = [1, 2, 5];
/** A linear axis that could be logarithmic begins at zero where its data go down to this part of their largest. */
const NEAR_ZERO = 0.5;

export const usable = (value, log) => typeof value === "number" && Number.isFinite(value) && (!log || value > 0);

/** 1, 2 or 5 times a power of ten: the smallest step that cuts `spread` into at most `count` parts. */
export function roundStep(spread, count) {
  const power = 10 ** Math.floor(Math.log10(spread / count));
  return [1, 2, 5, 10].map((lead) => lead * power).find((step) => step * count >= spread * (1 - 1e-9));
}

/** Multiples of a round step from `low` to `high`. */
export function linearTicks(low, high, count) {
  const most = Math.max(count, 1);
  const step = roundStep(high - low, most);
  const first = Math.ceil(low / step - 1e-6);
  // Numbers that are all but equal may have no multiples of the step between them, or too many by rounding.
  const parts = Math.min(Math.floor(high / step + 1e-6) - first, most + 1);
  const ticks = [];
  for (let index = 0; index <= parts; index += 1) ticks.push(Number(((first + index) * step).toPrecision(12)));
  return ticks;
}

/** 1, 2 and 5 of each decade where there is room for them, else powers of ten, or every second, third … of those. */
export function logTicks(low, high, count) {
  const decades = Math.log10(high / low);
  const every = Math.max(1, Math.ceil(decades / Math.max(count, 1)));
  const within = (tick) => tick >= low * (1 - 1e-9) && tick <= high * (1 + 1e-9);
  const choices = decades * 3 <= count ? [LEADS] : [[1], [1, 3], LEADS];
  let ticks = [];
  // One tick alone does not say what the axis' scale is: then there are more, even if they are close.
  for (const leads of choices) {
    ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      if (power % every) continue;
      ticks.push(...leads.map((lead) => Number((lead * 10 ** power).toPrecision(12))).filter(within));
    }
    if (ticks.length > 1) return ticks;
  }
  return ticks;
}

/** Smallest and largest of what can be drawn in these lists, or null where nothing can. */
export function extent(lists, log = false) {
  let low = Infinity;
  let high = -Infinity;
  for (const list of lists) {
    for (const value of list ?? []) {
      if (!usable(value, log)) continue;
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  }
  return low <= high ? [low, high] : null;
}

/**
 * An axis around all values.
 * @param described label, and perhaps log, reversed, low and high (its ends), within (what rounding may not leave),
 *   toggle (whether it could be of the other kind, linear or logarithmic).
 * @param lists of the values that it must hold.
 * @param count how many ticks there is room for.
 * @param round whether the axis ends at round numbers rather than at the data's.
 * @returns its ends and ticks, `place`, the part of its length at which a value lies, and `at`, the value at a part.
 */
export function makeAxis(described, lists, count, round) {
  const log = Boolean(described.log);
  const found = extent(lists, log) ?? (log ? [1, 10] : described.within ?? [0, 1]);
  let [low, high] = log ? logEnds(found, round) : linearEnds(found, described.within, count, round);
  if (usable(described.low, log) && described.low < high) low = described.low;
  if (usable(described.high, log) && described.high > low) high = described.high;
  if (described.toggle && !log && low > 0 && low < NEAR_ZERO * high) low = 0;
  const [of, from] = log ? [Math.log, Math.exp] : [Number, Number];
  const ticks = log ? logTicks(low, high, count) : linearTicks(low, high, count);
  const place = (value) => {
    if (!usable(value, log)) return NaN;
    const at = (of(value) - of(low)) / (of(high) - of(low));
    return described.reversed ? 1 - at : at;
  };
  const at = (part) => from(of(low) + (described.reversed ? 1 - part : part) * (of(high) - of(low)));
  return { label: described.label ?? "", unit: described.unit ?? "", low, high, log, ticks, place, at };
}

function linearEnds([low, high], within, count, round) {
  const size = Math.max(Math.abs(low), Math.abs(high));
  const least = within ? 0.02 * (within[1] - within[0]) : (high > low ? 1e-3 : 0.1) * size || 1;
  const step = roundStep(Math.max(high - low, least), Math.max(count, 1));
  if (!round) return high > low ? [low, high] : [low - step / 2, high + step / 2];
  let from = Math.floor(low / step + 1e-6) * step;
  let to = Math.ceil(high / step - 1e-6) * step;
  if (within) {
    from = Math.max(from, Math.min(within[0], low));
    to = Math.min(to, Math.max(within[1], high));
  }
  return to > from ? [from, to] : [from - step, to + step];
}

function logEnds([low, high], round) {
  if (!round) return high > low ? [low, high] : [low / 2, high * 2];
  const bottom = Math.max(low, high / 10 ** DECADES);
  const down = (value) => Math.max(...near(value).filter((one) => one <= value * (1 + 1e-9)));
  const up = (value) => Math.min(...near(value).filter((one) => one >= value * (1 - 1e-9)));
  const [from, to] = [down(bottom), up(high)];
  return to > from ? [from, to] : [from / 2, to * 2];
}

/** Round numbers around a positive one. */
function near(value) {
  const power = Math.floor(Math.log10(value));
  const decade = (one) => LEADS.map((lead) => Number((lead * 10 ** one).toPrecision(12)));
  return [power - 1, power, power + 1].flatMap(decade);
}

/** The index of the entry that is nearest to a value, or -1; entries that are no number do not count. */
export function nearest(list, value) {
  let best = -1;
  list.forEach((entry, index) => {
    if (!usable(entry)) return;
    if (best < 0 || Math.abs(entry - value) < Math.abs(list[best] - value)) best = index;
  });
  return best;
}

/** The text, cut to so many characters. */
export const shortened = (text, most) => (text.length > most ? `${text.slice(0, Math.max(most - 1, 0))}…` : text);

/** A tick's label. */
export function tickText(value, log) {
  const size = Math.abs(value);
  if (value !== 0 && (size >= (log ? 1e4 : 1e5) || size < 1e-3)) {
    const power = Math.floor(Math.log10(size) + 1e-9);
    const lead = Number((value / 10 ** power).toPrecision(6));
    return lead === 1 && log ? `10${raised(power)}` : minus(`${lead}·10${raised(power)}`);
  }
  return minus(String(Number(value.toPrecision(6))));
}

/** A value to be read: four digits, or all of a whole number that has not many more. */
export function valueText(value) {
  if (!usable(value)) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return minus(String(value));
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e5 || size < 1e-3)) {
    const [lead, power] = value.toExponential(3).split("e");
    return minus(`${lead}·10${raised(Number(power))}`);
  }
  return minus(value.toPrecision(4));
}

const minus = (text) => text.replace("-", "−");
const raised = (power) => String(power).replace(/./g, (digit) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(digit)]);

/** All x of some series, each once, ascending. */
export function allX(series, log = false) {
  return [...new Set(series.flatMap((one) => one.x.filter((value) => usable(value, log))))].sort((a, b) => a - b);
}

/** The series' numbers as a table: one row for each x, one column for each series, two more for a band's edges. */
export function csv(xLabel, series) {
  const columns = series.flatMap((one) => [
    [one.name, one.x, one.y],
    ...(one.low && one.high ? [[`${one.name} low`, one.x, one.low], [`${one.name} high`, one.x, one.high]] : []),
  ]);
  const rows = new Map(allX(series).map((x) => [x, columns.map(() => "")]));
  columns.forEach(([, xs, ys], column) =>
    xs.forEach((x, index) => {
      if (rows.has(x) && usable(ys[index])) rows.get(x)[column] = String(Number(ys[index].toPrecision(7)));
    }),
  );
  const lines = [[xLabel, ...columns.map(([name]) => name)].map(quoted)];
  for (const [x, values] of rows) lines.push([String(x), ...values]);
  return table(lines);
}

/** A map's numbers as a table: one row for each cell, `xs` and `ys` the values in the middle of its cells. */
export function mapCsv(labels, xs, ys, values) {
  const digits = (value) => (usable(value) ? String(Number(value.toPrecision(7))) : "");
  const cells = ys.flatMap((y, row) => xs.map((x, column) => [x, y, values[row][column]].map(digits)));
  return table([labels.map(quoted), ...cells]);
}

const table = (lines) => lines.map((line) => line.join(",") + "\n").join("");

const quoted = (text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

/**
 * A map's values at so many pixels, row after row, NaN where it has none: pixels within a cell have its value, pixels
 * that hold several cells their mean.
 * @param values rows of numbers or null.
 */
export function resampled(values, width, height) {
  const across = spans(values[0].length, width);
  const down = spans(values.length, height);
  const made = new Float64Array(width * height);
  let at = 0;
  for (const [top, bottom] of down) {
    for (const [left, right] of across) {
      let [sum, count] = [0, 0];
      for (let row = top; row < bottom; row += 1) {
        for (let column = left; column < right; column += 1) {
          if (values[row][column] === null) continue;
          sum += values[row][column];
          count += 1;
        }
      }
      made[at] = count ? sum / count : NaN;
      at += 1;
    }
  }
  return made;
}

/** For each pixel the cells that it holds, from one to before another; the one in its middle where cells are larger. */
function spans(cells, pixels) {
  return Array.from({ length: Math.max(pixels, 0) }, (_, pixel) => {
    if (cells > pixels) return [pixel, pixel + 1].map((edge) => Math.floor((edge * cells) / pixels));
    const cell = Math.floor(((pixel + 0.5) * cells) / pixels);
    return [cell, cell + 1];
  });
}
