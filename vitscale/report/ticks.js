// Ticks of the chart's axes.

const SCIENTIFIC = "replace(format(datum.value, '.2~e'), 'e+', 'e')";
const PLAIN = "abs(datum.value) >= 1000 ? replace(format(datum.value, '.3~s'), 'G', 'B') : format(datum.value, '~g')";

// Of a logarithmic axis: powers of ten, and as many others between them as there is room for, so that none of the
// powers gives way to a neighbour.
function logTicks(values, most) {
  const found = values.filter((value) => value > 0);
  if (!found.length) return {};
  const [low, high] = [Math.min(...found) / 1.1, Math.max(...found) * 1.1];
  const steps = [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 7]];
  let kept = [];
  for (const digits of steps) {
    const next = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const digit of digits) {
        const value = Number(`${digit}e${power}`);
        if (value >= low && value <= high) next.push(value);
      }
    if (next.length > most && kept.length > 1) break;
    kept = next;
  }
  return { values: kept, labelOverlap: false };
}

// Of few sizes the sizes themselves, as far as their names have room, the largest first: Vega would judge that by the
// width that the chart has before it knows its own.
function sizeTicks(values, names) {
  const place = $("xlog").checked ? Math.log : Number, ends = [Math.min, Math.max].map((end) => place(end(...values)));
  const scale = (room() - names - 90) / (ends[1] - ends[0] || 1);
  let free = Infinity;
  return [...new Set(values)].sort((a, b) => b - a).filter((value) => {
    const at = place(value) * scale, half = 3.6 * short(value).length + 4, fits = at + half <= free;
    if (fits) free = at - half;
    return fits;
  });
}

// `names`: pixels to the right of the plot that names take.
function ticksOf(points, laws, names) {
  const narrow = room() < NARROW, labelExpr = axis().scientific ? SCIENTIFIC : PLAIN;
  if (axis().ticks && points.length) return { labelExpr, values: sizeTicks(points.map(({ x }) => x), names), labelOverlap: false };
  if ($("xlog").checked) return { labelExpr, ...logTicks([...points, ...laws].map(({ x }) => x), narrow ? 5 : 9) };
  return { labelExpr, labelOverlap: "greedy", labelSeparation: 10, tickCount: 6 };
}
