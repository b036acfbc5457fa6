// The elements that a chart is put together from.

/** An element of the page; text is text, whatever it holds. */
export function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "circle", "rect", "text", "title"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** The `d` of a path through points [x, y]. */
export const path = (points) => `M${points.map(([x, y]) => `${x.toFixed(2)},${y.toFixed(2)}`).join("L")}`;

export const dot = (cx, cy, r, fill) => make("circle", { cx: cx.toFixed(2), cy: cy.toFixed(2), r, fill });

/** Choices side by side, of which one is pressed; `key` names the group, so that its focus can be given back. */
export function buttons(key, options, current, pick) {
  const group = make("div", { class: "sd-chart-buttons", role: "group" });
  for (const option of options) {
    const pressed = { "aria-pressed": option === current, "data-key": `${key} ${option}` };
    const button = make("button", { type: "button", ...pressed }, option);
    button.addEventListener("click", () => pick(option));
    group.append(button);
  }
  return group;
}

/** Choices in a list that opens. */
export function list(key, label, options, current, pick) {
  const choices = options.map((option) => make("option", {}, option));
  const select = make("select", { "aria-label": label, "data-key": key }, ...choices);
  select.value = current;
  select.addEventListener("change", () => pick(select.value));
  return select;
}

/** A button that is pressed or not. */
export function toggle(text, title, pressed, then) {
  const button = make("button", { type: "button", title, "aria-pressed": pressed, "data-key": text }, text);
  button.addEventListener("click", then);
  return button;
}

/** Put other elements into a parent; the one of the focused one's key has the focus again. */
export function refill(parent, elements) {
  const { activeElement } = document;
  const key = parent.contains(activeElement) ? activeElement.dataset.key : null;
  parent.replaceChildren(...elements);
  if (key) [...parent.querySelectorAll("[data-key]")].find((one) => one.dataset.key === key)?.focus();
}

/** A picture with its caption, hidden until it has come; pictures of earlier days may be gone from the server. */
export class Figure {
  constructor() {
    this.image = make("img", { draggable: "false" });
    this.caption = make("figcaption");
    this.element = make("figure", { class: "sd-chart-figure", hidden: "" }, this.caption, this.image);
    this.image.addEventListener("error", () => (this.element.hidden = true));
    this.image.addEventListener("load", () => {
      this.element.hidden = false;
      this.image.classList.toggle("sd-chart-enlarged", this.image.naturalWidth < this.image.clientWidth);
    });
  }

  /** Show what is at an address; null: nothing. */
  show(url, caption = "") {
    this.image.alt = caption;
    this.caption.textContent = caption;
    if (!url) {
      this.element.hidden = true;
      this.image.removeAttribute("src");
    } else if (this.image.getAttribute("src") !== url) this.image.setAttribute("src", url);
  }
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
