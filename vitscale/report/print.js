// Paper: the chart as wide as a page, what the switches say in words, and the box with all its details open.

// Pixels: between the margins of A4, upright, and so high that a figure has room below. The style sheet fits it to other paper.
const PAPER = { width: 690, height: 340 };
let printing = false;
let opened = [];

const room = () => printing ? PAPER.width : $("plot").clientWidth;

function told() {
  const chosen = (id) => $(id).selectedOptions[0]?.textContent ?? "";
  const how = [chosen("task"), `${metricTitle()}${$("ylog").checked ? " (logarithmic)" : ""}`,
    `by ${axis().title}${$("xlog").checked ? " (logarithmic)" : ""}`];
  if (!$("counting").parentElement.hidden) how.push(`FLOPs of ${chosen("counting")}`);
  if ($("images").value) how.push(`only ${chosen("images")} images`);
  if ($("seen").value) how.push(`only ${chosen("seen")} images seen`);
  return `Shown: ${how.join("; ")}.`;
}

// Browsers lay the paper out when this event's promises are done: Vega waits for nothing else.
function toPaper() {
  if (printing) return;
  printing = true;
  opened = [...document.querySelectorAll(".notes details:not([open])")];
  for (const details of opened) details.open = true;
  if (view) draw();
}

function toScreen() {
  if (!printing) return;
  printing = false;
  for (const details of opened) details.open = false;
  if (view) draw();
}
