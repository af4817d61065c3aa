// The views that need nothing but the overview: services, calls, pods, policies.

import { BREAKER, element, micros, percent, rate, serviceName, servicePath, table } from "./format.js";
import { spark } from "./draw.js";

const number = (title, cell, tone) => ({ title, cell, tone, class: "number" });
const errorTone = (part) => (part >= 0.05 ? "bad" : part > 0 ? "warn" : null);

export function services(overview) {
  const quietest = (service) => [-(service.rate + service.refusedRate), serviceName(service)];
  const rows = [...overview.services].sort((a, b) => {
    const [x, y] = [quietest(a), quietest(b)];
    return x[0] - y[0] || x[1].localeCompare(y[1]);
  });
  return [element("h2", {}, "Services"), table("Calls of this node's enrolled pods, in the last 10 seconds", [
    { title: "Service", cell: (row) => element("a", { href: servicePath(row) }, serviceName(row)) },
    { title: "Last minute", class: "narrow-hide", cell: (row) => spark(`Requests and errors of ${serviceName(row)} in the last minute`, [
      { numbers: row.spark.rate, kind: "rate" }, { numbers: row.spark.errors, kind: "errors" }]) },
    number("Requests", (row) => rate(row.rate)),
    number("Errors", (row) => percent(row.errorPart), (row) => errorTone(row.errorPart)),
    number("Refused", (row) => rate(row.refusedRate), (row) => (row.refusedRate > 0 ? "warn" : null)),
    number("p50", (row) => micros(row.p50Micros)),
    number("p99", (row) => micros(row.p99Micros)),
    number("In flight", (row) => row.inFlight),
    number("Endpoints", (row) => `${row.usableEndpoints} of ${row.endpoints}`, (row) => (row.usableEndpoints === 0 ? "bad" : null)),
    { title: "State", cell: state, tone: (row) => (row.breaker === "open" ? "bad" : "faint") },
  ], rows, "No governed services: annotate a namespace with sluice.dev/capture=enabled, and its Services are listed here.")];
}

function state(service) {
  const words = [];
  if (service.breaker === "open" || service.breaker === "half_open") words.push(`breaker ${BREAKER[service.breaker]}`);
  if (service.ejected > 0) words.push(`${service.ejected} ejected`);
  if (service.warming > 0) words.push(`${service.warming} warming up`);
  if (service.lanes.length > 0) words.push(`lanes ${service.lanes.join(", ")}`);
  return words.join("; ");
}

export function calls(overview) {
  const rows = [...overview.calls].sort((a, b) => b.rate - a.rate);
  const most = Math.max(1, ...rows.map((row) => row.rate));
  const link = (row) => element("a", { href: servicePath(row.destination) }, serviceName(row.destination));
  return [element("h2", {}, "Calls"), table("Who on this node calls whom, in the last 10 seconds", [
    { title: "Caller", cell: (row) => `${row.source.namespace}/${row.source.pod}` },
    { title: "Service", cell: link },
    { title: "Lane", cell: (row) => row.lane || "–" },
    { title: "", class: "narrow-hide", cell: (row) => element("meter", { min: 0, max: most, value: row.rate, "aria-label": "part of the busiest" }) },
    number("Requests", (row) => rate(row.rate)),
    number("Errors", (row) => percent(row.errorPart), (row) => errorTone(row.errorPart)),
  ], rows, "No enrolled pod of this node has called a governed service yet.")];
}

export function pods(overview) {
  const rank = { pending: 0, own_proxy: 1, enrolled: 2 };
  const rows = [...overview.pods].sort((a, b) => (rank[a.state] ?? 1) - (rank[b.state] ?? 1)
    || `${a.namespace}/${a.name}`.localeCompare(`${b.namespace}/${b.name}`));
  return [element("h2", {}, "Pods"), table("Pods of this node in opted-in namespaces", [
    { title: "Pod", cell: (row) => `${row.namespace}/${row.name}` },
    { title: "Tag", cell: (row) => row.tag || "baseline" },
    { title: "State", cell: (row) => row.state.replace("_", " "), tone: (row) => (row.state === "pending" ? "warn" : null) },
    { title: "Why", cell: (row) => row.why || "" },
  ], rows, "No pod of this node is in an opted-in namespace.")];
}

export function policies(overview) {
  const conditions = (row) => element("ul", { class: "plain" }, row.conditions.map((condition) =>
    element("li", { class: condition.status === "True" ? null : "bad" },
      `${condition.type}: ${condition.status}${condition.reason ? ` (${condition.reason})` : ""} ${condition.message || ""}`)));
  const problems = overview.state.problems.map((problem) => element("li", { class: "bad" }, problem));
  return [
    element("h2", {}, "Policies"),
    table("As this agent took them", [
      { title: "Policy", cell: (row) => `${row.kind} ${row.namespace}/${row.name}` },
      { title: "Conditions", cell: conditions },
    ], overview.policies, "No TrafficPolicy or TrafficLane in an opted-in namespace: balancing, lanes by label and numbers, and no limits."),
    element("h2", {}, "Problems"),
    problems.length === 0 ? element("p", { class: "empty" }, "None: every object is in force as written.") : element("ul", {}, problems),
  ];
}
