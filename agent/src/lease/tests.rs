//! What the agent makes of a store that fails in each way: a scripted one, over real sockets.

use std::{
    fs,
    sync::{Mutex, PoisonError},
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::*;
use crate::cluster::{Cluster, builder::Options, manifests};

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, annotations: {sluice.dev/capture: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7], selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: sluice.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: web, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  rateLimits:
  - {name: one, requests: 100, scope: Cluster}
  - {name: two, requests: 100, scope: Cluster}
";

/// A reply of the script: of four agents.
const LEASED: &str = "*6\r\n$2\r\n10\r\n$2\r\n50\r\n$3\r\n0.3\r\n$3\r\n0.1\r\n$1\r\n4\r\n$6\r\nenough\r\n";

/// What a store answers to a command: the whole reply.
type Says = Box<dyn Fn(&[String]) -> String + Send>;

/// A store that says what it is told to say.
struct Double {
    says: Arc<Mutex<Says>>,
    heard: Arc<Mutex<Vec<Vec<String>>>>,
    address: String,
    _serving: JoinSet<()>,
}

impl Double {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("redis://{}", listener.local_addr().unwrap());
        let says: Arc<Mutex<Says>> = Arc::new(Mutex::new(Box::new(|_| LEASED.to_owned())));
        let heard = Arc::default();
        let mut serving = JoinSet::new();
        serving.spawn(accept(listener, Arc::clone(&says), Arc::clone(&heard)));
        Self { says, heard, address, _serving: serving }
    }

    fn set(&self, says: impl Fn(&[String]) -> String + Send + 'static) {
        *self.says.lock().unwrap() = Box::new(says);
    }

    /// From now on each script ends with an error.
    fn fails(&self, error: &'static str) {
        self.set(move |words| match &*words[0] {
            "EVALSHA" | "EVAL" => format!("-{error}\r\n"),
            _ => "+PONG\r\n".to_owned(),
        });
    }

    /// Commands of which the first words are these.
    fn heard(&self, command: &str) -> Vec<Vec<String>> {
        let heard = self.heard.lock().unwrap();
        heard.iter().filter(|words| words[0] == command).cloned().collect()
    }
}

async fn accept(listener: TcpListener, says: Arc<Mutex<Says>>, heard: Arc<Mutex<Vec<Vec<String>>>>) {
    let mut clients = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        clients.spawn(serve(client, says.clone(), heard.clone()));
    }
}

async fn serve(client: TcpStream, says: Arc<Mutex<Says>>, heard: Arc<Mutex<Vec<Vec<String>>>>) {
    let mut client = BufReader::new(client);
    while let Some(words) = command(&mut client).await {
        heard.lock().unwrap_or_else(PoisonError::into_inner).push(words.clone());
        let reply = says.lock().unwrap_or_else(PoisonError::into_inner)(&words);
        if client.write_all(reply.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn command(client: &mut BufReader<TcpStream>) -> Option<Vec<String>> {
    let mut line = String::new();
    client.read_line(&mut line).await.ok()?;
    let count: usize = line.trim_end().strip_prefix('*')?.parse().ok()?;
    let mut words = Vec::new();
    for _ in 0..count {
        line.clear();
        client.read_line(&mut line).await.ok()?;
        let length: usize = line.trim_end().strip_prefix('$')?.parse().ok()?;
        let mut word = vec![0; length + 2];
        client.read_exact(&mut word).await.ok()?;
        word.truncate(length);
        words.push(String::from_utf8(word).ok()?);
    }
    Some(words)
}

/// An agent's leases, of two limits.
struct Agent {
    leases: Arc<Leases>,
    _cluster: Cluster,
    _directory: tempfile::TempDir,
    _running: JoinSet<()>,
}

impl Agent {
    async fn start(store: &Double) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("shop.yaml"), SHOP).unwrap();
        let cluster = Cluster::start(manifests::open(directory.path()).unwrap(), Options::default());
        cluster.synced().await.unwrap();
        let config =
            LimitStore { limit_store: Some(store.address.parse().unwrap()), ..LimitStore::default() };
        let (leases, task) = Leases::start(&config, cluster.current()).unwrap();
        let mut running = JoinSet::new();
        running.spawn(async move { match task.await {} });
        Self { leases, _cluster: cluster, _directory: directory, _running: running }
    }

    /// The status as soon as it is as wanted.
    async fn status(&self, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        let ask = async {
            loop {
                let status = self.leases.status();
                if wanted(&status) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let asked = tokio::time::timeout(Duration::from_secs(60), ask).await;
        asked.unwrap_or_else(|_| panic!("{what}: {:?}", self.leases.status()))
    }

    /// Both limits are counted so.
    async fn counted(&self, by: Counted) -> Status {
        self.status(by.as_str(), |status| {
            status.limits.len() == 2 && status.limits.values().all(|counted| *counted == by)
        })
        .await
    }
}

#[tokio::test]
async fn a_store_that_fails_as_a_whole_is_away_and_comes_back() {
    let store = Double::start().await;
    let agent = Agent::start(&store).await;
    agent.counted(Counted::Leased).await;
    for (error, failure, told) in [
        (
            "READONLY You can't write against a read only replica.",
            Failure::ReadOnly,
            "connects again to find the primary",
        ),
        (
            "OOM command not allowed when used memory > 'maxmemory'.",
            Failure::Memory,
            "no memory left (maxmemory)",
        ),
        ("MISCONF Redis is configured to save RDB snapshots", Failure::Unwritable, "takes no writes"),
        (
            "MOVED 3999 10.0.0.7:6379",
            Failure::Cluster,
            "cluster mode, which is not supported: one primary is",
        ),
        (
            "NOPERM this user has no permissions to run the 'evalsha' command",
            Failure::Permission,
            "may not run EVALSHA",
        ),
    ] {
        let connections = store.heard("PING").len();
        store.fails(error);
        let status = agent.counted(Counted::LastShare).await;
        let away = status.trouble.clone().expect("it is away");
        assert_eq!((away.failure, status.answers), (failure, false), "{away:?}");
        assert!(away.why.contains(told) && away.why.ends_with(error), "{away:?}");
        assert_eq!((status.failing(failure), status.failing(Failure::Other)), (2, 0));
        // It looks for another one, with connections of their own.
        agent.status("it connects again", |_| store.heard("PING").len() >= connections + 2).await;
        store.set(|_| LEASED.to_owned());
        let status = agent.counted(Counted::Leased).await;
        assert!(status.answers && status.failing(failure) == 0);
    }
}

#[tokio::test]
async fn a_store_that_is_not_ready_is_away_before_anything_is_asked_of_it() {
    for (error, failure) in [
        ("LOADING Redis is loading the dataset in memory", Failure::Loading),
        ("NOAUTH Authentication required.", Failure::Credentials),
        (
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            Failure::ReadOnly,
        ),
        ("ERR max number of clients reached", Failure::Other),
    ] {
        let store = Double::start().await;
        store.set(move |_| format!("-{error}\r\n"));
        let agent = Agent::start(&store).await;
        let status = agent.status("it is away", |status| status.trouble.is_some()).await;
        let away = status.trouble.clone().expect("it is away");
        assert!(away.failure == failure && away.why.ends_with(error), "{away:?}");
        assert_eq!(store.heard("EVALSHA"), Vec::<Vec<String>>::new());
        // It has never answered: each agent counts by itself.
        agent.counted(Counted::Node).await;
        store.set(|_| LEASED.to_owned());
        agent.counted(Counted::Leased).await;
    }
}

/// A cluster's node that has one limit's slot and not the other's: agents that have reached other nodes would share neither.
#[tokio::test]
async fn a_part_of_a_cluster_is_no_store() {
    let store = Double::start().await;
    store.set(|words| match words.get(3) {
        Some(key) if key.contains("one") => "-MOVED 3999 10.0.0.7:6379\r\n".to_owned(),
        _ => LEASED.to_owned(),
    });
    let agent = Agent::start(&store).await;
    let away = agent.status("it is away", |status| status.trouble.is_some()).await.trouble.unwrap();
    assert_eq!(away.failure, Failure::Cluster);
    agent.counted(Counted::Node).await;
}

#[tokio::test]
async fn a_limit_whose_key_is_no_hash_is_leased_by_way_of_a_second_key() {
    const WRONG: &str = "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n";
    let store = Double::start().await;
    // Before the load begins.
    store.set(|words| match words.get(3) {
        Some(key) if key.ends_with("one}") => WRONG.to_owned(),
        _ => LEASED.to_owned(),
    });
    let agent = Agent::start(&store).await;
    let status = agent.counted(Counted::Leased).await;
    let refused = status.refused.get("web.shop:80 one").expect("it is told");
    assert!(refused.failure == Failure::WrongType && refused.is_leased, "{refused:?}");
    assert!(status.trouble.is_none() && status.failing(Failure::WrongType) == 1, "{status:?}");
    let keys: BTreeSet<_> = store.heard("EVALSHA").into_iter().map(|words| words[3].clone()).collect();
    let of = |name: &str| format!("sluice:limit:{{web.shop:80 {name}}}");
    assert_eq!(keys, [of("one"), format!("{}:instead", of("one")), of("two")].into());
    // Also that one is no hash: with an even share, for there are four agents, of whom it is known by the other limit.
    store.set(|words| match words.get(3) {
        Some(key) if key.contains("one}") => WRONG.to_owned(),
        _ => LEASED.to_owned(),
    });
    agent.status("it is refused", |status| status.refused.values().any(|refused| !refused.is_leased)).await;
    // And it is as ever once the key is gone.
    store.set(|_| LEASED.to_owned());
    let status = agent.status("nothing is refused", |status| status.refused.is_empty()).await;
    assert!(status.trouble.is_none());
    agent.counted(Counted::Leased).await;
}

#[tokio::test]
async fn a_limit_about_which_nothing_was_ever_said_goes_on_with_an_even_share() {
    const DENIED: &str =
        "-NOPERM this user has no permissions to access one of the keys used as arguments\r\n";
    let store = Double::start().await;
    store.set(|words| match words.get(3) {
        Some(key) if key.contains("one") => DENIED.to_owned(),
        _ => LEASED.to_owned(),
    });
    let agent = Agent::start(&store).await;
    let by_one = |status: &Status| status.limits.get("web.shop:80 one").copied();
    let status = agent.status("an even share", |status| by_one(status) == Some(Counted::LastShare)).await;
    assert_eq!(status.failing(Failure::Permission), 1);
    let shares = agent.leases.shares();
    let share = shares.iter().find(|(rule, _)| &*rule.rule == "one").map(|(_, share)| *share);
    assert_eq!(share, Some(25.0), "{shares:?}");
    // The other limit has nothing to do with it.
    assert_eq!(status.limits.get("web.shop:80 two"), Some(&Counted::Leased));
    assert!(status.trouble.is_none() && status.answers);
}
