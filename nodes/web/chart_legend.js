// The names of a chart's lines, which hide and show them, and where their values are read.
import { make } from "./chart_parts.js";

export class Legend {
  /** @param toggled called with a line's name and whether it is to be shown. */
  constructor(toggled) {
    this.toggled = toggled;
    this.element = make("div", { class: "sd-chart-legend" });
    this.values = new Map();
  }

  /** One entry for each name among the series. */
  update(series, hidden) {
    this.values.clear();
    const first = series.filter((one, index) => series.findIndex(({ name }) => name === one.name) === index);
    this.element.replaceChildren(...first.map((one) => this.entry(one, !hidden.has(one.name))));
  }

  entry(one, shown) {
    const kind = one.pinned ? " sd-chart-pinned" : one.dashed ? " sd-chart-dashed" : "";
    const sample = make("span", { class: `sd-chart-sample${kind}` });
    sample.style.color = one.stroke;
    const value = make("span", { class: "sd-chart-value" });
    const button = make("button", { type: "button", "aria-pressed": shown, title: "Show or hide this line" });
    button.append(sample, make("span", { class: "sd-chart-name", title: one.name }, one.name), value);
    button.addEventListener("click", () => {
      const show = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", show);
      this.toggled(one.name, show);
    });
    this.values.set(one.name, value);
    return button;
  }

  /** Write values, a Map, beside the names. */
  read(values) {
    for (const [name, element] of this.values) element.textContent = values.get(name) ?? "";
  }
}
