//! The chart as Helm renders it: no complaint of `helm lint`, the same objects as kustomize makes, and an error where the
//! values make no sense.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{CHART, compare::differences};
use crate::shell;
use crate::{helm, workspace};

/// The namespace that the base names.
const NAMESPACE: &str = "sluice-system";

/// Values that install exactly what an overlay does.
const SAME_AS: [(&str, &[&str]); 4] = [
    ("", &["--set=namespace.create=true"]),
    (
        "overlays-monitoring",
        &[
            "--set=namespace.create=true,podMonitor.enabled=true,prometheusRule.enabled=true",
            "--set=dashboard.enabled=true",
        ],
    ),
    (
        "overlays-private-registry",
        &[
            "--set=namespace.create=true,imagePullSecrets[0].name=registry",
            "--set=image.repository=registry.example.com/platform/sluice",
        ],
    ),
    ("overlays-kubernetes-1.29", &["--set=namespace.create=true", "--kube-version=1.29.0"]),
];

/// Values that Helm must not take, and what its error says.
const REFUSED: [(&str, &str); 11] = [
    ("config.SLUICE_LGO=debug", "SLUICE_LGO"),
    ("config.SLUICE_NODE=node-1", "SLUICE_NODE"),
    ("config.SLUICE_ADMIN_SOCKET=none", "SLUICE_ADMIN_SOCKET"),
    ("config.SLUICE_ACCESS_LOG=jsno", "SLUICE_ACCESS_LOG"),
    ("config.SLUICE_KERNEL_FLOWS=true", "SLUICE_KERNEL_FLOWS"),
    ("image.digest=sha256:12", "digest"),
    ("images.tag=1", "images"),
    ("podLabels.app\\.kubernetes\\.io/name=x", "podLabels"),
    ("terminationGracePeriodSeconds=34", "terminationGracePeriodSeconds is 34"),
    ("podMonitor.interval=often", "interval"),
    ("podMonitor.enabled=true,config.SLUICE_ADMIN=127.0.0.1:9465", "config.SLUICE_ADMIN needs `node:PORT`"),
];

/// Renders the chart in all its forms into `directory`, where kustomize's results are already, and compares.
pub(crate) fn check(directory: &Path) -> Result<()> {
    let helm = helm::programs()?.helm;
    let chart = workspace::root().join(CHART);
    shell::run(Command::new(&helm).args(["lint", "--strict", "--quiet"]).arg(&chart))?;
    for set in sets(&chart)? {
        let file = format!("--values={}", set.display());
        shell::run(Command::new(&helm).args(["lint", "--strict", "--quiet", &file]).arg(&chart))?;
        let name = set.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        write(directory, &name, &render(&helm, &chart, &[&file])?)?;
    }
    for (overlay, arguments) in SAME_AS {
        let name = if overlay.contains("1.29") { "old" } else { overlay };
        let rendered = render(&helm, &chart, arguments)?;
        write(directory, name, &rendered)?;
        let by_kustomize = directory.join(format!("deploy-{overlay}.yaml"));
        let by_kustomize = std::fs::read_to_string(&by_kustomize)
            .with_context(|| format!("cannot read {}", by_kustomize.display()))?;
        let found = differences(&objects(&rendered)?, &objects(&by_kustomize)?);
        ensure!(
            found.is_empty(),
            "the chart with {arguments:?} installs something else than deploy/{overlay}:\n{}",
            found.join("\n")
        );
    }
    refused(&helm, &chart)
}

fn refused(helm: &Path, chart: &Path) -> Result<()> {
    for (values, word) in REFUSED {
        let error = match render(helm, chart, &[&format!("--set={values}")]) {
            Ok(_) => String::new(),
            Err(error) => format!("{error:#}"),
        };
        ensure!(error.contains(word), "Helm takes {values}, or its error does not say {word:?}: {error}");
    }
    Ok(())
}

/// The files of `ci/`.
fn sets(chart: &Path) -> Result<Vec<PathBuf>> {
    let mut sets = Vec::new();
    super::list(&chart.join(super::SETS), &mut sets)?;
    ensure!(!sets.is_empty(), "no set of values in {}", chart.display());
    Ok(sets)
}

/// What `helm install` with these arguments would apply.
pub(crate) fn render(helm: &Path, chart: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(helm);
    command.args(["template", "sluice"]).arg(chart).args(["--namespace", NAMESPACE]).args(arguments);
    shell::read(&mut command)
}

fn write(directory: &Path, name: &str, text: &str) -> Result<()> {
    let path = directory.join(format!("chart-{name}.yaml"));
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn objects(text: &str) -> Result<Vec<Value>> {
    serde_saphyr::from_multiple(text).context("what was rendered is no YAML")
}
