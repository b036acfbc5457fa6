// A chart to be explored: pick a view or step through them, hide lines, point at values or read them by arrow keys.
// It is drawn from the description of nodes/show.py `interactive` and knows nothing of ComfyUI but its colours.
import { axesOf, converted, overlaid, pinnable, viewName } from "./chart_choice.js";
import { lineColour, readable } from "./chart_colours.js";
import { keepable, rounded, sound, soundChoice } from "./chart_described.js";
import { Legend } from "./chart_legend.js";
import { Lines } from "./chart_lines.js";
import { HeatMap } from "./chart_map.js";
import { buttons, Figure, list, make, refill, toClipboard, toggle } from "./chart_parts.js";
import { Scrubber } from "./chart_scrubber.js";

/** Up to so many choices are buttons side by side; more are a list. */
const BUTTONS = 5;
/** In pixels: with less room than this a picture stands above the plot, not beside it; smaller plots are not drawn. */
const NARROW = 440;
const SMALLEST = 80;

export class Chart {
  /**
   * @param onChange called with what the person chose, to be given to `show` another time.
   * @param pictureUrl gives the address of a view's `picture`, or null.
   */
  constructor(onChange = () => {}, { pictureUrl = () => null } = {}) {
    Object.assign(this, { onChange, pictureUrl, hidden: new Set(), units: [], logs: {}, pinned: null });
    this.pickers = make("div", { class: "sd-chart-pickers" });
    this.tools = make("div", { class: "sd-chart-tools" });
    this.copier = make("button", { type: "button", class: "sd-chart-copy", title: "Copy the numbers of this view" });
    this.copier.append("Copy CSV");
    this.copier.addEventListener("click", () => this.copy());
    this.notes = make("div", { class: "sd-chart-notes" });
    this.figure = new Figure();
    this.canvas = make("canvas", { class: "sd-chart-canvas" });
    this.svg = make("svg", { class: "sd-chart-svg", tabindex: "0", role: "application" });
    this.plot = make("div", { class: "sd-chart-plot" }, this.canvas, this.svg);
    this.body = make("div", { class: "sd-chart-body" }, this.figure.element, this.plot);
    this.legend = new Legend((name, show) => this.hide(name, show));
    this.reading = make("div", { class: "sd-chart-reading", "aria-hidden": "true" });
    this.scrubber = new Scrubber((name) => this.pick(this.described.scrub.part, name), () => this.chosen());
    this.status = make("div", { class: "sd-chart-status", role: "status", "aria-live": "polite" });
    this.hint = make("div", { class: "sd-chart-hint" }, "Run the workflow to see the chart.");
    const right = make("div", { class: "sd-chart-right" }, this.tools, this.copier);
    const bar = make("div", { class: "sd-chart-bar" }, this.pickers, right);
    const below = [this.legend.element, this.reading, this.scrubber.element, this.status, this.hint];
    this.element = make("div", { class: "sd-chart" }, bar, this.notes, this.body, ...below);
    this.lines = new Lines(this.svg, (values, said) => {
      this.legend.read(values);
      this.status.textContent = said;
    });
    this.map = new HeatMap(this.svg, this.canvas, (text, said) => {
      this.reading.textContent = text;
      this.status.textContent = said;
    });
    this.listen();
    this.show(null);
  }

  /** Forget the page. */
  dispose() {
    this.scrubber.halt();
    this.sizes.disconnect();
    this.themes.disconnect();
    this.density?.removeEventListener("change", this.redraw);
  }

  /** Show a description, or the hint that there is none; `choice` is what `onChange` was called with. */
  show(described, choice) {
    this.scrubber.halt();
    this.described = sound(described);
    this.element.classList.toggle("sd-chart-empty", !this.described);
    if (!this.described) return;
    const { view, hidden, units, logs, pinned } = soundChoice(choice);
    // What is too large to be kept with the workflow stays here.
    Object.assign(this, { hidden: new Set(hidden), units, logs, pinned: pinned ?? this.pinned });
    const { views } = this.described;
    this.name = (views.find((one) => viewName(one) === view) ?? views[0]).name;
    this.arrange();
  }

  listen() {
    this.sizes = new ResizeObserver(() => this.draw());
    this.sizes.observe(this.plot);
    this.sizes.observe(this.body);
    this.themes = new MutationObserver(() => this.background() === this.paper || this.compose());
    for (const element of [document.documentElement, document.body]) {
      this.themes.observe(element, { attributes: true, attributeFilter: ["class", "style"] });
    }
    this.redraw = () => {
      this.watchDensity();
      this.draw();
    };
    this.watchDensity();
    this.svg.addEventListener("pointermove", (event) => this.follow(event));
    this.svg.addEventListener("pointerdown", (event) => this.follow(event));
    this.svg.addEventListener("pointerleave", () => this.drawing?.point(null));
    this.svg.addEventListener("blur", () => this.drawing?.point(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
  }

  /** Notice when the window comes to a screen with other pixels. */
  watchDensity() {
    this.density?.removeEventListener("change", this.redraw);
    this.density = matchMedia(`(resolution: ${devicePixelRatio}dppx)`);
    this.density.addEventListener("change", this.redraw);
  }

  background() {
    return getComputedStyle(this.element).backgroundColor;
  }

  /** The description as the person wants to see it: with what is pinned, in the chosen units. */
  arrange() {
    const of = (described) => JSON.stringify(rounded(pinnable(described)));
    this.ahead = this.pinned && of(this.pinned) === of(this.described);
    const both = this.pinned && !this.ahead ? overlaid(this.described, this.pinned) : this.described;
    this.shown = converted(both, this.units, this.logs);
    this.compose();
  }

  /** The view that is shown, and what draws it. */
  get view() {
    return this.shown.views.find((one) => viewName(one) === viewName(this));
  }

  get drawing() {
    if (!this.described) return null;
    return this.view.map ? this.map : this.lines;
  }

  /** Everything around the drawing, then the drawing. */
  compose() {
    if (!this.described) return;
    const { view, described } = this;
    this.paper = this.background();
    const behind = this.paper.match(/[\d.]+/g)?.slice(0, 3).map(Number) ?? [255, 255, 255];
    this.series = view.series.map((one, index) => {
      return { ...one, stroke: readable(lineColour(one.colour ?? index), behind) };
    });
    refill(this.pickers, this.choices());
    refill(this.tools, [...this.unitPickers(), ...this.switches(), this.pin()]);
    const ahead = this.ahead ? ["Pinned as A: what is shown next is compared with this."] : [];
    this.notes.replaceChildren(...[...described.notes, ...ahead].map((note) => make("div", {}, note)));
    this.figure.show(view.picture ? this.pictureUrl(view.picture) : null, view.picture?.caption);
    this.legend.update(view.map ? [] : this.series, this.hidden);
    this.element.classList.toggle("sd-chart-mapped", Boolean(view.map));
    const { part, label } = described.scrub ?? {};
    const steps = described.scrub ? this.options(part) : [];
    this.element.classList.toggle("sd-chart-scrubbed", steps.length > 1);
    if (described.scrub) this.scrubber.update(label, steps, this.name[part]);
    const known = [described.title, viewName(view)].filter(Boolean).join(": ");
    this.svg.setAttribute("aria-label", `${known}. Arrow keys read the values.`);
    this.draw();
  }

  /** The names at a place of the views' names: of the scrubber those beside the other parts that are shown. */
  options(place) {
    const alike = (view) => view.name.every((part, index) => index === place || part === this.name[index]);
    const views = this.described.scrub?.part === place ? this.described.views.filter(alike) : this.described.views;
    return [...new Set(views.map((view) => view.name[place]))];
  }

  /** A picker for each part of the views' names that differs between them; the scrubber picks one. */
  choices() {
    return this.name.flatMap((current, place) => {
      const options = this.options(place);
      if (options.length < 2 || place === this.described.scrub?.part) return [];
      const pick = (option) => {
        this.pick(place, option);
        this.chosen();
      };
      const key = `part ${place}`;
      if (options.length > BUTTONS) return [list(key, "View", options, current, pick)];
      return [buttons(key, options, current, pick)];
    });
  }

  /** A list for the units of each axis that has several; axes of the same units share it. */
  unitPickers() {
    const lists = new Map();
    for (const axis of Object.values(axesOf(this.shown, this.view))) {
      const names = (axis.units ?? []).map((unit) => unit.name);
      const pick = (name) => {
        this.units = [...this.units.filter((one) => !names.includes(one)), name];
        this.lines.cursor = null;
        this.arrange();
        this.chosen();
      };
      if (names.length > 1) lists.set(names.join(), list(`units ${names}`, "Units", names, axis.unit, pick));
    }
    return lists.values();
  }

  /** A switch for each axis that may be linear or logarithmic. */
  switches() {
    const axes = Object.entries(this.view.map ? {} : axesOf(this.shown, this.view));
    return axes.filter(([, axis]) => axis.toggle).map(([name, axis]) => {
      const title = `Logarithmic or linear ${name} axis`;
      return toggle(`${name} log`, title, Boolean(axis.log), () => {
        this.logs = { ...this.logs, [name]: !axis.log };
        this.arrange();
        this.chosen();
      });
    });
  }

  /** Keeps what is shown, to be compared with what comes later. */
  pin() {
    const title = this.pinned ? "Forget A" : "Keep this as A and compare with it what is shown next";
    const button = toggle(this.pinned ? "Unpin" : "Pin", title, Boolean(this.pinned), () => {
      this.pinned = this.pinned ? null : sound(pinnable(this.described));
      this.arrange();
      this.chosen();
    });
    button.dataset.key = "pin";
    return button;
  }

  /** Change to the view with this name at a place, or to the first of those that are most alike. */
  pick(place, option) {
    const wanted = this.name.map((part, index) => (index === place ? option : part));
    const shared = ({ name }) => name.filter((part, index) => part === wanted[index]).length;
    const views = this.described.views.filter(({ name }) => name[place] === option);
    this.name = views.reduce((best, view) => (shared(view) > shared(best) ? view : best)).name;
    this.compose();
  }

  hide(name, show) {
    if (show) this.hidden.delete(name);
    else this.hidden.add(name);
    this.draw();
    this.chosen();
  }

  chosen() {
    const choice = { view: viewName(this), hidden: [...this.hidden] };
    if (this.units.length) choice.units = this.units;
    if (Object.keys(this.logs).length) choice.logs = this.logs;
    const pinned = this.pinned && keepable(this.pinned);
    if (pinned) choice.pinned = pinned;
    this.onChange(choice);
  }

  /** The plot, at the size that there is. */
  draw() {
    this.body.classList.toggle("sd-chart-narrow", this.body.clientWidth < NARROW);
    const size = [this.plot.clientWidth, this.plot.clientHeight];
    if (!this.described || Math.min(...size) < SMALLEST) return;
    // What was composed before it was on the page did not know what lies behind it.
    if (this.background() !== this.paper) return this.compose();
    const { view } = this;
    this.svg.setAttribute("viewBox", `0 0 ${size.join(" ")}`);
    if (view.map) this.map.draw(this.shown, view.map, size);
    else {
      const series = this.series.filter((one) => !this.hidden.has(one.name));
      this.lines.draw(this.shown, view, series, this.hidden, size);
    }
  }

  /** The drawing may be shown larger or smaller than it is, on a canvas that is zoomed. */
  follow(event) {
    if (!this.drawing?.frame) return;
    const box = this.svg.getBoundingClientRect();
    const zoom = this.plot.clientWidth / box.width;
    this.drawing.follow((event.clientX - box.left) * zoom, (event.clientY - box.top) * zoom);
  }

  key(event) {
    if (!this.drawing?.frame) return;
    if (event.key === "Escape" && this.drawing.cursor !== null) this.drawing.point(null);
    else if (!this.drawing.key(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
  }

  async copy() {
    const text = this.drawing?.frame ? this.drawing.csv() : "";
    this.copier.textContent = (await toClipboard(text)) ? "Copied" : "Not allowed";
    setTimeout(() => (this.copier.textContent = "Copy CSV"), 1500);
  }
}
