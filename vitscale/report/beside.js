// What lies beside the runs: points that others have published, and names at the ends of lines.

const THEIRS = "theirs";  // among the hidden
const AS_PUBLISHED = ["flops", "flops_inside"];  // countings; nobody has published what choosing their settings took
const LINE = 13, GAP = 8, RIM = 2;  // pixels: a name's height, its place beside the chart, and the paper around it
const NARROW = 600;  // pixels of a chart: names beside it would leave it no room
const BESIDE = 0.9;  // of the chart's width: a line that ends further right has its name beside the chart
// Where a name may stand, of its marker's middle: right, left, above, below, and aslant.
const PLACES = [["left", 9, 0], ["right", -9, 0], ["center", 0, -14], ["center", 0, 14],
  ["left", 6, -12], ["right", -6, -12], ["left", 6, 12], ["right", -6, 12]];

// Published points of the task along the x axis that are chosen.
function published() {
  const metric = $("metric").value, wanted = Number($("task").value);
  const counted = axis().key !== "flops" || AS_PUBLISHED.includes($("counting").value);
  if (!counted || stored(metric) !== "accuracy") return [];
  return report.theirs
    .filter(({ measure, axis: along }) => measure === wanted && along === axis().key)
    .flatMap(({ name, shape, source, points }, line) => points.map(({ model, images, x, value, joined }) => {
      const y = scaled(value, metric);
      return { line, name, shape, source, model, joined, x, y, images: short(images),
        across: short(x, axis().scientific), up: written(y, metric) };
    }));
}

function theirsEntry() {
  const look = { color: "var(--soft)", fill: "none", shape: "circle", dash: [1, 2] };
  const entry = legendEntry({ ...look, tint: "none", name: "" }, THEIRS);
  entry.id = "of-theirs";
  return entry;
}

// What has a name, with the points that may carry it, the rightmost first: lines that others have published, and the
// models of a family that has several.
function namedOf(points, theirs) {
  const found = new Map();
  const add = (key, name, color, { x, y }) => {
    if (!found.has(key)) found.set(key, { key, name, color, at: [] });
    found.get(key).at.unshift({ x, y });
  };
  for (const point of points) {
    const { several, name, color } = report.series[point.series];
    if (several) add(point.series, name, color, point);
  }
  for (const point of theirs) if (point.joined) add(THEIRS + point.line, point.name, "var(--soft)", point);
  return [...found.values()];
}

// Those that end at the right, and so have their names in a column beside the chart.
function columnOf(points, theirs, laws) {
  if (room() < NARROW) return [];
  const place = $("xlog").checked ? Math.log : Number;
  const all = [...points, ...theirs, ...laws].map(({ x }) => place(x)), low = Math.min(...all), high = Math.max(...all);
  return namedOf(points, theirs).filter(({ at: [{ x }] }) => place(x) - low > BESIDE * (high - low));
}

const pen = document.createElement("canvas").getContext("2d");

function lengthOf(name) {
  const { font, fontSize } = report.chart.layer.find(({ mark }) => mark.type === "text").mark;
  pen.font = `${fontSize}px ${font}`;
  return pen.measureText(name).width + 2 * RIM;
}

const widthOf = (column) => column.length ? GAP + Math.max(...column.map(({ name }) => lengthOf(name))) : 0;

// Heights as near to those wanted as they can be without overlap, in the same order, and from 0 to `high`.
function spread(wanted, high) {
  let last = -Infinity;
  const order = [...wanted.keys()].sort((a, b) => wanted[a] - wanted[b]), pushed = [];
  for (const i of order) last = pushed[i] = Math.max(wanted[i], last + LINE);
  const down = mean(pushed.map((y, i) => y - wanted[i])), edge = LINE / 2 + RIM;
  const above = edge - Math.min(...pushed) + down, below = Math.max(...pushed) - down - (high - edge);
  return pushed.map((y) => y - down + Math.max(above, 0) - Math.max(Math.min(below, -above), 0));
}

// Names in the column, and the others where each is nearer to its own marker than to another and covers nothing; one
// without such a place is left to the legend and the tooltip.
function namesOf(drawn, points, theirs, ends) {
  const [x, y] = [drawn.scale("x"), drawn.scale("y")], inside = within(drawn.width(), drawn.height());
  const column = ends.slice(0, Math.floor(drawn.height() / LINE) - 1);
  const heights = spread(column.map(({ at: [end] }) => y(end.y)), drawn.height());
  const names = column.map(({ name, color, at: [end] }, i) => (
    { ...end, name, color, align: "left", dx: drawn.width() - x(end.x) + GAP, dy: heights[i] - y(end.y) }));
  const markers = [...points.map((point) => ({ key: point.series, ...point })),
    ...theirs.map((point) => ({ key: THEIRS + point.line, ...point }))];
  const taken = [];
  for (const { key, name, color, at } of namedOf(points, theirs)) {
    if (column.some((other) => other.key === key)) continue;
    const width = lengthOf(name);
    const others = markers.map((marker) => boxed(x(marker.x), y(marker.y), ...(marker.key === key ? [8, 8] : [22, 14])));
    const free = at.flatMap((point) => PLACES.map(([align, dx, dy]) => {
      const middle = x(point.x) + dx + width * ({ left: 0.5, right: -0.5 }[align] ?? 0);
      return { ...point, name, color, align, dx, dy, box: boxed(middle, y(point.y) + dy, width, LINE) };
    })).find(({ box }) => inside(box) && [...taken, ...others].every((other) => apart(box, other)));
    if (!free) continue;
    taken.push(free.box);
    names.push(free);
  }
  return names;
}

const within = (wide, high) => ({ left, right, top, bottom }) => left >= 0 && right <= wide && top >= 0 && bottom <= high;
const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
const boxed = (x, y, width, height) =>
  ({ left: x - width / 2, right: x + width / 2, top: y - height / 2, bottom: y + height / 2 });
