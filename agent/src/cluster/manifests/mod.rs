//! The source that reads a directory of Kubernetes manifests and watches it.
//!
//! Every `*.yaml`, `*.yml` and `*.json` below the directory that is not hidden is read: several documents to a file,
//! `List`s too. An edit is in force within a second, as a whole; a file that cannot be read keeps its last good
//! state, an object that is wrong is left out, everything else goes on. Works with whatever way a file is replaced:
//! written in place, renamed over, or swapped by a symbolic link as in a mounted `ConfigMap`.

mod directory;
pub(crate) mod file;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;
pub(crate) mod tree;
mod watches;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt as _;
use inotify::{EventOwned, EventStream, Inotify};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior},
};

use self::{
    directory::{Directory, Outcome},
    watches::{Watches, Writers},
};
use super::{
    jwks::objects::AllHeld,
    source::{Batch, Feed, Health},
};

/// An edit seldom comes alone (an editor's rename, a `git checkout`): wait until nothing has happened for so long...
const QUIET: Duration = Duration::from_millis(50);
/// ...but not longer than this.
const PATIENCE: Duration = Duration::from_millis(250);
/// How often the directory itself is looked at: whether it is still the same one no event tells reliably.
const LOOK: Duration = Duration::from_millis(250);
/// How often everything is looked at although nothing has happened: links may lead out of what is watched.
const LOOK_AT_ALL: Duration = Duration::from_secs(10);
/// The same where inotify cannot be had.
const LOOK_AT_ALL_UNWATCHED: Duration = Duration::from_millis(500);

/// Why a directory cannot be a source. Names the directory; meant for the operator who gave it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the manifests directory {0} does not exist")]
    Missing(PathBuf),
    #[error("{0} is not a directory: give the directory that holds the manifests")]
    NotADirectory(PathBuf),
    #[error("the manifests directory {0} cannot be read: {1}")]
    Unreadable(PathBuf, #[source] io::Error),
}

/// Reads the directory and goes on watching it, for as long as the feed is held. The whole directory has been read
/// when this returns. Blocks; must be called within a Tokio runtime.
pub fn open(root: &Path) -> Result<Feed, Error> {
    let error = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => Error::Missing(root.to_owned()),
        io::ErrorKind::NotADirectory => Error::NotADirectory(root.to_owned()),
        _ => Error::Unreadable(root.to_owned(), e),
    };
    let mut directory = Directory::open(root).map_err(error)?;
    // Telling an unreadable directory from an empty one takes listing it.
    std::fs::read_dir(root).map_err(error)?;

    let events = Inotify::init().and_then(|inotify| inotify.into_event_stream(vec![0; 16 * 1024]));
    let mut watches = Watches::new(events.as_ref().map(EventStream::watches));
    let outcome = directory.scan(&mut watches, &Writers::default().busy(Instant::now()));
    if !outcome.heard {
        return Err(Error::Missing(root.to_owned()));
    }

    let (changes, receiver) = mpsc::channel(16);
    let (health, health_receiver) =
        watch::channel(Health { problems: outcome.problems, ..Health::new(Instant::now()) });
    let (held, held_receiver) = watch::channel(Arc::new(directory.held()));
    // The channel is new and has room.
    let _ = changes.try_send(outcome.batch);
    let watcher = Watcher {
        events: events.ok(),
        scanner: Some(Scanner { directory, watches }),
        writers: Writers::default(),
        changes,
        health,
        held,
    };
    tokio::spawn(watcher.run());
    Ok(Feed { changes: receiver, health: health_receiver, held: Some(held_receiver) })
}

/// What a scan needs; moves to a thread that may block and back.
struct Scanner {
    directory: Directory,
    watches: Watches,
}

struct Watcher {
    /// `None` where inotify cannot be had.
    events: Option<EventStream<Vec<u8>>>,
    /// `None` only while a scan is under way.
    scanner: Option<Scanner>,
    writers: Writers,
    changes: mpsc::Sender<Batch>,
    health: watch::Sender<Health>,
    held: watch::Sender<Arc<AllHeld>>,
}

impl Watcher {
    /// Until nobody holds the feed.
    async fn run(mut self) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut scanned = Instant::now();
        let mut again = false;
        // First and last event since the last scan.
        let mut pending: Option<(Instant, Instant)> = None;
        loop {
            let due = pending.map(|(first, last)| (last + QUIET).min(first + PATIENCE));
            let scan = tokio::select! {
                () = self.changes.closed() => return,
                event = next(&mut self.events) => {
                    self.note(event);
                    let now = Instant::now();
                    pending = Some((pending.map_or(now, |(first, _)| first), now));
                    false
                }
                () = sleep_until(due) => true,
                _ = look.tick() => {
                    let Some(scanner) = &self.scanner else { return };
                    let all = if scanner.watches.is_complete() { LOOK_AT_ALL } else { LOOK_AT_ALL_UNWATCHED };
                    let moved = scanner.directory.has_moved();
                    if !moved && !again {
                        self.health.send_if_modified(|health| {
                            health.heard = Instant::now();
                            false
                        });
                    }
                    // What is pending has its own time.
                    pending.is_none() && (moved || again || scanned.elapsed() >= all)
                }
            };
            if scan {
                pending = None;
                scanned = Instant::now();
                let busy = self.writers.busy(scanned);
                let Some(mut scanner) = self.scanner.take() else { return };
                let scanned = tokio::task::spawn_blocking(move || {
                    let outcome = scanner.directory.scan(&mut scanner.watches, &busy);
                    (scanner, outcome)
                });
                let Ok((scanner, outcome)) = scanned.await else {
                    tracing::error!("reading the manifests failed unexpectedly; the last good state stays");
                    return;
                };
                self.scanner = Some(scanner);
                again = outcome.again;
                self.hold();
                if self.tell(outcome).await.is_err() {
                    return;
                }
            }
        }
    }

    fn note(&mut self, event: io::Result<EventOwned>) {
        let Some(scanner) = &mut self.scanner else { return };
        match event {
            Ok(event) => self.writers.note(&scanner.watches, &event, Instant::now()),
            Err(e) => {
                tracing::warn!(error = %e, "cannot be told of changes to the manifests; looking for them instead");
                self.events = None;
                scanner.watches = Watches::new(Err(&e));
            }
        }
    }

    /// Tells what may have keys, if that is other.
    fn hold(&self) {
        let Some(scanner) = &self.scanner else { return };
        let now = scanner.directory.held();
        self.held.send_if_modified(|held| {
            let is_news = **held != now;
            if is_news {
                *held = Arc::new(now);
            }
            is_news
        });
    }

    async fn tell(&self, outcome: Outcome) -> Result<(), mpsc::error::SendError<Batch>> {
        let Outcome { batch, problems, heard, .. } = outcome;
        self.health.send_if_modified(|health| {
            if heard {
                health.heard = Instant::now();
            }
            let changed = health.problems != problems;
            health.problems = problems;
            changed
        });
        if batch.is_empty() { Ok(()) } else { self.changes.send(batch).await }
    }
}

/// The next event. What it says of directories does not matter: a scan finds out.
async fn next(events: &mut Option<EventStream<Vec<u8>>>) -> io::Result<EventOwned> {
    match events {
        Some(events) => events.next().await.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into())),
        None => std::future::pending().await,
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// What a text says, for tests of what comes behind.
#[cfg(test)]
pub(super) fn parse(text: &str) -> (Vec<super::source::Sighting>, Vec<super::problem::Problem>) {
    match file::read(&"test.yaml".into(), text) {
        Ok(content) => {
            let sightings = content.entries.into_iter().map(|entry| entry.sighting).collect();
            (sightings, content.problems)
        }
        Err(problem) => (Vec::new(), vec![problem]),
    }
}
