//! What is in a virtual machine: the agent, the tests' programs, the system's programs that the harness runs, with the
//! libraries that they load, and the kernel's modules.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::cpio::Archive;
use super::kernels::{Fetched, kmod};
use crate::shell;

/// What the harness calls by name.
const SYSTEM_PROGRAMS: [&str; 9] = ["sh", "find", "rmdir", "rm", "sleep", "ip", "nft", "curl", "modprobe"];

/// What pods, their network and the translation of ClusterIPs are made of, where the kernel has it as modules.
const MODULES: [&str; 8] =
    ["veth", "bridge", "br_netfilter", "nf_tables", "nft_chain_nat", "nft_nat", "nft_numgen", "nf_conntrack"];

/// What goes into the machine. `programs` are those of the workspace, by the path that they get.
pub(super) fn archive(kernel: &Fetched, programs: &[(&str, PathBuf)]) -> Result<Vec<u8>> {
    let mut files = BTreeMap::new();
    for (path, program) in programs {
        files.insert((*path).to_owned(), read(program)?);
        libraries(program, &mut files)?;
    }
    for name in SYSTEM_PROGRAMS {
        let program =
            shell::which(name).with_context(|| format!("there is no `{name}` for the virtual machine"))?;
        files.insert(format!("/bin/{name}"), read(&program)?);
        libraries(&program, &mut files)?;
    }
    modules(kernel, &mut files)?;

    let mut archive = Archive::new(Vec::new());
    let mut directories: BTreeSet<String> =
        ["/dev", "/proc", "/sys", "/tmp", "/run", "/sbin"].map(str::to_owned).into();
    for path in files.keys() {
        directories.extend(
            Path::new(path)
                .ancestors()
                .skip(1)
                .map(|parent| parent.display().to_string())
                .filter(|path| path != "/"),
        );
    }
    let write = || -> std::io::Result<Vec<u8>> {
        // Sorted, so that parents come first.
        for directory in &directories {
            archive.directory(directory)?;
        }
        archive.character_device("/dev/console", 5, 1)?;
        // Where the kernel looks for it when it needs a module by itself.
        archive.link("/sbin/modprobe", "/bin/modprobe")?;
        for (path, content) in &files {
            archive.file(path, content)?;
        }
        archive.finish()
    };
    write().context("cannot write the initramfs")
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Adds what the dynamic linker loads for `program`, itself included.
fn libraries(program: &Path, files: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    // It fails for a static program, which needs none.
    let Some(said) = shell::ask(Command::new("ldd").arg(program)) else { return Ok(()) };
    for path in loaded(&said) {
        if !files.contains_key(path) {
            files.insert(path.to_owned(), read(Path::new(path))?);
        }
    }
    Ok(())
}

/// The paths in what `ldd` says: `libc.so.6 => /lib/libc.so.6 (0x7f)`, `/lib64/ld-linux.so.2 (0x7f)`.
fn loaded(said: &str) -> impl Iterator<Item = &str> {
    said.lines().filter_map(|line| {
        let path = line.split_once("=> ").map_or(line, |(_, path)| path).trim();
        path.starts_with('/').then(|| path.split(' ').next())?
    })
}

/// Adds the modules with those that they need, and the lists by which `modprobe` finds them.
fn modules(kernel: &Fetched, files: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    let root = kernel.modules_root();
    let directory = Path::new("lib/modules").join(&kernel.release);
    for name in MODULES {
        let mut modprobe = Command::new(kmod("modprobe")?);
        modprobe.args(["--show-depends", "--set-version", &kernel.release, "--dirname"]).arg(&root).arg(name);
        // (It says `builtin NAME` of what is part of the kernel.)
        let said = shell::read(&mut modprobe)
            .with_context(|| format!("the kernel {} has no {name}", kernel.release))?;
        for module in said.lines().filter_map(|line| line.trim().strip_prefix("insmod ")) {
            let module = PathBuf::from(module.trim());
            let below = module.strip_prefix(&root).context("a module outside of its kernel's directory")?;
            files.insert(format!("/{}", below.display()), read(&module)?);
        }
    }
    let lists = std::fs::read_dir(root.join(&directory)).context("the kernel's modules")?;
    let mut count = 0;
    for list in lists {
        let list = list?;
        let name = list.file_name().to_string_lossy().into_owned();
        if name.starts_with("modules.") {
            files.insert(format!("/{}/{name}", directory.display()), read(&list.path())?);
            count += 1;
        }
    }
    ensure!(count > 0, "the kernel {} has no list of its modules", kernel.release);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::loaded;

    #[test]
    fn the_libraries_are_read_from_what_ldd_says() {
        let said = "\tlinux-vdso.so.1 (0x7ffc)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f01)\n\
                    \tlibgone.so => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x7f02)\n";
        let found: Vec<_> = loaded(said).collect();
        assert_eq!(found, ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
        assert_eq!(loaded("\tnot a dynamic executable\n").count(), 0);
    }
}
