// Lines over time, as SVG. A gap in the numbers is a gap in the line.

import { element } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";

function svg(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function path(numbers, most, kind) {
  let line = "";
  let pen = "M";
  numbers.forEach((number, index) => {
    if (number === null || number === undefined) {
      pen = "M";
      return;
    }
    line += `${pen}${index} ${(100 - (number / most) * 96 - 2).toFixed(2)}`;
    // A single second between two gaps is seen as a dot.
    if (pen === "M") line += "h0.01";
    pen = "L";
  });
  return svg("path", { d: line, class: kind, "stroke-linecap": "round" });
}

const highest = (lines) => Math.max(0, ...lines.flatMap((line) => line.numbers.filter((number) => number !== null)));

function canvas(lines, most, label, kind) {
  const width = Math.max(1, ...lines.map((line) => line.numbers.length - 1));
  const drawn = svg("svg", {
    class: kind, viewBox: `0 0 ${width} 100`, preserveAspectRatio: "none", role: "img", "aria-label": label,
  });
  if (kind === "chart") {
    for (const height of [2, 50, 98]) drawn.append(svg("line", { class: "grid", x1: 0, x2: width, y1: height, y2: height }));
  }
  for (const line of lines) drawn.append(path(line.numbers, most, line.kind));
  return drawn;
}

// A small line without axes.
export function spark(label, lines) {
  return canvas(lines, highest(lines) || 1, label, "spark");
}

// A chart with a title, its scale, and a key. `lines`: [{ title, kind, tone, numbers }].
export function chart(title, lines, format, most = null) {
  const top = most ?? (highest(lines) || 1);
  const last = lines.map((line) => `${line.title} ${format(line.numbers.at(-1) ?? null)}`).join(", ");
  const keys = lines.map((line) => element("span", { class: `key k-${line.tone}` }, line.title));
  const seconds = Math.max(0, ...lines.map((line) => line.numbers.length));
  return element("figure", { style: null, class: "figure" },
    element("h3", {}, title),
    canvas(lines, top, `${title}, the last ${seconds} seconds; now ${last}`, "chart"),
    element("figcaption", { class: "chart-caption" },
      element("span", {}, `top of scale ${format(top)}, the last ${Math.round(seconds / 60)} min`), ...keys));
}
