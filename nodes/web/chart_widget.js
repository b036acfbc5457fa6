// Puts the chart of chart.js into the nodes that have one; it comes back when their workflow does.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { Chart } from "./chart.js";
import { keepable, kept } from "./chart_described.js";

const NODES = [
  "SpectralDiffusionGateTracePlot",
  "SpectralDiffusionPowerSpectrum",
  "SpectralDiffusionRadialSpectrum",
  "SpectralDiffusionCompareSpectra",
  "SpectralDiffusionDFTDifference",
  "SpectralDiffusionSpectrumEvolution",
  "SpectralDiffusionWienerFilter",
  "SpectralDiffusionFilterCorrelation",
  "SpectralDiffusionDenoiserResponse",
];
const SMALLEST = 340;
/** A node that is new is at least as large, and has so much room for its chart. */
const SIZE = [520, 460];
const ROOM = 420;
/** The node's properties, saved with the workflow, that hold what the person chose and what was shown last. */
const CHOSEN = "spectral_chart";
const SHOWN = "spectral_chart_shown";

/** The nodes that are on some canvas of the page, each with its chart. */
const charts = new Map();

function addChart(node) {
  const onChange = (chosen) => {
    node.properties[CHOSEN] = chosen;
  };
  const chart = new Chart(onChange, { pictureUrl });
  const [width, height] = node.size;
  const widget = node.addDOMWidget("chart", "spectral_chart", chart.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => SMALLEST,
    getValue: () => "",
    setValue: () => {},
  });
  widget.serialize = false;
  node.setSize([Math.max(width, SIZE[0]), Math.max(height + ROOM, SIZE[1])]);
  charts.set(node, chart);
  forward(chart.element);
  after(node, "onExecuted", (output) => {
    show(node, output);
    keep(node, output);
  });
  after(node, "onConfigure", () => remember(node));
  after(node, "onRemoved", () => {
    chart.dispose();
    charts.delete(node);
  });
}

function after(object, name, then) {
  const before = object[name];
  object[name] = function (...given) {
    const result = before?.apply(this, given);
    then(...given);
    return result;
  };
}

function pictureUrl({ filename, subfolder, type }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

/** Nodes that were not asked anew send nothing: their chart stays. */
function show(node, output) {
  const described = output?.spectral_chart?.[0];
  const chart = charts.get(node);
  if (described && chart) chart.show(described, node.properties?.[CHOSEN]);
}

/** Save what is shown with the workflow, if it is small; what has not changed is left alone. */
function keep(node, output) {
  const described = output?.spectral_chart?.[0];
  if (!described) return;
  const small = keepable(described);
  if (!small) delete node.properties[SHOWN];
  else if (JSON.stringify(small) !== JSON.stringify(node.properties[SHOWN])) node.properties[SHOWN] = small;
}

/** Show what was saved with the workflow, until the node runs again. */
function remember(node) {
  const described = kept(node.properties?.[SHOWN]);
  if (described) charts.get(node)?.show(described, node.properties[CHOSEN]);
}

/** Show what the page still knows of earlier runs; a node within a subgraph is known by that one's id as well. */
function restore() {
  for (const node of charts.keys()) {
    const { graph, id } = node;
    const within = graph?.rootGraph && graph.rootGraph !== graph;
    show(node, app.nodeOutputs?.[within ? `${graph.id}:${id}` : id]);
  }
}

/** The wheel zooms the canvas and the middle button moves it, as everywhere else on a node. */
function forward(element) {
  const rendered = () => globalThis.LiteGraph?.vueNodesMode;
  element.addEventListener("wheel", (event) => {
    if (rendered()) return;
    event.preventDefault();
    app.canvas.processMouseWheel(event);
  });
  const middle = { pointerdown: "processMouseDown", pointermove: "processMouseMove", pointerup: "processMouseUp" };
  for (const [name, method] of Object.entries(middle)) {
    element.addEventListener(name, (event) => {
      if (event.button === 1 || event.buttons & 4) app.canvas[method](event);
    });
  }
}

app.registerExtension({
  name: "SpectralDiffusion.Chart",
  init() {
    const href = new URL("./chart.css", import.meta.url).href;
    document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href }));
  },
  nodeCreated(node) {
    if (NODES.includes(node.comfyClass ?? node.type) && node.addDOMWidget) addChart(node);
  },
  afterConfigureGraph: restore,
  onNodeOutputsUpdated: restore,
});
