"use strict";
/* The matrix of similarities, drawn by Plotly in the page's own colours. */

/** (N, N) rows of numbers from base64 of little-endian int16 ten-thousandths. */
function unpackSimilarities(packed, count) {
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const cell = (row, column) => view.getInt16(2 * (row * count + column), true) / 10000;
  return Array.from({ length: count }, (_, row) =>
    Array.from({ length: count }, (__, column) => cell(row, column)));
}

/** Plotly reads a little HTML in labels; ids and file names are not meant as such. */
function plotText(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

/** The end of a label tells persons of one video apart. */
function shortLabel(label) {
  return label.length > 14 ? `…${label.slice(-13)}` : label;
}

/** As many labels as fit in `pixels`, evenly spread; upright where they would overlap. */
function ticks(labels, pixels) {
  const step = Math.max(1, Math.ceil((labels.length * 15) / pixels));
  const shown = labels.filter((_, i) => i % step === 0);
  const short = shown.map(shortLabel);
  const widest = Math.max(...short.map((label) => 7 * label.length + 4));
  return {
    tickmode: "array", tickvals: shown.map(plotText), ticktext: short.map(plotText),
    tickangle: widest > (pixels * step) / labels.length ? -90 : 0,
  };
}

/** Cool below the threshold, warm above it, with a step between: the eye finds what is listed. */
function colourScale(low, threshold, colour) {
  const at = (threshold - low) / (1 - low);
  if (at <= 0) return [[0, colour("--heat-2")], [1, colour("--heat-3")]];
  if (at >= 1) return [[0, colour("--heat-0")], [1, colour("--heat-1")]];
  return [
    [0, colour("--heat-0")], [at, colour("--heat-1")],
    [at, colour("--heat-2")], [1, colour("--heat-3")],
  ];
}

/** The values named on the colour bar; those too close to the one before are left out. */
function colourMarks(low, threshold) {
  const values = [low, (low + threshold) / 2, threshold, 1];
  return values.filter((value, i) => i === 0 || value - values[i - 1] > 0.08);
}

function heatmapTrace(rows, labels, threshold, colour) {
  const names = labels.map(plotText);
  const low = rows.some((row) => row.some((value) => value < 0)) ? -1 : 0;
  const marks = colourMarks(low, threshold);
  const gap = labels.length > 60 ? 0 : 1;
  const markText = (value) =>
    (value === threshold ? `threshold ${value.toFixed(2)}` : value.toFixed(2));
  return {
    type: "heatmap", x: names, y: names, z: rows, zmin: low, zmax: 1, xgap: gap, ygap: gap,
    colorscale: colourScale(low, threshold, colour),
    hovertemplate: "%{y} and %{x}<br>cosine similarity %{z:.3f}<extra></extra>",
    colorbar: {
      orientation: "h", x: 0.5, y: 1.01, yanchor: "bottom", ypad: 8, len: 1, thickness: 10,
      outlinewidth: 0, title: { text: "cosine similarity", side: "top", font: { size: 12 } },
      tickvals: marks, ticktext: marks.map(markText), tickfont: { size: 11 },
    },
  };
}

/** A cross on each pair that a veto rules out; a halo beneath makes it visible on every cell. */
function vetoTraces(vetoed, labels, colour) {
  const names = labels.map(plotText);
  const both = vetoed.flatMap(([a, b]) => [[a, b], [b, a]]);
  const size = labels.length > 25 ? 5 : 8;
  return [["--surface", 4], ["--ink", 1.5]].map(([name, width]) => ({
    type: "scatter", mode: "markers", hoverinfo: "skip", showlegend: false,
    x: both.map(([a]) => names[a]), y: both.map(([, b]) => names[b]),
    marker: { symbol: "x-thin", size, line: { width, color: colour(name) } },
  }));
}

function heatmapLayout(labels, pixels, colour) {
  const axis = {
    type: "category", automargin: true, showgrid: false, zeroline: false, ticks: "",
    fixedrange: true, tickfont: { size: 11 }, ...ticks(labels, pixels),
  };
  return {
    autosize: true, margin: { l: 24, r: 8, t: 8, b: 24 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, color: colour("--muted") },
    hoverlabel: {
      bgcolor: colour("--surface"), bordercolor: colour("--line"),
      font: { color: colour("--ink"), size: 13 },
    },
    // Ranges are set, since crosses at the edge would make Plotly leave a margin.
    xaxis: { ...axis, range: [-0.5, labels.length - 0.5] },
    yaxis: { ...axis, tickangle: 0, ticksuffix: " ", range: [labels.length - 0.5, -0.5] },
  };
}

/** Draw into `target`, again at each change of theme or width. `onPick(i, j)` gets the row and the
 * column of a clicked cell. Returns a function that draws other values. */
function drawHeatmap(target, first) {
  let shown = first;
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const draw = () => {
    const { rows, labels, threshold, vetoed } = shown;
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const data = [heatmapTrace(rows, labels, threshold, colour)];
    if (vetoed.length) data.push(...vetoTraces(vetoed, labels, colour));
    const layout = heatmapLayout(labels, target.clientWidth - 80, colour);
    return Plotly.react(target, data, layout, { displayModeBar: false, responsive: true });
  };
  let width = target.clientWidth;
  draw().then(() => target.on("plotly_click", (event) => {
    const [row, column] = event.points[0].pointIndex || event.points[0].pointNumber;
    shown.onPick(row, column);
  }));
  scheme.addEventListener("change", draw);
  new ResizeObserver(() => {
    if (target.clientWidth === width) return;
    width = target.clientWidth;
    draw();
  }).observe(target);
  return (next) => {
    shown = next;
    draw();
  };
}
