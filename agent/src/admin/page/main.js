// Follows the agent's events, and shows the view that the address names.

import { age, element, patch, plural } from "./format.js";
import { lane, lanes } from "./lane.js";
import { Memory } from "./merge.js";
import { choose, SEARCH, seek } from "./order.js";
import { calls, pods, policies, services } from "./overview.js";
import { service } from "./service.js";

const content = document.getElementById("content");
const lost = document.getElementById("lost");
// The agent speaks once a second; silence for longer than this is worth saying.
const SILENCE = 4000;

const VIEWS = { services, lanes, calls, pods, policies };

let overview = null;
// What is known of the service or the lane that is shown; undefined: not yet, null: there is none.
let detail;
let memory = new Memory();
let minutes = 5;
let heard = Date.now();
let events = null;

function route() {
  const parts = location.hash.replace(/^#\/?/, "").split("/").map(decode);
  if (parts[0] === "service" && parts.length === 4) return { view: "service", key: new URLSearchParams({ namespace: parts[1], name: parts[2], port: parts[3] }) };
  if (parts[0] === "lane" && (parts.length === 2 || parts.length === 3)) {
    return { view: "lane", key: new URLSearchParams({ tag: parts[1], ...(parts.length === 3 ? { namespace: parts[2] } : {}) }) };
  }
  return { view: Object.hasOwn(VIEWS, parts[0]) ? parts[0] : "services" };
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function show() {
  const { view } = route();
  const entry = { service: "#/", services: "#/", lane: "#/lanes" }[view] ?? `#/${view}`;
  for (const link of document.querySelectorAll("header nav a")) {
    const here = link.getAttribute("href") === entry;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (overview === null) return;
  tell("node", overview.node ?? "");
  const problems = overview.snapshot.invalid_objects.length;
  tell("health", overview.ready ? (problems === 0 ? "ready" : `ready; ${plural(problems, "problem")}`) : `not ready: ${overview.not_ready.join("; ")}`);
  document.getElementById("health").className = overview.ready && problems === 0 ? "" : "warn";
  tell("age", `snapshot ${age(overview.snapshot.age_seconds)} old`);
  const node = overview.node ? `${overview.node} - Sluice` : "Sluice";
  const subject = { service: 3, lane: 2 }[view];
  document.title = subject === undefined ? node : `${decode(location.hash.split("/")[subject] ?? "")} - ${node}`;
  // Whoever looks elsewhere sees it as it is when they come back.
  if (document.hidden) return;
  patch(content, Object.hasOwn(DETAILS, view) ? DETAILS[view]() : VIEWS[view](overview));
}

// What shows more than the overview has.
const DETAILS = {
  service: () => known("service", () => service(detail, minutes)),
  lane: () => known("lane", () => lane(detail)),
};

function known(what, shown) {
  if (detail === undefined) return [element("p", { class: "empty" }, "Waiting for the agent…")];
  return detail === null ? [element("p", { class: "empty" }, `This node's agent knows no such ${what}.`)] : shown();
}

// Said again only if it is something else, so that it is read out only then.
function tell(id, text) {
  const place = document.getElementById(id);
  if (place.textContent !== text) place.textContent = text;
}

function follow() {
  events?.close();
  const { view, key } = route();
  detail = undefined;
  memory = new Memory();
  events = new EventSource(key ? `api/events?${key}` : "api/events");
  // The first event of a connection has everything.
  events.addEventListener("open", () => { memory = new Memory(); });
  events.addEventListener("overview", (event) => {
    overview = memory.overview(JSON.parse(event.data));
    heard = Date.now();
    if (!key) show();
  });
  events.addEventListener("service", (event) => {
    detail = memory.detail(JSON.parse(event.data));
    show();
  });
  // It has no series: each event has all of it.
  events.addEventListener("lane", (event) => {
    detail = JSON.parse(event.data);
    show();
  });
}

function watch() {
  const silent = Date.now() - heard;
  const gone = silent > SILENCE;
  document.body.classList.toggle("stale", gone);
  lost.hidden = !gone;
  if (gone) tell("lost", `The agent has not responded for ${age(silent / 1000)}. The values shown are older; the dashboard reconnects by itself.`);
  // The browser gives up on an agent that answered with an error.
  if (gone && events?.readyState === EventSource.CLOSED) follow();
}

window.addEventListener("hashchange", () => {
  // A view is not searched for what was sought in another.
  seek("");
  content.replaceChildren();
  follow();
  show();
  content.focus({ preventScroll: true });
  window.scrollTo(0, 0);
});
document.querySelector(".skip").addEventListener("click", (event) => {
  // The address names the view.
  event.preventDefault();
  content.focus();
});
content.addEventListener("input", (event) => {
  if (event.target.id !== SEARCH) return;
  seek(event.target.value);
  show();
});
document.addEventListener("visibilitychange", show);
content.addEventListener("click", (event) => {
  const column = event.target.closest("button[data-column]");
  if (column !== null) {
    choose(column.dataset.table, column.dataset.column);
    show();
    return;
  }
  const range = event.target.closest("button[data-minutes]");
  if (range === null) return;
  minutes = Number(range.dataset.minutes);
  show();
});
setInterval(watch, 1000);
follow();
