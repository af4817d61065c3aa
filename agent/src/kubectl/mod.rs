//! `kubectl sluice`: the commands that ask an agent, from elsewhere. The agent of a pod's node is found by itself, and all
//! agents are asked what only all of them know.
//!
//! [`access`] is the way to the API server, [`agents`] says which pods are agents and of which nodes, and [`session`] asks one:
//! it runs `sluice relay` in the agent's container ([`crate::ask::relay`]), through the API server's `exec`. [`nodes`] is what
//! several say together.
//!
//! Why exec and not port-forward: what most commands ask is answered over the agent's Unix socket only, to root, and exec is
//! root in the container. Over TCP the agent answers reads for whoever looks at numbers. And a port that is forwarded to a pod
//! on the node's network can be any port of the node's loopback interface, where the image of the agent holds nothing to
//! execute but `sluice`.

pub mod access;
mod agents;
mod nodes;
mod session;
mod top;

use std::{collections::BTreeMap, future::Future, sync::Mutex, time::Duration};

use clap::Args;
use futures_util::{StreamExt as _, stream};
use serde_json::json;
use tokio::runtime::Runtime;

use self::{
    access::{Cluster, ClusterArgs},
    agents::{Agent, Agents},
    nodes::Node,
    session::{Reply, Session, Unreached},
};
use crate::{
    admin::{client::Answer, desk::Status},
    api::plain,
    ask::{
        self, Asked, CallArgs, ExplainArgs, Failed, OnNode, Output, Reach, StatusArgs, TopArgs, good,
        inert::inert,
        listed_on_nodes, pretty_value,
        print::{complain, print},
        shown_explanation,
    },
    config::object_name,
    proxy::explain::Explanation,
};

/// How the program is called by whoever uses it.
pub const PROGRAM: &str = "kubectl sluice";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Agents that are asked at a time.
const AT_A_TIME: usize = 32;

/// Which agents are asked.
#[derive(Args, Debug)]
pub struct Nodes {
    /// Ask the agents of these nodes only, separated by commas [default: all]
    #[arg(long = "node", value_name = "NAME", value_delimiter = ',')]
    nodes: Vec<String>,
}

/// Which agent is asked.
#[derive(Args, Debug)]
#[group(multiple = false, required = true)]
pub struct Which {
    /// The agent of this node
    #[arg(long, value_name = "NAME", value_parser = object_name)]
    node: Option<String>,
    /// The agent of the node on which this pod runs
    #[arg(long, value_name = "NAMESPACE/POD")]
    pod: Option<String>,
    /// The agents of all nodes
    #[arg(long)]
    all_nodes: bool,
}

/// Which agent is asked, where the pod that calls says it if nothing else does.
#[derive(Args, Debug)]
pub struct MaybeNode {
    /// Ask the agent of this node [default: that of the node on which the calling pod runs]
    #[arg(long, value_name = "NAME", value_parser = object_name)]
    node: Option<String>,
}

/// What has become of the question to each node.
type Answers<T> = BTreeMap<String, Result<T, Unreached>>;

/// `kubectl sluice status`. False: something is wrong, or an agent does not answer.
pub fn status(args: &StatusArgs, nodes: &Nodes, cluster: &ClusterArgs) -> Result<bool, Failed> {
    let runtime = runtime()?;
    let asked = Asked::get("/status");
    let (agents, answers) = runtime.block_on(async {
        let cluster = cluster.connect().await?;
        let agents = cluster.agents(None).await?.only(&nodes.nodes)?;
        let answers = ask_all(&cluster, &agents, &asked).await?;
        Ok::<_, Failed>((agents, answers))
    })?;
    let mut all = Vec::new();
    for (node, reply) in answers {
        let pod = agents.of(&node).and_then(|agent| agent.as_ref().ok()).map(|agent| agent.pod.clone());
        let status = reply.and_then(|reply| {
            let status: Status = read(&node, reply)?;
            Ok(status)
        });
        all.push(Node { name: node, pod, status });
    }
    let report = nodes::Report::new(all, agents.lacking);
    match args.how.output {
        Output::Json => print(pretty_value(&report)?)?,
        Output::Text => print(nodes::shown(&report))?,
    }
    Ok(report.is_good())
}

/// `kubectl sluice explain`
pub fn explain(mut args: ExplainArgs, which: &MaybeNode, cluster: &ClusterArgs) -> Result<(), Failed> {
    args.check(PROGRAM)?;
    let Some(past) = args.past() else {
        let agent = remote(cluster, which.node.as_deref(), args.pod())?;
        return ask::explain(&args, &agent);
    };
    let (runtime, nodes) = (runtime()?, Vec::from_iter(which.node.clone()));
    let answers = runtime.block_on(async {
        let cluster = cluster.connect().await?;
        let agents = cluster.agents(None).await?.only(&nodes)?;
        ask_all(&cluster, &agents, &past).await
    })?;
    let (mut found, mut silent) = (Vec::new(), Vec::new());
    for (node, reply) in answers {
        match reply.and_then(|reply| read::<Vec<Explanation>>(&node, reply)) {
            Ok(explanations) => {
                let on = |explanation| OnNode { node: node.clone(), explanation };
                found.extend(explanations.into_iter().map(on));
            }
            Err(Unreached::Question(why)) => return Err(Failed::Question(why)),
            Err(why) => silent.push(format!("node {node} does not answer: {why}")),
        }
    }
    for line in &silent {
        complain(format_args!("{PROGRAM}: {}", inert(line)));
    }
    let ago = |one: &OnNode| one.explanation.ended.as_ref().map_or(f64::MAX, |ended| ended.seconds_ago);
    found.sort_by(|one, other| ago(one).total_cmp(&ago(other)));
    found.truncate(args.list().map_or(usize::MAX, usize::from));
    match (&*found, args.how.output) {
        ([], _) => return Err(ask::not_kept()),
        (found, Output::Json) => print(pretty_value(&found)?)?,
        ([one], Output::Text) if args.list().is_none() => {
            print(format!("on node {}:\n{}", inert(&one.node), shown_explanation(&one.explanation)))?;
        }
        (several, Output::Text) => print(listed_on_nodes(several))?,
    }
    Ok(())
}

/// `kubectl sluice call`
pub fn call(mut args: CallArgs, which: &MaybeNode, cluster: &ClusterArgs) -> Result<(), Failed> {
    args.check(PROGRAM)?;
    let agent = remote(cluster, which.node.as_deref(), args.pod())?;
    ask::call(&args, &agent)
}

/// `kubectl sluice dump`. False: an agent does not answer.
pub fn dump(which: &Which, cluster: &ClusterArgs) -> Result<bool, Failed> {
    if !which.all_nodes {
        let agent = remote(cluster, which.node.as_deref(), &mut which.pod.clone())?;
        return ask::dump(&agent).map(|()| true);
    }
    let runtime = runtime()?;
    let answers = runtime.block_on(async {
        let cluster = cluster.connect().await?;
        let agents = cluster.agents(None).await?;
        ask_all(&cluster, &agents, &Asked::get("/dump")).await
    })?;
    let mut good = true;
    let dumps: BTreeMap<_, _> = answers
        .into_iter()
        .map(|(node, reply)| {
            let dump = reply.and_then(|reply| read::<serde_json::Value>(&node, reply));
            good &= dump.is_ok();
            (node, dump.unwrap_or_else(|why| json!({ "error": why.to_string() })))
        })
        .collect();
    print(pretty_value(&dumps)?)?;
    Ok(good)
}

/// `kubectl sluice top`
pub fn top(args: &TopArgs, nodes: &Nodes, cluster: &ClusterArgs) -> Result<(), Failed> {
    let runtime = runtime()?;
    runtime.block_on(async {
        let cluster = cluster.connect().await?;
        let agents = cluster.agents(None).await?.only(&nodes.nodes)?;
        let mut watched = top::Watched::new(cluster, &agents);
        ask::top::live(args.times, args.sort, async || watched.overview().await).await
    })
}

fn runtime() -> Result<Runtime, Failed> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

/// Asks each agent the same. What concerns all of them in the same way is an error.
async fn ask_all(cluster: &Cluster, agents: &Agents, asked: &Asked) -> Result<Answers<Reply>, Failed> {
    let one = async |(node, agent): (&String, &Result<Agent, Unreached>)| {
        let answer = match agent {
            Ok(agent) => {
                within(cluster.patience(), async { Session::open(cluster, agent).await?.ask(asked).await })
                    .await
            }
            Err(why) => Err(why.clone()),
        };
        (node.clone(), answer)
    };
    let answers: Answers<Reply> =
        stream::iter(agents.all()).map(one).buffer_unordered(AT_A_TIME).collect().await;
    let mut reasons = answers.values().map(|answer| answer.as_ref().err().filter(|why| why.is_everywhere()));
    // One line instead of one a node.
    if let Some(Some(first)) = reasons.next()
        && reasons.all(|why| why == Some(first))
    {
        return Err(Failed::Refused(first.to_string()));
    }
    warn(answers.iter().filter_map(|(node, answer)| Some((&**node, &*answer.as_ref().ok()?.version))));
    Ok(answers)
}

/// Says which agents are of another version.
fn warn<'a>(versions: impl Iterator<Item = (&'a str, &'a str)>) {
    let mut others: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (node, version) in versions.filter(|(_, version)| *version != VERSION) {
        others.entry(version).or_default().push(node);
    }
    for (version, nodes) in others {
        complain(format_args!(
            "{PROGRAM}: this plugin is version {VERSION}, and the agent on {} is version {}: use a plugin of that version if \
             something looks wrong",
            inert(&nodes::named(&nodes)),
            inert(version)
        ));
    }
}

/// What an answer says.
fn read<T: serde::de::DeserializeOwned>(node: &str, reply: Reply) -> Result<T, Unreached> {
    let Reply { version, answer } = reply;
    let body = good(answer).map_err(|error| match error {
        Failed::Question(why) => Unreached::Question(why),
        other => Unreached::Says(other.to_string()),
    })?;
    serde_json::from_str(&body).map_err(|error| Unreached::Foreign {
        node: node.to_owned(),
        version,
        why: plain::words(&error),
    })
}

async fn within<T>(
    limit: Duration,
    what: impl Future<Output = Result<T, Unreached>>,
) -> Result<T, Unreached> {
    tokio::time::timeout(limit, what).await.unwrap_or(Err(Unreached::Late(limit)))
}

/// The agent of one node.
struct Remote {
    runtime: Runtime,
    node: String,
    patience: Duration,
    session: Mutex<Session>,
}

/// The agent of this node, or of the pod's, whose name is completed.
fn remote(args: &ClusterArgs, node: Option<&str>, pod: &mut Option<String>) -> Result<Remote, Failed> {
    let runtime = runtime()?;
    let (node, patience, session) = runtime.block_on(async {
        let cluster = args.connect().await?;
        if let Some(pod) = pod.as_mut() {
            *pod = cluster.full_name(pod)?;
        }
        let node = match (node, pod.as_deref()) {
            (Some(node), _) => node.to_owned(),
            (None, Some(pod)) => cluster.node_of(pod).await?,
            (None, None) => {
                return Err(Failed::Question(
                    "--pod says whose agent is asked, as in --pod shop/client; or --node, as in --node node-1".to_owned(),
                ));
            }
        };
        let agents = cluster.agents(Some(&node)).await?;
        let open = async {
            match agents.of(&node) {
                Some(Ok(agent)) => within(cluster.patience(), Session::open(&cluster, agent)).await,
                Some(Err(why)) => Err(why.clone()),
                None => Err(Unreached::Nobody { namespace: cluster.agents_namespace().to_owned() }),
            }
        };
        let session = open.await.map_err(|why| why.on(&node))?;
        Ok((node, cluster.patience(), session))
    })?;
    Ok(Remote { runtime, node, patience, session: Mutex::new(session) })
}

impl Reach for Remote {
    fn ask(&self, asked: &Asked) -> Result<Answer, Failed> {
        let mut session = self.session.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let reply = self.runtime.block_on(within(self.patience, session.ask(asked)));
        let Reply { version, answer } = reply.map_err(|why| why.on(&self.node))?;
        warn(std::iter::once((&*self.node, &*version)));
        Ok(answer)
    }

    fn program(&self) -> &'static str {
        PROGRAM
    }
}
