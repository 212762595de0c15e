// The page's switches, chart, card and tables. Text of a study only ever becomes text: textContent, never HTML.
const report = JSON.parse(document.getElementById("report").textContent);
const $ = (id) => document.getElementById(id);
const hidden = new Set();  // numbers of series
let shown = [];  // the chart's runs, from left to right
let at = -1;  // which of them the arrow keys are at
let view = null;

// ast: Vega makes no functions from text. logLevel: errors alone, for it would warn of each layer that is empty now.
const OPTIONS = { actions: false, renderer: "svg", ast: true, logLevel: 1 };

function element(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function short(number, scientific = false) {
  if (number == null) return "";
  if (scientific) return number.toPrecision(3).replace("e+", "e");
  for (const [size, letter] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]])
    if (number >= size) return `${Number((number / size).toPrecision(3))}${letter}`;
  return String(Number(number.toPrecision(4)));
}

const percent = (metric) => metric.includes("accuracy") || metric === "error";
// Three digits of what is near 0 or 100 %: 0.29 %, 99.14 %. The sum takes off what binary fractions leave below a half.
const decimals = (value) => Math.min(value, 100 - value) < 1 ? 2 : 1;
const written = (value, metric) => percent(metric) ? `${(value + 1e-9).toFixed(decimals(value))} %` : value.toPrecision(3);
// An error is drawn from the accuracies, in percent as they are.
const stored = (metric) => metric === "error" ? "accuracy" : metric;
const scaled = (value, metric) => metric === "error" ? 100 * (1 - value) : percent(metric) ? 100 * value : value;

// Switches

function fill(select, choices, keep = select.value) {
  select.replaceChildren(...choices.map(({ key, title }) => element("option", title, { value: key })));
  if (choices.some(({ key }) => String(key) === keep)) select.value = keep;
  select.parentElement.hidden = choices.length < 2;
}

function fillTasks() {
  const metric = stored($("metric").value);
  const measures = report.measures.map(({ title, metric }, key) => ({ key, title, metric }));
  fill($("task"), measures.filter((measure) => measure.metric === metric));
}

const sizesOf = (key) => {
  const sizes = [...new Set(report.runs.map((run) => run[key]))].filter((size) => size != null).sort((a, b) => a - b);
  return [{ key: "", title: "all" }, ...sizes.map((size) => ({ key: size, title: short(size) }))];
};

function setUp() {
  fill($("metric"), report.metrics);
  fillTasks();
  fill($("x"), report.axes);
  fill($("counting"), report.countings);
  for (const [id, key] of [["images", "examples"], ["seen", "examples_seen"]]) {
    const sizes = sizesOf(key);
    fill($(id), sizes.length > 2 ? sizes : sizes.slice(0, 1));
  }
  for (const id of ["task", "counting", "images", "seen", "ylog"]) $(id).addEventListener("change", draw);
  $("xlog").addEventListener("change", draw);
  $("metric").addEventListener("change", () => { fillTasks(); draw(); });
  $("x").addEventListener("change", () => { $("xlog").checked = axis().log; draw(); });
  $("xlog").checked = axis().log;
  $("legend").replaceChildren(...report.series.map(legendEntry), ...(report.theirs.length ? [theirsEntry()] : []));
}

const metricTitle = () => report.metrics.find(({ key }) => key === $("metric").value).title;
const axis = () => report.axes.find(({ key }) => key === $("x").value);

function legendEntry(series, number) {
  const box = element("input", "", { type: "checkbox" });
  box.checked = true;
  box.addEventListener("change", () => {
    if (box.checked) hidden.delete(number); else hidden.add(number);
    draw();
  });
  const entry = element("label");
  entry.append(box, swatch(series), element("span", series.name));
  return entry;
}

function swatch({ color, tint, shape, dash }) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const add = (tag, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    svg.append(made);
  };
  for (const [name, value] of [["width", 30], ["height", 12], ["viewBox", "-15 -6 30 12"], ["aria-hidden", "true"]])
    svg.setAttribute(name, value);
  add("line", { x1: -14, x2: 14, stroke: color, "stroke-width": 1.8, "stroke-dasharray": dash.join(" ") });
  const paths = { square: "M-4-4H4V4H-4Z", "triangle-up": "M0-5L5 4H-5Z", "triangle-down": "M0 5L5-4H-5Z",
    diamond: "M0-5L5 0L0 5L-5 0Z", cross: "M-2-5H2V-2H5V2H2V5H-2V2H-5V-2H-2Z" };
  add("path", { d: paths[shape] ?? "M-4.5 0A4.5 4.5 0 1 0 4.5 0A4.5 4.5 0 1 0-4.5 0Z", fill: tint, stroke: color });
  return svg;
}

// From values to what is drawn

// A logarithmic axis has no place for 0.
const drawable = ({ x, y }) => !($("xlog").checked && x <= 0) && !($("ylog").checked && y <= 0);

// Also of lines that the legend has switched off.
function chosen() {
  const { run, measure, series, value, id, draws } = report.values;
  const wanted = Number($("task").value), metric = $("metric").value;
  const x = axis().key === "flops" ? $("counting").value : axis().key;
  const found = [];
  for (let i = 0; i < run.length; i++) {
    const one = report.runs[run[i]], across = one[x], up = scaled(value[i], metric);
    if (measure[i] !== wanted || across == null) continue;
    if ($("images").value && String(one.examples) !== $("images").value) continue;
    if ($("seen").value && String(one.examples_seen) !== $("seen").value) continue;
    found.push({ x: across, y: up, run: one, series: series[i], draws: draws[i], id: id[i] ?? one.id });
  }
  return found.sort((a, b) => a.x - b.x || a.y - b.y);
}

function marked({ x, y, run, series, id, draws }, at) {
  const metric = $("metric").value;
  return {
    x, y, series, at, params_total: run.params_total ?? 1,
    run: id === run.id ? id : `${id} of ${run.id}`, model: report.series[series].name + (run.seed == null ? "" : `, seed ${run.seed}`),
    images: short(run.examples), seen: short(run.examples_seen), across: short(x, axis().scientific),
    up: written(y, metric) + (draws > 1 ? ` (mean of ${draws} draws)` : ""),
  };
}

// Of all runs, also of those that are not drawn: a mean over the others would be another number.
const linesOf = (points) => grouped(points, heldOf(points)).flat().filter(drawable);

// What is constant along the finest lines of which one has two places: fewer things where all would be lone points.
function heldOf(points) {
  const held = [...axis().fixed];
  while (held.length && !grouped(points, held).some((line) => line.length > 1)) held.pop();
  return held;
}

const HELD = { model: "model", examples: "number of unique images", examples_seen: "number of images seen" };

function joinedOf(points) {
  const varied = heldOf(points).filter((key) => new Set(points.map(({ run }) => run[key])).size > 1);
  return varied.length ? ` with the same ${varied.map((key) => HELD[key]).join(" and ")}` : "";
}

function grouped(points, fixed) {
  const lines = new Map();
  for (const { x, y, run, series } of points) {
    const { family, variant } = report.series[series];
    const line = JSON.stringify([family, variant, ...fixed.map((key) => run[key])]);
    // Time differs between the seeds of one cell, so a line's points are cells.
    const cell = JSON.stringify([run.model, run.examples, run.examples_seen, series]);
    if (!lines.has(line)) lines.set(line, new Map());
    const cells = lines.get(line);
    cells.set(cell, [...(cells.get(cell) ?? []), { x, y, series, model: run.model }]);
  }
  return [...lines].map(([line, cells]) => {
    const means = [...cells.values()].map((seeds) => ({
      line, model: seeds[0].model, x: mean(seeds.map(({ x }) => x)), y: mean(seeds.map(({ y }) => y)),
    })).sort((a, b) => a.x - b.x);
    // Of several models the line is solid, if one of them is: it is no model's own.
    const look = [...cells.values()].map(([{ series }]) => series)
      .sort((a, b) => report.series[a].dash.length - report.series[b].dash.length || a - b)[0];
    const mixed = new Set(means.map(({ model }) => model)).size > 1;
    return (mixed ? undominated(means) : means).map((point) => ({ ...point, series: look, mixed }));
  });
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// Of a line of several models, what nothing before it equals.
function undominated(means) {
  const sign = $("metric").value.includes("accuracy") ? 1 : -1;
  let best = -Infinity;
  return means.filter(({ y }) => {
    const better = sign * y > best;
    best = Math.max(best, sign * y);
    return better;
  });
}

function specification(points, lines, laws, bars, theirs, names) {
  const spec = structuredClone(report.chart);
  if (printing) Object.assign(spec, PAPER);
  spec.padding = { left: 5, top: 5, bottom: 5, right: 5 + names };
  const titles = { across: axis().title, up: metricTitle() };
  spec.datasets = { runs: points.map(marked), lines, laws, bars, theirs, names: [], active: [] };
  for (const { encoding } of spec.layer) {
    for (const tip of encoding.tooltip ?? []) tip.title = titles[tip.field] ?? tip.title;
    encoding.y.title = titles.up;
    encoding.y.scale = $("ylog").checked ? { type: "log", nice: false, padding: 14 } : { zero: false };
    if ($("ylog").checked) encoding.y.axis = { labelExpr: PLAIN, ...logTicks([...points, ...lines, ...laws, ...bars, ...theirs].map(({ y }) => y), 12) };
    if (!encoding.x) continue;
    Object.assign(encoding.x, { title: titles.across, axis: ticksOf([...points, ...theirs], laws, names) });
    encoding.x.scale = { ...encoding.x.scale, type: $("xlog").checked ? "log" : "linear" };
  }
  return spec;
}

function barsOf() {
  const metric = $("metric").value, wanted = Number($("task").value);
  const bars = report.baselines.filter(({ measure }) => measure === wanted);
  return bars.map(({ name, value, color }) => ({ name, color, y: scaled(value, metric) }))
    .map((bar) => ({ ...bar, up: written(bar.y, metric) }));
}

// Laws of the error in compute: of all budgets at one set size, and of all models of a family. Without one they are nobody's.
function lawsOf() {
  const metric = $("metric").value, wanted = Number($("task").value), images = $("images").value;
  if (axis().key !== "flops" || $("counting").value !== "flops" || stored(metric) !== "accuracy" || $("seen").value) return [];
  return report.laws
    .filter(({ measure, series, examples }) => measure === wanted && !series.some((one) => hidden.has(one)) && [ "", String(examples) ].includes(images))
    .flatMap(({ x, y, series, examples, beyond }, law) =>
      x.map((across, i) => ({ x: across, y: scaled(y[i], metric), series: series.at(-1), examples, beyond, law })));
}

async function draw() {
  $("counting").parentElement.hidden = axis().key !== "flops" || report.countings.length < 2;
  $("xlog").disabled = !axis().log;
  const here = chosen(), runs = here.filter(({ series }) => !hidden.has(series));
  shown = runs.filter(drawable);
  at = -1;
  const bars = barsOf(), laws = lawsOf(), there = published(), theirs = hidden.has(THEIRS) ? [] : there;
  const lines = linesOf(runs);
  const joining = new Set(lines.filter(({ mixed }) => !mixed).map(({ series }) => series));
  // A series that no line of its own joins has no dash to be known by.
  $("legend").querySelectorAll("svg line").forEach((line, number) => line.toggleAttribute("hidden", number in report.series && !joining.has(number)));
  describe(here, runs, laws, bars, theirs, lines.some(({ mixed }) => mixed));
  for (const entry of $("legend").querySelectorAll("#of-theirs")) {
    entry.hidden = !there.length;
    entry.lastChild.textContent = `the paper's own, not ours: ${there[0]?.source}`;
  }
  const column = columnOf(shown, theirs, laws);
  const drawn = await vegaEmbed("#plot", specification(shown, lines, laws, bars, theirs, widthOf(column)), OPTIONS);
  if (view) view.finalize();
  view = drawn.view;
  const names = () => view.data("names", namesOf(view, shown, theirs, column)).runAsync();
  view.addResizeListener(names);
  await names();
  view.addEventListener("click", (_, item) => { if (item?.datum?.run) openCard(shown[item.datum.at].run); });
  document.body.dataset.drawn = Number(document.body.dataset.drawn ?? 0) + 1;
}

function describe(here, runs, laws, bars, theirs, mixed) {
  const task = $("task").selectedOptions[0]?.textContent ?? "";
  $("plot").setAttribute("aria-label", `${task}: ${shown.length} runs by ${axis().title}. `
    + "Arrow keys go from run to run, Enter opens one. The tables below hold all values.");
  $("switched").textContent = told();
  $("shades").textContent = report.series.some(({ several }) => several) ? "Fainter: the family's smaller models." : "";
  $("theirs").textContent = theirs.length ? `Grey and hollow: not trained by vitscale, published in ${theirs[0].source}.` : "";
  $("laws").textContent = laws.length
    ? `Thin: laws fitted to the error of a family's runs with ${short(laws[0].examples)} images (of several models: as joined), dashed beyond the largest.` : "";
  $("bars").textContent = bars.length ? `Level lines: ${bars.map(({ name, up }) => `${name} ${up}`).join("; ")}.` : "";
  $("count").textContent = shown.length
    ? `${shown.length} run${shown.length === 1 ? "" : "s"}; lines join the means over seeds${joinedOf(runs)}${mixed ? ", of several models those that nothing before them equals" : ""}.${report.sized ? " Larger: more parameters." : ""}` : runs.length ? "" : here.length ? "Switched off: all that was measured here." : "Nothing measured here.";
  $("click").hidden = !shown.length;
  const rest = runs.length - shown.length;
  if (rest) $("count").textContent += ` Not drawn: ${rest} at 0, where a logarithmic axis has no place; they count in the means.`;
}

function step(by) {
  if (!shown.length) return;
  at = at < 0 ? (by > 0 ? 0 : shown.length - 1) : (at + by + shown.length) % shown.length;
  const point = marked(shown[at], at);
  view.data("active", [point]).run();
  $("said").textContent = `${point.model}, ${point.images} images, ${point.seen} seen: ${point.up} at ${point.across}`;
}

function keyed(event) {
  const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
  if (by) step(by);
  else if (event.key === "Enter" && at >= 0) openCard(shown[at].run);
  else return;
  event.preventDefault();
}

// A run's card

const PARTS = {
  "What it cost": {
    flops: "FLOPs, alone", flops_tuning: "FLOPs to choose its settings", flops_segment: "FLOPs of its job",
    flops_eval: "FLOPs of evaluation", flops_lost: "FLOPs computed again", device_seconds: "device-seconds", mfu: "MFU",
  },
  "Where it comes from": {
    device: "device", n_devices: "devices", dataset: "images of", git_commit: "commit", earlier: "begun by commit", git_dirty: "uncommitted changes",
    code_hash: "hash of the code", versions: "versions", started: "began", ended: "ended",
  },
};

function openCard(run) {
  const facts = { ...run, ...report.codes[run.code] };
  facts.versions = facts.versions && JSON.parse(facts.versions);
  const name = [run.model, run.variant, run.seed == null ? "" : `seed ${run.seed}`].filter(Boolean).join(", ");
  $("card-title").textContent = name;
  const parts = [["What varies in the study", { run: run.id, "went on from": run.shared, ...run.settings }], ["What it measured", measured(run)]];
  for (const [title, names] of Object.entries(PARTS))
    parts.push([title, Object.fromEntries(Object.entries(names).map(([key, label]) => [label, plain(facts[key])]))]);
  $("card-facts").replaceChildren(...parts.flatMap(([title, found]) => section(title, found)));
  $("card-command").textContent = run.command ?? "";
  $("card-again").hidden = !run.command;
  $("card-losses").hidden = !run.losses;
  $("card").showModal();
  if (run.losses) {
    const losses = run.losses.map((loss, i) => ({ step: report.steps[run.steps][i], loss }));
    vegaEmbed("#card-losses", { ...report.losses, datasets: { losses } }, OPTIONS);
  }
}

function plain(value) {
  if (value != null && typeof value === "object") return Object.entries(value).map((pair) => pair.join(" ")).join(", ");
  if (value === true || value === false) return value ? "yes" : "no";
  return typeof value === "number" && value >= 1e5 ? value.toExponential(3).replace("e+", "e") : value;
}

function measured(run) {
  const { run: of, measure, series, value } = report.values, number = report.runs.indexOf(run), found = {};
  const own = [...of.keys()].filter((i) => of[i] === number).sort((a, b) => measure[a] - measure[b]);
  for (const i of own) {
    const { title, metric } = report.measures[measure[i]], variant = report.series[series[i]].variant;
    const label = [title, metric === "accuracy" ? "" : metric, variant === run.variant ? "" : variant];
    found[label.filter(Boolean).join(", ")] = written(scaled(value[i], metric), metric);
  }
  return found;
}

function section(title, found) {
  const list = element("dl");
  for (const [name, value] of Object.entries(found)) {
    if (value == null || value === "") continue;
    list.append(element("dt", name), element("dd", typeof value === "object" ? JSON.stringify(value) : String(value)));
  }
  return list.children.length ? [element("h3", title), list] : [];
}

// Tables

function sort(table, column, button) {
  const header = button.closest("th"), up = header.getAttribute("aria-sort") !== "ascending";
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", up ? "ascending" : "descending");
  const body = table.tBodies[0], sign = up ? 1 : -1;
  const rows = [...body.rows].map((row) => [valueOf(row.cells[column]), row]);
  rows.sort(([a], [b]) => (a === "") - (b === "") || sign * (typeof a === "number" && typeof b === "number"
    ? a - b : String(a).localeCompare(String(b), "en", { numeric: true })));
  body.append(...rows.map(([, row]) => row));
}

// Cells carry their number beside the text that is read: 0.832 beside "83.2 ± 0.4".
const valueOf = (cell) => cell.dataset.value ? Number(cell.dataset.value) : cell.textContent;

function csv(table) {
  const quoted = (text) => /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  const cells = (row) => [...row.cells].map((cell) => quoted(cell.dataset.value ?? cell.textContent));
  return [...table.rows].map((row) => `${cells(row).join(",")}\r\n`).join("");
}

function download(table, name) {
  const link = element("a", "", { href: URL.createObjectURL(new Blob([csv(table)], { type: "text/csv" })), download: name });
  link.click();
  URL.revokeObjectURL(link.href);
}

function tables() {
  for (const table of document.querySelectorAll("table"))
    table.querySelectorAll("th button").forEach((button, column) =>
      button.addEventListener("click", () => sort(table, column, button)));
  for (const button of document.querySelectorAll("[data-csv]"))
    button.addEventListener("click", () => download($(button.dataset.csv), `${button.dataset.csv}.csv`));
  const byId = new Map(report.runs.map((run) => [run.id, run]));
  for (const button of document.querySelectorAll("[data-run]"))
    button.addEventListener("click", () => openCard(byId.get(button.dataset.run)));
}

$("plot").addEventListener("keydown", keyed);
$("card-close").addEventListener("click", () => $("card").close());
$("card-copy").addEventListener("click", () => navigator.clipboard?.writeText($("card-command").textContent));
addEventListener("beforeprint", toPaper);
addEventListener("afterprint", toScreen);
tables();
if (report.axes.length && report.measures.length) {
  setUp();
  draw();
} else {
  $("explorer").hidden = true;
}
