//! Which directories are watched, and which files are being written.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use inotify::{EventMask, EventOwned, WatchDescriptor, WatchMask};
use tokio::time::Instant;

use crate::cluster::{cause::Cause, problem::Problem};

/// A writer has this long from its first write to closing the file; after that the file is read as it stands.
const WRITING: Duration = Duration::from_millis(400);

const MASK: WatchMask = WatchMask::MODIFY
    .union(WatchMask::CLOSE_WRITE)
    .union(WatchMask::ATTRIB)
    .union(WatchMask::CREATE)
    .union(WatchMask::DELETE)
    .union(WatchMask::MOVED_FROM)
    .union(WatchMask::MOVED_TO)
    .union(WatchMask::DELETE_SELF)
    .union(WatchMask::MOVE_SELF)
    .union(WatchMask::ONLYDIR);

/// The inotify watches on a tree of directories.
pub(super) struct Watches {
    inotify: Option<inotify::Watches>,
    directories: HashMap<WatchDescriptor, PathBuf>,
    /// Those found again by the scan that is under way.
    found: HashMap<WatchDescriptor, PathBuf>,
    /// The first directory that could not be watched, and why.
    failed: Option<(PathBuf, io::Error)>,
    /// Why there is no inotify at all.
    absent: Option<Arc<str>>,
}

impl Watches {
    pub(super) fn new(inotify: Result<inotify::Watches, &io::Error>) -> Self {
        Self {
            absent: inotify.as_ref().err().map(|e| e.to_string().into()),
            inotify: inotify.ok(),
            directories: HashMap::new(),
            found: HashMap::new(),
            failed: None,
        }
    }

    /// A scan begins.
    pub(super) fn begin(&mut self) {
        self.found.clear();
        self.failed = None;
    }

    /// A scan has come upon this directory. Watching what is watched already changes nothing.
    pub(super) fn add(&mut self, path: &Path) {
        let Some(inotify) = &mut self.inotify else { return };
        match inotify.add(path, MASK) {
            Ok(watch) => {
                self.found.insert(watch, path.to_owned());
            }
            // It went away: the scan finds that out too.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(e) => {
                self.failed.get_or_insert_with(|| (path.to_owned(), e));
            }
        }
    }

    /// A scan has seen the whole tree: what it did not come upon is watched no longer.
    pub(super) fn end(&mut self) {
        let found = std::mem::take(&mut self.found);
        let before = std::mem::replace(&mut self.directories, found);
        if let Some(inotify) = &mut self.inotify {
            for watch in before.into_keys().filter(|watch| !self.directories.contains_key(watch)) {
                // Fails where the kernel has removed it already, with its directory.
                let _ = inotify.remove(watch);
            }
        }
    }

    /// Whether every change is told. If not, only looking helps.
    pub(super) fn is_complete(&self) -> bool {
        self.inotify.is_some() && self.failed.is_none()
    }

    pub(super) fn problem(&self) -> Option<Problem> {
        let slower = "changes are still found, by looking every half second";
        if let Some(e) = &self.absent {
            let hint = "see fs.inotify.max_user_instances";
            let message = format!("inotify is not available ({e}; {hint}): {slower}");
            return Some(Problem::in_file("manifests", message).by(Cause::Unwatched));
        }
        self.failed.as_ref().map(|(path, e)| {
            let hint = "see fs.inotify.max_user_watches";
            let message = format!("cannot be watched ({e}; {hint}): {slower}");
            Problem::in_file(path.to_string_lossy(), message).by(Cause::Unwatched)
        })
    }

    fn path(&self, watch: &WatchDescriptor, name: &OsStr) -> Option<PathBuf> {
        self.directories.get(watch).map(|directory| directory.join(name))
    }
}

/// Files that somebody writes into and has not closed. A file cut short by an editor that is about to fill it must
/// not be taken for its new state.
#[derive(Default)]
pub(super) struct Writers {
    since: HashMap<PathBuf, Instant>,
}

impl Writers {
    pub(super) fn note(&mut self, watches: &Watches, event: &EventOwned, now: Instant) {
        let Some(path) = event.name.as_deref().and_then(|name| watches.path(&event.wd, name)) else { return };
        let mask = event.mask;
        if mask.contains(EventMask::MODIFY) {
            self.since.entry(path).or_insert(now);
        } else if !mask.contains(EventMask::ATTRIB) {
            self.since.remove(&path);
        }
    }

    /// The files being written at this time.
    pub(super) fn busy(&mut self, now: Instant) -> HashSet<PathBuf> {
        self.since.retain(|_, since| now < *since + WRITING);
        self.since.keys().cloned().collect()
    }
}
