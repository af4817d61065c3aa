//! The eBPF toolchain: a compiler with the sources of its own `core`, and a bpf-linker of the same LLVM.
//!
//! The target `bpfel-unknown-none` has no prebuilt `core`, and bpf-linker reads the compiler's LLVM bitcode, which
//! an older LLVM cannot. So the two have to match: [`find`] takes what is installed if it does, and [`install`]
//! makes a matching pair from Debian's packages. ebpf/src/main.rs has the
//! commands.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::arch::Arch;
use crate::shell::{self, say};
use crate::{apt, workspace};

const BPF_LINKER_VERSION: &str = "0.13.0";

/// The LLVM versions that this bpf-linker can be built with: its cargo features `llvm-21` to `llvm-23`.
const BPF_LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

const BY_HAND: &str = "`rustup toolchain install nightly --component rust-src` and a bpf-linker built for that \
                       nightly's LLVM (https://github.com/aya-rs/bpf-linker)";

/// A compiler and a linker that fit each other.
#[derive(Debug)]
pub(crate) struct Toolchain {
    compiler: Compiler,
    linker: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Compiler {
    /// A rustup toolchain by name, with the `rust-src` component.
    Rustup(String),
    /// Debian's `rustc-web`, `cargo-web` and `rust-web-src`: a release compiler, told to accept `-Z`.
    Debian,
}

impl Toolchain {
    /// Cargo of this toolchain, ready for building eBPF: compiler, linker and flags set, others' settings unset.
    ///
    /// `bpf_target_arch` is the architecture whose registers and structures aya-ebpf describes: that on which the programs
    /// are to run.
    pub(crate) fn cargo(&self, arch: Arch) -> Command {
        let mut cargo = match &self.compiler {
            Compiler::Rustup(name) => {
                let mut rustup = workspace::command("rustup");
                rustup.args(["run", name, "cargo"]);
                rustup.env_remove("RUSTC");
                rustup
            }
            Compiler::Debian => {
                let mut cargo = workspace::command(DEBIAN_CARGO);
                cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
        };
        // The host build's choices (a toolchain by `rustup run`, flags, a compiler cache) do not hold for this one.
        for name in ["CARGO", "RUSTUP_TOOLCHAIN", "RUSTFLAGS", "CARGO_BUILD_TARGET", "RUSTC_WRAPPER"] {
            cargo.env_remove(name);
        }
        let mut flags = vec![format!("--cfg=bpf_target_arch=\"{}\"", arch.name())];
        flags.extend(["-Cdebuginfo=2", "-Clink-arg=--btf"].map(str::to_owned));
        // The types and lines that go into the object name files.
        flags.extend(workspace::remapped_paths());
        cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &self.linker);
        cargo
    }
}

impl std::fmt::Display for Toolchain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.compiler {
            Compiler::Rustup(name) => write!(f, "rustup's {name}")?,
            Compiler::Debian => f.write_str("Debian's rustc-web")?,
        }
        write!(f, " and {}", self.linker.display())
    }
}

/// A matching pair that is installed already: rustup's nightly first, then Debian's.
pub(crate) fn find() -> Result<Option<Toolchain>> {
    for name in rustup_nightlies() {
        let compiler = Compiler::Rustup(name);
        if let Some(linker) = llvm_of(&compiler).map(find_linker).transpose()?.flatten() {
            return Ok(Some(Toolchain { compiler, linker }));
        }
    }
    let Some(llvm) = llvm_of(&Compiler::Debian) else { return Ok(None) };
    Ok(find_linker(llvm)?.map(|linker| Toolchain { compiler: Compiler::Debian, linker }))
}

/// Makes a matching pair from Debian's packages and bpf-linker's source.
pub(crate) fn install() -> Result<Toolchain> {
    let purpose = "building the eBPF programs";
    let packages = ["rustc-web", "cargo-web", "rust-web-src"];
    apt::install(&packages, purpose, BY_HAND)?;
    let mut llvm = debian_llvm()?;
    if !BPF_LINKER_LLVM.contains(&llvm) {
        // Debian's first release of a version carries an old compiler, debian-security the current one.
        say(&format!("rustc-web is of LLVM {llvm}, too old for bpf-linker: looking for a newer one"));
        apt::upgrade(&packages)?;
        llvm = debian_llvm()?;
    }
    if !BPF_LINKER_LLVM.contains(&llvm) {
        let (first, last) = (BPF_LINKER_LLVM.start(), BPF_LINKER_LLVM.end());
        bail!(
            "Debian's rustc-web is of LLVM {llvm}, and bpf-linker {BPF_LINKER_VERSION} reads the code of LLVM {first} to \
             {last}: is `bookworm-security` missing from the package sources? By hand: {BY_HAND}"
        );
    }
    let _lock = workspace::lock_cache()?;
    let linker = match find_linker(llvm)? {
        Some(linker) => linker,
        None => build_linker(llvm, purpose)?,
    };
    Ok(Toolchain { compiler: Compiler::Debian, linker })
}

fn debian_llvm() -> Result<u32> {
    llvm_of(&Compiler::Debian).with_context(|| {
        format!("{DEBIAN_RUSTC} or the sources of its `core` are not where rustc-web puts them")
    })
}

/// Builds bpf-linker into the cache, which is locked. Into a folder beside it first, so that an interrupted build
/// leaves nothing that looks whole; the next one clears it away.
fn build_linker(llvm: u32, purpose: &str) -> Result<PathBuf> {
    apt::install(&[&format!("llvm-{llvm}-dev")], purpose, BY_HAND)?;
    let home = linker_cache(llvm)?;
    say(&format!(
        "building bpf-linker {BPF_LINKER_VERSION} for LLVM {llvm} into {} (a minute or two)",
        home.display()
    ));
    let partial = workspace::cache_dir()?.join("bpf-linker.partial");
    shell::remove_dir(&partial)?;
    let mut cargo = workspace::cargo();
    // Not at the root of the workspace: its cargo configuration has no say here.
    cargo.current_dir("/").args(["install", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked"]);
    cargo.args(["--no-default-features", "--features", &format!("llvm-{llvm}"), "--root"]).arg(&partial);
    cargo.arg("--target-dir").arg(partial.join("build"));
    cargo.env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}")).env_remove("RUSTFLAGS");
    shell::run(&mut cargo).context("bpf-linker could not be built")?;
    shell::remove_dir(&partial.join("build"))?;
    shell::remove_dir(&home)?;
    std::fs::rename(&partial, &home)
        .with_context(|| format!("cannot move {} to {}", partial.display(), home.display()))?;
    Ok(home.join("bin/bpf-linker"))
}

fn linker_cache(llvm: u32) -> Result<PathBuf> {
    Ok(workspace::cache_dir()?.join(format!("bpf-linker-{BPF_LINKER_VERSION}-llvm{llvm}")))
}

/// A bpf-linker that reads the bitcode of LLVM `llvm`: ours, else one on `PATH`.
fn find_linker(llvm: u32) -> Result<Option<PathBuf>> {
    let ours = linker_cache(llvm)?.join("bin/bpf-linker");
    // Run it: a cache that outlived an upgrade of the system may lack its libLLVM.
    if shell::ask(Command::new(&ours).arg("--version")).is_some() {
        return Ok(Some(ours));
    }
    let Some(on_path) = shell::which("bpf-linker") else { return Ok(None) };
    match shell::ask(Command::new("ldd").arg(&on_path)).as_deref().and_then(linked_llvm) {
        Some(other) if other != llvm => {
            say(&format!(
                "{} is of LLVM {other}, the compiler of LLVM {llvm}: leaving it",
                on_path.display()
            ));
            Ok(None)
        }
        // Linked statically: it cannot be told. Those that are published come with the newest LLVM.
        _ => Ok(Some(on_path)),
    }
}

fn rustup_nightlies() -> Vec<String> {
    let list = shell::ask(Command::new("rustup").args(["toolchain", "list"])).unwrap_or_default();
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| name.starts_with("nightly")).map(str::to_owned).collect()
}

/// The LLVM major version of a compiler that has the sources of its `core`; `None` if it is not there or has not.
fn llvm_of(compiler: &Compiler) -> Option<u32> {
    let rustc = |argument: &[&str]| match compiler {
        Compiler::Rustup(name) => {
            shell::ask(Command::new("rustup").args(["run", name, "rustc"]).args(argument))
        }
        Compiler::Debian => shell::ask(Command::new(DEBIAN_RUSTC).args(argument)),
    };
    if *compiler == Compiler::Debian && !Path::new(DEBIAN_CARGO).exists() {
        return None;
    }
    let sysroot = rustc(&["--print", "sysroot"])?;
    let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs");
    if !core.exists() {
        return None;
    }
    compiled_llvm(&rustc(&["-vV"])?)
}

/// From `rustc -vV`.
fn compiled_llvm(version: &str) -> Option<u32> {
    let version = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.trim().parse().ok()
}

/// From `ldd`: `libLLVM.so.22.1 => ...` today, `libLLVM-15.so.1 => ...` before LLVM 18.
fn linked_llvm(libraries: &str) -> Option<u32> {
    let name = libraries.split_whitespace().find(|word| word.starts_with("libLLVM"))?;
    let version = name.trim_start_matches(|c: char| !c.is_ascii_digit());
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{compiled_llvm, linked_llvm};

    #[test]
    fn llvm_versions_are_read() {
        assert_eq!(compiled_llvm("rustc 1.96.0\nhost: x\nLLVM version: 22.1.8\n"), Some(22));
        assert_eq!(compiled_llvm("rustc 1.96.0\n"), None);
        assert_eq!(
            linked_llvm("\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x7f)\n"),
            Some(22)
        );
        assert_eq!(linked_llvm("\tlibLLVM-15.so.1 => /lib/libLLVM-15.so.1 (0x7f)\n"), Some(15));
        assert_eq!(linked_llvm("\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n"), None);
    }
}
