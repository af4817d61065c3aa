//! The state machine against a world that only keeps a diary.

use super::*;

/// A namespace is a number here, and an enrolment remembers which one.
#[derive(Default)]
struct Diary {
    seen: HashMap<PathBuf, u32>,
    host_only: Vec<PathBuf>,
    fail: bool,
    lines: Vec<String>,
}

impl World for Diary {
    type Netns = u32;
    type Enrolment = u32;

    fn look(&mut self, group: &Path, current: Option<&u32>) -> Sighting<u32> {
        match self.seen.get(group) {
            Some(netns) if Some(netns) == current => Sighting::Same,
            Some(netns) => Sighting::Netns(*netns),
            None if self.host_only.iter().any(|path| path == group) => Sighting::OnlyHost,
            None => Sighting::Empty,
        }
    }

    fn enrol(&mut self, workload: &Arc<Workload>, netns: u32) -> Result<u32, EnrolError> {
        if self.fail {
            self.lines.push(format!("cannot enrol {}", workload.name));
            return Err(EnrolError::LoopbackDown);
        }
        self.lines.push(format!("enrol {} in {netns}", workload.name));
        Ok(netns)
    }

    fn update(&mut self, netns: &mut u32, workload: &Arc<Workload>) -> Result<(), EnrolError> {
        self.lines.push(format!("update {} in {netns}", workload.name));
        Ok(())
    }

    fn withdraw(&mut self, netns: &mut u32) -> Result<(), EnrolError> {
        if self.fail {
            self.lines.push(format!("cannot withdraw {netns}"));
            return Err(EnrolError::LoopbackDown);
        }
        self.lines.push(format!("withdraw {netns}"));
        Ok(())
    }
}

const GROUP: &str = "/pods/poda";

fn workload() -> Workload {
    Workload::new("a", "shop", "orders")
}

fn snapshot(pods: impl IntoIterator<Item = Workload>) -> Arc<Snapshot> {
    let pods = pods.into_iter().map(|pod| (pod.uid.clone(), Arc::new(pod))).collect();
    Arc::new(Snapshot { generation: 1, pods, ..Snapshot::default() })
}

struct Bench {
    enroller: Enroller<Diary>,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self { enroller: Enroller::new(Diary::default(), true), now: Instant::now() }
    }

    fn process_in(&mut self, netns: u32) -> &mut Self {
        self.enroller.world.seen.insert(GROUP.into(), netns);
        self
    }

    fn group(&mut self) -> Vec<String> {
        self.enroller.group_changed(&"a".into(), Some(Path::new(GROUP)), self.now);
        self.lines()
    }

    fn group_gone(&mut self) -> Vec<String> {
        self.enroller.world.seen.clear();
        self.enroller.group_changed(&"a".into(), None, self.now);
        self.lines()
    }

    fn snapshot(&mut self, pods: impl IntoIterator<Item = Workload>) -> Vec<String> {
        self.enroller.snapshot_changed(snapshot(pods), self.now);
        self.lines()
    }

    /// To the next retry. Tells how long that was.
    fn wait(&mut self) -> (Duration, Vec<String>) {
        let next = self.enroller.next_retry().expect("a retry is due");
        let waited = next - self.now;
        self.now = next;
        self.enroller.time_passed(next);
        (waited, self.lines())
    }

    fn lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.enroller.world.lines)
    }
}

const NOTHING: [&str; 0] = [];

#[test]
fn group_and_snapshot_may_come_in_any_order() {
    let mut bench = Bench::new();
    assert_eq!(bench.process_in(7).group(), NOTHING);
    assert_eq!(bench.snapshot([workload()]), ["enrol orders in 7"]);

    let mut bench = Bench::new();
    assert_eq!(bench.snapshot([workload()]), NOTHING);
    assert_eq!(bench.process_in(7).group(), ["enrol orders in 7"]);
    assert_eq!(bench.group(), NOTHING, "a notice that comes twice changes nothing");
    assert_eq!(bench.enroller.next_retry(), None);
}

#[test]
fn who_is_never_enrolled() {
    let not_asked = Workload { capture: false, ..workload() };
    let host_network = Workload { host_network: true, ..workload() };
    let finished = Workload { finished: true, ..workload() };
    for pod in [not_asked, host_network, finished] {
        let mut bench = Bench::new();
        bench.snapshot([pod]);
        assert_eq!(bench.process_in(7).group(), NOTHING);
        assert!(bench.enroller.status().is_empty());
    }
}

#[test]
fn a_pod_with_a_proxy_of_its_own_is_left_alone_and_told_of() {
    let meshed = || Workload { own_proxy: Some("Istio"), ..workload() };
    let mut bench = Bench::new();
    bench.snapshot([meshed()]);
    assert_eq!(bench.process_in(7).group(), NOTHING);
    let own_proxies = |bench: &Bench| {
        bench.enroller.status().iter().map(|pod| (pod.own_proxy, pod.pending.clone())).collect::<Vec<_>>()
    };
    assert_eq!(own_proxies(&bench), [(Some("Istio"), None)]);
    assert_eq!(bench.enroller.next_retry(), None);
    // Ambient takes a pod that runs, and gives it back.
    assert_eq!(bench.snapshot([workload()]), ["enrol orders in 7"]);
    assert_eq!(own_proxies(&bench), [(None, None)]);
    assert_eq!(bench.snapshot([meshed()]), ["withdraw 7"]);
    assert_eq!(own_proxies(&bench), [(Some("Istio"), None)]);
    // One that is not to be captured anyway is no news.
    assert_eq!(bench.snapshot([Workload { capture: false, ..meshed() }]), NOTHING);
    assert_eq!(own_proxies(&bench), []);
}

#[test]
fn first_process_enrols() {
    let mut bench = Bench::new();
    bench.snapshot([workload()]);
    assert_eq!(bench.group(), NOTHING);
    let status = bench.enroller.status();
    assert_eq!(status[0].pending.as_deref(), Some("it has no process"));
    assert!(status[0].empty);
    assert_eq!(bench.enroller.next_retry(), None, "its group will tell");
    assert_eq!(bench.process_in(7).group(), ["enrol orders in 7"]);
    let status = bench.enroller.status();
    assert!(status[0].pending.is_none() && !status[0].empty);
}

#[test]
fn a_process_on_its_way_into_the_namespace_is_looked_at_again_soon() {
    let mut bench = Bench::new();
    bench.snapshot([workload()]);
    bench.enroller.world.host_only.push(GROUP.into());
    assert_eq!(bench.group(), NOTHING);
    let waits: Vec<u64> = (0..8).map(|_| bench.wait().0.as_millis() as u64).collect();
    assert_eq!(waits, [2, 4, 8, 16, 32, 64, 100, 100]);
    bench.process_in(7);
    assert_eq!(bench.wait().1, ["enrol orders in 7"]);
    assert_eq!(bench.enroller.next_retry(), None);
}

#[test]
fn opting_out_and_in_again() {
    let mut bench = Bench::new();
    bench.snapshot([workload()]);
    bench.process_in(7).group();
    assert_eq!(bench.snapshot([Workload { capture: false, ..workload() }]), ["withdraw 7"]);
    assert_eq!(bench.snapshot([workload()]), ["enrol orders in 7"]);
    assert_eq!(bench.snapshot([]), ["withdraw 7"]);
}

#[test]
fn a_change_of_the_workload_updates_it() {
    let mut bench = Bench::new();
    bench.snapshot([workload()]);
    bench.process_in(7).group();
    assert_eq!(bench.snapshot([workload()]), NOTHING, "an equal one is no change");
    let terminating = Workload { terminating: true, ..workload() };
    assert_eq!(bench.snapshot([terminating]), ["update orders in 7"], "and a pod that ends stays captured");
}

#[test]
fn a_replaced_sandbox_is_enrolled_anew() {
    let mut bench = Bench::new();
    bench.snapshot([workload()]);
    bench.process_in(7).group();
    assert_eq!(bench.process_in(8).group(), ["withdraw 7", "enrol orders in 8"]);
}

#[test]
fn between_two_containers_it_stays_enrolled() {
    let mut bench = Bench::new();
    bench.snapshot([workload()]);
    bench.process_in(7).group();
    bench.enroller.world.seen.clear();
    assert_eq!(bench.group(), NOTHING);
    assert_eq!(bench.process_in(7).group(), NOTHING);
}

#[test]
fn a_pod_that_ends_leaves_nothing() {
    let mut bench = Bench::new();
    bench.snapshot([workload()]);
    bench.process_in(7).group();
    assert_eq!(bench.group_gone(), ["withdraw 7"]);
    assert!(bench.enroller.pods.is_empty());
    assert_eq!(bench.snapshot([workload()]), NOTHING);
}

#[test]
fn a_failure_is_tried_again_ever_later() {
    let mut bench = Bench::new();
    bench.snapshot([workload()]);
    bench.enroller.world.fail = true;
    assert_eq!(bench.process_in(7).group(), ["cannot enrol orders"]);
    let reason = bench.enroller.status()[0].pending.clone().unwrap();
    assert!(reason.contains("loopback"), "{reason}");
    let waits: Vec<u64> = (0..9).map(|_| bench.wait().0.as_millis() as u64).collect();
    assert_eq!(waits, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    bench.lines();
    bench.enroller.world.fail = false;
    assert_eq!(bench.wait().1, ["enrol orders in 7"]);
    assert_eq!(bench.enroller.next_retry(), None);
}

#[test]
fn news_of_the_pod_cut_the_wait_short() {
    let mut bench = Bench::new();
    bench.snapshot([workload()]);
    bench.enroller.world.fail = true;
    bench.process_in(7).group();
    bench.wait();
    assert_eq!(bench.group(), ["cannot enrol orders"]);
    assert_eq!(bench.wait().0, TRY_AGAIN);
}

#[test]
fn a_withdrawal_that_failed_is_not_forgotten() {
    let mut bench = Bench::new();
    bench.snapshot([workload()]);
    bench.process_in(7).group();
    bench.enroller.world.fail = true;
    assert_eq!(bench.group_gone(), ["cannot withdraw 7"]);
    bench.enroller.world.fail = false;
    assert_eq!(bench.wait().1, ["withdraw 7"]);
    assert!(bench.enroller.pods.is_empty());
}

#[test]
fn withdrawing_all() {
    let mut bench = Bench::new();
    bench.snapshot([workload()]);
    bench.process_in(7).group();
    bench.enroller.withdraw_all();
    assert_eq!(bench.lines(), ["withdraw 7"]);
    assert!(bench.enroller.status().is_empty());
}

#[test]
fn a_pod_of_this_node_whose_group_is_not_there_is_told() {
    let on = |node: Option<&str>| Workload {
        node: node.map(Into::into),
        ips: vec![[10, 0, 0, 7].into()],
        ..workload()
    };
    let mut bench = Bench::new();
    assert_eq!(bench.snapshot([on(None)]), NOTHING);
    assert_eq!(bench.enroller.status(), [], "it may be another node's yet");
    bench.snapshot([Workload { ips: Vec::new(), ..on(Some("n1")) }]);
    assert_eq!(bench.enroller.status(), [], "it has not begun");
    let since = bench.now;
    bench.snapshot([on(Some("n1"))]);
    bench.now += Duration::from_secs(5);
    bench.snapshot([on(Some("n1"))]);
    let [pod] = &bench.enroller.status()[..] else { panic!("it is told once") };
    assert!(pod.pending.as_deref().is_some_and(|why| why.contains("cgroup")), "{pod:?}");
    assert_eq!((pod.pending_since, pod.empty), (Some(since), false));
    // It comes, and is enrolled; what ends has none any more.
    assert_eq!(bench.process_in(7).group(), ["enrol orders in 7"]);
    assert_eq!(bench.enroller.status()[0].pending, None);
    bench.group_gone();
    bench.snapshot([Workload { terminating: true, ..on(Some("n1")) }]);
    assert_eq!(bench.enroller.status(), []);
    bench.snapshot([Workload { capture: false, ..on(Some("n1")) }]);
    assert_eq!(bench.enroller.status(), []);
    // Where the snapshot has the pods of all nodes nothing can be told.
    let mut all = Enroller::new(Diary::default(), false);
    all.snapshot_changed(snapshot([on(Some("n2"))]), bench.now);
    assert_eq!(all.status(), []);
}
