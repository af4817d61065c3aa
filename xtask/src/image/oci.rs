//! OCI image archives: writing one, and reading it back.
//!
//! An archive is a tar of an image layout: `oci-layout`, `index.json`, and blobs named by their digest. The index names a
//! manifest, the manifest a configuration and one layer, a compressed tar of the image's files.
//! <https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md>

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};

use anyhow::{Context as _, Result, bail, ensure};
use flate2::{Compression, GzBuilder, read::GzDecoder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Of everything: the same content gives the same bytes, whenever it is built.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// What is to be in an image.
#[derive(Debug)]
pub(super) struct Image<'a> {
    /// As in `sluice:0.1.0`.
    pub(super) name: String,
    pub(super) architecture: &'a str,
    pub(super) version: &'a str,
    /// The commit that it is built from.
    pub(super) revision: Option<String>,
    /// By path without the leading slash; all executable. The first is the entrypoint.
    pub(super) files: BTreeMap<String, Vec<u8>>,
}

impl Image<'_> {
    pub(super) fn archive(&self) -> Result<Vec<u8>> {
        let layer = tar(self.files.iter().map(|(path, content)| (path.as_str(), content.as_slice(), 0o755)))?;
        let compressed = gzip(&layer)?;
        let entrypoint = self.files.keys().next().context("an image without files")?;
        let mut annotations = json!({
            "org.opencontainers.image.title": "sluice",
            "org.opencontainers.image.description": "A node agent that governs the HTTP and gRPC calls between Kubernetes services",
            "org.opencontainers.image.version": self.version,
            "org.opencontainers.image.licenses": "Apache-2.0",
        });
        if let Some(revision) = &self.revision {
            annotations["org.opencontainers.image.revision"] = json!(revision);
        }
        let config = to_json(&json!({
            "created": CREATED,
            "architecture": self.architecture,
            "os": "linux",
            "config": { "Entrypoint": [format!("/{entrypoint}")], "WorkingDir": "/", "Labels": &annotations },
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
            "history": [{ "created": CREATED, "created_by": "cargo xtask image" }],
        }))?;
        let manifest = to_json(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config),
            "layers": [descriptor(LAYER, &compressed)],
            "annotations": annotations,
        }))?;
        let mut described = descriptor(MANIFEST, &manifest);
        described["platform"] = json!({ "architecture": self.architecture, "os": "linux" });
        described["annotations"] = json!({
            // Containerd goes by the first, others by the second.
            "io.containerd.image.name": full_name(&self.name),
            "org.opencontainers.image.ref.name": tag(&self.name),
        });
        let index = to_json(&json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [described] }))?;
        let blobs = [&compressed, &config, &manifest].map(|blob| (blob_path(&digest(blob)), blob));
        let mut entries: BTreeMap<&str, &[u8]> =
            blobs.iter().map(|(path, blob)| (path.as_str(), blob.as_slice())).collect();
        let layout = to_json(&json!({ "imageLayoutVersion": "1.0.0" }))?;
        entries.insert("oci-layout", &layout);
        entries.insert("index.json", &index);
        tar(entries.into_iter().map(|(path, content)| (path, content, 0o644)))
    }
}

/// The name as containerd and the kubelet spell it out.
fn full_name(name: &str) -> String {
    let tagged = if name.rsplit('/').next().is_some_and(|last| last.contains(':')) {
        name.to_owned()
    } else {
        format!("{name}:latest")
    };
    match tagged.split_once('/') {
        // The first part is a host if it looks like one.
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => tagged,
        Some(_) => format!("docker.io/{tagged}"),
        None => format!("docker.io/library/{tagged}"),
    }
}

fn tag(name: &str) -> &str {
    let last = name.rsplit('/').next().unwrap_or(name);
    last.split_once(':').map_or("latest", |(_, tag)| tag)
}

fn to_json(value: &Value) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(value)?)
}

fn digest(blob: &[u8]) -> String {
    let mut digest = "sha256:".to_owned();
    for byte in Sha256::digest(blob) {
        // Into a String: never fails.
        let _ = write!(digest, "{byte:02x}");
    }
    digest
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(blob), "size": blob.len() })
}

fn gzip(data: &[u8]) -> Result<Vec<u8>> {
    // No name and no time in the header.
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::best());
    encoder.write_all(data)?;
    Ok(encoder.finish()?)
}

/// A tar of files of root, with the directories that they lie in, all of the same time.
fn tar<'a>(files: impl Iterator<Item = (&'a str, &'a [u8], u32)>) -> Result<Vec<u8>> {
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

/// An image that was read back.
#[derive(Debug)]
pub(super) struct Read {
    config: Value,
    files: BTreeMap<String, Vec<u8>>,
}

impl Read {
    /// Path and content of the program that the image runs.
    pub(super) fn entrypoint(&self) -> Result<(&str, &[u8])> {
        let name = self.config["config"]["Entrypoint"][0].as_str().context("no entrypoint")?;
        let (path, content) = self
            .files
            .get_key_value(name.trim_start_matches('/'))
            .with_context(|| format!("the entrypoint {name} is not in the image"))?;
        Ok((path, content))
    }
}

/// Reads an archive as a runtime does: by digests, each of which must be right.
pub(super) fn read(archive: &[u8]) -> Result<Read> {
    let entries = untar(archive)?;
    let file = |path: &str| entries.get(path).with_context(|| format!("no {path} in the archive"));
    let parse = |bytes: &[u8]| -> Result<Value> { Ok(serde_json::from_slice(bytes)?) };
    let layout = parse(file("oci-layout")?)?;
    ensure!(layout["imageLayoutVersion"] == "1.0.0", "another layout: {layout}");
    let blob = |descriptor: &Value, media_type: &str| -> Result<&Vec<u8>> {
        let wanted = descriptor["digest"].as_str().context("a descriptor without digest")?;
        let blob = file(&blob_path(wanted))?;
        ensure!(digest(blob) == wanted, "a blob is not what its digest says: {wanted}");
        ensure!(descriptor["size"] == blob.len(), "a blob's size is not what is said: {descriptor}");
        ensure!(descriptor["mediaType"] == media_type, "not a {media_type}: {descriptor}");
        Ok(blob)
    };
    let index = parse(file("index.json")?)?;
    let manifest = parse(blob(&index["manifests"][0], MANIFEST)?)?;
    let config = parse(blob(&manifest["config"], CONFIG)?)?;
    let (Some(layers), Some(ids)) = (manifest["layers"].as_array(), config["rootfs"]["diff_ids"].as_array())
    else {
        bail!("no layers");
    };
    ensure!(layers.len() == ids.len(), "{} layers, {} ids", layers.len(), ids.len());
    let mut files = BTreeMap::new();
    for (layer, id) in layers.iter().zip(ids) {
        let mut data = Vec::new();
        GzDecoder::new(blob(layer, LAYER)?.as_slice()).read_to_end(&mut data)?;
        ensure!(*id == digest(&data), "a layer is not what its id says: {id}");
        files.extend(untar(&data)?);
    }
    Ok(Read { config, files })
}

fn untar(data: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(data).entries()? {
        let mut entry = entry?;
        if entry.header().entry_type().is_file() {
            let path = entry.path()?.to_string_lossy().into_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            files.insert(path, content);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image<'static> {
        let program = b"\x7fELF and so on".repeat(1000);
        Image {
            name: "sluice:0.1.0".to_owned(),
            architecture: "amd64",
            version: "0.1.0",
            revision: Some("abc".to_owned()),
            files: BTreeMap::from([("bin/sluice".to_owned(), program)]),
        }
    }

    #[test]
    fn what_is_written_can_be_read_back() {
        let archive = image().archive().expect("written");
        let read = read(&archive).expect("read");
        let (path, content) = read.entrypoint().expect("an entrypoint");
        assert_eq!((path, content), ("bin/sluice", &*image().files["bin/sluice"]));
        assert_eq!(read.config["architecture"], "amd64");
        assert_eq!(archive, image().archive().expect("written"), "the same again");
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let archive = image().archive().expect("written");
        let entries = untar(&archive).expect("a tar");
        for path in entries.keys().filter(|path| path.starts_with("blobs/")) {
            let mut changed = entries.clone();
            if let Some(byte) = changed.get_mut(path).and_then(|blob| blob.last_mut()) {
                *byte ^= 1;
            }
            let changed =
                tar(changed.iter().map(|(path, content)| (path.as_str(), content.as_slice(), 0o644)));
            let error = read(&changed.expect("a tar")).expect_err("a blob was changed");
            assert!(error.to_string().contains("not what its digest says"), "{error}");
        }
    }

    #[test]
    fn files_are_roots_and_of_one_time() {
        let layer = tar([("a/b/c", &b"x"[..], 0o755), ("a/b/d", b"y", 0o755)].into_iter()).expect("a tar");
        let mut paths = Vec::new();
        for entry in tar::Archive::new(&layer[..]).entries().expect("a tar") {
            let entry = entry.expect("whole");
            let header = entry.header();
            assert_eq!(
                (header.uid().ok(), header.gid().ok(), header.mtime().ok()),
                (Some(0), Some(0), Some(0))
            );
            assert_eq!(header.mode().ok(), Some(0o755));
            paths.push(entry.path().expect("a path").display().to_string());
        }
        assert_eq!(paths, ["a/", "a/b/", "a/b/c", "a/b/d"]);
    }

    #[test]
    fn names_are_spelled_out_as_containerd_does() {
        for (name, full, its_tag) in [
            ("sluice", "docker.io/library/sluice:latest", "latest"),
            ("sluice:0.1.0", "docker.io/library/sluice:0.1.0", "0.1.0"),
            ("team/sluice:1", "docker.io/team/sluice:1", "1"),
            ("localhost/sluice:1", "localhost/sluice:1", "1"),
            (
                "registry.example.com:5000/team/sluice",
                "registry.example.com:5000/team/sluice:latest",
                "latest",
            ),
        ] {
            assert_eq!((full_name(name).as_str(), tag(name)), (full, its_tag));
        }
    }
}
