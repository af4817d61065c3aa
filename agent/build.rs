//! Puts the compiled eBPF programs into the agent's binary.
//!
//! `SLUICE_BPF_OBJECT` names the object, and `cargo xtask` sets it in every build. `none` stands for a build without
//! programs. Where nothing is said, a release build fails, so that no image goes out that cannot capture; a debug build
//! takes the object that `cargo xtask build` has left in the target directory, or does without, so that plain
//! `cargo build` and `cargo test` need no eBPF toolchain. An agent without programs says so at its start.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

const VARIABLE: &str = "SLUICE_BPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    // What `sluice version` tells.
    println!("cargo::rustc-env=SLUICE_TARGET={}", env::var("TARGET").expect("cargo sets TARGET"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    if let Err(complaint) = object(&out).and_then(|object| embed(object.as_deref(), &out)) {
        // Cargo prints it and fails.
        println!("cargo::error={complaint}");
    }
}

/// The object to embed, if any.
fn object(out: &Path) -> Result<Option<PathBuf>, String> {
    let named = env::var_os(VARIABLE).filter(|value| !value.is_empty());
    match named {
        Some(none) if none == "none" => Ok(None),
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo::rerun-if-changed={}", path.display());
            if path.is_file() {
                Ok(Some(path))
            } else {
                Err(format!("{VARIABLE} names {}, which is no file", path.display()))
            }
        }
        None if env::var_os("PROFILE").is_some_and(|profile| profile == "debug") => Ok(left_by_xtask(out)),
        None => Err(format!(
            "a release build of the agent needs the eBPF programs: build it with `cargo xtask build --release` or \
             `cargo xtask image`, or set {VARIABLE} to the object's file, or to `none` for an agent that cannot capture"
        )),
    }
}

/// `bpf/sluice.bpf.o` in the target directory, where `cargo xtask build` puts it.
fn left_by_xtask(out: &Path) -> Option<PathBuf> {
    // OUT_DIR lies below `<target>/[<triple>/]<profile>`, and cargo marks the target directory; since 1.95 also that of
    // a triple in it.
    let marked = out.ancestors().find(|directory| directory.join("CACHEDIR.TAG").is_file())?;
    let triple = env::var_os("TARGET");
    let target = if marked.file_name() == triple.as_deref() { marked.parent()? } else { marked };
    let directory = target.join("bpf");
    // A path that does not exist is always "changed" to cargo, and everything would be compiled each time.
    fs::create_dir_all(&directory).ok()?;
    println!("cargo::rerun-if-changed={}", directory.display());
    Some(directory.join("sluice.bpf.o")).filter(|object| object.is_file())
}

/// Writes the expression that the agent includes.
fn embed(object: Option<&Path>, out: &Path) -> Result<(), String> {
    let code = match object {
        Some(object) => {
            let copy = out.join("sluice.bpf.o");
            fs::copy(object, &copy).map_err(|error| format!("cannot copy {}: {error}", object.display()))?;
            format!("Some(aya::include_bytes_aligned!({:?}))", copy.to_str().expect("OUT_DIR is UTF-8"))
        }
        None => "None".to_owned(),
    };
    fs::write(out.join("object.rs"), code).map_err(|error| format!("cannot write to OUT_DIR: {error}"))
}
