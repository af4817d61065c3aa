//! Where things are: the workspace, its target directory, the cache that survives a clone; and cargo itself.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, OnceLock};

use anyhow::{Context as _, Result};

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
    static TARGET: OnceLock<PathBuf> = OnceLock::new();
    if let Some(target) = TARGET.get() {
        return Ok(target.clone());
    }
    let metadata = shell::read(plain_cargo().args(["metadata", "--format-version=1", "--no-deps"]))?;
    let target = json_string(&metadata, "target_directory")
        .map(PathBuf::from)
        .context("`cargo metadata` names no target_directory")?;
    Ok(TARGET.get_or_init(|| target).clone())
}

/// The string member `name` of a JSON text. Enough for one path; a JSON parser is not worth its build time here.
fn json_string(text: &str, name: &str) -> Option<String> {
    let start = text.find(&format!("\"{name}\":\""))? + name.len() + 4;
    let mut value = String::new();
    let mut chars = text[start..].chars();
    loop {
        match chars.next()? {
            '"' => return Some(value),
            '\\' => value.push(chars.next()?),
            other => value.push(other),
        }
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
    use super::json_string;

    #[test]
    fn a_json_string_is_found_and_unescaped() {
        let text = r#"{"version":1,"target_directory":"/a \"b\"/c\\d","x":"y"}"#;
        assert_eq!(json_string(text, "target_directory").as_deref(), Some(r#"/a "b"/c\d"#));
        assert_eq!(json_string(text, "workspace_root"), None);
        assert_eq!(json_string(r#"{"target_directory":"/cut"#, "target_directory"), None);
    }
}
