//! The last good state, kept on the node.
//!
//! An agent that starts while the API server is away has nothing to manage by, and the connections of all pods would bypass
//! it until the server is back. So what is known is written to a [`mod@file`] behind, and an agent that hears nothing from the API
//! server soon after its start begins with what the one before it had known. It says so, and how old that is; what the API
//! server says then takes its place as any later list does, without anything being gone in between.
//!
//! It is on the agent's own volume, which outlives its container and not its pod: while the API server is away nobody can
//! make another pod of it. It holds objects as they are used, of which the API server lets those read them that may read
//! pods and policies; no Secret is among them, and the file is the agent's alone.

mod file;
mod render;

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{task::JoinHandle, time::Instant};

pub use self::file::{Restored, StateFile, Unusable};
use super::object::Object;

/// The API server has so long to answer before what is kept takes its place.
const PATIENCE: Duration = Duration::from_millis(500);
/// Between two writes, at least...
const PAUSE: Duration = Duration::from_secs(10);
/// ...and so many times as long as a write took.
const SHARE: u32 = 100;
/// How often is noted that what is kept is still the cluster's.
const CONFIRM: Duration = Duration::from_secs(30);

/// What is to be done for the file by who knows the objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// They are to be written.
    Write,
    /// They are as they were written.
    Confirm,
}

/// Writes behind.
pub(super) struct Keeper {
    file: StateFile,
    /// Something is not written yet.
    changed: bool,
    work: Work,
    /// Why it cannot be written. It has been told.
    trouble: Option<Arc<str>>,
}

enum Work {
    /// Nothing is written before.
    Until(Instant),
    Writing(JoinHandle<(io::Result<()>, Duration)>),
}

impl Keeper {
    pub(super) fn new(file: StateFile) -> Self {
        Self { file, changed: false, work: Work::Until(Instant::now()), trouble: None }
    }

    /// The objects are others now.
    pub(super) fn changed(&mut self) {
        self.changed = true;
    }

    /// Waits until there is something to do. May be given up and called again at any time.
    pub(super) async fn due(&mut self) -> Due {
        loop {
            match &mut self.work {
                Work::Until(until) if self.changed => {
                    tokio::time::sleep_until(*until).await;
                    return Due::Write;
                }
                Work::Until(until) => {
                    tokio::time::sleep_until(*until + CONFIRM).await;
                    return Due::Confirm;
                }
                Work::Writing(task) => {
                    // It has no place in which it could panic; if it did, there is nothing that was written.
                    let (outcome, took) =
                        task.await.unwrap_or_else(|e| (Err(io::Error::other(e)), Duration::ZERO));
                    self.work = Work::Until(Instant::now() + PAUSE.max(took * SHARE));
                    self.tell(outcome);
                }
            }
        }
    }

    /// Why the state is not kept at the moment.
    pub(super) fn trouble(&self) -> Option<&Arc<str>> {
        self.trouble.as_ref()
    }

    /// Says once that the state is not kept, and why; what is not written is tried again.
    fn tell(&mut self, outcome: io::Result<()>) {
        let file = self.file.path.display();
        match outcome {
            Ok(()) => {
                if self.trouble.take().is_some() {
                    tracing::info!(%file, "--state-file is written again");
                }
            }
            // Somebody has removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.changed = true,
            Err(error) => {
                self.changed = true;
                if self.trouble.replace(format!("{file}: {error}").into()).is_none() {
                    tracing::warn!(
                        %file, %error,
                        "--state-file cannot be written: an agent that starts while the API server is away will not manage \
                         anything before it is back"
                    );
                }
            }
        }
    }

    /// Begins to write these. `heard` is when they were last known to be the cluster's.
    pub(super) fn write(&mut self, objects: Vec<Object>, zone: Option<Arc<str>>, heard: Instant) {
        self.changed = false;
        self.begin(heard, move |file, current| file.write(&objects, zone.as_deref(), current));
    }

    pub(super) fn confirm(&mut self, heard: Instant) {
        self.begin(heard, StateFile::confirm);
    }

    fn begin(
        &mut self,
        heard: Instant,
        work: impl FnOnce(&StateFile, SystemTime) -> io::Result<()> + Send + 'static,
    ) {
        let file = self.file.clone();
        let current = SystemTime::now() - heard.elapsed().min(Duration::from_secs(1 << 30));
        self.work = Work::Writing(tokio::task::spawn_blocking(move || {
            let began = std::time::Instant::now();
            (work(&file, current), began.elapsed())
        }));
    }
}

/// Reads what is kept, if it is needed.
pub(super) enum Restore {
    /// The API server has until then.
    Waiting(Instant, StateFile),
    Reading(JoinHandle<Option<Restored>>),
    /// It was read, or is not needed.
    Done,
}

impl Restore {
    pub(super) fn new(file: Option<&StateFile>) -> Self {
        file.map_or(Self::Done, |file| Self::Waiting(Instant::now() + PATIENCE, file.clone()))
    }

    /// Waits for what is kept; for ever if there is nothing. May be given up and called again at any time.
    pub(super) async fn next(&mut self) -> Restored {
        loop {
            match self {
                Self::Waiting(until, file) => {
                    tokio::time::sleep_until(*until).await;
                    let file = file.clone();
                    *self = Self::Reading(tokio::task::spawn_blocking(move || read(&file)));
                }
                Self::Reading(task) => {
                    let restored = task.await.ok().flatten();
                    *self = Self::Done;
                    if let Some(restored) = restored {
                        return restored;
                    }
                }
                Self::Done => std::future::pending().await,
            }
        }
    }
}

/// Tells in one line of a file that is not believed.
fn read(file: &StateFile) -> Option<Restored> {
    let path = file.path.display();
    match file.read(SystemTime::now()) {
        Ok(restored) => restored,
        Err(error) => {
            tracing::warn!(file = %path, "the state file is ignored: {error}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn that_it_cannot_be_kept_is_told_for_as_long_as_it_is_so() {
        let directory = tempfile::tempdir().unwrap();
        let in_the_way = directory.path().join("state");
        std::fs::write(&in_the_way, "").unwrap();
        let mut keeper = Keeper::new(StateFile { path: in_the_way.join("file"), node: None });
        keeper.changed();
        assert_eq!(keeper.due().await, Due::Write);
        keeper.write(Vec::new(), None, Instant::now());
        assert_eq!(keeper.due().await, Due::Write, "once more");
        let trouble = keeper.trouble().expect("it could not be written");
        assert!(trouble.contains("state/file: "), "{trouble}");
        std::fs::remove_file(&in_the_way).unwrap();
        keeper.write(Vec::new(), None, Instant::now());
        assert_eq!(keeper.due().await, Due::Confirm);
        assert_eq!(keeper.trouble(), None);
    }
}
