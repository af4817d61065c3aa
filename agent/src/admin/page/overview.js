// The views that need nothing but the overview: services, calls, pods, policies.

import { BREAKER, conditions, count, element, errorTone, laneLink, lanePath, micros, number, percent, plural, rate, serviceLink, serviceName, table } from "./format.js";
import { map, spark } from "./draw.js";
import { arranged, by, head, search } from "./order.js";

const sum = (rows, value) => rows.reduce((total, row) => total + value(row), 0);
const pod = (name) => `${name.namespace}/${name.name}`;

// How bad it is, for those who want to see that first.
const badness = (row) => (row.breaker === "open" ? 4 : row.breaker === "half_open" ? 2 : 0)
  + (row.endpoints > 0 && row.usable_endpoints === 0 ? 3 : 0)
  + (row.error_ratio ?? 0) * 2 + (row.ejected > 0 ? 1 : 0) + (row.rejected_rate > 0 ? 0.5 : 0);

export function services(overview) {
  const columns = [
    { title: "Service", cell: serviceLink },
    { title: "Last minute", class: "wide", cell: (row) => spark(`Requests and errors of ${serviceName(row)} in the last minute`, [
      { numbers: row.spark.requests, tone: "good" }, { numbers: row.spark.errors, tone: "bad" }]) },
    number("Requests", (row) => rate(row.rate), null, (row) => row.rate),
    number("Errors", (row) => percent(row.error_ratio), (row) => errorTone(row.error_ratio), (row) => row.error_ratio),
    number("Rejected", (row) => rate(row.rejected_rate), (row) => (row.rejected_rate > 0 ? "warn" : null), (row) => row.rejected_rate),
    number("p50", (row) => micros(row.p50_micros), null, (row) => row.p50_micros),
    number("p99", (row) => micros(row.p99_micros), null, (row) => row.p99_micros),
    number("In flight", (row) => count(row.in_flight), null, (row) => row.in_flight),
    number("Endpoints", (row) => `${row.usable_endpoints} of ${row.endpoints}`, (row) => (row.usable_endpoints === 0 ? "bad" : null)),
    { title: "State", hint: "worst first", cell: state, tone: (row) => (row.breaker === "open" ? "bad" : "faint"), by: badness },
  ];
  const all = overview.services;
  const rows = arranged("services", columns, all, by(serviceName));
  const empty = all.length > 0 ? "No service's name has this in it."
    : "No managed services: annotate a namespace with sluice.dev/capture=enabled, and its Services are listed here.";
  return [element("h1", {}, "Services"), tiles(overview), search("Find a service", rows.length, all.length),
    table("Calls of this node's enrolled pods, in the last 10 seconds", columns, rows, empty, (column) => head("services", column))];
}

// The node in a few numbers.
function tiles(overview) {
  const rows = overview.services;
  const all = sum(rows, (row) => row.rate);
  const refused = sum(rows, (row) => row.rejected_rate);
  const errors = sum(rows, (row) => row.error_ratio * Math.max(0, row.rate - row.rejected_rate));
  const part = all > refused ? errors / (all - refused) : 0;
  const enrolled = overview.pods.filter((row) => row.state === "enrolled").length;
  const tile = (title, value, tone) => element("div", {}, element("dt", {}, title), element("dd", { class: tone }, value));
  return element("dl", { class: "tiles" },
    tile("Requests", rate(all)),
    tile("Errors", percent(part), errorTone(part)),
    tile("Rejected", rate(refused), refused > 0 ? "warn" : null),
    tile("In flight", count(sum(rows, (row) => row.in_flight))),
    tile("Tunnels", count(sum(rows, (row) => row.tunnels))),
    tile("Pods enrolled", `${enrolled} of ${overview.pods.length}`));
}

function state(row) {
  const words = [];
  if (row.breaker === "open" || row.breaker === "half_open") words.push(`breaker ${BREAKER[row.breaker]}`);
  if (row.ejected > 0) words.push(`${row.ejected} ejected`);
  if (row.warming > 0) words.push(`${row.warming} warming up`);
  if (row.sent_to.length > 0) words.push(`its routes send on to ${row.sent_to.join(", ")}`);
  if (row.lanes.length === 0) return words.join("; ");
  const links = row.lanes.flatMap((tag, at) => (at === 0 ? [laneLink(tag, row.namespace)] : [", ", laneLink(tag, row.namespace)]));
  return element("span", {}, [...words, row.lanes.length === 1 ? "lane " : "lanes "].join("; "), links);
}

const MOST_LINES = 40;

export function calls(overview) {
  const edges = new Map();
  for (const row of [...overview.calls].sort((one, other) => other.rate - one.rate)) {
    const [from, to] = [pod(row.source), serviceName(row.destination)];
    const edge = edges.get(`${from} ${to}`) ?? { from, to, rate: 0, errors: 0 };
    edge.rate += row.rate;
    edge.errors += row.error_ratio * Math.max(0, row.rate - row.rejected_rate);
    edges.set(`${from} ${to}`, edge);
  }
  const drawn = [...edges.values()].slice(0, MOST_LINES);
  for (const edge of drawn) {
    const part = edge.rate > 0 ? edge.errors / edge.rate : 0;
    edge.tone = errorTone(part);
    edge.label = `${edge.from} calls ${edge.to}: ${rate(edge.rate)}, ${percent(part)} errors`;
  }
  const note = drawn.length < edges.size ? element("p", { class: "faint" }, `The map has the ${MOST_LINES} busiest of ${edges.size}.`) : null;
  const left = overview.calls_omitted > 0 ? element("p", { class: "warn" }, `${plural(overview.calls_omitted, "call")} left out: there are too many.`) : null;
  const columns = [
    { title: "Caller", cell: (row) => pod(row.source) },
    { title: "Service", cell: (row) => serviceLink(row.destination) },
    { title: "Lane", cell: (row) => (row.lane === "" ? "–" : row.lane === "baseline" ? row.lane : laneLink(row.lane, row.destination.namespace)) },
    number("Requests", (row) => rate(row.rate), null, (row) => row.rate),
    number("Errors", (row) => percent(row.error_ratio), (row) => errorTone(row.error_ratio), (row) => row.error_ratio),
    number("Rejected", (row) => rate(row.rejected_rate), (row) => (row.rejected_rate > 0 ? "warn" : null), (row) => row.rejected_rate),
    number("In flight", (row) => count(row.in_flight), null, (row) => row.in_flight),
    number("Tunnels", (row) => count(row.tunnels)),
    number("Since the start", (row) => count(row.total.requests), null, (row) => row.total.requests),
  ];
  const called = by((row) => `${pod(row.source)} ${serviceName(row.destination)} ${row.lane ?? ""}`);
  const rows = arranged("calls", columns, overview.calls, called);
  const empty = overview.calls.length > 0 ? "No caller's or service's name has this in it." : "No enrolled pod of this node has called a managed service yet.";
  return [element("h1", {}, "Calls"), search("Find a caller or a service", rows.length, overview.calls.length),
    drawn.length > 0 ? map("Who calls whom; the table has the same in words", drawn) : null, note, left,
    table("Who on this node calls whom, in the last 10 seconds", columns, rows, empty, (column) => head("calls", column))].filter(Boolean);
}

const CARRIER = { header: "tag header", baggage: "baggage", tracestate: "tracestate", sw8_correlation: "sw8-correlation",
  trace_id: "trace id", thread: "thread", workload: "its own tag", entry: "entry rule" };

const HANDLING = {
  on_trial: (server) => `on trial, ${server.shown} of ${server.needed}`,
  by_thread: () => "one request each",
  multiplexes: (server) => `"${server.thread}" reads several at a time`,
  hands_over: (server) => `handed over to "${server.thread}"`,
};

const POD = { enrolled: "enrolled", pending: "not yet enrolled", other_mesh: "left to another mesh", not_enrolled: "not enrolled" };

export function pods(overview) {
  return [element("h1", {}, "Pods"), table("Pods of this node in enrolled namespaces", [
    { title: "Pod", cell: pod },
    { title: "Lane", cell: (row) => (row.tag === null ? "baseline" : laneLink(row.tag, row.namespace)) },
    { title: "State", cell: (row) => POD[row.state] ?? row.state, tone: (row) => (row.state === "pending" ? "warn" : null) },
    { title: "Tags by (5 min)", cell: (row) => row.tag_carriers.map((carrier) => CARRIER[carrier] ?? carrier).join(", ") || "–" },
    { title: "Tags lost", cell: (row) => (row.tags_lost > 0 ? count(row.tags_lost) : "–"), tone: (row) => (row.tags_lost > 0 ? "warn" : null) },
    { title: "Threads", cell: (row) => row.threads.map((server) => `${server.port}: ${HANDLING[server.handling](server)}`).join("; ") || "–",
      tone: (row) => (row.threads.some((server) => server.thread !== null) ? "warn" : null) },
    { title: "Why", cell: (row) => row.reason ?? "" },
  ], overview.pods, "No pod of this node is in an enrolled namespace.")];
}

export function policies(overview) {
  // A TrafficLane leads to its lane.
  const policyName = (row) => {
    const is = (lane) => row.kind === "TrafficLane" && lane.namespace === row.namespace && lane.traffic_lanes.includes(row.name);
    const lane = overview.lanes.find(is);
    const name = `${row.kind} ${row.namespace}/${row.name}`;
    return lane === undefined ? name : element("a", { href: lanePath(lane.tag, lane.namespace) }, name);
  };
  const problems = overview.snapshot.invalid_objects.map((problem) => element("li", { class: "bad" }, problem));
  return [
    element("h1", {}, "Policies"),
    table("As this agent took them", [
      { title: "Policy", cell: policyName },
      { title: "Conditions", cell: conditions },
    ], overview.policies, "No TrafficPolicy or TrafficLane in an enrolled namespace: load balancing, lanes by label and metrics, and no limits."),
    element("h2", {}, "Problems"),
    problems.length === 0 ? element("p", { class: "empty" }, "None: every object is active as written.") : element("ul", {}, problems),
    element("p", { class: "faint" }, `History: ${overview.history.series} of at most ${plural(overview.history.max_series, "series", "series")}, ${Math.round(overview.history.bytes_per_series / 1024)} KiB each; ${count(overview.history.evicted)} given up for want of room.`),
  ];
}
