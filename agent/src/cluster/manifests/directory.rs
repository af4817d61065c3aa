//! The directory as it was last read: every file's last good state, and what the files add up to.
//!
//! A scan walks the directory, reads what has changed since the last one and says what that changes for the
//! cluster. It blocks; the watcher calls it where that harms nobody.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    file::{self, Content, Entry, Holding},
    watches::Watches,
};
use crate::cluster::{
    cause::Cause,
    jwks::objects::{AllHeld, Held, Id},
    object::{Key, Kind},
    problem::Problem,
    source::{Batch, Change, Sighting},
};

/// A file beyond this is refused: no list of manifests is that long, and it would be held in memory.
const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;

/// File times are only as fine as the kernel's tick, so a file that changed this shortly before it was read may have
/// changed again without showing it. Such a file is read again (as git does with a "racily clean" index entry).
const RACY: Duration = Duration::from_secs(1);

pub(super) struct Directory {
    root: PathBuf,
    identity: Identity,
    files: BTreeMap<Arc<str>, File>,
    /// What the source has told so far.
    told: BTreeMap<Key, Sighting>,
    /// Whether it has told anything.
    started: bool,
}

/// What a scan found out.
pub(super) struct Outcome {
    pub(super) batch: Batch,
    pub(super) problems: Vec<Problem>,
    /// Whether the directory was there to be read.
    pub(super) heard: bool,
    /// Whether a file has to be looked at again soon, though nothing may tell.
    pub(super) again: bool,
}

/// Device and inode: tells a directory from another one in its place.
type Identity = (u64, u64);

#[derive(Default)]
struct File {
    stamp: Option<Stamp>,
    hash: u64,
    entries: Vec<Entry>,
    held: Vec<Holding>,
    problems: Vec<Problem>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    identity: Identity,
    size: u64,
    changed: (i64, i64),
    racy: bool,
}

/// The files found by a walk, and what stood in its way.
#[derive(Default)]
struct Walk {
    files: BTreeMap<Arc<str>, (PathBuf, Metadata)>,
    problems: Vec<Problem>,
    /// Directories (ending in `/`) that could not be listed and files that could not be looked at: they stay.
    unread: Vec<String>,
    seen: HashSet<Identity>,
}

impl Directory {
    /// A directory that exists. Nothing is read yet.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        Ok(Self {
            root: root.to_owned(),
            identity: identity_of(root)?,
            files: BTreeMap::new(),
            told: BTreeMap::new(),
            started: false,
        })
    }

    pub(super) fn has_moved(&self) -> bool {
        identity_of(&self.root).ok() != Some(self.identity)
    }

    /// Reads what has changed. Files in `busy` are being written: they keep their last state for now.
    pub(super) fn scan(&mut self, watches: &mut Watches, busy: &HashSet<PathBuf>) -> Outcome {
        let name: Arc<str> = self.root.to_string_lossy().into();
        let stays = "the last good state stays";
        let mut walk = Walk::default();
        let identity = identity_of(&self.root).and_then(|identity| {
            watches.begin();
            walk.seen.insert(identity);
            walk.directory(&self.root, "", watches)?;
            Ok(identity)
        });
        let identity = match identity {
            Ok(identity) => identity,
            Err(e) => {
                let gone = match e.kind() {
                    io::ErrorKind::NotFound => format!("the directory is gone; {stays}"),
                    _ => format!("the directory cannot be read ({e}); {stays}"),
                };
                return self.unchanged(Problem::in_file(name, gone).by(Cause::Directory));
            }
        };
        // Somebody who replaces the directory fills it after making it: wait for the first file.
        if identity != self.identity && walk.files.is_empty() && !self.files.is_empty() {
            return self.unchanged(
                Problem::in_file(
                    name,
                    format!("the directory was replaced by one without manifests; {stays}"),
                )
                .by(Cause::Directory),
            );
        }
        self.identity = identity;
        watches.end();

        let unread = |path: &str| {
            let inside = |unread: &String| unread.ends_with('/') && path.starts_with(unread.as_str());
            walk.unread.iter().any(|unread| unread == path || inside(unread))
        };
        self.files.retain(|path, _| walk.files.contains_key(path) || unread(path));
        let mut again = false;
        for (name, (path, metadata)) in &walk.files {
            let file = self.files.entry(name.clone()).or_default();
            if busy.contains(path) {
                again = true;
            } else {
                file.refresh(name, path, metadata);
            }
        }
        let mut problems = walk.problems;
        problems.extend(watches.problem());
        problems.extend(self.files.values().flat_map(|file| file.problems.iter().cloned()));
        let batch = self.difference(&mut problems);
        problems.sort();
        Outcome { batch, problems, heard: true, again }
    }

    fn unchanged(&mut self, problem: Problem) -> Outcome {
        let mut problems: Vec<_> =
            self.files.values().flat_map(|file| file.problems.iter().cloned()).collect();
        problems.push(problem);
        let batch = self.difference(&mut problems);
        problems.sort();
        Outcome { batch, problems, heard: false, again: true }
    }

    /// All ConfigMaps and Secrets. Of one that is there twice nobody knows what is in it.
    pub(super) fn held(&self) -> AllHeld {
        let mut all: BTreeMap<&Id, (String, &Held)> = BTreeMap::new();
        let mut twice = BTreeMap::new();
        for (name, file) in &self.files {
            for Holding { object, line, held } in &file.held {
                let here = format!("{name}:{line}");
                if let Some((first, _)) = all.get(object) {
                    let why = format!("it is in {first} and in {here}: which one counts is not known");
                    twice.entry(object.clone()).or_insert_with(|| Held::unreadable(why));
                } else {
                    all.insert(object, (here, held));
                }
            }
        }
        let all = all.into_iter().map(|(object, (_, held))| (object.clone(), held.clone()));
        all.chain(twice).collect()
    }

    /// What all files add up to, against what was told before. The first of several objects of one name wins.
    fn difference(&mut self, problems: &mut Vec<Problem>) -> Batch {
        let mut now: BTreeMap<&Key, (&str, &Entry)> = BTreeMap::new();
        for (name, file) in &self.files {
            for entry in &file.entries {
                if let Some((other, first)) = now.get(&entry.key) {
                    problems.push(Problem {
                        file: Some(name.clone()),
                        line: Some(entry.line),
                        ..Problem::of(
                            entry.key.clone(),
                            format!("is in {other}:{} already; this one is left out", first.line),
                        )
                        .at("metadata.name")
                        .by(Cause::Twice)
                    });
                } else {
                    now.insert(&entry.key, (name, entry));
                }
            }
        }
        let batch = if self.started {
            let gone = self.told.keys().filter(|key| !now.contains_key(key));
            let deleted = gone.map(|key| Change::Deleted(key.clone()));
            let applied = now
                .iter()
                .filter(|(key, (_, entry))| self.told.get(key) != Some(&entry.sighting))
                .map(|(_, (_, entry))| Change::Applied(entry.sighting.clone()));
            deleted.chain(applied).collect()
        } else {
            let of = |kind| {
                let sightings = now.values().map(|(_, entry)| entry).filter(|entry| entry.key.kind == kind);
                Change::Restarted(kind, sightings.map(|entry| entry.sighting.clone()).collect())
            };
            Kind::ALL.map(of).into()
        };
        let told = now.into_iter().map(|(key, (_, entry))| (key.clone(), entry.sighting.clone())).collect();
        self.told = told;
        self.started = true;
        batch
    }
}

impl Walk {
    fn directory(&mut self, path: &Path, relative: &str, watches: &mut Watches) -> io::Result<()> {
        // Watched before it is listed: what changes in between is told.
        watches.add(path);
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            // Hidden: editors' swap files, and the `..data` directories of a mounted ConfigMap, whose files show
            // through symbolic links beside them.
            if name.starts_with('.') {
                continue;
            }
            let path = entry.path();
            let relative = format!("{relative}{name}");
            let metadata = match fs::metadata(&path) {
                Ok(metadata) => metadata,
                // Gone since it was listed, or a dangling link: as good as not there.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => {
                    self.unread(&relative, &e);
                    continue;
                }
            };
            if metadata.is_dir() {
                // By way of symbolic links a directory may contain itself.
                if self.seen.insert((metadata.dev(), metadata.ino())) {
                    let inside = format!("{relative}/");
                    match self.directory(&path, &inside, watches) {
                        Err(e) if e.kind() != io::ErrorKind::NotFound => self.unread(&inside, &e),
                        _ => {}
                    }
                }
            } else if metadata.is_file() && is_manifest(&path) {
                self.files.insert(relative.into(), (path, metadata));
            }
        }
        Ok(())
    }

    fn unread(&mut self, relative: &str, error: &io::Error) {
        let message = format!("cannot be read ({error}); its last good state stays");
        self.problems.push(Problem::in_file(relative, message).by(Cause::Unreadable));
        self.unread.push(relative.to_owned());
    }
}

impl File {
    /// Reads the file if it has changed. What cannot be read leaves the last good state as it is.
    fn refresh(&mut self, name: &Arc<str>, path: &Path, metadata: &Metadata) {
        let stamp = Stamp::of(metadata, false);
        if self.stamp == Some(stamp) {
            return;
        }
        let left = self.left();
        let failed = |message: String| Problem::in_file(name.clone(), format!("{message}; {left}"));
        let bytes = if metadata.len() > MAX_FILE_BYTES {
            Err(failed(format!("{} bytes are too many: allowed are {MAX_FILE_BYTES}", metadata.len())))
        } else {
            fs::read(path).map_err(|e| failed(format!("cannot be read ({e})")).by(Cause::Unreadable))
        };
        self.stamp = Some(Stamp::of(metadata, is_recent(metadata)));
        let text = bytes.and_then(|bytes| {
            String::from_utf8(bytes).map_err(|e| {
                let good = &e.as_bytes()[..e.utf8_error().valid_up_to()];
                let line = 1 + memchr::memchr_iter(b'\n', good).count();
                Problem { line: u32::try_from(line).ok(), ..failed("is not UTF-8".to_owned()) }
            })
        });
        let text = match text {
            Ok(text) => text,
            Err(problem) => {
                self.problems = vec![problem];
                self.hash = 0;
                return;
            }
        };
        let hash = hash_of(&text);
        if hash == self.hash {
            return;
        }
        self.hash = hash;
        match file::read(name, &text) {
            Ok(content) => self.take(content),
            Err(problem) => {
                self.problems =
                    vec![Problem { message: format!("{}; {}", problem.message, self.left()), ..problem }];
            }
        }
    }

    /// What is in force of it while it cannot be read.
    fn left(&self) -> &'static str {
        if self.entries.is_empty() {
            "nothing of this file is in force"
        } else {
            "the last good state of this file stays"
        }
    }

    fn take(&mut self, Content { mut entries, held, problems }: Content) {
        // An object that could not be taken this time, but could before, stays as it was.
        let broken =
            problems.iter().filter_map(|problem| problem.object.as_ref().map(|key| (key, problem.line)));
        for (key, line) in broken {
            let before = self.entries.iter().find(|entry| entry.key == *key);
            if let Some(before) = before.filter(|_| entries.iter().all(|entry| entry.key != *key)) {
                entries.push(Entry { line: line.unwrap_or(before.line), ..before.clone() });
            }
        }
        self.entries = entries;
        self.held = held;
        self.problems = problems;
    }
}

impl Stamp {
    fn of(metadata: &Metadata, racy: bool) -> Self {
        Self {
            identity: (metadata.dev(), metadata.ino()),
            size: metadata.len(),
            // Unlike the modification time, nobody can set this one back.
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            racy,
        }
    }
}

fn is_recent(metadata: &Metadata) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let changed = Duration::new(
        metadata.ctime().try_into().unwrap_or_default(),
        metadata.ctime_nsec().try_into().unwrap_or_default(),
    );
    changed + RACY >= now
}

fn is_manifest(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| ["yaml", "yml", "json"].contains(&&*extension.to_ascii_lowercase()))
}

fn identity_of(path: &Path) -> io::Result<Identity> {
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        Ok((metadata.dev(), metadata.ino()))
    } else {
        Err(io::Error::from(io::ErrorKind::NotADirectory))
    }
}

/// Never 0, which stands for "not read".
fn hash_of(text: &str) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    hasher.write(text.as_bytes());
    hasher.finish() | 1
}
