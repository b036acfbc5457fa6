// Descriptions of charts, as the docstring of nodes/show.py `interactive` has them, made fit to be drawn or kept.
// They come from our nodes, but also from workflow files of strangers. Nothing here touches the page.

/** Numbers beyond this are none: what is computed from them would not be finite. */
const LARGEST = 1e100;
/** In characters: longer texts are cut, larger descriptions not kept. */
const TEXT = 300;
const KEPT = 48_000;
const DIGITS = 5;
const FOLDERS = ["temp", "output", "input"];

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const number = (value) => (typeof value === "number" && Math.abs(value) < LARGEST ? value : null);
const text = (value) => (["string", "number"].includes(typeof value) ? String(value).slice(0, TEXT) : "");
const list = (value) => (Array.isArray(value) ? value : []);
const objects = (value) => list(value).filter(isObject);
const numbers = (value) => list(value).map(number);

/** Without what is undefined or null. */
const present = (object) => Object.fromEntries(Object.entries(object).filter(([, value]) => value != null));

/** A copy that holds what a chart knows and nothing else, each view's name a list; null if there is nothing to show. */
export function sound(described) {
  if (!isObject(described)) return null;
  const views = objects(described.views).map(soundView);
  if (!views.length) return null;
  const parts = Math.max(...views.map((view) => view.name.length));
  for (const view of views) while (view.name.length < parts) view.name.push("");
  const part = described.scrub?.part;
  const steps = Number.isInteger(part) && part >= 0 && part < parts;
  const scrub = steps ? { part, label: text(described.scrub.label) } : null;
  const notes = list(described.notes).map(text).filter(Boolean);
  return present({ title: text(described.title), x: axis(described.x), y: axis(described.y), notes, scrub, views });
}

function soundView(view) {
  const name = (Array.isArray(view.name) ? view.name : [view.name]).map(text);
  const marks = objects(view.marks).map(({ x, label }) => ({ x: number(x), label: text(label) }));
  const series = objects(view.series).map(soundSeries);
  const own = { x: view.x && axis(view.x), y: view.y && axis(view.y) };
  return present({ name, series, marks, ...own, map: soundMap(view.map), picture: soundPicture(view.picture) });
}

function axis(given) {
  if (!isObject(given)) return { label: "" };
  const within = numbers(given.within);
  const units = objects(given.units)
    .map(({ name, label, factor }) => present({ name: text(name), label: text(label) || null, factor: number(factor) }))
    .filter(({ name, factor }) => name && factor > 0);
  return present({
    label: text(given.label),
    low: number(given.low),
    high: number(given.high),
    within: within.length === 2 && within[0] !== null && within[0] < within[1] ? within : null,
    log: given.log ? true : null,
    reversed: given.reversed ? true : null,
    toggle: given.toggle ? true : null,
    units: units.length ? units : null,
  });
}

/** Its lists as long as the shortest of them. */
function soundSeries({ name, x, y, low, high, colour, dashed }) {
  const lists = { x: numbers(x), y: numbers(y) };
  if (Array.isArray(low) && Array.isArray(high)) Object.assign(lists, { low: numbers(low), high: numbers(high) });
  const length = Math.min(...Object.values(lists).map((one) => one.length));
  for (const [key, values] of Object.entries(lists)) lists[key] = values.slice(0, length);
  const known = (Number.isInteger(colour) && colour >= 0) || /^#[0-9a-f]{6}$/i.test(colour);
  return present({ name: text(name), ...lists, colour: known ? colour : null, dashed: dashed ? true : null });
}

/** Null where its rows differ in length or there are none. */
function soundMap(map) {
  const values = list(map?.values).map(numbers);
  const columns = values[0]?.length;
  if (!columns || values.some((row) => row.length !== columns)) return null;
  const [low, high] = [number(map.low), number(map.high)];
  const flags = { diverging: map.diverging ? true : null, square: map.square ? true : null };
  const axes = { x: mapAxis(map.x, columns), y: mapAxis(map.y, values.length) };
  return present({ values, low, high, label: text(map.label), ...axes, ...flags });
}

/** An axis with two ends: where none are given, the cells are counted. */
function mapAxis(given, cells) {
  const made = axis(given);
  if (made.low === undefined || made.high === undefined || made.low === made.high) [made.low, made.high] = [0, cells];
  if (made.low > made.high) {
    [made.low, made.high, made.reversed] = [made.high, made.low, made.reversed ? null : true];
  }
  if (made.low <= 0) made.log = null;
  return present({ ...made, toggle: null });
}

function soundPicture(picture) {
  if (!isObject(picture) || typeof picture.filename !== "string" || !picture.filename) return null;
  const { filename, subfolder, type, caption } = picture;
  return { filename, subfolder: text(subfolder), type: FOLDERS.includes(type) ? type : "temp", caption: text(caption) };
}

/** What a person chose, with nothing that it cannot be. */
export function soundChoice(chosen) {
  const given = isObject(chosen) ? chosen : {};
  const strings = (value) => list(value).filter((one) => typeof one === "string");
  const logs = isObject(given.logs) ? given.logs : {};
  const known = ["x", "y"].filter((name) => typeof logs[name] === "boolean").map((name) => [name, logs[name]]);
  return {
    view: typeof given.view === "string" ? given.view : null,
    hidden: strings(given.hidden),
    units: strings(given.units),
    logs: Object.fromEntries(known),
    pinned: isObject(given.pinned) ? sound(given.pinned) : null,
  };
}

/** The same with five digits a number. */
export function rounded(value) {
  if (typeof value === "number") return Number(value.toPrecision(DIGITS));
  if (Array.isArray(value)) return value.map(rounded);
  return isObject(value) ? Object.fromEntries(Object.entries(value).map(([key, one]) => [key, rounded(one)])) : value;
}

/** A copy to be kept with a workflow, rounded; null where there is nothing to show, or too much to keep. */
export function keepable(described) {
  const kept = rounded(sound(described));
  return kept && JSON.stringify(kept).length <= KEPT ? kept : null;
}

/** The description as it was kept; null for whatever else a workflow file may hold in its place. */
export function kept(found) {
  return isObject(found) && JSON.stringify(found).length <= KEPT ? sound(found) : null;
}
