//! The archive that a Linux kernel unpacks as its first root file system: cpio in its `newc` form.
//! <https://docs.kernel.org/driver-api/early-userspace/buffer-format.html>

use std::fmt::Write as _;
use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// Writes an archive, entry by entry. Directories go before what is in them.
pub(super) struct Archive<W> {
    to: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(to: W) -> Self {
        Self { to, entries: 0 }
    }

    pub(super) fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, DIRECTORY, (0, 0), &[])
    }

    /// A file; all may be run.
    pub(super) fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.entry(path, PROGRAM, (0, 0), content)
    }

    pub(super) fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, LINK, (0, 0), target.as_bytes())
    }

    pub(super) fn character_device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(path, CHARACTER_DEVICE, (major, minor), &[])
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.to)
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        let path = path.trim_start_matches('/');
        let too_large = |_| io::Error::other(format!("{path} is too large for an initramfs"));
        let length = u32::try_from(content.len()).map_err(too_large)?;
        self.entries += 1;
        let name_length = path.len() as u32 + 1;
        let fields = [
            self.entries, // inode
            mode,
            0, // owner
            0, // group
            1, // links
            0, // time
            length,
            0, // device of the file, major
            0, // and minor
            device.0,
            device.1,
            name_length,
            0, // checksum: none in this form
        ];
        let mut head = String::from("070701");
        for field in fields {
            let _ = write!(head, "{field:08x}");
        }
        head += path;
        head.push('\0');
        self.padded(head.as_bytes())?;
        self.padded(content)
    }

    /// Heads with their names and contents are filled up to a multiple of four.
    fn padded(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)?;
        self.to.write_all(&[0; 3][..bytes.len().wrapping_neg() % 4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_form_that_the_kernel_reads() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("/dev").expect("memory is there");
        archive.character_device("/dev/console", 5, 1).expect("memory is there");
        archive.file("/init", b"hello").expect("memory is there");
        let bytes = archive.finish().expect("memory is there");
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8(bytes).expect("nothing but ASCII");
        let init = text.split("070701").nth(3).expect("three entries");
        // Inode 3, a program of five bytes, a name of five.
        assert!(init.starts_with("00000003000081ed"), "{init}");
        assert_eq!(&init[8 * 6..8 * 7], "00000005", "the length of its content");
        assert_eq!(&init[8 * 11..8 * 12], "00000005", "the length of its name");
        assert!(init.ends_with("init\0\0hello\0\0\0"), "{init:?}");
        let console = text.split("070701").nth(2).expect("three entries");
        assert_eq!(&console[8 * 9..8 * 11], "0000000500000001");
        assert!(text.contains("TRAILER!!!\0"));
    }
}
