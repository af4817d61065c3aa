//! `cargo xtask release`: everything that is published of a version, in one directory.
//!
//! Images for both architectures and an index of the two, the chart, the manifests, the kubectl plugin with its manifest for
//! krew, the bill of materials, the licences of what is inside, the notes, and the checksums of all of these. The same commit
//! gives the same bytes: `--check` builds it again from a clone in another directory, and compares. RELEASING.md has the rest.

mod sbom;
mod texts;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::arch::Arch;
use crate::archive::{self, sha256};
use crate::shell::{self, say};
use crate::{chart, helm, image, workspace};

const SUMS: &str = "SHA256SUMS";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory to write [default: `release-VERSION` in the target directory]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// The architectures
    #[arg(long, value_name = "ARCH", value_delimiter = ',', default_values = ["x86_64", "aarch64"])]
    arch: Vec<Arch>,
    /// Where the files will be published; for the manifest of the kubectl plugin
    #[arg(long, value_name = "URL", default_value = "https://example.com/sluice")]
    url: String,
    /// Also from a tree with changes, and without a section of CHANGELOG.md about this version
    #[arg(long)]
    draft: bool,
    /// Build it twice, the second time from a clone in another directory, and compare
    #[arg(long)]
    check: bool,
}

/// What is published, by file name.
type Files = BTreeMap<String, Vec<u8>>;

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(
        args.draft || !image::revision().is_none_or(|commit| commit.ends_with("-dirty")),
        "the tree has changes, or is no clone: commit them, or use --draft"
    );
    let version = workspace::version();
    let output = match &args.output {
        Some(output) => output.clone(),
        None => workspace::target_dir()?.join(format!("release-{version}")),
    };
    let before = image::revision();
    let files = files(args, version)?;
    ensure!(
        before == image::revision(),
        "the tree was changed while it was built: it is not clear what is in the release"
    );
    shell::remove_dir(&output)?;
    std::fs::create_dir_all(&output).with_context(|| format!("cannot make {}", output.display()))?;
    for (name, content) in &files {
        let path = output.join(name);
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        say(&format!("{:>9} KiB  {name}", content.len().div_ceil(1024)));
    }
    say(&format!("the release {version} is in {}", output.display()));
    if args.check { again(args, &files) } else { Ok(()) }
}

fn files(args: &Args, version: &str) -> Result<Files> {
    let root = workspace::root();
    let read = |path: &str| std::fs::read(root.join(path)).with_context(|| format!("cannot read {path}"));
    let licence = read("LICENSE")?;
    let mut architectures = args.arch.clone();
    architectures.sort_unstable();
    architectures.dedup();
    let mut files = Files::new();
    let changelog = String::from_utf8(read("CHANGELOG.md")?)?;
    files.insert("NOTES.md".to_owned(), texts::notes(&changelog, version, args.draft)?.into_bytes());
    let materials = sbom::Materials::collect()?;
    let licences = texts::licences(&materials)?.into_bytes();
    files.insert(format!("sluice-{version}.cdx.json"), materials.cyclonedx()?.into_bytes());

    let mut images = Vec::new();
    let mut packages = Vec::new();
    for &arch in &architectures {
        let binary = image::fit_binary(arch)?;
        let plugin = archive::gzip(&archive::tar(
            [
                ("LICENSE", licence.as_slice(), 0o644),
                ("THIRD-PARTY-LICENSES.txt", licences.as_slice(), 0o644),
                ("kubectl-sluice", binary.as_slice(), 0o755),
            ]
            .into_iter(),
        )?)?;
        let file = format!("kubectl-sluice-{version}-linux-{}.tar.gz", arch.oci());
        packages.push(texts::Package { arch, file: file.clone(), sha256: sha256(&plugin) });
        files.insert(file, plugin);
        let image = image::of(arch, binary, None);
        files.insert(
            format!("sluice-{version}-linux-{}.oci.tar", arch.oci()),
            image::archive(std::slice::from_ref(&image))?,
        );
        images.push(image);
    }
    if images.len() > 1 {
        files.insert(format!("sluice-{version}.oci.tar"), image::archive(&images)?);
    }
    files.insert("THIRD-PARTY-LICENSES.txt".to_owned(), licences);
    files.insert(
        "krew-sluice.yaml".to_owned(),
        texts::krew(version, args.url.trim_end_matches('/'), &packages).into_bytes(),
    );
    files.insert(format!("sluice-{version}.tgz"), packed_chart()?);
    files.insert(format!("sluice-{version}.yaml"), manifests()?);
    let mut sums = String::new();
    for (name, content) in &files {
        let _ = writeln!(sums, "{}  {name}", sha256(content));
    }
    files.insert(SUMS.to_owned(), sums.into_bytes());
    Ok(files)
}

/// The chart as `helm package` would pack it, with the same bytes each time; and Helm must take it.
fn packed_chart() -> Result<Vec<u8>> {
    chart::check()?;
    let packed = chart::packed()?;
    let file = workspace::target_dir()?.join("chart.tgz");
    std::fs::write(&file, &packed).with_context(|| format!("cannot write {}", file.display()))?;
    let helm = helm::programs()?.helm;
    shell::run(Command::new(&helm).args(["lint", "--strict", "--quiet"]).arg(&file))?;
    let from_package = chart::render(&helm, &file, &[])?;
    let from_directory = chart::render(&helm, &workspace::root().join(chart::CHART), &[])?;
    ensure!(from_package == from_directory, "the packed chart renders something else than the directory");
    std::fs::remove_file(&file)?;
    Ok(packed)
}

/// `deploy/`, rendered: for `kubectl apply -f`.
fn manifests() -> Result<Vec<u8>> {
    let mut kubectl = Command::new(helm::programs()?.kubectl);
    Ok(shell::read(kubectl.arg("kustomize").arg(workspace::root().join("deploy")))?.into_bytes())
}

/// Builds the release of the same commit in a clone with a target directory of its own, and compares.
fn again(args: &Args, files: &Files) -> Result<()> {
    let place = workspace::target_dir()?.join("release-check/a place with another name");
    shell::remove_dir(place.parent().context("it has a parent")?)?;
    let (clone, target, output) = (place.join("clone"), place.join("built"), place.join("release"));
    std::fs::create_dir_all(&place)?;
    say("building the same release from a clone in another directory");
    let mut git = Command::new("git");
    shell::run(git.args(["clone", "--quiet", "--shared"]).arg(workspace::root()).arg(&clone))?;
    let mut cargo = workspace::plain_cargo();
    cargo.current_dir(&clone).env("CARGO_TARGET_DIR", &target);
    cargo
        .args(["run", "--quiet", "--package=xtask", "--", "release", "--url", &args.url, "--output"])
        .arg(&output);
    cargo.arg("--arch").arg(args.arch.iter().map(|arch| arch.name()).collect::<Vec<_>>().join(","));
    if args.draft {
        cargo.arg("--draft");
    }
    shell::run(&mut cargo)?;
    let different = differences(files, &output)?;
    ensure!(
        different.is_empty(),
        "a second build gives other bytes (they are left in {}): {}",
        output.display(),
        different.join(", ")
    );
    say(&format!("a second build gives the same {} files", files.len()));
    shell::remove_dir(place.parent().context("it has a parent")?)
}

/// The files that are not the same in that directory.
fn differences(files: &Files, directory: &Path) -> Result<Vec<String>> {
    let mut different = Vec::new();
    for entry in
        std::fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?
    {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !files.contains_key(&name) {
            different.push(format!("{name} (new)"));
        }
    }
    for (name, content) in files {
        if std::fs::read(directory.join(name)).ok().as_ref() != Some(content) {
            different.push(name.clone());
        }
    }
    Ok(different)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_is_named() {
        let directory = std::env::temp_dir().join(format!("sluice-release-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("made");
        for name in ["same", "other", "new"] {
            std::fs::write(directory.join(name), "x").expect("written");
        }
        let file = |name: &str, content: &str| (name.to_owned(), content.as_bytes().to_vec());
        let files = Files::from([file("same", "x"), file("other", "y"), file("gone", "x")]);
        let found = differences(&files, &directory);
        std::fs::remove_dir_all(&directory).expect("removed");
        assert_eq!(found.expect("compared"), ["new (new)", "gone", "other"]);
    }
}
