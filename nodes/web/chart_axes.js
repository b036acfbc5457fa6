// The frame of a plot: where it lies, its axes with ticks and labels, and what is read beside them.
import { shortened, tickText } from "./chart_numbers.js";
import { make } from "./chart_parts.js";

/** In pixels: space above and beside the frame, and below it for ticks and label; room that one tick takes. */
const MARGIN = { top: 26, right: 16, bottom: 40 };
const TICK = { x: 76, y: 34 };
/** More ticks than this help nobody. */
const TICKS = 8;
/** The width of a digit, in pixels. */
export const CHARACTER = 6.6;

export const half = (value) => Math.round(value) + 0.5;

/** How many ticks there is room for along so many pixels. */
export const ticksFor = (name, pixels) => Math.min(pixels / TICK[name], TICKS);

/** The widest of the ticks' texts, in pixels. */
export const widest = (axis) => CHARACTER * Math.max(...axis.ticks.map((tick) => tickText(tick, axis.log).length), 2);

/**
 * Where a plot lies in a drawing of this size, in whole pixels, and how its values become places.
 * @param makeY, makeX the axes for so many ticks.
 * @param beside pixels that are left free on the right.
 * @returns width and height of the drawing; left, top, right, bottom; axes x and y; start, where the y axis' label
 *   begins; toX and toY, pixels from the frame's upper left corner.
 */
export function makeFrame([width, height], makeX, makeY, beside = 0) {
  const [top, bottom] = [MARGIN.top, height - MARGIN.bottom];
  const frame = { width, height, start: 8, top, bottom, right: Math.round(width - MARGIN.right - beside) };
  frame.y = makeY(ticksFor("y", frame.bottom - frame.top));
  frame.left = Math.round(16 + widest(frame.y));
  frame.x = makeX(ticksFor("x", frame.right - frame.left));
  frame.toX = (value) => frame.x.place(value) * (frame.right - frame.left);
  frame.toY = (value) => (1 - frame.y.place(value)) * (frame.bottom - frame.top);
  return frame;
}

/** Ticks, with lines through the frame or short ones outside of it, their numbers, labels and the frame's edge. */
export function drawAxes(frame, { through = true } = {}) {
  const { left, right, top, bottom } = frame;
  const group = make("g", { class: "sd-chart-axes" });
  for (const tick of frame.x.ticks) {
    const at = half(left + frame.toX(tick));
    group.append(make("line", { x1: at, x2: at, y1: through ? top : bottom, y2: through ? bottom : bottom + 4 }));
    group.append(below(frame, at, tickText(tick, frame.x.log)));
  }
  for (const tick of frame.y.ticks) {
    const at = half(top + frame.toY(tick));
    group.append(make("line", { x1: through ? left : left - 4, x2: through ? right : left, y1: at, y2: at }));
    group.append(make("text", { x: left - 7, y: at + 4, "text-anchor": "end" }, tickText(tick, frame.y.log)));
  }
  const edge = `M${half(left)},${top}V${half(bottom)}H${right}`;
  group.append(make("path", { d: edge, class: "sd-chart-edge" }));
  const middle = { x: (left + right) / 2, y: bottom + 34, "text-anchor": "middle" };
  const across = 2 * Math.min(middle.x, frame.width - middle.x) - 8;
  group.append(label(middle, frame.x.label, across));
  group.append(label({ x: frame.start, y: 14 }, frame.y.label, frame.width - frame.start));
  return group;
}

/** A label that is cut where it is longer than so many pixels; then it says all of itself to who points at it. */
export function label(place, text, pixels) {
  const cut = shortened(text, Math.floor(pixels / CHARACTER));
  const element = make("text", { class: "sd-chart-label", ...place }, cut);
  if (cut !== text) element.append(make("title", {}, text));
  return element;
}

/** A number under the axis, moved as far as it must be to stay on the drawing. */
function below(frame, at, text) {
  const most = frame.width - (CHARACTER * text.length) / 2;
  return make("text", { x: Math.min(at, most), y: frame.bottom + 16, "text-anchor": "middle" }, text);
}

/** The x that is read, on its axis. */
export function chip(frame, at, text) {
  const width = 14 + CHARACTER * text.length;
  const x = Math.min(Math.max(at, width / 2), frame.width - width / 2);
  return boxed(x, frame.bottom + 3, width, text);
}

/** The y that is read, on its axis. */
export function sideChip(frame, at, text) {
  const width = 10 + CHARACTER * text.length;
  return boxed(Math.max(frame.left - 2 - width / 2, width / 2), at - 9, width, text);
}

function boxed(x, y, width, text) {
  const box = make("rect", { class: "sd-chart-chip", x: x - width / 2, y, width, height: 18, rx: 4 });
  return [box, make("text", { x, y: y + 13, "text-anchor": "middle" }, text)];
}
