//! OCI image archives: writing one, and reading it back.
//!
//! An archive is a tar of an image layout: `oci-layout`, `index.json`, and blobs named by their digest. The index names a
//! manifest, the manifest a configuration and one layer, a compressed tar of the image's files. Images for several
//! architectures have one more index between: it names a manifest for each, and a node takes that of its own.
//! <https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md>

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::archive::{gunzip, gzip, sha256, tar};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Of everything: the same content gives the same bytes, whenever it is built.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// What is to be in an image.
#[derive(Debug)]
pub(crate) struct Image<'a> {
    /// As in `sluice:0.1.0`.
    pub(super) name: String,
    pub(super) architecture: &'a str,
    pub(super) version: &'a str,
    /// The commit that it is built from.
    pub(super) revision: Option<String>,
    /// By path without the leading slash; all executable. The first is the entrypoint.
    pub(super) files: BTreeMap<String, Vec<u8>>,
}

/// Blobs of an archive, by the path that their digest gives them.
type Blobs = BTreeMap<String, Vec<u8>>;

impl Image<'_> {
    /// Adds this image's blobs, and returns what describes its manifest.
    fn add_to(&self, blobs: &mut Blobs) -> Result<Value> {
        let layer = tar(self.files.iter().map(|(path, content)| (path.as_str(), content.as_slice(), 0o755)))?;
        let entrypoint = self.files.keys().next().context("an image without files")?;
        let mut annotations = json!({
            "org.opencontainers.image.title": "sluice",
            "org.opencontainers.image.description":
                "A node agent that routes and protects the HTTP and gRPC calls between Kubernetes services",
            "org.opencontainers.image.version": self.version,
            "org.opencontainers.image.licenses": "Apache-2.0",
        });
        if let Some(revision) = &self.revision {
            annotations["org.opencontainers.image.revision"] = json!(revision);
        }
        let config = json!({
            "created": CREATED,
            "architecture": self.architecture,
            "os": "linux",
            "config": { "Entrypoint": [format!("/{entrypoint}")], "WorkingDir": "/", "Labels": &annotations },
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
            "history": [{ "created": CREATED, "created_by": "cargo xtask image" }],
        });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": add(blobs, CONFIG, to_json(&config)?),
            "layers": [add(blobs, LAYER, gzip(&layer)?)],
            "annotations": annotations,
        });
        let mut described = add(blobs, MANIFEST, to_json(&manifest)?);
        described["platform"] = json!({ "architecture": self.architecture, "os": "linux" });
        Ok(described)
    }
}

/// The archive of an image, or of one for each of several architectures under the name of the first.
pub(super) fn archive(images: &[Image<'_>]) -> Result<Vec<u8>> {
    let mut blobs = Blobs::new();
    let described = images.iter().map(|image| image.add_to(&mut blobs)).collect::<Result<Vec<_>>>()?;
    let name = &images.first().context("an archive without an image")?.name;
    let mut top = match described.as_slice() {
        [only] => only.clone(),
        all => {
            let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": all });
            add(&mut blobs, INDEX, to_json(&index)?)
        }
    };
    top["annotations"] = json!({
        // Containerd goes by the first, others by the second.
        "io.containerd.image.name": full_name(name),
        "org.opencontainers.image.ref.name": tag(name),
    });
    let index = to_json(&json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [top] }))?;
    let layout = to_json(&json!({ "imageLayoutVersion": "1.0.0" }))?;
    let mut entries: BTreeMap<&str, &[u8]> =
        blobs.iter().map(|(path, blob)| (path.as_str(), blob.as_slice())).collect();
    entries.insert("oci-layout", &layout);
    entries.insert("index.json", &index);
    tar(entries.into_iter().map(|(path, content)| (path, content, 0o644)))
}

/// Adds a blob, and returns its descriptor.
fn add(blobs: &mut Blobs, media_type: &str, blob: Vec<u8>) -> Value {
    let digest = digest(&blob);
    let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": blob.len() });
    blobs.insert(blob_path(&digest), blob);
    descriptor
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
    format!("sha256:{}", sha256(blob))
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

/// An image that was read back.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) config: Value,
    files: BTreeMap<String, Vec<u8>>,
    /// The layers, decompressed: each a tar of what it puts over those before.
    layers: Vec<Vec<u8>>,
}

impl Read {
    /// Puts the layers on top of each other in a directory, as a runtime does.
    pub(super) fn unpack(&self, directory: &Path) -> Result<()> {
        for path in self.files.keys() {
            // None of ours takes anything away again, and nothing here would.
            let name = path.rsplit('/').next().unwrap_or_default();
            ensure!(!name.starts_with(".wh."), "a layer takes something away: {path}");
        }
        for layer in &self.layers {
            let mut archive = tar::Archive::new(layer.as_slice());
            archive.set_preserve_permissions(true);
            archive.unpack(directory)?;
        }
        Ok(())
    }

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

/// Reads an archive of one image.
#[cfg(test)]
fn read(archive: &[u8]) -> Result<Read> {
    let mut images = read_all(archive)?;
    ensure!(images.len() == 1, "{} images", images.len());
    Ok(images.remove(0))
}

/// Reads an archive as a runtime does: by digests, each of which must be right. It has an image for each architecture.
pub(super) fn read_all(archive: &[u8]) -> Result<Vec<Read>> {
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
    let top = &index["manifests"][0];
    let manifests = if top["mediaType"] == INDEX {
        let index = parse(blob(top, INDEX)?)?;
        index["manifests"].as_array().cloned().context("an index without manifests")?
    } else {
        vec![top.clone()]
    };
    manifests.iter().map(|described| read_one(described, &parse, &blob)).collect()
}

/// The image that is described, with what finds blobs.
fn read_one<'a>(
    described: &Value,
    parse: &impl Fn(&[u8]) -> Result<Value>,
    blob: &impl Fn(&Value, &str) -> Result<&'a Vec<u8>>,
) -> Result<Read> {
    let manifest = parse(blob(described, MANIFEST)?)?;
    let config = parse(blob(&manifest["config"], CONFIG)?)?;
    ensure!(
        described["platform"]["architecture"] == config["architecture"],
        "the index names another architecture than the image: {described}"
    );
    let (Some(layers), Some(ids)) = (manifest["layers"].as_array(), config["rootfs"]["diff_ids"].as_array())
    else {
        bail!("no layers");
    };
    ensure!(layers.len() == ids.len(), "{} layers, {} ids", layers.len(), ids.len());
    let (mut files, mut unpacked) = (BTreeMap::new(), Vec::new());
    for (layer, id) in layers.iter().zip(ids) {
        let data = gunzip(blob(layer, LAYER)?)?;
        ensure!(*id == digest(&data), "a layer is not what its id says: {id}");
        files.extend(untar(&data)?);
        unpacked.push(data);
    }
    Ok(Read { config, files, layers: unpacked })
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
        let archive = archive(&[image()]).expect("written");
        let read = read(&archive).expect("read");
        let (path, content) = read.entrypoint().expect("an entrypoint");
        assert_eq!((path, content), ("bin/sluice", &*image().files["bin/sluice"]));
        assert_eq!(read.config["architecture"], "amd64");
        assert_eq!(archive, super::archive(&[image()]).expect("written"), "the same again");
    }

    #[test]
    fn layers_are_unpacked_with_their_permissions() {
        let directory = std::env::temp_dir().join(format!("xtask-oci-{}", std::process::id()));
        let read = read_all(&archive(&[image()]).expect("written")).expect("read").remove(0);
        read.unpack(&directory).expect("unpacked");
        let program = directory.join("bin/sluice");
        let content = std::fs::read(&program).expect("it is there");
        let mode = std::fs::metadata(&program).expect("it is there").permissions();
        std::fs::remove_dir_all(&directory).expect("it was made");
        assert_eq!(content, image().files["bin/sluice"]);
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o755);
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let archive = archive(&[image()]).expect("written");
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
    fn a_node_finds_the_image_of_its_architecture() {
        let mut other = image();
        other.architecture = "arm64";
        other.files.insert("bin/sluice".to_owned(), b"\x7fELF of another kind".to_vec());
        let archive = archive(&[image(), other]).expect("written");
        let read = read_all(&archive).expect("read");
        let architectures: Vec<&Value> = read.iter().map(|image| &image.config["architecture"]).collect();
        assert_eq!(architectures, ["amd64", "arm64"]);
        assert!(read[1].entrypoint().expect("there").1.ends_with(b"of another kind"));
        assert!(super::read(&archive).is_err(), "which of the two?");
        // One entry with the name: containerd and skopeo import what it names.
        let entries = untar(&archive).expect("a tar");
        let index: Value = serde_json::from_slice(&entries["index.json"]).expect("JSON");
        assert_eq!(index["manifests"].as_array().map(Vec::len), Some(1));
        assert_eq!(index["manifests"][0]["mediaType"], INDEX);
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
