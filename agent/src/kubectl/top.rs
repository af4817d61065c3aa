//! The services of all nodes, live: each agent is asked once a second over a session that stays, and what they say is added up.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};

use super::{
    AT_A_TIME,
    access::Cluster,
    agents::{Agent, Agents},
    nodes::named,
    session::{Reply, Session, Unreached},
    within,
};
use crate::{
    api::plain,
    ask::{Asked, Failed, good},
};

/// How long an agent may take: the picture is to be one of a second.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long opening a session may take.
const OPENING: Duration = Duration::from_secs(10);
/// After a session that broke another one is tried, no sooner than this.
const AGAIN: Duration = Duration::from_secs(5);

/// The agents that are looked at.
pub(super) struct Watched {
    cluster: Cluster,
    nodes: Vec<Watch>,
}

struct Watch {
    node: String,
    agent: Result<Agent, Unreached>,
    session: Option<Session>,
    /// Since when there is none that answers, and why.
    broken: Option<(Instant, Unreached)>,
}

impl Watched {
    pub(super) fn new(cluster: Cluster, agents: &Agents) -> Self {
        let watch = |(node, agent): (&String, &Result<Agent, Unreached>)| Watch {
            node: node.clone(),
            agent: agent.clone(),
            session: None,
            broken: None,
        };
        let nodes = agents.all().map(watch).collect();
        Self { cluster, nodes }
    }

    /// What they say together. An error, if nobody says anything.
    pub(super) async fn overview(&mut self) -> Result<Value, Failed> {
        let cluster = &self.cluster;
        let ask = async |watch: &mut Watch| (watch.node.clone(), watch.overview(cluster).await);
        let answers: BTreeMap<String, Result<Value, Unreached>> =
            stream::iter(&mut self.nodes).map(ask).buffer_unordered(AT_A_TIME).collect().await;
        let overviews: Vec<&Value> = answers.values().flatten().collect();
        if overviews.is_empty()
            && let Some((node, Err(why))) = answers.iter().next()
        {
            return Err(why.clone().on(node));
        }
        let silent: Vec<&str> =
            answers.iter().filter(|(_, answer)| answer.is_err()).map(|(node, _)| &**node).collect();
        let mut title = match &*overviews {
            [only] => only["node"].as_str().unwrap_or("one node").to_owned(),
            several => format!("{} nodes", several.len()),
        };
        if !silent.is_empty() {
            title = format!("{title} (no answer from {})", named(&silent));
        }
        Ok(json!({ "node": title, "services": merged(&overviews) }))
    }
}

impl Watch {
    async fn overview(&mut self, cluster: &Cluster) -> Result<Value, Unreached> {
        if let Some((_, why)) = self.broken.as_ref().filter(|(since, _)| since.elapsed() < AGAIN) {
            return Err(why.clone());
        }
        let answer = self.ask(cluster).await;
        self.broken = answer.as_ref().err().map(|why| {
            // Whatever still comes would be the answer to this question.
            self.session = None;
            (Instant::now(), why.clone())
        });
        answer
    }

    async fn ask(&mut self, cluster: &Cluster) -> Result<Value, Unreached> {
        let session = match &mut self.session {
            Some(session) => session,
            none => none.insert(
                within(OPENING, Session::open(cluster, self.agent.as_ref().map_err(Clone::clone)?)).await?,
            ),
        };
        let Reply { answer, .. } = within(PATIENCE, session.ask(&Asked::get("/api/overview"))).await?;
        let body = good(answer).map_err(|error| Unreached::Says(error.to_string()))?;
        serde_json::from_str(&body).map_err(|error| Unreached::Says(plain::words(&error)))
    }
}

/// Services of several nodes as one: rates and requests in flight are added up, the part of errors is that of all requests,
/// and a percentile is the worst node's, for of percentiles there is no sum.
fn merged(overviews: &[&Value]) -> Vec<Value> {
    let mut services: BTreeMap<(String, String, u64), Value> = BTreeMap::new();
    for service in overviews.iter().flat_map(|overview| overview["services"].as_array().into_iter().flatten())
    {
        let text = |field: &str| service[field].as_str().unwrap_or_default().to_owned();
        let key = (text("namespace"), text("name"), service["port"].as_u64().unwrap_or_default());
        match services.get_mut(&key) {
            None => {
                services.insert(key, service.clone());
            }
            Some(sum) => add(sum, service),
        }
    }
    services.into_values().collect()
}

fn add(sum: &mut Value, other: &Value) {
    let number = |value: &Value, field: &str| value[field].as_f64().unwrap_or_default();
    let (one, two) = (number(sum, "rate"), number(other, "rate"));
    let errors = one * number(sum, "error_ratio") + two * number(other, "error_ratio");
    let ratio = if one + two > 0.0 { errors / (one + two) } else { 0.0 };
    let rejected = number(sum, "rejected_rate") + number(other, "rejected_rate");
    let in_flight =
        sum["in_flight"].as_u64().unwrap_or_default() + other["in_flight"].as_u64().unwrap_or_default();
    sum["rate"] = json!(one + two);
    sum["error_ratio"] = json!(ratio);
    sum["rejected_rate"] = json!(rejected);
    sum["in_flight"] = json!(in_flight);
    for field in ["p50_micros", "p95_micros", "p99_micros"] {
        let worst = [&sum[field], &other[field]]
            .into_iter()
            .filter_map(Value::as_f64)
            .fold(None, |worst: Option<f64>, one| Some(worst.map_or(one, |worst| worst.max(one))));
        sum[field] = json!(worst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_of_several_nodes_are_added_up() {
        let service = |name: &str, rate: f64, errors: f64, p99: Option<u64>, in_flight: u64| {
            json!({
                "namespace": "shop", "name": name, "port": 80, "rate": rate, "error_ratio": errors, "rejected_rate": 1.5,
                "p50_micros": null, "p95_micros": 7, "p99_micros": p99, "in_flight": in_flight,
            })
        };
        let one = json!({"services": [service("orders", 30.0, 0.1, Some(900), 2), service("stock", 1.0, 0.0, None, 0)]});
        let two = json!({"services": [service("orders", 10.0, 0.5, Some(800), 3)]});
        let idle = json!({"services": [service("idle", 0.0, 0.0, None, 0)]});
        let merged = merged(&[&one, &two, &idle, &idle]);
        let names: Vec<_> = merged.iter().map(|service| service["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["idle", "orders", "stock"]);
        let orders = &merged[1];
        assert_eq!((&orders["rate"], &orders["error_ratio"]), (&json!(40.0), &json!(0.2)));
        assert_eq!((&orders["rejected_rate"], &orders["in_flight"]), (&json!(3.0), &json!(5)));
        assert_eq!((&orders["p50_micros"], &orders["p99_micros"]), (&json!(null), &json!(900.0)));
        assert_eq!(merged[0]["error_ratio"], json!(0.0));
    }
}
