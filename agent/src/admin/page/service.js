// One service: its golden signals, its lanes, its endpoints with their warm-up, its limits, its circuit breakers.

import { BREAKER, age, count, element, errorTone, lane, laneLink, micros, number, percent, plural, rate, serviceName, table } from "./format.js";
import { chart, spark, strip } from "./draw.js";

const last = (numbers, seconds) => numbers.slice(-seconds);

export function service(detail, minutes) {
  const { service: about, seconds } = detail;
  const shown = (numbers) => last(numbers, minutes * 60);
  const lines = (...all) => all.map(([title, tone, numbers]) => ({ title, tone, numbers: shown(numbers) }));
  const total = about.total;
  return [
    element("h1", {}, serviceName(about)),
    element("p", { class: "faint" }, about.policy ? `TrafficPolicy ${about.policy}${about.inherits_from.length ? `, inherits from ${about.inherits_from.join(", ")}` : ""}. ` : "No TrafficPolicy: load balancing, lanes and metrics only. ",
      `${plural(total.requests, "request")} since the agent started, ${plural(total.errors, "error")}, ${count(total.rejected)} rejected.`),
    ranges(minutes),
    element("div", { class: "charts" },
      chart("Requests a second", lines(["requests", "good", seconds.requests], ["errors", "bad", seconds.errors], ["rejected", "warn", seconds.rejected]), rate,
        { closedOff: shown(seconds.circuit) }),
      chart("Latency", lines(["p50", "good", seconds.p50_micros], ["p95", "warn", seconds.p95_micros], ["p99", "bad", seconds.p99_micros]), micros),
      chart("In flight", lines(["requests", "good", seconds.in_flight]), count)),
    ...warmUps(detail),
    element("h2", {}, "Lanes"), lanes(detail),
    element("h2", {}, "Endpoints"), endpoints(detail),
    ...routes(detail),
    element("h2", {}, "Limits"), limits(detail),
    ...tokenKeys(detail),
    element("h2", {}, "Circuit breaker"), breaker(detail, minutes),
    element("h2", {}, "Policy"), policy(detail),
  ];
}

function ranges(minutes) {
  const range = (wanted) => element("button", { type: "button", "data-minutes": wanted, "aria-pressed": String(wanted === minutes) }, `${wanted} min`);
  return element("div", { class: "ranges", role: "group", "aria-label": "Time shown" }, [1, 5, 15].map(range));
}

// The curve that was wanted and the share that was got, second by second, for each endpoint that warmed up in the time that is
// kept: from a little before to a little after.
function warmUps(detail) {
  const charts = [];
  for (const endpoint of detail.endpoints) {
    const wanted = endpoint.seconds?.target_shares ?? [];
    const warming = wanted.map((share, at) => (share !== null && share < 1 ? at : -1)).filter((at) => at >= 0);
    if (warming.length === 0) continue;
    const [from, to] = [Math.max(0, warming[0] - 2), Math.min(wanted.length, warming.at(-1) + 16)];
    const ago = (at) => (at >= wanted.length - 1 ? "now" : `${age(wanted.length - 1 - at)} ago`);
    // The mean of the five seconds to one is the mean around the second two before it.
    const got = endpoint.seconds.actual_shares.slice(from + 2, to + 2);
    charts.push(chart(endpoint.pod ?? endpoint.address, [
      { title: "target", tone: "wanted", numbers: wanted.slice(from, to) },
      { title: "actual (mean of 5 s)", tone: "good", numbers: [...got, ...Array(to - from - got.length).fill(null)], now: got.at(-1) },
    ], percent, { top: 1.5, ends: [ago(from), ago(to - 1)] }));
  }
  if (charts.length === 0) return [];
  const about = detail.warm_up ? ` The policy warms up for ${age(detail.warm_up.duration_seconds)}, from ${detail.warm_up.minimum_percent} %.` : "";
  return [element("h2", {}, "Warm-up"),
    element("p", { class: "faint" }, `Target and actual share of each new endpoint, as a part of a warm one's requests, second by second.${about}`),
    element("div", { class: "charts", id: "warm-up" }, charts)];
}

function lanes(detail) {
  return table("In the last 10 seconds", [
    { title: "Lane", cell: (row) => (row.tag === null ? lane(row.tag) : laneLink(row.tag, detail.service.namespace)) },
    { title: "Last minute", class: "wide", cell: (row) => spark(`Requests and errors of ${lane(row.tag)} in the last minute`, [
      { numbers: last(row.seconds.requests, 60), tone: "good" }, { numbers: last(row.seconds.errors, 60), tone: "bad" }], last(row.seconds.circuit, 60)) },
    number("Attempts", (row) => rate(row.rate)),
    number("Errors", (row) => percent(row.error_ratio), (row) => errorTone(row.error_ratio)),
    number("p50", (row) => micros(row.p50_micros)),
    number("p99", (row) => micros(row.p99_micros)),
    number("In flight", (row) => count(row.in_flight)),
    number("Endpoints", (row) => `${row.usable_endpoints} of ${row.endpoints}`),
  ], detail.lanes, "None.");
}

function endpoints(detail) {
  const shown = table("Attempts at them in the last 10 seconds, by this node's clients; latency is to the response headers", [
    { title: "Endpoint", cell: (row) => row.pod ?? row.address },
    { title: "Address", class: "wide", cell: (row) => row.address },
    { title: "Lane", cell: (row) => lane(row.tag) },
    { title: "Last minute", class: "wide", cell: (row) => (row.seconds === null ? "" : spark(`Requests and errors of ${row.address} in the last minute`, [
      { numbers: last(row.seconds.requests, 60), tone: "good" }, { numbers: last(row.seconds.errors, 60), tone: "bad" }], last(row.seconds.circuit, 60))) },
    number("Attempts", (row) => rate(row.rate)),
    number("Errors", (row) => percent(row.error_ratio), (row) => errorTone(row.error_ratio)),
    number("p50", (row) => micros(row.p50_micros)),
    number("p99", (row) => micros(row.p99_micros)),
    number("In flight", (row) => count(row.in_flight)),
    { title: "State", cell: endpointState, tone: (row) => (row.state === "ejected" ? "bad" : row.state === "ready" ? null : "warn") },
  ], detail.endpoints, "The service has no endpoints: requests to it are answered 503 with the reason no_endpoint.");
  if (detail.endpoints_omitted === 0) return shown;
  return element("div", {}, shown, element("p", { class: "faint" }, `${plural(detail.endpoints_omitted, "endpoint")} more, less busy than these.`));
}

function endpointState(row) {
  if (row.state === "ejected") return `ejected for another ${age(row.ejected_seconds ?? 0)}`;
  if (row.state === "warming_up") return `warming up, ${percent(row.target_share)}`;
  if (row.state === "delayed") return "waiting for the delay of its warm-up";
  return row.state.replace("_", " ");
}

// Where its routes send requests, the first rule that matches applies. Most services have none.
function routes(detail) {
  if ((detail.routes ?? []).length === 0) return [];
  return [element("h2", {}, "Routes"), table("The first rule that matches applies; requests of this node since the agent started", [
    { title: "Rule", cell: (row) => row.rule },
    { title: "Clients", class: "wide", cell: (row) => (row.clients === null ? "all" : `namespace ${row.clients}`) },
    { title: "Matches", cell: (row) => row.matches.join(" or ") },
    { title: "Does", cell: (row) => row.does.join("; ") },
    { title: "Policy", class: "wide", cell: (row) => (row.policy === null ? "" : `TrafficPolicy ${row.policy}`) },
    number("Requests", (row) => count(row.requests)),
  ], detail.routes, "")];
}

// Of a limit of the whole cluster also what this agent has of it, and how its store fares.
function limits(detail) {
  const shown = limitTable(detail);
  const store = detail.limit_store ?? null;
  if (store === null) return shown;
  return element("div", {}, shown, element("p", { class: store.trouble === null ? "faint" : "warn" }, storeState(store)));
}

function storeState(store) {
  if (store.address === null) return "There is no store of limits with scope Cluster (--limit-store): each agent counts by itself.";
  if (store.trouble === null) return `The store of limits with scope Cluster, ${store.address}, ${store.connected ? "answers" : "has not been asked yet"}.`;
  return `The store of limits with scope Cluster, ${store.address}, has not answered for ${age(store.trouble_seconds ?? 0)}: ${store.trouble}`;
}

const COUNTED = { leased: "leased", last_share: "without the store: the last share", node: "on this node alone" };

function share(row) {
  if (!row.cluster) return "";
  return `${rate(row.cluster.requests_per_second)}, ${COUNTED[row.cluster.counted]}`;
}

function limitTable(detail) {
  const shared = detail.limits.some((row) => row.cluster);
  return table("Since the agent started", [
    { title: "Rule", cell: (row) => row.rule },
    { title: "Allows", cell: (row) => row.limit },
    ...(shared ? [{ title: "This agent's share", cell: share, tone: (row) => (row.cluster && row.cluster.counted !== "leased" ? "warn" : null) }] : []),
    { title: "Mode", cell: (row) => row.mode },
    number("Allowed", (row) => count(row.allowed)),
    number("Queued", (row) => count(row.queued)),
    number("Rejected", (row) => count(row.rejected), (row) => (row.rejected > 0 ? "warn" : null)),
    number("Would reject", (row) => count(row.would_reject)),
  ], detail.limits, "No limits.");
}

// Where its AccessPolicy has the keys of tokens from. Most services have none.
function tokenKeys(detail) {
  if ((detail.token_keys ?? []).length === 0) return [];
  return [element("h2", {}, "Keys of tokens"), table("As this agent has fetched them", [
    { title: "AccessPolicy", cell: (row) => row.policy },
    { title: "Provider", cell: (row) => row.provider },
    { title: "From", class: "wide", cell: (row) => row.uri },
    number("Keys", (row) => count(row.keys), (row) => (row.keys === 0 ? "bad" : null)),
    { title: "Fetched", cell: keysAge, tone: (row) => (row.keys === 0 ? "bad" : row.trouble === null ? null : "warn") },
  ], detail.token_keys, "")];
}

function keysAge(row) {
  const why = row.trouble === null ? "" : `: ${row.trouble}`;
  if (row.age_seconds === null) return "not asked for yet";
  if (row.keys === 0) return `never, for ${age(row.age_seconds)}${why}`;
  return `${age(row.age_seconds)} ago${row.trouble === null ? "" : `; not since${why}`}`;
}

// Every value that is in force and is no default, then the defaults.
function policy(detail) {
  const shown = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  const rows = [...detail.policy_values].sort((one, other) => (one.source === null) - (other.source === null));
  return table("Active values, and where they come from", [
    { title: "Field", cell: (row) => row.field },
    { title: "Value", cell: (row) => shown(row.value) },
    { title: "Source", cell: (row) => (row.source === null ? "default" : `TrafficPolicy ${row.source}`) },
  ], rows, "No TrafficPolicy: everything is a default.");
}

function breaker(detail, minutes) {
  const rows = detail.lanes.filter((row) => row.breaker !== null);
  if (rows.length === 0) return element("p", { class: "empty" }, "None.");
  const steps = table("The last changes", [
    { title: "When", cell: (row) => `${age(row.seconds_ago)} ago` },
    { title: "Client", cell: (row) => row.source ?? "all pods" },
    { title: "Lane", cell: (row) => lane(row.tag) },
    { title: "To", cell: (row) => BREAKER[row.to], tone: (row) => (row.to === "open" ? "bad" : null) },
    { title: "Why", cell: (row) => row.reason },
  ], detail.transitions, "It has not changed since the agent started.");
  return element("div", {}, table(`Now, and in the last ${minutes} min: full where it was open, half where it let probes through`, [
    { title: "Lane", cell: (row) => lane(row.tag) },
    { title: "State", cell: (row) => BREAKER[row.breaker], tone: (row) => (row.breaker === "open" ? "bad" : null) },
    { title: "Timeline", cell: (row) => strip(`When the circuit breaker of ${lane(row.tag)} was open`, last(row.seconds.circuit, minutes * 60)) },
  ], rows, ""), steps);
}
