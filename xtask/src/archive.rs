//! Archives whose bytes depend on nothing but what is in them: files of root, all of one time, in the order given.

use std::io::{Read as _, Write as _};

use anyhow::Result;
use flate2::{Compression, GzBuilder, read::GzDecoder};
use sha2::{Digest as _, Sha256};

/// The SHA-256 of some bytes, in hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write as _;

    let mut digits = String::new();
    for byte in Sha256::digest(bytes) {
        // Into a String: never fails.
        let _ = write!(digits, "{byte:02x}");
    }
    digits
}

pub(crate) fn gzip(data: &[u8]) -> Result<Vec<u8>> {
    // No name and no time in the header.
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::best());
    encoder.write_all(data)?;
    Ok(encoder.finish()?)
}

pub(crate) fn gunzip(data: &[u8]) -> Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    GzDecoder::new(data).read_to_end(&mut unpacked)?;
    Ok(unpacked)
}

/// A tar of files (path, content, mode), with the directories that they lie in.
pub(crate) fn tar<'a>(files: impl Iterator<Item = (&'a str, &'a [u8], u32)>) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut directories = Vec::new();
    for (path, content, mode) in files {
        for (end, _) in path.match_indices('/') {
            let directory = &path[..=end];
            if !directories.contains(&directory) {
                directories.push(directory);
                append(&mut builder, directory, tar::EntryType::Directory, 0o755, &[])?;
            }
        }
        append(&mut builder, path, tar::EntryType::Regular, mode, content)?;
    }
    Ok(builder.into_inner()?)
}

fn append(
    builder: &mut tar::Builder<Vec<u8>>,
    path: &str,
    kind: tar::EntryType,
    mode: u32,
    content: &[u8],
) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    builder.append_data(&mut header, path, content)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_roots_and_of_one_time() {
        let files = [("a/b/c", &b"x"[..], 0o755), ("a/b/d", b"y", 0o644)];
        let packed = gzip(&tar(files.into_iter()).expect("a tar")).expect("packed");
        assert_eq!(packed, gzip(&tar(files.into_iter()).expect("a tar")).expect("packed"));
        let unpacked = gunzip(&packed).expect("unpacked");
        let mut seen = Vec::new();
        for entry in tar::Archive::new(&unpacked[..]).entries().expect("a tar") {
            let entry = entry.expect("whole");
            let header = entry.header();
            assert_eq!(
                (header.uid().ok(), header.gid().ok(), header.mtime().ok()),
                (Some(0), Some(0), Some(0))
            );
            seen.push((entry.path().expect("a path").display().to_string(), header.mode().ok()));
        }
        let mode = |path: &str, mode| (path.to_owned(), Some(mode));
        assert_eq!(
            seen,
            [mode("a/", 0o755), mode("a/b/", 0o755), mode("a/b/c", 0o755), mode("a/b/d", 0o644)]
        );
    }

    #[test]
    fn a_digest_is_written_in_digits() {
        assert_eq!(sha256(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
