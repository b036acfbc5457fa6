// What a person chose, applied to a sound description: units, kinds of axes, another result laid over it.
// Nothing here touches the page.

/** Factors leave no digits that are not there. */
const times = (factor) => (value) =>
  value === null || factor === 1 ? value : Number((value * factor).toPrecision(12));
/** x that were rounded where they were kept are those of today that are as near as this. */
const SAME = 1e-4;

export const viewName = (view) => view.name.join(", ");

/** The axes of a view by name, its own or those that all share. */
export function axesOf(described, view) {
  const { x, y } = view.map ?? { x: view.x ?? described.x, y: view.y ?? described.y };
  return { x, y };
}

/** The unit of an axis that is among the chosen ones, or its first. */
const unitOf = (axis, chosen) => axis.units?.find((unit) => chosen.includes(unit.name)) ?? axis.units?.[0];

/**
 * The description in other units and with other kinds of axes, everything multiplied already.
 * @param units names of units; @param logs {x, y}: whether an axis that may be of both kinds is logarithmic.
 */
export function converted(described, units, logs) {
  const change = (axis, name) => {
    const { label = axis.label, factor = 1, name: unit = "" } = unitOf(axis, units) ?? {};
    const scale = times(factor);
    const made = { ...axis, label, unit };
    for (const end of ["low", "high"]) if (end in axis) made[end] = scale(axis[end]);
    if (axis.within) made.within = axis.within.map(scale);
    if (axis.toggle) made.log = logs[name] ?? axis.log;
    return { made, scale };
  };
  const shared = { x: change(described.x, "x"), y: change(described.y, "y") };
  const views = described.views.map((view) => {
    const [x, y] = ["x", "y"].map((name) => (view[name] ? change(view[name], name) : shared[name]));
    const scales = { x: x.scale, y: y.scale, low: y.scale, high: y.scale };
    const series = view.series.map((one) => {
      const lists = Object.entries(scales).filter(([key]) => one[key]);
      return { ...one, ...Object.fromEntries(lists.map(([key, scale]) => [key, one[key].map(scale)])) };
    });
    const marks = view.marks.map((mark) => ({ ...mark, x: x.scale(mark.x) }));
    const made = { ...view, series, marks };
    if (view.x) made.x = x.made;
    if (view.y) made.y = y.made;
    if (view.map) made.map = { ...view.map, x: change(view.map.x, "x").made, y: change(view.map.y, "y").made };
    return made;
  });
  return { ...described, x: shared.x.made, y: shared.y.made, views };
}

/** What of a description is laid over later ones: its lines, without their bands, and its maps. */
export function pinnable(described) {
  const views = described.views.map(({ name, series, map }) => {
    const lines = series.map(({ low, high, ...one }, index) => ({ colour: one.colour ?? index, ...one }));
    return { name, series: lines, ...(map && { map }) };
  });
  return { title: described.title, views };
}

/** The description with the pinned lines of the views of the same names, and maps as their differences from them. */
export function overlaid(described, pinned) {
  const views = described.views.map((view) => {
    const before = pinned.views.find((one) => viewName(one) === viewName(view));
    if (!before) return view;
    if (view.map) return { ...view, map: difference(before.map, view.map) ?? view.map };
    const today = [...new Set(view.series.flatMap((one) => one.x))].filter((x) => x !== null).sort((a, b) => a - b);
    const lines = before.series.map((one) => {
      return { ...one, name: `A: ${one.name}`, pinned: true, x: one.x.map((x) => snapped(x, today)) };
    });
    const series = view.series.map((one, index) => ({ ...one, colour: one.colour ?? index }));
    return { ...view, series: [...series, ...lines] };
  });
  return { ...described, views };
}

/** The entry of an ascending list that is all but equal to a value, or the value. */
function snapped(value, ascending) {
  let [from, to] = [0, ascending.length];
  while (from < to) {
    const middle = (from + to) >> 1;
    if (ascending[middle] < value) from = middle + 1;
    else to = middle;
  }
  const near = ascending.slice(Math.max(from - 1, 0), from + 1);
  return near.find((one) => Math.abs(one - value) <= SAME * Math.abs(value)) ?? value;
}

/** B − A, around zero; null where the maps are not of one size. */
function difference(a, b) {
  if (!a || a.values.length !== b.values.length || a.values[0].length !== b.values[0].length) return null;
  const minus = (one, other) => (one === null || other === null ? null : one - other);
  const values = b.values.map((row, y) => row.map((value, x) => minus(value, a.values[y][x])));
  const { low, high, ...rest } = b;
  return { ...rest, values, label: `B − A: ${b.label}`, diverging: true };
}
