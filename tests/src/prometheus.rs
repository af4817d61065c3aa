//! A real Prometheus on the node, which scrapes agents and evaluates rules, and promtool.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::{Agent, NetNs, Process, World, eventually};

/// A port of the node's loopback interface.
const PORT: u16 = 9090;

/// A running Prometheus. Dropping it kills it.
#[derive(Debug)]
pub struct Prometheus {
    process: Process,
    netns: Arc<NetNs>,
}

/// `SLUICE_PROMETHEUS` or `SLUICE_PROMTOOL`, or the program on the `PATH`.
fn program(variable: &str, name: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| name.into(), PathBuf::from)
}

/// `promtool check metrics`: fails with what it complains about.
pub fn promtool_check_metrics(text: &str) -> Result<()> {
    let mut child = Command::new(program("SLUICE_PROMTOOL", "promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start promtool (`cargo xtask setup prometheus`)")?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all(text.as_bytes()).context("cannot write to promtool")?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // It succeeds with mere complaints about style.
    ensure!(output.status.success() && said.trim().is_empty(), "promtool: {said}");
    Ok(())
}

impl Prometheus {
    /// Starts one on the node's loopback interface that scrapes the agent each second, as the job `sluice`, and evaluates
    /// the rules in that file as often.
    pub fn start(world: &World, agent: &Agent, rules: &Path) -> Result<Self> {
        let directory = world.directory().join("prometheus");
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let rules = rules.canonicalize().with_context(|| format!("there is no {}", rules.display()))?;
        let config = directory.join("prometheus.yml");
        let text = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
             rule_files: ['{}']\n\
             scrape_configs:\n  - job_name: sluice\n    static_configs: [{{ targets: [\"{}\"] }}]\n",
            rules.display(),
            agent.admin()
        );
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let place = world.node();
        let mut command = place.command(program("SLUICE_PROMETHEUS", "prometheus"))?;
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg("--enable-feature=exemplar-storage")
            .arg(format!("--web.listen-address={}", address()));
        let log = world.directory().join("logs/prometheus.log");
        let process = Process::spawn("prometheus", &mut command, log)
            .context("cannot start Prometheus (`cargo xtask setup prometheus`)")?;
        let mut prometheus = Self { process, netns: place.netns };
        eventually("Prometheus is ready", || {
            if let Some(status) = prometheus.process.ended()? {
                return Ok(Err(status));
            }
            prometheus.get("/-/ready").map(|_| Ok(()))
        })?
        .map_err(|status| anyhow::anyhow!("it ended ({status}):\n{}", prometheus.process.log()))?;
        Ok(prometheus)
    }

    /// The series that an expression has now.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let expression = utf8_percent_encode(expression, NON_ALPHANUMERIC);
        let data = self.api(&format!("query?query={expression}"))?;
        Ok(data["result"].as_array().cloned().unwrap_or_default())
    }

    /// The exemplars that it has kept of the series of an expression, of all times.
    pub fn exemplars(&self, expression: &str) -> Result<Vec<Value>> {
        let expression = utf8_percent_encode(expression, NON_ALPHANUMERIC);
        let data = self.api(&format!("query_exemplars?query={expression}&start=0&end=9999999999"))?;
        let all = data.as_array().into_iter().flatten();
        Ok(all.flat_map(|series| series["exemplars"].as_array().cloned().unwrap_or_default()).collect())
    }

    /// What is at that path of the API, version 1.
    pub fn api(&self, path: &str) -> Result<Value> {
        let body = self.get(&format!("/api/v1/{path}"))?;
        let mut answer: Value =
            serde_json::from_str(&body).with_context(|| format!("{path} answered {body:?}"))?;
        ensure!(answer["status"] == "success", "{path}: {answer}");
        Ok(answer["data"].take())
    }

    fn get(&self, path: &str) -> Result<String> {
        let ask = || -> std::io::Result<String> {
            let mut connection = TcpStream::connect(address())?;
            connection.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(connection, "GET {path} HTTP/1.0\r\nhost: prometheus\r\n\r\n")?;
            let mut answer = String::new();
            connection.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = self.netns.run(ask)?.with_context(|| format!("Prometheus does not answer {path}"))?;
        let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("no HTTP answer: {answer:?}") };
        ensure!(head.split(' ').nth(1) == Some("200"), "{path}: {head}\n{body}");
        Ok(body.to_owned())
    }
}

fn address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, PORT).into()
}
