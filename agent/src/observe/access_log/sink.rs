//! Where lines go: the thread that writes, and a file that may be rotated.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::Receiver,
    },
    time::{Duration, Instant},
};

use prometheus::IntCounter;

use super::{Chunk, Trouble};

/// How often it is looked whether the file is still the one at its path.
const LOOK: Duration = Duration::from_secs(1);

/// Writes what comes until nobody is left who could send. Flushes after whole lines only.
pub(super) fn write_all(
    chunks: &Receiver<Chunk>,
    queued: &AtomicUsize,
    dropped: &IntCounter,
    trouble: &Trouble,
    mut out: impl Write,
) {
    let (mut lost, mut torn) = (0, false);
    while let Ok(Chunk { bytes, lines }) = chunks.recv() {
        match write(&mut out, &bytes, &mut torn) {
            Ok(()) => {
                if trouble.swap(None).is_some() {
                    tracing::info!(lost, "the access log can be written again");
                }
                lost = 0;
            }
            Err(error) => {
                dropped.inc_by(lines);
                lost += lines;
                if trouble.swap(Some(Arc::new(error.to_string()))).is_none() {
                    tracing::error!(%error, "cannot write the access log: lines are lost until it can be written again");
                }
            }
        }
        queued.fetch_sub(bytes.len(), Ordering::Relaxed);
    }
}

/// `torn`: the last write stopped within a line.
fn write(out: &mut impl Write, mut bytes: &[u8], torn: &mut bool) -> io::Result<()> {
    if *torn {
        out.write_all(b"\n")?;
        *torn = false;
    }
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                *torn = bytes[written - 1] != b'\n';
                bytes = &bytes[written..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    out.flush()
}

/// A file that is appended to. When it was moved away or removed, its path is opened anew within a second of the next line,
/// which is what tools that rotate logs need.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    open: fs::File,
    /// Device and inode.
    id: (u64, u64),
    looked: Instant,
    complained: bool,
}

impl File {
    /// Opens the file, and makes it if there is none: readable for its owner and group.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let file = fs::OpenOptions::new().append(true).create(true).mode(0o640).open(&path)?;
        let metadata = file.metadata()?;
        let id = (metadata.dev(), metadata.ino());
        Ok(Self { path, open: file, id, looked: Instant::now(), complained: false })
    }

    fn follow(&mut self) {
        let there = fs::metadata(&self.path).map(|metadata| (metadata.dev(), metadata.ino()));
        if there.is_ok_and(|id| id == self.id) {
            return;
        }
        match Self::open(self.path.clone()) {
            Ok(new) => *self = new,
            // What there is to write still goes where it went.
            Err(error) if !self.complained => {
                self.complained = true;
                tracing::error!(path = %self.path.display(), %error, "cannot reopen the access log: still writing to the old file");
            }
            Err(_) => {}
        }
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.open.write(bytes)
    }

    /// Between lines.
    fn flush(&mut self) -> io::Result<()> {
        if self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            self.follow();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes what it is told to, then fails once.
    struct Full {
        room: usize,
        written: Vec<u8>,
    }

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.room);
            if taken == 0 {
                self.room = usize::MAX;
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= taken;
            self.written.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_tears_no_other_line() {
        let (queue, chunks) = std::sync::mpsc::channel();
        for bytes in ["one\ntwo\n", "three\n"] {
            let lines = bytes.lines().count() as u64;
            queue.send(Chunk { bytes: bytes.into(), lines }).unwrap();
        }
        drop(queue);
        let dropped = IntCounter::new("dropped", "dropped").unwrap();
        let queued = AtomicUsize::new(14);
        let mut out = Full { room: 6, written: Vec::new() };
        let trouble = Trouble::default();
        write_all(&chunks, &queued, &dropped, &trouble, &mut out);
        assert_eq!(trouble.load_full(), None, "it works again");
        assert_eq!(String::from_utf8_lossy(&out.written), "one\ntw\nthree\n");
        assert_eq!((dropped.get(), queued.into_inner()), (2, 0));
    }

    #[test]
    fn a_full_disk_is_told_until_there_is_room() {
        let (queue, chunks) = std::sync::mpsc::channel();
        queue.send(Chunk { bytes: b"one\n".into(), lines: 1 }).unwrap();
        drop(queue);
        let dropped = IntCounter::new("dropped", "dropped").unwrap();
        let trouble = Trouble::default();
        let mut out = Full { room: 0, written: Vec::new() };
        write_all(&chunks, &AtomicUsize::new(4), &dropped, &trouble, &mut out);
        let told = trouble.load_full().unwrap();
        assert_eq!(*told, io::Error::from(io::ErrorKind::StorageFull).to_string());
    }

    #[test]
    fn a_file_that_was_rotated_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let mut file = File::open(path.clone()).unwrap();
        file.write_all(b"one\n").unwrap();
        fs::rename(&path, folder.path().join("access.log.1")).unwrap();
        // Not yet a second old: the old one.
        file.flush().unwrap();
        file.write_all(b"two\n").unwrap();
        file.looked = Instant::now().checked_sub(LOOK).unwrap();
        file.flush().unwrap();
        file.write_all(b"three\n").unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("access.log.1")).unwrap(), "one\ntwo\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
        // Where it cannot be opened, the old one goes on.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        file.follow();
        file.write_all(b"four\n").unwrap();
        assert!(file.complained);
    }
}
