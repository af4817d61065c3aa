// Numbers and words as people read them, and elements made of text only: nothing that came over the wire is ever markup.

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

// Makes what is shown equal to what is wanted, and touches nothing that is equal already: what has the focus keeps it, and
// what is selected or scrolled stays as it is, though everything is drawn anew each second.
export function patch(shown, wanted) {
  const before = [...shown.childNodes];
  wanted.forEach((node, index) => {
    const old = before[index];
    if (old === undefined) shown.append(node);
    else if (old.nodeType !== node.nodeType || old.nodeName !== node.nodeName) old.replaceWith(node);
    else if (node.nodeType === Node.TEXT_NODE) {
      if (old.data !== node.data) old.data = node.data;
    } else {
      for (const { name } of [...old.attributes]) if (!node.hasAttribute(name)) old.removeAttribute(name);
      for (const { name, value } of [...node.attributes]) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
      patch(old, [...node.childNodes]);
    }
  });
  before.slice(wanted.length).forEach((old) => old.remove());
}

export function rate(perSecond) {
  if (perSecond === null || perSecond === undefined) return "–";
  if (perSecond === 0) return "0/s";
  if (perSecond < 0.1) return "<0.1/s";
  return `${perSecond < 9.95 ? perSecond.toFixed(1) : Math.round(perSecond).toLocaleString("en")}/s`;
}

export function percent(part) {
  if (part === null || part === undefined) return "–";
  if (part === 0) return "0 %";
  return `${part < 0.0995 ? (part * 100).toFixed(1) : Math.round(part * 100)} %`;
}

export function micros(time) {
  if (time === null || time === undefined) return "–";
  if (time < 1000) return `${Math.round(time)} µs`;
  if (time < 999_500) return `${(time / 1e3).toFixed(time < 9950 ? 1 : 0)} ms`;
  return `${(time / 1e6).toFixed(1)} s`;
}

export function count(number) {
  return number === null || number === undefined ? "–" : number.toLocaleString("en");
}

export function age(seconds) {
  if (seconds < 119.5) return `${Math.round(seconds)} s`;
  if (seconds < 7170) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

export const serviceName = (service) => `${service.name}.${service.namespace}:${service.port}`;

export const servicePath = (service) =>
  `#/service/${[service.namespace, service.name, service.port].map(encodeURIComponent).join("/")}`;

export const serviceLink = (service) => element("a", { href: servicePath(service) }, serviceName(service));

export const lanePath = (tag, namespace) => `#/lane/${[tag, ...(namespace ? [namespace] : [])].map(encodeURIComponent).join("/")}`;

export const laneLink = (tag, namespace) => element("a", { href: lanePath(tag, namespace) }, tag);

// As they are in the status of an object.
export const conditions = (row) => element("ul", { class: "plain" }, row.conditions.map((condition) =>
  element("li", {}, element("span", { class: condition.status ? "good" : "bad" }, `${condition.status ? "" : "not "}${condition.type.toLowerCase()}`),
    condition.status ? "" : ` (${condition.reason})`, condition.message ? `: ${condition.message}` : "")));

export const lane = (tag) => tag ?? "baseline";

export const BREAKER = { closed: "closed", half_open: "half-open", open: "open" };

export const errorTone = (part) => (part >= 0.05 ? "bad" : part > 0 ? "warn" : null);

// A column of numbers. `by`: what rows are ordered by, if the reader asks for it.
export const number = (title, cell, tone, by) => ({ title, cell, tone, by, class: "number" });

const plainHead = (column) => element("th", { scope: "col", class: column.class }, column.title);

// A table that says in words that it is empty.
export function table(caption, columns, rows, empty, head = plainHead) {
  if (rows.length === 0) return element("p", { class: "empty" }, empty);
  const heads = columns.map(head);
  const body = rows.map((row) => element("tr", {}, columns.map((column, index) => {
    const classes = [column.class, column.tone?.(row)].filter(Boolean).join(" ") || null;
    return element(index === 0 ? "th" : "td", { class: classes, scope: index === 0 ? "row" : null }, column.cell(row));
  })));
  // No <caption>: it would be as wide as the table, and on a phone that is wider than the screen.
  return element("div", {}, element("p", { class: "caption" }, caption),
    element("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": caption }, element("table", { "aria-label": caption },
      element("thead", {}, element("tr", {}, heads)), element("tbody", {}, body))));
}
