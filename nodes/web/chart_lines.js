// The drawing of a view's lines, and the reading of their values.
import { chip, drawAxes, half, makeFrame } from "./chart_axes.js";
import * as numbers from "./chart_numbers.js";
import { dot, make, path } from "./chart_parts.js";

/** In pixels: points stand out where they are further apart; points that are read are no further from the guide. */
const SPARSE = 9;
const REACH = 12;
/** How far a point's mark may reach out of the frame. */
const EDGE = 5;
const STEPS = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };

export class Lines {
  /**
   * @param svg what is drawn in.
   * @param write called with what is read: a Map from names of series to their values, and a sentence.
   */
  constructor(svg, write) {
    Object.assign(this, { svg, write, cursor: null });
  }

  /** @param described, view converted; @param series the view's that are shown, with `stroke`; @param hidden names. */
  draw(described, view, series, hidden, size) {
    Object.assign(this, { series, marks: view.marks });
    this.frame = frameOf(described, view, hidden, size);
    const inner = this.inner();
    for (const one of series) inner.append(...this.band(one));
    for (const one of series) inner.append(...this.line(one));
    const axes = drawAxes(this.frame);
    for (const mark of this.marks) axes.append(...this.mark(mark));
    this.pointer = make("g", { class: "sd-chart-pointer" });
    this.svg.replaceChildren(axes, inner, this.pointer);
    this.point(this.cursor);
  }

  csv() {
    return numbers.csv(this.frame?.x.label ?? "", this.series);
  }

  /** What clips the lines, from the frame's upper left corner on. */
  inner() {
    const { left, right, top, bottom } = this.frame;
    const [width, height] = [right - left + 2 * EDGE, bottom - top + 2 * EDGE];
    const place = { x: left - EDGE, y: top - EDGE, width, height };
    return make("svg", { ...place, viewBox: `${-EDGE} ${-EDGE} ${width} ${height}` });
  }

  mark({ x, label }) {
    const { left, right, top, bottom } = this.frame;
    const at = half(left + this.frame.toX(x));
    if (!(at >= left && at <= right + 1)) return [];
    const line = make("line", { class: "sd-chart-mark", x1: at, x2: at, y1: top, y2: bottom });
    return [line, make("text", { x: at - 5, y: top + 12, "text-anchor": "end" }, label)];
  }

  /** The points of a series in the frame, parted where it has none. */
  runs(one, ...edges) {
    const runs = [[]];
    one.x.forEach((x, index) => {
      const point = [this.frame.toX(x), ...edges.map((edge) => this.frame.toY(edge[index]))];
      if (point.every(Number.isFinite)) runs.at(-1).push(point);
      else if (runs.at(-1).length) runs.push([]);
    });
    return runs.filter((run) => run.length);
  }

  line(one) {
    const runs = this.runs(one, one.y);
    const kind = one.pinned ? " sd-chart-pinned" : one.dashed ? " sd-chart-dashed" : "";
    const style = { stroke: one.stroke, class: `sd-chart-line${kind}` };
    const lines = runs.filter((run) => run.length > 1).map((run) => make("path", { ...style, d: path(run) }));
    const points = runs.flat();
    const sparse = !one.pinned && points.length * SPARSE < this.frame.right - this.frame.left;
    const alone = runs.filter((run) => run.length === 1).flat();
    const dots = (sparse ? points : alone).map(([x, y]) => dot(x, y, sparse ? 2.5 : 2, one.stroke));
    return [...lines, ...dots];
  }

  band(one) {
    if (!one.low || !one.high) return [];
    const low = one.low.map((value) => (value === null ? null : Math.max(value, this.frame.y.low)));
    return this.runs(one, low, one.high).map((run) => {
      const above = run.map(([x, , y]) => [x, y]);
      const below = run.map(([x, y]) => [x, y]).reverse();
      return make("path", { class: "sd-chart-band", fill: one.stroke, d: `${path([...above, ...below])}Z` });
    });
  }

  /** Read at the place of the pointer. */
  follow(x) {
    const xs = this.places();
    this.point(xs[numbers.nearest(xs.map(this.frame.toX), x - this.frame.left)] ?? null);
  }

  /** Where there is something to read, ascending. */
  places() {
    return numbers.allX(this.series, this.frame.x.log);
  }

  /** Whether the key means something. */
  key(name) {
    if (!(name in STEPS)) return false;
    this.step(STEPS[name]);
    return true;
  }

  /** So many points to the right, as they are drawn. */
  step(by) {
    const { toX } = this.frame;
    const xs = this.places().sort((a, b) => toX(a) - toX(b));
    const at = xs.indexOf(this.cursor);
    const from = at < 0 && by < 0 ? xs.length : at;
    this.point(xs[Math.min(Math.max(from + by, 0), xs.length - 1)] ?? null);
  }

  /** Mark what lies at this x and write its numbers; null: nothing. */
  point(x) {
    this.cursor = x;
    this.pointer?.replaceChildren();
    if (x === null || !this.pointer) {
      this.write(new Map(), "");
      return;
    }
    const { frame } = this;
    const at = frame.left + frame.toX(x);
    this.pointer.append(make("line", { x1: half(at), x2: half(at), y1: frame.top, y2: frame.bottom }));
    const values = new Map();
    for (const one of this.series) this.read(one, at - frame.left, values);
    this.pointer.append(...chip(frame, at, numbers.valueText(x)));
    const said = [...values].map(([name, value]) => `${name} ${value}`).join(", ");
    this.write(values, `${frame.x.label} ${numbers.valueText(x)}: ${said}`);
  }

  /** Mark the point of a series that is nearest to a place along the axis, if it is near; its value joins `values`. */
  read(one, at, values) {
    const { frame } = this;
    const places = one.x.map(frame.toX);
    const index = numbers.nearest(places, at);
    if (index < 0 || Math.abs(places[index] - at) > REACH) return;
    const text = numbers.valueText(one.y[index]);
    values.set(one.name, values.has(one.name) ? `${values.get(one.name)} / ${text}` : text);
    const y = frame.top + frame.toY(one.y[index]);
    const inside = y >= frame.top - 1 && y <= frame.bottom + 1;
    if (inside) this.pointer.append(dot(frame.left + places[index], y, 4.5, one.stroke));
  }
}

/** Axes and where they lie. Views share them, so that they can be compared, unless they have their own. */
function frameOf(described, view, hidden, size) {
  const shown = (one) => one.series.filter(({ name }) => !hidden.has(name));
  const drawn = described.views.filter((one) => !one.map);
  const peers = view.y ? [view] : drawn.filter((one) => !one.y);
  const across = view.x ? [view] : [view, ...drawn.filter((one) => !one.x)];
  const values = peers.flatMap(shown).flatMap((one) => [one.y, one.low, one.high]);
  const xs = across.flatMap((one) => one.series.map(({ x }) => x));
  return makeFrame(
    size,
    (count) => numbers.makeAxis(view.x ?? described.x, xs, count, false),
    (count) => numbers.makeAxis(view.y ?? described.y, values, count, true),
  );
}
