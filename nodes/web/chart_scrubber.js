// A slider through the steps of a chart, which can also play.
import { make } from "./chart_parts.js";

/** Milliseconds that each step is shown while it plays. */
const PACE = 250;
const SHAPES = {
  previous: "M9,2 L4,6 L9,10Z",
  next: "M3,2 L8,6 L3,10Z",
  play: "M3,1.5 L10.5,6 L3,10.5Z",
  pause: "M2.5,2H5V10H2.5Z M7,2H9.5V10H7Z",
};

export class Scrubber {
  /**
   * It never plays unasked, whether or not the person prefers reduced motion.
   * @param pick called with the name of each step that is to be shown; @param settle called when it is the last one.
   */
  constructor(pick, settle) {
    Object.assign(this, { pick, settle, names: [], playing: null });
    this.range = make("input", { type: "range", min: 0, step: 1 });
    this.range.addEventListener("input", () => this.go(Number(this.range.value), false));
    this.range.addEventListener("change", () => this.settle());
    const step = (name, by) => this.button(name, () => this.go(this.at + by));
    this.before = step("previous", -1);
    this.after = step("next", 1);
    this.player = this.button("play", () => (this.playing ? this.stop() : this.play()));
    this.name = make("span", { class: "sd-chart-step" });
    const parts = [this.player, this.before, this.range, this.after, this.name];
    this.element = make("div", { class: "sd-chart-scrub", role: "group" }, ...parts);
    // Keys that move the slider mean other things to the page around it.
    this.element.addEventListener("keydown", (event) => event.key === "Tab" || event.stopPropagation());
  }

  button(name, then) {
    const button = make("button", { type: "button" });
    button.addEventListener("click", then);
    this.face(button, name);
    return button;
  }

  /** What the button does, as a shape and as a word. */
  face(button, name) {
    const word = name[0].toUpperCase() + name.slice(1);
    button.setAttribute("aria-label", word);
    button.setAttribute("title", word);
    button.replaceChildren(make("svg", { viewBox: "0 0 12 12" }, make("path", { d: SHAPES[name] })));
  }

  /** Offer these steps, of which one is shown. */
  update(label, names, current) {
    Object.assign(this, { names, at: names.indexOf(current) });
    this.range.max = names.length - 1;
    this.range.value = this.at;
    this.range.setAttribute("aria-label", label || "Step");
    this.range.setAttribute("aria-valuetext", current);
    this.name.textContent = `${label} ${current}`.trim();
    this.name.title = this.name.textContent;
    this.before.disabled = this.at <= 0;
    this.after.disabled = this.at >= names.length - 1;
  }

  go(at, last = true) {
    if (this.names[at] === undefined) return;
    if (this.playing && last) this.stop();
    this.pick(this.names[at]);
    if (last) this.settle();
  }

  /** One step after the other, from here or, at the end, from the beginning; stops at the end. */
  play() {
    if (this.names.length < 2) return;
    this.face(this.player, "pause");
    if (this.at >= this.names.length - 1) this.go(0, false);
    this.playing = setInterval(() => {
      if (this.at < this.names.length - 1) this.go(this.at + 1, false);
      if (this.at >= this.names.length - 1) this.stop();
    }, PACE);
  }

  stop() {
    if (!this.playing) return;
    this.halt();
    this.settle();
  }

  /** Stop without a word: what it played through is gone. */
  halt() {
    clearInterval(this.playing);
    this.playing = null;
    this.face(this.player, "play");
  }
}
