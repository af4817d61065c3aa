// Lines over time, and who calls whom, as SVG. A gap in the numbers is a gap in the line.

import { age, element } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";

function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== undefined) made.setAttribute(key, value);
  made.append(...children.flat().filter(Boolean));
  return made;
}

const missing = (number) => number === null || number === undefined;
const highest = (lines) => Math.max(0, ...lines.flatMap((line) => line.numbers.filter((number) => !missing(number))));
const width = (lines) => Math.max(1, ...lines.map((line) => line.numbers.length - 1));

function path(numbers, most, kind) {
  let line = "";
  let pen = "M";
  numbers.forEach((number, index) => {
    if (missing(number)) {
      pen = "M";
      return;
    }
    line += `${pen}${index} ${(98 - Math.min(1, number / most) * 96).toFixed(1)}`;
    // A single second between two gaps is seen as a dot.
    if (pen === "M") line += "h0.01";
    pen = "L";
  });
  return svg("path", { d: line, class: kind });
}

// Stretches of seconds in which requests were kept away: half as high where some were let through.
function bands(numbers, height = 100) {
  const drawn = [];
  for (let from = 0; from < numbers.length; from += 1) {
    if (!numbers[from]) continue;
    let to = from;
    while (numbers[to + 1] === numbers[from]) to += 1;
    const half = numbers[from] === 1;
    drawn.push(svg("rect", {
      class: half ? "half-open" : "open", x: Math.max(0, from - 0.5), y: half ? height / 2 : 0,
      width: to - from + 1, height: half ? height / 2 : height,
    }));
    from = to;
  }
  return drawn;
}

function canvas(kind, label, lines, most, closedOff) {
  return svg("svg", { class: kind, viewBox: `0 0 ${width(lines)} 100`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    closedOff ? bands(closedOff) : [],
    kind === "chart" ? [2, 50, 98].map((y) => svg("line", { class: "grid", x1: 0, x2: width(lines), y1: y, y2: y })) : [],
    lines.map((line) => path(line.numbers, most, line.tone)));
}

// A small line without axes.
export function spark(label, lines, closedOff) {
  return canvas("spark", label, lines, highest(lines) || 1, closedOff);
}

// A chart with a title, its scale, and a key. `lines`: [{ title, tone, numbers }], with `now` where the newest number is not
// the last. `ends`: what its first and last second are.
export function chart(title, lines, format, { top = null, ends = null, closedOff = null } = {}) {
  const most = top ?? (highest(lines) || 1);
  const newest = (line) => format("now" in line ? line.now : line.numbers.at(-1));
  const now = lines.map((line) => `${line.title} ${newest(line)}`).join(", ");
  const seconds = width(lines);
  const [first, last] = ends ?? [`${age(seconds)} ago`, "now"];
  const keys = lines.map((line) => element("li", { class: `key ${line.tone}` }, `${line.title} `, element("b", {}, newest(line))));
  return element("figure", {},
    element("figcaption", {}, element("h3", {}, title), element("ul", { class: "plain keys" }, keys)),
    element("div", { class: "plot" },
      element("span", { class: "scale", "aria-hidden": "true" }, format(most)),
      canvas("chart", `${title}: the last ${seconds} seconds; at the end ${now}`, lines, most, closedOff)),
    element("p", { class: "ends", "aria-hidden": "true" }, element("span", {}, first), element("span", {}, last)));
}

// When requests were kept away.
export function strip(label, closedOff) {
  const seconds = Math.max(1, closedOff.length);
  return svg("svg", { class: "strip", viewBox: `0 0 ${seconds} 100`, preserveAspectRatio: "none", role: "img", "aria-label": label }, bands(closedOff));
}

const ROW = 30;
const SIZE = { width: 960, margin: 12, left: 330, right: 630 };

// Callers on the left, services on the right; a line is as wide as its rate, and broken where there are errors.
// `edges`: [{ from, to, rate, tone, label }].
export function map(label, edges) {
  const side = (key) => [...new Set(edges.map((edge) => edge[key]))].sort();
  const [callers, services] = [side("from"), side("to")];
  const rows = Math.max(callers.length, services.length);
  const y = (names, name) => SIZE.margin + ROW * ((names.indexOf(name) + 0.5) * (rows / names.length));
  const most = Math.max(0.001, ...edges.map((edge) => edge.rate));
  const lines = [...edges].sort((one, other) => one.rate - other.rate).map((edge) => {
    const [from, to] = [y(callers, edge.from), y(services, edge.to)];
    const bend = (SIZE.right - SIZE.left) / 2;
    return svg("path", {
      class: `call ${edge.tone ?? (edge.rate > 0 ? "fine" : "idle")}`, "stroke-width": (1 + 7 * Math.sqrt(edge.rate / most)).toFixed(1),
      d: `M${SIZE.left} ${from}c${bend} 0 ${bend} ${to - from} ${SIZE.right - SIZE.left} ${to - from}`,
    }, svg("title", {}, edge.label));
  });
  const names = (all, x, anchor) => all.map((name) => svg("text", { x, y: y(all, name), "text-anchor": anchor, "dominant-baseline": "middle" }, name));
  return svg("svg", { class: "map", viewBox: `0 0 ${SIZE.width} ${rows * ROW + 2 * SIZE.margin}`, role: "img", "aria-label": label },
    lines, names(callers, SIZE.left - 10, "end"), names(services, SIZE.right + 10, "start"));
}
