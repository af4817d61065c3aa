// Lanes: which there are, and one of them: its pods by Service, where its requests go where it has none, how it fares beside the
// baseline, and how requests enter it.

import { conditions, count, element, errorTone, laneLink, lanePath, micros, number, percent, plural, rate, serviceLink, serviceName, table } from "./format.js";
import { arranged, by, head, search } from "./order.js";

const lanePlace = (row) => `${row.tag} ${row.namespace}`;

export function lanes(overview) {
  const columns = [
    { title: "Lane", cell: (row) => laneLink(row.tag, row.namespace) },
    { title: "Namespace", cell: (row) => row.namespace },
    { title: "TrafficLane", cell: trafficLane, tone: (row) => (row.programmed === false ? "bad" : row.programmed === null ? "faint" : null) },
    number("Pods", (row) => count(row.pods), null, (row) => row.pods),
    number("Services", (row) => count(row.services), null, (row) => row.services),
    number("Attempts", (row) => rate(row.rate), null, (row) => row.rate),
    number("Errors", (row) => percent(row.error_ratio), (row) => errorTone(row.error_ratio), (row) => row.error_ratio),
  ];
  const all = overview.lanes;
  const rows = arranged("lanes", columns, all, by(lanePlace));
  const empty = all.length > 0 ? "No lane's tag or namespace has this in it."
    : "No lanes: no pod has the label sluice.dev/tag, and there is no TrafficLane.";
  return [element("h1", {}, "Lanes"), search("Find a lane", rows.length, all.length),
    table("Attempts at their endpoints by this node's enrolled pods, in the last 10 seconds", columns, rows, empty, (column) => head("lanes", column))];
}

function trafficLane(row) {
  if (row.programmed === null) return "none: by label only";
  return `${row.traffic_lanes.join(", ")}${row.programmed ? "" : ": not active as a whole"}`;
}

export function lane(detail) {
  return [
    element("h1", {}, `Lane ${detail.tag}`),
    namespaces(detail),
    tiles(detail),
    element("h2", {}, "TrafficLanes"), trafficLanes(detail),
    element("h2", {}, "Entry rules"), entry(detail),
    element("h2", {}, "Services"), services(detail),
    ...otherPods(detail),
    element("h2", {}, "Lost tags"), losses(detail),
  ];
}

// Which part of the lane is shown, and where the others are.
function namespaces(detail) {
  const choice = (namespace, text) => element("a", { href: lanePath(detail.tag, namespace), "aria-current": namespace === detail.namespace ? "true" : null }, text);
  return element("nav", { "aria-label": "Namespaces" }, choice(null, "all namespaces"), detail.namespaces.map((namespace) => choice(namespace, namespace)));
}

function tiles(detail) {
  const tile = (title, value, tone) => element("div", {}, element("dt", {}, title), element("dd", { class: tone }, value));
  const own = detail.services.filter((row) => row.answered_by === "lane").length;
  const lost = detail.losses.reduce((total, row) => total + row.tags_lost, 0);
  return element("dl", { class: "tiles" },
    tile("Attempts", rate(detail.lane.rate)),
    tile("Errors", percent(detail.lane.error_ratio), errorTone(detail.lane.error_ratio)),
    tile("Baseline attempts", rate(detail.baseline.rate)),
    tile("Baseline errors", percent(detail.baseline.error_ratio), errorTone(detail.baseline.error_ratio)),
    tile("Services in the lane", `${own} of ${detail.services.length + detail.services_omitted}`),
    tile("Lost tags", count(lost), lost > 0 ? "warn" : null));
}

function trafficLanes(detail) {
  return table("As this agent took them", [
    { title: "TrafficLane", cell: (row) => `${row.namespace}/${row.name}` },
    { title: "Conditions", cell: conditions },
    { title: "Fallback", cell: (row) => row.fallback ?? "nothing of it is active" },
    { title: "Tags from outside", cell: (row) => ({ true: "kept", false: "removed where requests may enter" })[row.trusts_incoming_tag] ?? "–" },
  ], detail.traffic_lanes, "No TrafficLane has this tag: pods have it by the label sluice.dev/tag. Such a lane has no entry rules, and falls back to the baseline.");
}

function entry(detail) {
  return table("A request without a tag enters by the first rule that matches; rules of other lanes may be asked before", [
    { title: "Rule", cell: (row) => `entry[${row.rule}] of ${row.traffic_lane}` },
    { title: "Requests", cell: (row) => row.requests },
    { title: "At", cell: (row) => row.services.join(", ") || "all Services of its namespace" },
    number("Priority", (row) => count(row.priority)),
  ], detail.entry, "None: only requests that carry the tag, and those of the lane's own pods, are in the lane.");
}

const MEMBER = { warming_up: "warming up", not_ready: "not ready", delayed: "waiting for its warm-up" };
const MOST_NAMES = 5;

function members(row) {
  if (row.members.length === 0) return "none";
  const name = (member) => `${member.pod ?? member.address}${member.state === "ready" ? "" : ` (${MEMBER[member.state] ?? member.state})`}`;
  const more = row.members.length + row.members_omitted - MOST_NAMES;
  return `${row.members.slice(0, MOST_NAMES).map(name).join(", ")}${more > 0 ? ` and ${count(more)} more` : ""}`;
}

const ANSWERED = { lane: "the lane", baseline: "the baseline", rejected: "nobody: rejected with 503 (Fail)", nobody: "nobody: no endpoint is usable" };
const answered = (row) => (row.answered_by === "other_lane" ? `lane ${row.other_lane}` : ANSWERED[row.answered_by] ?? row.answered_by);
const DISTANCE = { nobody: 4, rejected: 3, baseline: 2, other_lane: 1, lane: 0 };
const away = (row) => (DISTANCE[row.answered_by] >= DISTANCE.rejected ? "bad" : row.answered_by === "lane" ? null : "warn");

function services(detail) {
  const columns = [
    { title: "Service", cell: serviceLink },
    { title: "Pods of the lane", cell: members, tone: (row) => (row.members.length === 0 ? "faint" : null) },
    { title: "Its requests go to", hint: "farthest from the lane first", cell: answered, tone: away, by: (row) => DISTANCE[row.answered_by] },
    { title: "Fallback", class: "wide", cell: (row) => row.fallback },
    number("Attempts", (row) => rate(row.lane.rate), null, (row) => row.lane.rate),
    number("Baseline", (row) => rate(row.baseline.rate), null, (row) => row.baseline.rate),
    number("Errors", (row) => percent(row.lane.error_ratio), (row) => errorTone(row.lane.error_ratio), (row) => row.lane.error_ratio),
    number("Baseline errors", (row) => percent(row.baseline.error_ratio), (row) => errorTone(row.baseline.error_ratio), (row) => row.baseline.error_ratio),
    number("p99", (row) => micros(row.lane.p99_micros), null, (row) => row.lane.p99_micros),
    number("Baseline p99", (row) => micros(row.baseline.p99_micros), null, (row) => row.baseline.p99_micros),
  ];
  const rows = arranged("lane", columns, detail.services, by(serviceName));
  const empty = detail.services.length > 0 ? "No Service's name has this in it." : "No managed Service in this namespace.";
  const left = detail.services_omitted > 0 ? element("p", { class: "warn" }, `${plural(detail.services_omitted, "Service")} left out: there are too many. Choose a namespace.`) : null;
  return element("div", {}, search("Find a Service", rows.length, detail.services.length),
    table("Attempts by this node's enrolled pods in the last 10 seconds, at endpoints of the lane and of the baseline", columns, rows, empty, (column) => head("lane", column)), left);
}

function otherPods(detail) {
  if (detail.other_pods.length === 0) return [];
  return [element("h2", {}, "Other pods"), table("Of the lane and on this node, and no endpoints of these Services: what they send is in the lane", [
    { title: "Pod", cell: (row) => `${row.namespace}/${row.name}` },
  ], detail.other_pods, "")];
}

function losses(detail) {
  return table("Requests without a tag, sent while all that the pod was answering had one: of all lanes, on this node, since its pods started", [
    { title: "Workload", cell: (row) => `${row.namespace}/${row.workload}` },
    number("Pods", (row) => count(row.pods)),
    number("Tags lost", (row) => count(row.tags_lost), (row) => (row.is_losing ? "warn" : null)),
    { title: "Last 5 min", cell: (row) => (row.is_losing ? "it loses tags" : "none lost"), tone: (row) => (row.is_losing ? "warn" : "faint") },
  ], detail.losses, "None. They are counted for pods with sluice.dev/propagation: trace only.");
}
