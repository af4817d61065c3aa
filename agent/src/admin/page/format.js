// Numbers and words as people read them, and elements made of text only: nothing that came over the wire is ever markup.

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

export function rate(perSecond) {
  if (!perSecond) return "0/s";
  return `${perSecond < 10 ? perSecond.toFixed(1) : Math.round(perSecond)}/s`;
}

export function percent(part) {
  if (!part) return "0 %";
  return `${part < 0.1 ? (part * 100).toFixed(1) : Math.round(part * 100)} %`;
}

export function micros(time) {
  if (time === null || time === undefined) return "–";
  if (time < 1000) return `${time} µs`;
  if (time < 1e6) return `${(time / 1e3).toFixed(time < 1e4 ? 1 : 0)} ms`;
  return `${(time / 1e6).toFixed(1)} s`;
}

export function age(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

export const serviceName = (service) => `${service.name}.${service.namespace}:${service.port}`;

export const servicePath = (service) =>
  `#/service/${[service.namespace, service.name, service.port].map(encodeURIComponent).join("/")}`;

export const BREAKER = { closed: "closed", half_open: "half-open", open: "open", none: "–" };

// A table that says in words that it is empty.
export function table(caption, columns, rows, empty) {
  if (rows.length === 0) return element("p", { class: "empty" }, empty);
  const heads = columns.map((column) => element("th", { scope: "col", class: column.class }, column.title));
  const body = rows.map((row) => element("tr", {}, columns.map((column, index) => {
    const content = column.cell(row);
    const tone = column.tone?.(row);
    const classes = [column.class, tone].filter(Boolean).join(" ") || null;
    return element(index === 0 ? "th" : "td", { class: classes, scope: index === 0 ? "row" : null }, content);
  })));
  return element("div", { class: "scroll" }, element("table", {},
    element("caption", {}, caption), element("thead", {}, element("tr", {}, heads)), element("tbody", {}, body)));
}
