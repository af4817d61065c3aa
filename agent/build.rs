//! Finds the compiled eBPF programs, so that the agent carries them inside its binary.
//!
//! In this order: the file that `SLUICE_BPF_OBJECT` names; `bpf/sluice.bpf.o` in the target directory, where
//! `cargo xtask build` puts it; nothing. A build without them is whole but for the capture: it needs no eBPF
//! toolchain, and at run time the agent says what is missing.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

const VARIABLE: &str = "SLUICE_BPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let object = match env::var_os(VARIABLE) {
        Some(path) if !path.is_empty() => {
            let path = PathBuf::from(path);
            println!("cargo::rerun-if-changed={}", path.display());
            assert!(path.is_file(), "{VARIABLE} names {}, which is no file", path.display());
            Some(path)
        }
        _ => beside_the_build(&out),
    };

    let code = match object {
        Some(object) => {
            let copy = out.join("sluice.bpf.o");
            fs::copy(&object, &copy)
                .unwrap_or_else(|error| panic!("cannot copy {}: {error}", object.display()));
            format!("Some(aya::include_bytes_aligned!({:?}))", copy.to_str().expect("OUT_DIR is UTF-8"))
        }
        None => "None".to_owned(),
    };
    fs::write(out.join("object.rs"), code).expect("cargo made OUT_DIR writable");
}

/// `bpf/sluice.bpf.o` in the target directory.
fn beside_the_build(out: &Path) -> Option<PathBuf> {
    // OUT_DIR is `<target>/[<triple>/]<profile>/build/<package>/out`; cargo marks the target directory.
    let target = out.ancestors().find(|directory| directory.join("CACHEDIR.TAG").is_file())?;
    let directory = target.join("bpf");
    // A path that does not exist is always "changed" to cargo, and everything would be compiled each time.
    fs::create_dir_all(&directory).ok()?;
    println!("cargo::rerun-if-changed={}", directory.display());
    Some(directory.join("sluice.bpf.o")).filter(|object| object.is_file())
}
