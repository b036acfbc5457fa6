// The elements that a chart is put together from.

/** An element of the page; text is text, whatever it holds. */
export function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "circle", "rect", "text"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** The `d` of a path through points [x, y]. */
export const path = (points) => `M${points.map(([x, y]) => `${x.toFixed(2)},${y.toFixed(2)}`).join("L")}`;

export const dot = (cx, cy, r, fill) => make("circle", { cx: cx.toFixed(2), cy: cy.toFixed(2), r, fill });

/** Choices side by side, of which one is pressed. */
export function buttons(options, current, pick) {
  const group = make("div", { class: "sd-chart-buttons", role: "group" });
  for (const option of options) {
    const button = make("button", { type: "button", "aria-pressed": option === current }, option);
    button.addEventListener("click", () => pick(option));
    group.append(button);
  }
  return group;
}

/** Choices in a list that opens. */
export function list(options, current, pick) {
  const select = make("select", { "aria-label": "View" }, ...options.map((option) => make("option", {}, option)));
  select.value = current;
  select.addEventListener("change", () => pick(select.value));
  return select;
}

/** Whether the text could be copied; pages that came neither by https nor from localhost may only copy a selection. */
export async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.body.appendChild(make("textarea", { style: "position: fixed; opacity: 0" }));
    area.value = text;
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
