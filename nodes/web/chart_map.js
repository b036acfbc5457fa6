// The drawing of a view's heat map, with its colour bar, and the reading of its cells.
import { chip, drawAxes, half, label, makeFrame, sideChip, ticksFor, widest } from "./chart_axes.js";
import { between, DIVERGING, VIRIDIS } from "./chart_colours.js";
import * as numbers from "./chart_numbers.js";
import { make } from "./chart_parts.js";

/** In pixels: the colour bar, from the map to its label on the right. */
const BAR = { gap: 14, width: 14, text: 7, label: 24 };
/** Greys of the hatch where a map has no value, and its width in pixels. */
const HATCH = { colours: [[128, 128, 128], [160, 160, 160]], width: 3 };
const SHADES = 1024;
/** Less of a map than this, in pixels, shows nothing. */
const SMALLEST = 16;
/** Rows up and columns to the right that a key moves by, as they are drawn. */
const STEPS = {
  ...{ ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] },
  ...{ PageUp: [-10, 0], PageDown: [10, 0], Home: [0, -Infinity], End: [0, Infinity] },
};

export class HeatMap {
  /**
   * @param svg what axes are drawn in; @param canvas beneath it, for the cells.
   * @param write called with what is read: a short text to be seen and a sentence to be heard.
   */
  constructor(svg, canvas, write) {
    Object.assign(this, { svg, canvas, write, cursor: null });
  }

  /** @param described, map converted. */
  draw(described, map, size) {
    this.map = map;
    const [low, high] = scaleOf(described, map);
    this.colours = shades(map.diverging ? DIVERGING : VIRIDIS);
    this.scale = numbers.makeAxis({ low, high }, [[low, high]], ticksFor("y", size[1] - 66), false);
    this.frame = mapFrame(map, size, BAR.gap + BAR.width + BAR.text + widest(this.scale) + BAR.label);
    const { left, right, top, bottom } = this.frame;
    this.pointer = Math.min(right - left, bottom - top) < SMALLEST ? null : make("g", { class: "sd-chart-pointer" });
    this.svg.replaceChildren(...(this.pointer ? [this.axes(), this.pointer] : []));
    this.paint(size);
    this.point(this.cursor);
  }

  csv() {
    const { x, y, label: name, values } = this.map;
    const [columns, rows] = [values[0].length, values.length];
    const xs = values[0].map((_, column) => this.frame.x.at((column + 0.5) / columns));
    const ys = values.map((_, row) => this.frame.y.at(1 - (row + 0.5) / rows));
    return numbers.mapCsv([x.label, y.label, name], xs, ys, values);
  }

  /** The colour bar's left edge. */
  get bar() {
    return this.frame.right + BAR.gap;
  }

  axes() {
    const { left, right, top, bottom } = this.frame;
    const group = drawAxes(this.frame, { through: false });
    const box = { class: "sd-chart-frame", height: bottom - top, y: top };
    group.append(make("rect", { ...box, x: left, width: right - left }));
    group.append(make("rect", { ...box, x: this.bar, width: BAR.width }));
    const beside = this.bar + BAR.width;
    for (const tick of this.scale.ticks) {
      const at = half(bottom - this.scale.place(tick) * (bottom - top));
      group.append(make("line", { x1: beside, x2: beside + 4, y1: at, y2: at }));
      group.append(make("text", { x: beside + BAR.text, y: at + 4 }, numbers.tickText(tick, false)));
    }
    const x = beside + BAR.text + widest(this.scale) + BAR.label - 8;
    const y = (top + bottom) / 2;
    const turned = { x, y, "text-anchor": "middle", transform: `rotate(-90 ${x} ${y})` };
    group.append(label(turned, this.map.label, 2 * Math.min(y, this.frame.height - y) - 4));
    return group;
  }

  /** Cells and colour bar, in the screen's own pixels. */
  paint([width, height]) {
    const ratio = globalThis.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const context = this.canvas.getContext("2d");
    if (!this.pointer) return;
    const { left, right, top, bottom } = this.frame;
    const part = (value) => this.scale.place(value);
    const put = (values, x, to) => {
      const [x0, x1, y0, y1] = [x, to, top, bottom].map((edge) => Math.round(edge * ratio));
      const drawn = numbers.resampled(values, x1 - x0, y1 - y0);
      context.putImageData(new ImageData(this.pixels(drawn, x1 - x0, part, ratio), x1 - x0, y1 - y0), x0, y0);
    };
    put(this.map.values, left, right);
    const { low, high } = this.scale;
    const steps = bottom - top;
    const bar = Array.from({ length: steps }, (_, row) => [high - ((row + 0.5) / steps) * (high - low)]);
    put(bar, this.bar, this.bar + BAR.width);
  }

  pixels(values, width, part, ratio) {
    const pixels = new Uint8ClampedArray(4 * values.length);
    const stripe = HATCH.width * ratio;
    values.forEach((value, index) => {
      const along = Math.floor(((index % width) + Math.floor(index / width)) / stripe);
      const shade = Math.round(Math.min(Math.max(part(value), 0), 1) * (SHADES - 1));
      pixels.set(Number.isNaN(value) ? HATCH.colours[along % 2] : this.colours[shade], 4 * index);
      pixels[4 * index + 3] = 255;
    });
    return pixels;
  }

  follow(x, y) {
    const { left, right, top, bottom } = this.frame;
    const column = Math.floor(((x - left) / (right - left)) * this.map.values[0].length);
    const row = Math.floor(((y - top) / (bottom - top)) * this.map.values.length);
    this.point(this.map.values[row]?.[column] === undefined ? null : [row, column]);
  }

  /** Whether the key means something. */
  key(name) {
    if (!(name in STEPS)) return false;
    const [rows, columns] = [this.map.values.length, this.map.values[0].length];
    const [down, along] = STEPS[name];
    const within = (at, count) => Math.min(Math.max(at, 0), count - 1);
    const [row, column] = this.cursor ?? [Math.floor(rows / 2), Math.floor(columns / 2)];
    this.point(this.cursor ? [within(row + down, rows), within(column + along, columns)] : [row, column]);
    return true;
  }

  /** Mark the cell [row, column] and write its numbers; null: nothing. */
  point(cell) {
    const { values } = this.map ?? {};
    this.cursor = values?.[cell?.[0]]?.[cell?.[1]] === undefined ? null : cell;
    this.pointer?.replaceChildren();
    if (!this.cursor || !this.pointer) {
      this.write("", "");
      return;
    }
    const { frame } = this;
    const [row, column] = cell;
    const [down, along] = [(row + 0.5) / values.length, (column + 0.5) / values[0].length];
    const [x, y, value] = [frame.x.at(along), frame.y.at(1 - down), values[row][column]].map(numbers.valueText);
    this.pointer.append(...this.outline(row, column));
    this.pointer.append(...chip(frame, frame.left + along * (frame.right - frame.left), x));
    this.pointer.append(...sideChip(frame, frame.top + down * (frame.bottom - frame.top), y));
    const [across, up] = [`${x} ${frame.x.unit}`.trim(), `${y} ${frame.y.unit}`.trim()];
    this.write(
      `${across}, ${up}: ${value}`,
      `${frame.x.label} ${x}, ${frame.y.label} ${y}: ${this.map.label} ${value}`,
    );
  }

  /** Around a cell, in two colours of which one can be seen on any third; and its place in the colour bar. */
  outline(row, column) {
    const { left, right, top, bottom } = this.frame;
    const [wide, high] = [(right - left) / this.map.values[0].length, (bottom - top) / this.map.values.length];
    const cell = { x: left + column * wide, y: top + row * high, width: wide, height: high };
    const outer = { x: cell.x - 1, y: cell.y - 1, width: wide + 2, height: high + 2 };
    const kinds = { "sd-chart-around": outer, "sd-chart-cell": cell };
    const rects = Object.entries(kinds).map(([name, place]) => make("rect", { ...place, class: name }));
    const value = this.map.values[row][column];
    if (value === null) return rects;
    const at = half(bottom - Math.min(Math.max(this.scale.place(value), 0), 1) * (bottom - top));
    return [...rects, make("line", { x1: this.bar - 3, x2: this.bar + BAR.width + 3, y1: at, y2: at })];
  }
}

/** Colours of a map's scale, [r, g, b] each. */
function shades(anchors) {
  return Array.from({ length: SHADES }, (_, index) => between(anchors, index / (SHADES - 1)));
}

/** The ends of the colours: the map's own, or around all maps of the same label; around zero where they diverge. */
function scaleOf(described, map) {
  const peers = described.views.map((view) => view.map).filter((one) => one?.label === map.label);
  const found = numbers.extent(peers.flatMap((one) => one.values)) ?? [0, 1];
  const [low, high] = [map.low ?? found[0], map.high ?? found[1]];
  const most = Math.max(Math.abs(low), Math.abs(high)) || 1;
  if (map.diverging) return [-most, most];
  return low < high ? [low, high] : [low - most / 10, low + most / 10];
}

/** Where the map lies: as large as there is room, or with both axes at one scale where it is to be `square`. */
function mapFrame(map, size, beside) {
  const frame = makeFrame(size, (count) => axis(map.x, count), (count) => axis(map.y, count), beside);
  if (!map.square) return frame;
  const cells = [map.values[0].length, map.values.length];
  const spreads = map.x.log || map.y.log ? cells : [map.x, map.y].map(({ low, high }) => high - low);
  const room = [frame.right - frame.left, frame.bottom - frame.top];
  const one = Math.min(room[0] / spreads[0], room[1] / spreads[1]);
  const [wide, high] = spreads.map((spread) => Math.round(one * spread));
  frame.start += Math.round((room[0] - wide) / 2);
  frame.left += Math.round((room[0] - wide) / 2);
  [frame.right, frame.bottom] = [frame.left + wide, frame.top + high];
  [frame.x, frame.y] = [axis(map.x, ticksFor("x", wide)), axis(map.y, ticksFor("y", high))];
  return frame;
}

const axis = (described, count) => numbers.makeAxis(described, [[described.low, described.high]], count, false);
