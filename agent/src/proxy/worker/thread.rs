//! A worker's thread: its runtime, its loop, and the beat that shows that it keeps up.

use std::{
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use tokio::{sync::mpsc, time::MissedTickBehavior};

use super::{
    Worker,
    command::{Command, Handle, Status},
};
use crate::{
    clock::Nanos,
    proxy::{
        Options,
        budget::Budget,
        pulse::{self, Keeps, Pulse},
        turns,
    },
};

/// How often a worker looks at the clock on the wall, and hands over what it has logged.
const LOOK: Duration = Duration::from_millis(200);

/// How the threads' names begin.
const THREADS: &str = "sluice-worker-";

/// Ends the process when its thread panics. (A connection's task that panics is caught, and only ends that connection.)
/// A worker cannot be replaced, and without it connects would be redirected to listeners that are closed until its
/// beat is missed. When the process ends the kernel lets go of the programs first, and whoever watches it starts another.
struct Vital;

impl Drop for Vital {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a worker has panicked: ending the agent, so that connections go direct");
            std::process::abort();
        }
    }
}

/// Shows that the worker keeps up, if it does.
async fn beat(index: usize, status: Arc<Status>) {
    let mut pulse = Pulse::default();
    let mut every = tokio::time::interval(pulse::EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let due = every.tick().await;
        let now = Nanos::now();
        let waited = due.elapsed();
        match pulse.measured(Nanos::of(waited), now) {
            Keeps::Up { again } => {
                status.beat.store(now.0, Ordering::Relaxed);
                if let Some(behind) = again {
                    let behind = Duration::from(behind).as_secs_f64();
                    tracing::info!(
                        "worker {index} keeps up again after {behind:.1} s: new connections are redirected"
                    );
                }
            }
            Keeps::Behind { first: true } => tracing::warn!(
                "a ready task of worker {index} had to wait for {:.1} s: new connections of pods bypass the agent until it \
                 keeps up again. If this comes often, give the agent more CPU, or the node less to do.",
                waited.as_secs_f64()
            ),
            Keeps::Behind { first: false } => {}
        }
        status.delay.store(pulse.longest().0, Ordering::Relaxed);
    }
}

/// Starts a worker thread.
pub(crate) fn start(index: usize, options: &Options, budget: &Arc<Budget>) -> std::io::Result<Handle> {
    let (commands, mut inbox) = mpsc::unbounded_channel();
    let status = Arc::new(Status::default());
    let beats = status.clone();
    let options = options.clone();
    // One of the workers does what is done once for all of them.
    let budget = (index == 0).then(|| budget.clone());
    let runtime_failed = |error: std::io::Error| std::io::Error::other(format!("worker {index}: {error}"));
    // Built on its own thread, because a local runtime cannot move; its failure is passed back.
    let (report, reported) = std::sync::mpsc::channel();
    std::thread::Builder::new().name(format!("{THREADS}{index}")).spawn(move || {
        let built = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .on_thread_park(turns::next_round)
            .build_local(<_>::default());
        let runtime = match built {
            Ok(runtime) => {
                let _ = report.send(Ok(()));
                runtime
            }
            Err(error) => {
                let _ = report.send(Err(error));
                return;
            }
        };
        // Dropped before the runtime, whose tasks hold the listeners.
        let _vital = Vital;
        runtime.block_on(async move {
            let worker = Rc::new(Worker::new(Rc::new(options)));
            tokio::task::spawn_local(worker.clone().tend(budget));
            if let Some(inbound) = &worker.inbound {
                tokio::task::spawn_local(inbound.clone().tend(None));
            }
            for part in std::iter::once(&worker).chain(&worker.inbound) {
                let part = part.clone();
                tokio::task::spawn_local(async move { part.pool.close_surplus().await });
            }
            tokio::task::spawn_local(beat(index, beats.clone()));
            let rounds = worker.rounds.clone();
            tokio::task::spawn_local(async move { rounds.go_on().await });
            let mut look = tokio::time::interval(LOOK);
            loop {
                tokio::select! {
                    biased;
                    _ = look.tick() => {
                        beats.ran.store(Nanos::now().0, Ordering::Relaxed);
                        let wall = (Nanos::now(), SystemTime::now());
                        worker.wall.set(wall);
                        if let Some(inbound) = &worker.inbound {
                            inbound.wall.set(wall);
                            inbound.denials.flush();
                        }
                        worker.access_log.flush();
                    }
                    command = inbox.recv() => match command {
                        Some(Command::Open { id, pod, caller, budget, listeners, direction }) => {
                            worker.of(direction).open(id, pod, caller, budget, listeners);
                        }
                        Some(Command::Close { id, direction, closed }) => worker.of(direction).close(id, closed),
                        Some(Command::Drain { drained }) => worker.drain(drained),
                        // Whoever asked may have given up.
                        Some(Command::Tunnels { open }) => {
                            let _ = open.send(worker.tunnels.get());
                        }
                        Some(Command::Decisions { wanted, found }) => {
                            let _ = found.send(worker.find_decisions(&wanted));
                        }
                        Some(Command::Find { name, found }) => {
                            let _ = found.send(worker.find(&name).map(|pod| pod.pod.clone()));
                        }
                        Some(Command::Carry { name, stream, original, awaited }) => {
                            worker.carry(&name, stream, original, awaited);
                        }
                        None => return,
                    },
                }
            }
        });
    })?;
    reported
        .recv()
        .map_err(|_| std::io::Error::other(format!("worker {index} did not start")))?
        .map_err(runtime_failed)?;
    Ok(Handle { commands, status })
}
