//! Where things are: the workspace, its target directory, the cache that survives a clone; and cargo itself.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, OnceLock};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::shell;

/// The root of the workspace: that in which `cargo run` found us. Where clones share a target directory, the one in which
/// we were built may be another.
pub(crate) fn root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let own = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let mut root = PathBuf::from(own);
        root.pop();
        root
    });
    &ROOT
}

/// The version of Sluice: that of the workspace, and of everything that is released.
pub(crate) fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Variables that `cargo run` sets for xtask and that must not reach another cargo: build scripts that watch
/// them would run again at every change between `cargo xtask build` and `cargo build`.
fn belongs_to_cargo_run(name: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|prefix| name.starts_with(prefix))
        || ["CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "LD_LIBRARY_PATH", "OUT_DIR"].contains(&name)
}

/// `program` at the root of the workspace, without the traces of `cargo run`.
pub(crate) fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command.current_dir(root());
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(belongs_to_cargo_run) {
            command.env_remove(name);
        }
    }
    command
}

/// The variable by which the agent's build script is told of the eBPF programs; `none` for none.
const BPF_OBJECT: &str = "SLUICE_BPF_OBJECT";

/// The cargo that runs us. It embeds the eBPF programs if they have been built: all that one run of xtask starts agrees on
/// that, else the agent would be compiled anew for each. What must have them says so: [`cargo_with_programs`].
pub(crate) fn cargo() -> Command {
    let mut cargo = plain_cargo();
    // Where that cannot be known, what is run next will say why.
    if let Some(object) = bpf_object().ok().filter(|object| object.is_file()) {
        cargo.env(BPF_OBJECT, object);
    }
    cargo
}

/// A cargo command about the whole workspace, with what its tests need; flags choose targets of it (`--bin`, `--test`).
///
/// Cargo gives a library the features that are asked for by the packages, and by the kinds of targets, that a command names, and
/// compiles it anew for each other choice, with all that uses it. So whatever is built for tests names the same: everything.
pub(crate) fn whole(subcommand: &str) -> Command {
    let mut cargo = cargo();
    cargo.args([subcommand, "--workspace", "--features=sluice-tests/kernel"]);
    cargo
}

/// A cargo that builds the agent with these eBPF programs, or fails.
pub(crate) fn cargo_with_programs(object: &Path) -> Command {
    let mut cargo = plain_cargo();
    cargo.env(BPF_OBJECT, object);
    cargo
}

/// A cargo that may build even a release of the agent without eBPF programs.
pub(crate) fn cargo_without_programs() -> Command {
    let mut cargo = plain_cargo();
    cargo.env(BPF_OBJECT, "none");
    cargo
}

/// The cargo that runs us, with nothing said of eBPF programs.
pub(crate) fn plain_cargo() -> Command {
    command(std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from))
}

/// Where the compiled eBPF programs are put.
pub(crate) fn bpf_object() -> Result<PathBuf> {
    Ok(target_dir()?.join("bpf/sluice.bpf.o"))
}

/// The target directory, wherever the user's cargo configuration puts it.
pub(crate) fn target_dir() -> Result<PathBuf> {
    Ok(metadata()?.target_directory.clone())
}

/// What this reads of `cargo metadata`.
#[derive(Debug, Deserialize)]
struct Metadata {
    target_directory: PathBuf,
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    targets: Vec<Target>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
    #[serde(default, rename = "required-features")]
    required_features: Vec<String>,
}

fn metadata() -> Result<&'static Metadata> {
    static METADATA: OnceLock<Metadata> = OnceLock::new();
    if let Some(metadata) = METADATA.get() {
        return Ok(metadata);
    }
    let text = shell::read(plain_cargo().args(["metadata", "--format-version=1", "--no-deps"]))?;
    let metadata = serde_json::from_str(&text).context("`cargo metadata` printed something else")?;
    Ok(METADATA.get_or_init(|| metadata))
}

/// The names of programs, chosen by package and name; none that only a feature builds.
pub(crate) fn programs(chosen: impl Fn(&str, &str) -> bool) -> Result<Vec<String>> {
    Ok(metadata()?.targets("bin", chosen))
}

/// The names of the integration tests that need no feature, and therefore no root.
pub(crate) fn plain_tests() -> Result<Vec<String>> {
    Ok(metadata()?.targets("test", |_, _| true))
}

impl Metadata {
    /// The names of the targets of a kind that need no feature, chosen by package and name.
    fn targets(&self, kind: &str, chosen: impl Fn(&str, &str) -> bool) -> Vec<String> {
        let all = self.packages.iter().flat_map(|of| of.targets.iter().map(|target| (&*of.name, target)));
        let plain = all.filter(|(_, target)| {
            target.required_features.is_empty() && target.kind.iter().any(|is| is == kind)
        });
        let chosen = plain.filter(|(package, target)| chosen(package, &target.name));
        chosen.map(|(_, target)| target.name.clone()).collect()
    }
}

/// Flags of rustc that keep this machine's paths out of what is built, so that it is the same wherever it is built.
pub(crate) fn remapped_paths() -> Vec<String> {
    // The last one that fits counts.
    let paths = [(Some(root().to_owned()), "sluice"), (target_dir().ok(), "target"), (cargo_home(), "cargo")];
    let flag = |(from, to): (Option<PathBuf>, &str)| {
        from.map(|from| format!("--remap-path-prefix={}={to}", from.display()))
    };
    paths.into_iter().filter_map(flag).collect()
}

fn cargo_home() -> Option<PathBuf> {
    let set = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    set.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cargo")))
}

/// The folder of what is built once a user and machine: `$XDG_CACHE_HOME/sluice` or `~/.cache/sluice`.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    Ok(base
        .context("neither XDG_CACHE_HOME nor HOME is an absolute path: no place for the cache")?
        .join("sluice"))
}

/// Waits until no other xtask installs into the cache. The lock goes with the returned file.
pub(crate) fn lock_cache() -> Result<File> {
    let folder = cache_dir()?;
    let lock = || {
        std::fs::create_dir_all(&folder)?;
        let file = File::create(folder.join(".lock"))?;
        file.lock()?;
        Ok::<_, std::io::Error>(file)
    };
    lock().with_context(|| format!("cannot lock the cache {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_found_by_kind_and_package_unless_a_feature_builds_them() {
        let metadata: Metadata = serde_json::from_str(
            r#"{"target_directory": "/t", "version": 1, "packages": [
                {"name": "a", "targets": [{"name": "a", "kind": ["lib"]}, {"name": "run", "kind": ["bin"]}]},
                {"name": "b", "targets": [{"name": "b", "kind": ["bin"]}, {"name": "plain", "kind": ["test"]},
                    {"name": "rooted", "kind": ["test"], "required-features": ["kernel"]}]}]}"#,
        )
        .unwrap();
        assert_eq!(metadata.targets("bin", |package, _| package == "a"), ["run"]);
        assert_eq!(metadata.targets("bin", |_, _| true), ["run", "b"]);
        assert_eq!(metadata.targets("test", |_, _| true), ["plain"]);
    }

    #[test]
    fn the_tests_in_the_kernel_are_not_among_the_plain_ones() {
        let tests = plain_tests().unwrap();
        assert!(tests.contains(&"deploy".to_owned()) && !tests.contains(&"kernel".to_owned()), "{tests:?}");
    }
}
