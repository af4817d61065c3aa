// Which rows a table shows, and in which order: the reader chooses, and until then rows stay where their names put them. What
// changes each second moves nothing unless the reader has asked for it.

import { element } from "./format.js";

// By table: the title of the column, and whether the largest come first.
const chosen = new Map();
let sought = "";

export const SEARCH = "search";

// The rows that are shown. `first`: the column that names them; rows that are equal otherwise are ordered by it.
export function arranged(name, columns, rows, first) {
  const order = chosen.get(name);
  const column = columns.find((one) => one.by && one.title === order?.title);
  const named = (one, other) => first.localeCompare(one, other);
  const value = (row) => {
    const told = column.by(row);
    return told === null || told === undefined ? -Infinity : told;
  };
  const compare = (one, other) => {
    const [a, b] = [value(one), value(other)];
    const less = a < b ? -1 : a > b ? 1 : 0;
    return (order.descending ? -less : less) || named(one, other);
  };
  return rows.filter((row) => first.of(row).toLowerCase().includes(sought)).sort(column ? compare : named);
}

// How rows are called, and compared by that.
export const by = (of) => ({ of, localeCompare: (one, other) => of(one).localeCompare(of(other), "en", { numeric: true }) });

// The head of a column that rows can be ordered by.
export function head(name, column) {
  const order = chosen.get(name);
  const here = order?.title === column.title;
  const sorted = here ? (order.descending ? "descending" : "ascending") : null;
  const mark = here ? (order.descending ? " ▼" : " ▲") : "";
  return element("th", { scope: "col", class: column.class, "aria-sort": sorted },
    column.by ? element("button", { type: "button", "data-table": name, "data-column": column.title, title: column.hint }, `${column.title}${mark}`) : column.title);
}

// Chosen: largest first, then smallest first, then by name again.
export function choose(name, title) {
  const order = chosen.get(name);
  if (order?.title !== title) chosen.set(name, { title, descending: true });
  else if (order.descending) chosen.set(name, { title, descending: false });
  else chosen.delete(name);
}

// Where rows are sought by a part of their name.
export function search(label, shown, all) {
  const told = sought === "" ? "" : `${shown} of ${all}`;
  return element("p", { class: "search" }, element("label", {}, `${label} `, element("input", { id: SEARCH, type: "search", autocomplete: "off", spellcheck: "false" })),
    element("span", { role: "status" }, told));
}

export function seek(text) {
  sought = text.trim().toLowerCase();
}
