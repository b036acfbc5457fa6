// The numbers behind a chart: axes and ticks, what is nearest, colours, CSV. Nothing here touches the page.
// What a chart is made of says the docstring of nodes/show.py `interactive`.

/** Okabe and Ito's colours, those of nodes/plot.py. */
export const OKABE_ITO = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];

/** Lines need this much contrast with what lies behind them (WCAG 2.1, graphical objects). */
const CONTRAST = 3;
/** How many decades below its largest value a logarithmic axis goes. */
const DECADES = 9;
const LEADS = [1, 2, 5];

const usable = (value, log) => typeof value === "number" && Number.isFinite(value) && (!log || value > 0);

/** 1, 2 or 5 times a power of ten: the smallest step that cuts `spread` into at most `count` parts. */
export function roundStep(spread, count) {
  const power = 10 ** Math.floor(Math.log10(spread / count));
  return [1, 2, 5, 10].map((lead) => lead * power).find((step) => step * count >= spread * (1 - 1e-9));
}

/** Multiples of a round step from `low` to `high`. */
export function linearTicks(low, high, count) {
  const step = roundStep(high - low, Math.max(count, 1));
  const ticks = [];
  for (let index = Math.ceil(low / step - 1e-6); index <= high / step + 1e-6; index += 1) {
    ticks.push(Number((index * step).toPrecision(12)));
  }
  return ticks;
}

/** 1, 2 and 5 of each decade where there is room for them, else powers of ten, or every second, third … of those. */
export function logTicks(low, high, count) {
  const decades = Math.log10(high / low);
  const leads = decades * 3 <= count ? LEADS : [1];
  const every = Math.max(1, Math.ceil(decades / Math.max(count, 1)));
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    if (power % every) continue;
    ticks.push(...leads.map((lead) => Number((lead * 10 ** power).toPrecision(12))));
  }
  return ticks.filter((tick) => tick >= low * (1 - 1e-9) && tick <= high * (1 + 1e-9));
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
 * @param described label, and perhaps log, reversed, low and high (its ends), within (what rounding may not leave).
 * @param lists of the values that it must hold.
 * @param count how many ticks there is room for.
 * @param round whether the axis ends at round numbers rather than at the data's.
 */
export function makeAxis(described, lists, count, round) {
  const log = Boolean(described.log);
  const found = extent(lists, log) ?? (log ? [1, 10] : described.within ?? [0, 1]);
  let [low, high] = log ? logEnds(found, round) : linearEnds(found, described.within, count, round);
  if (usable(described.low, log) && described.low < high) low = described.low;
  if (usable(described.high, log) && described.high > low) high = described.high;
  const ticks = log ? logTicks(low, high, count) : linearTicks(low, high, count);
  const of = log ? Math.log : Number;
  const place = (value) => {
    if (!usable(value, log)) return NaN;
    const at = (of(value) - of(low)) / (of(high) - of(low));
    return described.reversed ? 1 - at : at;
  };
  return { label: described.label ?? "", low, high, log, ticks, place };
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
  return lines.map((line) => line.join(",") + "\n").join("");
}

const quoted = (text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

/** A colour of six hex digits, moved to white or black until it can be told from the background [r, g, b]. */
export function readable(colour, background) {
  const base = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const goal = luminance(background) < 0.18 ? 255 : 0;
  for (let part = 0; part < 1; part += 0.05) {
    const mixed = base.map((value) => Math.round(value + part * (goal - value)));
    if (contrast(mixed, background) >= CONTRAST) return `rgb(${mixed.join(", ")})`;
  }
  return goal ? "rgb(255, 255, 255)" : "rgb(0, 0, 0)";
}

/** WCAG's ratio of two colours, 1 to 21. */
export function contrast(one, other) {
  const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
}

function luminance(rgb) {
  const [red, green, blue] = rgb.map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}
