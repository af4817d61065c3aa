//! The file that the state is kept in, and what is believed of one that is found.
//!
//! It is gzip, whose own checksum covers all of it. Its first line says what it is; each of the others is an object
//! ([`render`]). It is written beside its place and renamed, so that whoever reads finds the one before or this one, and never a
//! part. When the state was last known to be the cluster's is the time of the file's last modification, so that this can
//! be noted without writing it anew.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Read as _, Write},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use serde::{Deserialize, Serialize};

use super::render;
use crate::cluster::{
    object::{Kind, Object},
    source::{Batch, Change, Sighting},
};

/// The first word of the file, and the second: of what form the rest is.
const MAGIC: &str = "sluice-state";
const VERSION: u32 = 1;
/// Some 500,000 endpoints. The volume that it is on has room for two of them.
const FILE_AT_MOST: u64 = 64 << 20;
/// Of its text: a small file must not become large memory.
const TEXT_AT_MOST: u64 = 1 << 30;
/// Of one of its lines. The API server takes no object of more than 3 MiB.
const LINE_AT_MOST: u64 = 16 << 20;
/// What is older says nothing any more of which addresses are whose.
const AGE_AT_MOST: Duration = Duration::from_secs(24 * 3600);
/// What names of half-written files end with.
const TEMPORARY: &str = ".tmp";
/// What another agent left half-written is removed after this.
const LEFTOVER: Duration = Duration::from_secs(600);

/// Where the state is kept, and for which node.
#[derive(Clone, Debug)]
pub struct StateFile {
    pub path: PathBuf,
    pub node: Option<Arc<str>>,
}

/// What was found.
#[derive(Debug)]
pub struct Restored {
    /// For how long it has not been known to be the cluster's.
    pub age: Duration,
    pub zone: Option<Arc<str>>,
    pub objects: usize,
    /// All kinds, as a source tells them first.
    pub batch: Batch,
}

/// Why a file is passed over.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is {0}")]
    Unsafe(&'static str),
    #[error("it is broken: {0}")]
    Broken(String),
    #[error("its format is version {0}, and this agent reads version {VERSION}")]
    Version(u32),
    #[error("it is of node {0:?}")]
    OtherNode(String),
    #[error("it is {} hours old, and at most {} are believed", .0.as_secs() / 3600, AGE_AT_MOST.as_secs() / 3600)]
    TooOld(Duration),
    #[error("it is larger than {} MiB", FILE_AT_MOST >> 20)]
    TooLarge,
}

/// What the first line says besides.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    /// The version of the agent that wrote it.
    agent: String,
    node: Option<String>,
    zone: Option<String>,
    /// When the state was last known to be the cluster's, in seconds of Unix time.
    current: u64,
}

impl StateFile {
    /// Replaces what is kept. Blocks.
    ///
    /// # Errors
    /// It cannot be written, or would be too large; what was kept stays.
    pub fn write(&self, objects: &[Object], zone: Option<&str>, current: SystemTime) -> io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        self.sweep(directory);
        let temporary = directory.join(format!("{}{}{TEMPORARY}", self.prefix(), std::process::id()));
        let written = self.write_to(&temporary, objects, zone, current);
        let done = written.and_then(|()| fs::rename(&temporary, &self.path));
        if done.is_err() {
            // Whatever is there of it is of no use.
            let _ = fs::remove_file(&temporary);
        }
        done
    }

    fn write_to(
        &self,
        path: &Path,
        objects: &[Object],
        zone: Option<&str>,
        current: SystemTime,
    ) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = Bounded { file: options.open(path)?, left: FILE_AT_MOST };
        let mut text = GzEncoder::new(io::BufWriter::with_capacity(1 << 16, file), Compression::fast());
        let header = Header {
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.node.as_deref().map(str::to_owned),
            zone: zone.map(str::to_owned),
            current: unix(current),
        };
        writeln!(text, "{MAGIC} {VERSION} {}", serde_json::to_string(&header)?)?;
        let mut line = Vec::new();
        for object in objects {
            line.clear();
            render::write(object, &mut line)?;
            text.write_all(&line)?;
        }
        let file = text.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?.file;
        file.set_modified(current)?;
        file.sync_all()
    }

    /// Notes that what is kept was the cluster's at that time. Blocks.
    ///
    /// # Errors
    /// It is not there any more.
    pub fn confirm(&self, current: SystemTime) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options
            .write(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&self.path)?
            .set_modified(current)
    }

    /// What is kept; `None`: nothing. Blocks.
    ///
    /// # Errors
    /// It is not to be believed.
    pub fn read(&self, now: SystemTime) -> Result<Option<Restored>, Unusable> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file = match options.open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let metadata = file.metadata()?;
        let us = fs::metadata("/proc/self")?.uid();
        match () {
            () if !metadata.is_file() => return Err(Unusable::Unsafe("no regular file")),
            () if metadata.uid() != us => return Err(Unusable::Unsafe("another user's")),
            () if metadata.mode() & 0o022 != 0 => return Err(Unusable::Unsafe("writable by others")),
            () if metadata.len() > FILE_AT_MOST => return Err(Unusable::TooLarge),
            () => {}
        }
        let mut text =
            BufReader::with_capacity(1 << 16, GzDecoder::new(BufReader::new(file)).take(TEXT_AT_MOST));
        let mut line = Vec::new();
        if !next(&mut text, &mut line)? {
            return Err(Unusable::Broken("it is empty".to_owned()));
        }
        let header = header(&line)?;
        if let Some(other) =
            header.node.as_deref().filter(|node| self.node.as_deref().is_some_and(|us| us != *node))
        {
            return Err(Unusable::OtherNode(other.to_owned()));
        }
        let current = metadata.modified()?.max(SystemTime::UNIX_EPOCH + Duration::from_secs(header.current));
        let age = now.duration_since(current).unwrap_or_default();
        if age > AGE_AT_MOST {
            return Err(Unusable::TooOld(age));
        }
        let mut all = Batches::default();
        while next(&mut text, &mut line)? {
            all.take(render::read(&line).map_err(Unusable::Broken)?);
        }
        if text.get_ref().limit() == 0 {
            return Err(Unusable::TooLarge);
        }
        let (objects, batch) = all.end();
        Ok(Some(Restored { age, zone: header.zone.map(Into::into), objects, batch }))
    }

    /// What names of half-written files begin with.
    fn prefix(&self) -> String {
        format!(".{}.", self.path.file_name().unwrap_or_default().to_string_lossy())
    }

    /// Removes what agents that were killed while they wrote have left.
    fn sweep(&self, directory: &Path) {
        let prefix = self.prefix();
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let ours =
                name.to_str().is_some_and(|name| name.starts_with(&prefix) && name.ends_with(TEMPORARY));
            let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
            if ours && age().is_some_and(|age| age > LEFTOVER) {
                // Another agent may have been faster.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// What a file says, as a source would.
#[derive(Default)]
struct Batches {
    first: Vec<(Kind, Sighting)>,
    known: BTreeSet<crate::cluster::object::Key>,
    /// A later version of an object that is there.
    later: Vec<Change>,
}

impl Batches {
    fn take(&mut self, sighting: Sighting) {
        let key = sighting.object.key();
        if self.known.contains(&key) {
            self.later.push(Change::Applied(sighting));
        } else {
            self.first.push((key.kind, sighting));
            self.known.insert(key);
        }
    }

    fn end(self) -> (usize, Batch) {
        let mut by_kind: Vec<(Kind, Vec<Sighting>)> = Kind::ALL.map(|kind| (kind, Vec::new())).into();
        for (kind, sighting) in self.first {
            if let Some((_, all)) = by_kind.iter_mut().find(|(other, _)| *other == kind) {
                all.push(sighting);
            }
        }
        let batch =
            by_kind.into_iter().map(|(kind, all)| Change::Restarted(kind, all)).chain(self.later).collect();
        (self.known.len(), batch)
    }
}

/// The next line, without its end; false at the end of the text.
fn next(text: &mut impl io::BufRead, line: &mut Vec<u8>) -> Result<bool, Unusable> {
    line.clear();
    // A checksum that is wrong, or an end that comes too soon, is told as such an error.
    let mut text = text.take(LINE_AT_MOST);
    let read = text.read_until(b'\n', line).map_err(|e| Unusable::Broken(e.to_string()))?;
    if text.limit() == 0 {
        return Err(Unusable::Broken(format!("a line of it is longer than {} MiB", LINE_AT_MOST >> 20)));
    }
    if read > 0 && line.pop() != Some(b'\n') {
        return Err(Unusable::Broken("its last line has no end".to_owned()));
    }
    Ok(read > 0)
}

fn header(line: &[u8]) -> Result<Header, Unusable> {
    let broken = || Unusable::Broken("it is no state file".to_owned());
    let text = std::str::from_utf8(line).map_err(|_| broken())?;
    let mut words = text.splitn(3, ' ');
    if words.next() != Some(MAGIC) {
        return Err(broken());
    }
    match words.next().and_then(|version| version.parse().ok()) {
        Some(VERSION) => {}
        Some(other) => return Err(Unusable::Version(other)),
        None => return Err(broken()),
    }
    serde_json::from_str(words.next().unwrap_or_default()).map_err(|e| Unusable::Broken(e.to_string()))
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Takes so much and no more.
struct Bounded {
    file: File,
    left: u64,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            let message = format!("the state takes more than {} MiB", FILE_AT_MOST >> 20);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        let written = self.file.write(bytes)?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests;
