// One service: its golden signals, its lanes, its endpoints with their warm-up, its limits, its breaker.

import { BREAKER, age, element, micros, percent, rate, serviceName, table } from "./format.js";
import { chart, spark } from "./draw.js";

const number = (title, cell, tone) => ({ title, cell, tone, class: "number" });

export function service(detail) {
  const { service: about, series } = detail;
  return [
    element("h2", {}, serviceName(about)),
    element("p", { class: "faint" }, about.policy ? `TrafficPolicy ${about.policy}` : "No TrafficPolicy: balancing and numbers only"),
    element("div", { class: "charts" },
      chart("Requests a second", [
        { title: "requests", kind: "rate", tone: "good", numbers: series.requests },
        { title: "errors", kind: "errors", tone: "bad", numbers: series.errors },
        { title: "refused", kind: "refused", tone: "warn", numbers: series.refused }], rate),
      chart("Latency", [
        { title: "p50", kind: "rate", tone: "good", numbers: series.p50Micros },
        { title: "p95", kind: "middle", tone: "warn", numbers: series.p95Micros },
        { title: "p99", kind: "tail", tone: "bad", numbers: series.p99Micros }], micros),
      chart("In flight", [{ title: "requests", kind: "rate", tone: "good", numbers: series.inFlight }], (count) => `${count ?? "–"}`)),
    ...warmUps(detail),
    element("h2", {}, "Endpoints"), endpoints(detail),
    element("h2", {}, "Limits"), limits(detail),
    element("h2", {}, "Circuit breaker"), breaker(detail),
  ];
}

// The curve that was wanted and the share that was got, for each endpoint that warmed up in the time that is kept.
function warmUps(detail) {
  const warming = detail.endpoints.filter((endpoint) => endpoint.series.wanted.some((share) => share !== null && share < 1));
  if (warming.length === 0) return [];
  return [element("h2", {}, "Warm-up"), element("div", { class: "charts" }, warming.map((endpoint) =>
    chart(`${endpoint.pod || endpoint.address}: share of a warm endpoint's requests`, [
      { title: "wanted", kind: "wanted", tone: "wanted", numbers: endpoint.series.wanted },
      { title: "got (5 s mean)", kind: "rate", tone: "good", numbers: endpoint.series.got }], percent, 1.25)))];
}

function endpoints(detail) {
  return table("In the last 10 seconds, by this node's callers", [
    { title: "Endpoint", cell: (row) => row.pod || row.address },
    { title: "Address", class: "narrow-hide", cell: (row) => row.address },
    { title: "Lane", cell: (row) => row.lane || "baseline" },
    { title: "Last minute", class: "narrow-hide", cell: (row) => spark(`Requests and errors of ${row.address} in the last minute`, [
      { numbers: row.series.requests.slice(-60), kind: "rate" }, { numbers: row.series.errors.slice(-60), kind: "errors" }]) },
    number("Requests", (row) => rate(row.rate)),
    number("Errors", (row) => percent(row.errorPart), (row) => (row.errorPart > 0 ? "warn" : null)),
    number("p50", (row) => micros(row.p50Micros)),
    number("p99", (row) => micros(row.p99Micros)),
    number("In flight", (row) => row.inFlight),
    { title: "State", cell: endpointState, tone: (row) => (row.ejected ? "bad" : row.state === "ready" ? null : "warn") },
  ], detail.endpoints, "The service has no endpoints: requests to it are answered 503 with the reason no_endpoint.");
}

function endpointState(endpoint) {
  if (endpoint.ejected) return `ejected for another ${age(endpoint.ejectedForSeconds)}`;
  if (endpoint.warmUp !== null && endpoint.warmUp < 1) return `warming up, ${percent(endpoint.warmUp)}`;
  return endpoint.state.replace("_", " ");
}

function limits(detail) {
  return table("Since the agent started", [
    { title: "Rule", cell: (row) => row.rule },
    { title: "Mode", cell: (row) => row.mode },
    number("Allowed", (row) => row.allowed),
    number("Queued", (row) => row.queued),
    number("Refused", (row) => row.refused, (row) => (row.refused > 0 ? "warn" : null)),
    number("Would refuse", (row) => row.wouldRefuse),
  ], detail.limits, "No limits.");
}

function breaker(detail) {
  const states = detail.breakers.map((row) => element("li", { class: row.state === "open" ? "bad" : null },
    `${row.lane || "baseline"}: ${BREAKER[row.state]}`));
  const steps = table("The last changes", [
    { title: "When", cell: (row) => `${age(row.secondsAgo)} ago` },
    { title: "Lane", cell: (row) => row.lane || "baseline" },
    { title: "To", cell: (row) => BREAKER[row.to], tone: (row) => (row.to === "open" ? "bad" : null) },
    { title: "Why", cell: (row) => row.why },
  ], detail.transitions, "It has not changed since the agent started.");
  return detail.breakers.length === 0
    ? element("p", { class: "empty" }, "None.")
    : element("div", {}, element("ul", { class: "plain" }, states), steps);
}
