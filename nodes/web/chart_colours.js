// The colours of charts: of lines, which must be told from what lies behind them, and of maps.
// The tables are those of spectral/colours.py.

/** Okabe and Ito's colours. */
export const OKABE_ITO = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];
/** For maps, from low to high. */
export const VIRIDIS = [
  ...["#440154", "#482878", "#3e4989", "#31688e", "#26828e"],
  ...["#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"],
];
/** For maps around zero, blue below it and orange above. */
export const DIVERGING = [
  ...["#00497d", "#0072B2", "#73b2d9", "#c9dfee", "#f7f7f7"],
  ...["#f6d9c0", "#eda36a", "#D55E00", "#913f00"],
];

/** Lines need this much contrast with what lies behind them (WCAG 2.1, graphical objects). */
const CONTRAST = 3;
/** Black and white are ink: on the other kind of background they change places. */
const INK = 10;
const HEX = /^#[0-9a-f]{6}$/i;

const channels = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

/** What a series' `colour` is: a colour of six hex digits is itself, a number a place in the palette. */
export function lineColour(colour) {
  return HEX.test(colour) ? colour : OKABE_ITO[colour % OKABE_ITO.length];
}

/** [r, g, b] at a part, 0 to 1, of the way from the first anchor to the last; parts outside are at the ends. */
export function between(anchors, part) {
  const at = Math.min(Math.max(part, 0), 1) * (anchors.length - 1);
  const index = Math.min(Math.floor(at), anchors.length - 2);
  const [from, to] = [channels(anchors[index]), channels(anchors[index + 1])];
  return from.map((value, channel) => value + (at - index) * (to[channel] - value));
}

/** A colour of six hex digits, moved to white or black until it can be told from the background [r, g, b]. */
export function readable(colour, background) {
  const base = channels(colour);
  const goal = luminance(background) < 0.18 ? 255 : 0;
  const least = base.every((value) => value === 255 - goal) ? INK : CONTRAST;
  for (let part = 0; part < 1; part += 0.05) {
    const mixed = base.map((value) => Math.round(value + part * (goal - value)));
    if (contrast(mixed, background) >= least) return `rgb(${mixed.join(", ")})`;
  }
  return goal ? "rgb(255, 255, 255)" : "rgb(0, 0, 0)";
}

/** WCAG's ratio of two colours, 1 to 21. */
export function contrast(one, other) {
  const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
}

function luminance(rgb) {
  const [red, green, blue] = rgb.map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}
