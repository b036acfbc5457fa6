// A chart of lines to be explored: pick a view, hide lines, point at them or step along with the arrow keys.
// It is drawn from the description of nodes/show.py `interactive` and knows nothing of ComfyUI but its colours.
import * as numbers from "./chart_numbers.js";
import { buttons, dot, list, make, path, toClipboard } from "./chart_parts.js";

/** In pixels: space above and beside the frame, and below it for ticks and label; room that one tick takes. */
const MARGIN = { top: 26, right: 16, bottom: 40 };
const TICK = { x: 76, y: 34 };
/** More ticks than this help nobody. */
const TICKS = 8;
/** In pixels: points stand out where they are further apart; points that are read are no further from the guide. */
const SPARSE = 9;
const REACH = 12;
/** How far a point's mark may reach out of the frame. */
const EDGE = 5;
/** The width of a digit, in pixels. */
const CHARACTER = 6.6;
/** Up to so many choices are buttons side by side; more are a list. */
const BUTTONS = 5;
const STEPS = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };

const parts = (view) => [view.name].flat();
const half = (value) => Math.round(value) + 0.5;

export class Chart {
  /** @param onChange called with what the person chose, {view, hidden}, to be given to `show` another time. */
  constructor(onChange = () => {}) {
    this.onChange = onChange;
    this.hidden = new Set();
    this.pickers = make("div", { class: "sd-chart-pickers" });
    this.copier = make("button", { type: "button", class: "sd-chart-copy", title: "Copy the numbers of this view" });
    this.copier.addEventListener("click", () => this.copy());
    this.svg = make("svg", { class: "sd-chart-svg", tabindex: "0", role: "application" });
    this.plot = make("div", { class: "sd-chart-plot" }, this.svg);
    this.legend = make("div", { class: "sd-chart-legend" });
    this.status = make("div", { class: "sd-chart-status", role: "status", "aria-live": "polite" });
    this.hint = make("div", { class: "sd-chart-hint" }, "Run the workflow to see the chart.");
    const bar = make("div", { class: "sd-chart-bar" }, this.pickers, this.copier);
    this.element = make("div", { class: "sd-chart" }, bar, this.plot, this.legend, this.status, this.hint);
    this.listen();
    this.show(null);
  }

  /** Forget the page. */
  dispose() {
    this.sizes.disconnect();
    this.themes.disconnect();
  }

  /** Show a description, or the hint that there is none yet; `chosen` is what `onChange` was called with. */
  show(described, chosen = {}) {
    this.described = described?.views?.length ? described : null;
    this.element.classList.toggle("sd-chart-empty", !this.described);
    if (!this.described) return;
    this.hidden = new Set(chosen.hidden ?? []);
    this.view = described.views.find((view) => parts(view).join(", ") === chosen.view) ?? described.views[0];
    this.compose();
  }

  listen() {
    this.sizes = new ResizeObserver(() => this.draw());
    this.sizes.observe(this.plot);
    this.themes = new MutationObserver(() => this.background() === this.paper || this.compose());
    for (const element of [document.documentElement, document.body]) {
      this.themes.observe(element, { attributes: true, attributeFilter: ["class", "style"] });
    }
    this.svg.addEventListener("pointermove", (event) => this.follow(event));
    this.svg.addEventListener("pointerdown", (event) => this.follow(event));
    this.svg.addEventListener("pointerleave", () => this.point(null));
    this.svg.addEventListener("blur", () => this.point(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
  }

  background() {
    return getComputedStyle(this.element).backgroundColor;
  }

  /** Pickers and legend of the view, then the drawing. */
  compose() {
    this.paper = this.background();
    const behind = this.paper.match(/[\d.]+/g)?.slice(0, 3).map(Number) ?? [255, 255, 255];
    const palette = numbers.OKABE_ITO;
    this.series = this.view.series.map((one, index) => {
      return { ...one, stroke: numbers.readable(palette[(one.colour ?? index) % palette.length], behind) };
    });
    this.pickers.replaceChildren(...this.choices());
    this.copier.replaceChildren("Copy CSV");
    this.entries = new Map();
    for (const one of this.series) {
      if (!this.entries.has(one.name)) this.entries.set(one.name, this.entry(one));
    }
    this.legend.replaceChildren(...[...this.entries.values()].map((entry) => entry.button));
    const name = parts(this.view).join(", ");
    this.svg.setAttribute("aria-label", `${this.described.title}: ${name}. Arrow keys read the values.`);
    this.draw();
  }

  /** A picker for each part of the views' names that differs between them. */
  choices() {
    const { views } = this.described;
    const chosen = parts(this.view);
    return chosen.flatMap((current, place) => {
      const options = [...new Set(views.map((view) => parts(view)[place]))];
      const pick = (option) => this.pick(chosen.with(place, option));
      if (options.length < 2) return [];
      return [options.length > BUTTONS ? list(options, current, pick) : buttons(options, current, pick)];
    });
  }

  /** Change to the view of this name, or to the first with its last changed part. */
  pick(wanted) {
    const shared = (view) => parts(view).filter((part, place) => part === wanted[place]).length;
    this.view = this.described.views.reduce((best, view) => (shared(view) > shared(best) ? view : best));
    const at = this.pickers.contains(document.activeElement) ? document.activeElement.textContent : null;
    this.compose();
    [...this.pickers.querySelectorAll("button")].find((button) => button.textContent === at)?.focus();
    this.chosen();
  }

  chosen() {
    this.onChange({ view: parts(this.view).join(", "), hidden: [...this.hidden] });
  }

  /** A series in the legend, with the place where its value is read. */
  entry(one) {
    const value = make("span", { class: "sd-chart-value" });
    const sample = make("span", { class: one.dashed ? "sd-chart-sample sd-chart-dashed" : "sd-chart-sample" });
    sample.style.color = one.stroke;
    const shown = !this.hidden.has(one.name);
    const button = make("button", { type: "button", "aria-pressed": shown, title: "Show or hide this line" });
    button.append(sample, make("span", {}, one.name), value);
    button.addEventListener("click", () => {
      const show = this.hidden.delete(one.name);
      if (!show) this.hidden.add(one.name);
      button.setAttribute("aria-pressed", show);
      this.draw();
      this.chosen();
    });
    return { button, value };
  }

  shown(view = this) {
    return view.series.filter((one) => !this.hidden.has(one.name));
  }

  /** Everything within the frame, at the size that there is. */
  draw() {
    const [width, height] = [this.plot.clientWidth, this.plot.clientHeight];
    if (!this.described || width < 80 || height < 80) return;
    this.frame(width, height);
    const inner = this.inner();
    for (const one of this.shown()) inner.append(...this.band(one));
    for (const one of this.shown()) inner.append(...this.line(one));
    this.pointer = make("g", { class: "sd-chart-pointer" });
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.replaceChildren(this.grid(), inner, this.pointer);
    this.point(this.cursor ?? null);
  }

  /** Axes and where they lie. Views share them, so that they can be compared, unless they have their own. */
  frame(width, height) {
    const own = ["x", "y"].map((name) => this.view[name] ?? this.described[name] ?? {});
    const peers = this.view.y ? [this.view] : this.described.views.filter((view) => !view.y);
    const across = [this.view, ...(this.view.x ? [] : this.described.views.filter((view) => !view.x))];
    const values = peers.flatMap((view) => this.shown(view)).flatMap((one) => [one.y, one.low, one.high]);
    [this.top, this.bottom, this.right] = [MARGIN.top, height - MARGIN.bottom, width - MARGIN.right];
    this.y = numbers.makeAxis(own[1], values, Math.min((this.bottom - this.top) / TICK.y, TICKS), true);
    const widest = Math.max(...this.y.ticks.map((tick) => numbers.tickText(tick, this.y.log).length), 2);
    this.left = 16 + CHARACTER * widest;
    const xs = across.flatMap((view) => view.series.map((one) => one.x));
    this.x = numbers.makeAxis(own[0], xs, Math.min((this.right - this.left) / TICK.x, TICKS), false);
    this.toX = (value) => this.x.place(value) * (this.right - this.left);
    this.toY = (value) => (1 - this.y.place(value)) * (this.bottom - this.top);
  }

  /** What clips the lines, from the frame's upper left corner on. */
  inner() {
    const [width, height] = [this.right - this.left + 2 * EDGE, this.bottom - this.top + 2 * EDGE];
    const place = { x: this.left - EDGE, y: this.top - EDGE, width, height };
    return make("svg", { ...place, viewBox: `${-EDGE} ${-EDGE} ${width} ${height}` });
  }

  grid() {
    const { left, right, top, bottom } = this;
    const group = make("g", { class: "sd-chart-axes" });
    for (const tick of this.x.ticks) {
      const at = half(left + this.toX(tick));
      group.append(make("line", { x1: at, x2: at, y1: top, y2: bottom }));
      group.append(this.below(at, numbers.tickText(tick, this.x.log)));
    }
    for (const tick of this.y.ticks) {
      const at = half(top + this.toY(tick));
      group.append(make("line", { x1: left, x2: right, y1: at, y2: at }));
      group.append(make("text", { x: left - 7, y: at + 4, "text-anchor": "end" }, numbers.tickText(tick, this.y.log)));
    }
    const edge = `M${half(left)},${top}V${half(bottom)}H${right}`;
    group.append(make("path", { d: edge, class: "sd-chart-edge" }));
    const middle = (left + right) / 2;
    const label = { class: "sd-chart-label" };
    group.append(make("text", { ...label, x: middle, y: bottom + 34, "text-anchor": "middle" }, this.x.label));
    group.append(make("text", { ...label, x: 8, y: 14 }, this.y.label));
    for (const mark of this.view.marks ?? []) group.append(...this.mark(mark));
    return group;
  }

  /** A number under the axis, moved as far as it must be to stay on the drawing. */
  below(at, text) {
    const most = this.right + MARGIN.right - CHARACTER * text.length / 2;
    return make("text", { x: Math.min(at, most), y: this.bottom + 16, "text-anchor": "middle" }, text);
  }

  mark({ x, label }) {
    const at = half(this.left + this.toX(x));
    if (!(at >= this.left && at <= this.right + 1)) return [];
    const line = make("line", { class: "sd-chart-mark", x1: at, x2: at, y1: this.top, y2: this.bottom });
    return [line, make("text", { x: at - 5, y: this.top + 12, "text-anchor": "end" }, label)];
  }

  /** The points of a series in the frame, parted where it has none. */
  runs(one, ...edges) {
    const runs = [[]];
    one.x.forEach((x, index) => {
      const point = [this.toX(x), ...edges.map((edge) => this.toY(edge[index]))];
      if (point.every(Number.isFinite)) runs.at(-1).push(point);
      else if (runs.at(-1).length) runs.push([]);
    });
    return runs.filter((run) => run.length);
  }

  line(one) {
    const runs = this.runs(one, one.y);
    const style = { stroke: one.stroke, class: one.dashed ? "sd-chart-line sd-chart-dashed" : "sd-chart-line" };
    const lines = runs.filter((run) => run.length > 1).map((run) => make("path", { ...style, d: path(run) }));
    const points = runs.flat();
    const sparse = points.length * SPARSE < this.right - this.left;
    const alone = runs.filter((run) => run.length === 1).flat();
    const dots = (sparse ? points : alone).map(([x, y]) => dot(x, y, sparse ? 2.5 : 2, one.stroke));
    return [...lines, ...dots];
  }

  band(one) {
    if (!one.low || !one.high) return [];
    const low = one.low.map((value) => (value === null ? null : Math.max(value, this.y.low)));
    return this.runs(one, low, one.high).map((run) => {
      const above = run.map(([x, , y]) => [x, y]);
      const below = run.map(([x, y]) => [x, y]).reverse();
      return make("path", { class: "sd-chart-band", fill: one.stroke, d: `${path([...above, ...below])}Z` });
    });
  }

  follow(event) {
    const box = this.svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) * this.plot.clientWidth) / box.width - this.left;
    const xs = this.places();
    this.point(xs[numbers.nearest(xs.map(this.toX), at)] ?? null);
  }

  /** Where there is something to read, ascending. */
  places() {
    return this.described && this.toX ? numbers.allX(this.shown(), this.x.log) : [];
  }

  key(event) {
    if (event.key === "Escape" && this.cursor !== null) this.point(null);
    else if (event.key in STEPS) this.step(STEPS[event.key]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** So many points to the right, as they are drawn. */
  step(by) {
    const xs = this.places().sort((a, b) => this.toX(a) - this.toX(b));
    const at = xs.indexOf(this.cursor);
    const from = at < 0 && by < 0 ? xs.length : at;
    this.point(xs[Math.min(Math.max(from + by, 0), xs.length - 1)] ?? null);
  }

  /** Mark what lies at this x and write its numbers; null: nothing. */
  point(x) {
    this.cursor = x;
    this.pointer?.replaceChildren();
    for (const entry of this.entries?.values() ?? []) entry.value.textContent = "";
    if (x === null || !this.pointer) {
      this.status.textContent = "";
      return;
    }
    const at = this.left + this.toX(x);
    this.pointer.append(make("line", { x1: half(at), x2: half(at), y1: this.top, y2: this.bottom }));
    for (const one of this.shown()) this.read(one, at - this.left);
    this.pointer.append(...this.chip(at, numbers.valueText(x)));
    const values = [...this.entries].filter(([, entry]) => entry.value.textContent);
    const said = values.map(([name, entry]) => `${name} ${entry.value.textContent}`).join(", ");
    this.status.textContent = `${this.x.label} ${numbers.valueText(x)}: ${said}`;
  }

  /** Mark the point of a series that is nearest to a place along the axis, if it is near. */
  read(one, at) {
    const places = one.x.map(this.toX);
    const index = numbers.nearest(places, at);
    if (index < 0 || Math.abs(places[index] - at) > REACH) return;
    const { value } = this.entries.get(one.name);
    value.textContent += (value.textContent && " / ") + numbers.valueText(one.y[index]);
    const y = this.top + this.toY(one.y[index]);
    const inside = y >= this.top - 1 && y <= this.bottom + 1;
    if (inside) this.pointer.append(dot(this.left + places[index], y, 4.5, one.stroke));
  }

  /** The x that is read, on its axis. */
  chip(at, text) {
    const width = 14 + CHARACTER * text.length;
    const x = Math.min(at, this.right + MARGIN.right - width / 2);
    const box = make("rect", { x: x - width / 2, y: this.bottom + 3, width, height: 18, rx: 4 });
    return [box, make("text", { x, y: this.bottom + 16, "text-anchor": "middle" }, text)];
  }

  async copy() {
    const said = (await toClipboard(numbers.csv(this.x.label, this.shown()))) ? "Copied" : "Not allowed";
    this.copier.textContent = said;
    setTimeout(() => (this.copier.textContent = "Copy CSV"), 1500);
  }
}
