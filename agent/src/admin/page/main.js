// Follows the agent's events, and shows the view that the address names.

import { age, element } from "./format.js";
import { calls, pods, policies, services } from "./overview.js";
import { service } from "./service.js";

const content = document.getElementById("content");
const lost = document.getElementById("lost");
// The agent speaks once a second; silence for longer than this is worth saying.
const SILENCE = 4000;

let overview = null;
let detail = null;
let heard = Date.now();
let events = null;

function route() {
  const parts = location.hash.replace(/^#\/?/, "").split("/").map(decode);
  return parts[0] === "service" && parts.length === 4
    ? { view: "service", key: new URLSearchParams({ namespace: parts[1], name: parts[2], port: parts[3] }) }
    : { view: parts[0] || "services" };
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

const VIEWS = { services, calls, pods, policies };

function show() {
  const { view } = route();
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.getAttribute("href") === (view === "services" || view === "service" ? "#/" : `#/${view}`);
    here ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  }
  if (overview === null) return;
  document.getElementById("node").textContent = overview.node ?? "";
  const health = document.getElementById("health");
  health.textContent = overview.ready
    ? `ready; state of the cluster ${age(overview.state.ageSeconds)} old; ${overview.state.problems.length} problems`
    : `not ready: ${overview.missing.join("; ")}`;
  health.className = overview.ready && overview.state.problems.length === 0 ? "" : "warn";

  // What has the focus keeps it though everything is drawn anew.
  const focused = document.activeElement?.closest("main a")?.getAttribute("href");
  if (view === "service") {
    content.replaceChildren(...(detail === null ? [element("p", { class: "empty" }, "This service is not known here.")] : service(detail)));
  } else {
    content.replaceChildren(...(VIEWS[view] ?? services)(overview));
  }
  if (focused) [...content.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused)?.focus();
}

function follow() {
  events?.close();
  const { view, key } = route();
  detail = null;
  events = new EventSource(view === "service" ? `events?${key}` : "events");
  events.addEventListener("overview", (event) => {
    overview = JSON.parse(event.data);
    heard = Date.now();
    if (route().view !== "service") show();
  });
  events.addEventListener("service", (event) => {
    detail = JSON.parse(event.data);
    show();
  });
}

function watch() {
  const silent = Date.now() - heard;
  const gone = silent > SILENCE;
  document.body.classList.toggle("stale", gone);
  lost.hidden = !gone;
  if (gone) lost.textContent = `The agent has not answered for ${age(silent / 1000)}. What is shown is from before; the page goes on by itself.`;
  // The browser gives up on an agent that answered with an error.
  if (gone && events?.readyState === EventSource.CLOSED) follow();
}

window.addEventListener("hashchange", () => {
  follow();
  show();
  content.focus({ preventScroll: true });
});
setInterval(watch, 1000);
follow();
