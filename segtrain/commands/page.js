// What the page of segreport does beyond being read. Texts go in as text, never as HTML.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const $$ = (selector, inside = document) => [...inside.querySelectorAll(selector)];

// ---- light and dark: as the system has it, until the button is pressed
const media = matchMedia("(prefers-color-scheme: dark)");
function setTheme(name) { root.dataset.theme = name; $$(".plot").forEach(restyle); }
media.addEventListener("change", (event) => setTheme(event.matches ? "dark" : "light"));
document.getElementById("theme").addEventListener("click", () =>
  setTheme(root.dataset.theme === "dark" ? "light" : "dark"));

function look() {
  const style = getComputedStyle(root);
  const [ink, grid, paper] = ["--ink", "--grid", "--paper"].map((n) => style.getPropertyValue(n).trim());
  const axis = { gridcolor: grid, zerolinecolor: grid, linecolor: grid, automargin: true };
  return { font: { color: ink, size: 13 }, paper_bgcolor: paper, plot_bgcolor: paper, axis };
}

// ---- plots are drawn when they come near the window, with the settings that are switched on
const CONFIG = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
const on = new Set(data.settings.flatMap((setting, index) => (setting.on ? [index] : [])));
const drawn = new Set();
let smoothing = 0;

function layout(spec) {
  const { axis, ...rest } = look();
  return {
    ...rest, showlegend: false, hovermode: "closest", margin: { l: 56, r: 16, t: 40, b: 46 },
    title: { text: spec.title, font: { size: 15 }, x: 0.02, xanchor: "left" }, ...spec.layout,
    xaxis: { ...axis, ...(spec.layout || {}).xaxis, title: { text: spec.x, standoff: 8 } },
    yaxis: { ...axis, ...(spec.layout || {}).yaxis, title: { text: spec.y, standoff: 8 } },
    uirevision: "kept", // a zoom survives switching runs on and off
  };
}

// The exponential mean of TensorBoard, without its bias to the start.
function smooth(values) {
  let last = 0;
  return values.map((value, index) => {
    last = last * smoothing + (1 - smoothing) * value;
    return last / (1 - Math.pow(smoothing, index + 1));
  });
}

const escaped = (text) => text.replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);

function curves(spec) {
  const traces = [];
  for (const line of spec.lines) {
    if (!on.has(line.s)) continue;
    const color = data.settings[line.s].color;
    const mode = line.x.length === 1 ? "markers" : spec.marks ? "lines+markers" : "lines";
    const base = { x: line.x, mode, name: escaped(line.name), marker: { color, size: 6 }, type: "scatter" };
    if (smoothing > 0 && line.x.length > 1) {
      traces.push({ ...base, y: line.y, mode: "lines", line: { color, width: 1 }, opacity: 0.25, hoverinfo: "skip" });
      traces.push({ ...base, y: smooth(line.y), mode: "lines", line: { color, width: 2 },
        hovertemplate: "%{y:.4f} (smoothed) at %{x}<extra>" + escaped(line.name) + "</extra>" });
    } else {
      traces.push({ ...base, y: line.y, line: { color, width: 2 },
        hovertemplate: "%{y:.4f} at %{x}<extra>" + escaped(line.name) + "</extra>" });
    }
  }
  return traces;
}

function cost(spec) {
  const measure = document.getElementById("cost-of").value;
  spec.x = measure;
  const points = spec.points.filter((point) => on.has(point.s) && point.x[measure] != null);
  return points.map((point) => {
    const { color, name } = data.settings[point.s];
    return {
      type: "scatter", mode: "markers", x: [point.x[measure]], y: [point.y], marker: { size: 11, color },
      error_y: { type: "data", array: [point.sd || 0], visible: true, color, thickness: 1.5, width: 4 },
      hovertemplate: "%{y:.4f}" + (point.sd ? " \u00b1 " + point.sd.toFixed(4) : "") +
        "<br>" + measure + " %{x}<extra>" + escaped(name) + "</extra>",
    };
  });
}

function histogram(spec) {
  return [{ type: "bar", x: spec.at, y: spec.counts, marker: { color: "#4c8dca" },
    hovertemplate: "%{y} images, difference near %{x:.3f}<extra></extra>" }];
}

const MAKERS = { curves, cost, histogram };
function draw(element) {
  const spec = data.plots[element.dataset.plot];
  const traces = MAKERS[spec.kind](spec);
  const plan = layout(spec);
  if (spec.kind === "curves" && document.getElementById("log").checked && spec.loss) plan.yaxis.type = "log";
  drawn.add(element);
  return Plotly.react(element, traces, plan, CONFIG);
}
function restyle(element) { if (drawn.has(element)) draw(element); }
function redraw() { $$(".plot").forEach(restyle); }

const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting && !drawn.has(entry.target)) draw(entry.target);
  }
}, { rootMargin: "300px" });
setTheme(media.matches ? "dark" : "light");
// plotly stands behind this script, so that tables can be used while it is read
addEventListener("load", () => $$(".plot").forEach((element) => near.observe(element)));
addEventListener("beforeprint", () => $$(".plot").forEach(draw));

// ---- settings on and off: the table is the legend
const boxes = $$("input[data-s]");
function switched() {
  on.clear();
  boxes.forEach((box) => { if (box.checked) on.add(Number(box.dataset.s)); });
  redraw();
}
boxes.forEach((box) => box.addEventListener("change", switched));
$$("button[data-show]").forEach((button) => button.addEventListener("click", () => {
  const which = button.dataset.show;
  boxes.forEach((box) => {
    const hidden = box.closest("tr").hidden;
    box.checked = which === "all" ? !hidden : which === "best" ? data.settings[box.dataset.s].on : false;
  });
  switched();
}));
const slider = document.getElementById("smooth");
if (slider) slider.addEventListener("input", () => {
  smoothing = Number(slider.value);
  document.getElementById("smooth-value").textContent = smoothing.toFixed(2);
  redraw();
});
for (const id of ["log", "cost-of"]) {
  const control = document.getElementById(id);
  if (control) control.addEventListener("change", redraw);
}

// ---- tables: sorted by a click on the head, rows chosen by a word
function key(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.v ?? cell.textContent;
  const value = text === "" || text === "-" ? NaN : Number(text);
  return { text, value };
}
$$("th[data-sort]").forEach((head) => head.addEventListener("click", () => {
  const body = head.closest("table").tBodies[0];
  const down = head.getAttribute("aria-sort") !== "descending" ? 1 : -1;
  $$("th", head.closest("tr")).forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down === 1 ? "descending" : "ascending");
  const rows = [...body.rows].map((row) => [row, key(row, head.cellIndex)]);
  rows.sort(([, a], [, b]) => {
    const known = Number(isNaN(a.value)) - Number(isNaN(b.value));
    if (known) return known; // what has no number comes last, either way
    return down * (isNaN(a.value) ? a.text.localeCompare(b.text) : b.value - a.value);
  });
  body.append(...rows.map(([row]) => row));
}));
$$("th[data-sort]").forEach((head) => {
  head.tabIndex = 0;
  head.addEventListener("keydown", (event) => { if (event.key === "Enter") head.click(); });
});
$$("input[type=search]").forEach((field) => field.addEventListener("input", () => {
  const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of document.getElementById(field.dataset.table).tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
}));

// ---- pictures enlarge
const dialog = document.querySelector("dialog");
$$(".row img").forEach((image) => {
  image.tabIndex = 0;
  const open = () => { dialog.replaceChildren(Object.assign(new Image(), { src: image.src, alt: image.alt })); dialog.showModal(); };
  image.addEventListener("click", open);
  image.addEventListener("keydown", (event) => { if (event.key === "Enter") open(); });
});
dialog.addEventListener("click", () => dialog.close());
