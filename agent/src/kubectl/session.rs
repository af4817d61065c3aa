//! One agent, asked through the API server: `sluice relay` in its container, for as many questions as there are.

use std::{io, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::{
    api::{AttachParams, AttachedProcess},
    client::UpgradeConnectionError,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    task::JoinHandle,
};

use super::{
    VERSION,
    access::{Cluster, is_forbidden},
    agents::Agent,
};
use crate::{
    admin::client::Answer,
    ask::{
        Asked, Failed,
        inert::inert,
        relay::{Head, Outcome},
    },
    cluster::kubernetes::chain,
};

/// The line before an answer is shorter.
const MAX_HEAD_BYTES: u64 = 64 << 10;
/// No answer is longer.
const MAX_BODY_BYTES: usize = 256 << 20;
/// Of what a program that fails complains about so much is kept.
const MAX_COMPLAINT_BYTES: u64 = 4 << 10;
/// On the way between the API server's stream and whoever reads.
const BUFFER: usize = 64 << 10;

/// Why an agent does not answer: a part of a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreached {
    #[error("no agent runs there (namespace {namespace})")]
    Nobody { namespace: String },
    #[error("pod {pod} does not run: {why}")]
    Down { pod: String, why: String },
    #[error(
        "you may not execute `sluice` in the agents' pods: {0}; deploy/overlays/kubectl has the role that allows it"
    )]
    Forbidden(String),
    #[error("the API server, or a proxy on the way to it, does not let WebSockets through: {0}")]
    NoWebSockets(String),
    #[error("pod {pod}: the API server answers {code}: {message}")]
    Api { pod: String, code: u16, message: String },
    #[error("pod {pod} has no program {program}: is it an agent?")]
    NoProgram { pod: String, program: String },
    #[error(
        "pod {pod} is an agent of another version than this plugin ({VERSION}), which it does not understand"
    )]
    NoRelay { pod: String },
    #[error("pod {pod}: {why}")]
    Broken { pod: String, why: String },
    #[error("no response within {} s", .0.as_secs())]
    Late(Duration),
    /// What the agent says instead of an answer.
    #[error("{0}")]
    Says(String),
    /// The question makes no sense to the agent.
    #[error("{0}")]
    Question(String),
    #[error(
        "the agent is version {version} and this plugin {VERSION}, which does not understand its answer: {why}"
    )]
    Foreign { node: String, version: String, why: String },
}

impl Unreached {
    /// It concerns every agent: whoever asks, or the way to the cluster.
    pub(super) fn is_everywhere(&self) -> bool {
        matches!(self, Self::Forbidden(_) | Self::NoWebSockets(_))
    }

    /// The line about one node.
    pub(super) fn on(self, node: &str) -> Failed {
        match self {
            Self::Question(why) => Failed::Question(why),
            Self::Says(why) => Failed::Refused(why),
            why if why.is_everywhere() => Failed::Refused(inert(&why.to_string())),
            why => Failed::Refused(inert(&format!("the agent on node {node} does not answer: {why}"))),
        }
    }
}

/// What an agent says, and which version it is.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) version: String,
    pub(super) answer: Answer,
}

/// The relay that runs in an agent's container. It ends when this is dropped.
pub(super) struct Session {
    agent: Agent,
    process: AttachedProcess,
    questions: Box<dyn AsyncWrite + Send + Unpin>,
    answers: BufReader<Box<dyn AsyncRead + Send + Unpin>>,
    complaints: JoinHandle<String>,
}

impl Session {
    pub(super) async fn open(cluster: &Cluster, agent: &Agent) -> Result<Self, Unreached> {
        let how = AttachParams::default()
            .container(&agent.container)
            .stdin(true)
            .stdout(true)
            .stderr(true)
            .max_stdin_buf_size(BUFFER)
            .max_stdout_buf_size(BUFFER);
        let command = [&*agent.program, "relay"];
        let process = cluster.pods().exec(&agent.pod, command, &how).await;
        let mut process = process.map_err(|error| refused(agent, &error))?;
        let broken = || Unreached::Broken { pod: agent.pod.clone(), why: "it has no streams".to_owned() };
        let questions = process.stdin().ok_or_else(broken)?;
        let answers: Box<dyn AsyncRead + Send + Unpin> = Box::new(process.stdout().ok_or_else(broken)?);
        let mut complaints = process.stderr().ok_or_else(broken)?;
        let complaints = tokio::spawn(async move {
            let mut text = Vec::new();
            let _ = (&mut complaints).take(MAX_COMPLAINT_BYTES).read_to_end(&mut text).await;
            // The rest is read so that nothing waits for it.
            let _ = tokio::io::copy(&mut complaints, &mut tokio::io::sink()).await;
            String::from_utf8_lossy(&text).trim().to_owned()
        });
        Ok(Self {
            agent: agent.clone(),
            process,
            questions: Box::new(questions),
            answers: BufReader::new(answers),
            complaints,
        })
    }

    pub(super) async fn ask(&mut self, asked: &Asked) -> Result<Reply, Unreached> {
        match self.exchange(asked).await {
            Ok(Some((Head { version, outcome: Outcome::Answer { status, .. } }, body))) => {
                Ok(Reply { version, answer: Answer { status, body } })
            }
            Ok(Some((Head { outcome: Outcome::Failed(why), .. }, _))) => Err(Unreached::Says(why)),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(Unreached::Broken { pod: self.agent.pod.clone(), why: error.to_string() })
            }
            // It has ended. Why, is said elsewhere.
            Ok(None) | Err(_) => Err(self.ended().await),
        }
    }

    /// `None`: there is no one at the other end.
    async fn exchange(&mut self, asked: &Asked) -> io::Result<Option<(Head, String)>> {
        let mut question = serde_json::to_vec(asked)?;
        question.push(b'\n');
        self.questions.write_all(&question).await?;
        self.questions.flush().await?;
        let mut line = Vec::new();
        (&mut self.answers).take(MAX_HEAD_BYTES).read_until(b'\n', &mut line).await?;
        if line.last() != Some(&b'\n') {
            return Ok(None);
        }
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let head: Head = serde_json::from_slice(&line)
            .map_err(|error| invalid(format!("what it says is no answer ({error})")))?;
        let length = match head.outcome {
            Outcome::Answer { length, .. } if length > MAX_BODY_BYTES => {
                return Err(invalid(format!("its answer has {length} bytes")));
            }
            Outcome::Answer { length, .. } => length,
            Outcome::Failed(_) => 0,
        };
        let mut body = Vec::new();
        let came = (&mut self.answers).take(length as u64).read_to_end(&mut body).await?;
        if came < length {
            return Ok(None);
        }
        let body = String::from_utf8(body).map_err(|_| invalid("its answer is not UTF-8".to_owned()))?;
        Ok(Some((head, body)))
    }

    /// Why it has.
    async fn ended(&mut self) -> Unreached {
        let patience = Duration::from_secs(2);
        let status = match self.process.take_status() {
            Some(status) => tokio::time::timeout(patience, status).await.ok().flatten(),
            None => None,
        };
        let complaint = tokio::time::timeout(patience, &mut self.complaints).await;
        let complaint = complaint.ok().and_then(Result::ok).unwrap_or_default();
        why(&self.agent, status.as_ref(), &complaint)
    }
}

/// What is behind the end of the program.
fn why(agent: &Agent, status: Option<&Status>, complaint: &str) -> Unreached {
    let pod = agent.pod.clone();
    let message = status.and_then(|status| status.message.clone()).unwrap_or_default();
    let causes =
        status.and_then(|status| status.details.as_ref()).and_then(|details| details.causes.as_ref());
    let exit = causes.into_iter().flatten().find(|cause| cause.reason.as_deref() == Some("ExitCode"));
    let exit = exit.and_then(|cause| cause.message.as_deref());
    if complaint.contains("unrecognized subcommand") {
        return Unreached::NoRelay { pod };
    }
    let lower = message.to_lowercase();
    if ["executable file not found", "no such file or directory"].iter().any(|part| lower.contains(part)) {
        return Unreached::NoProgram { pod, program: agent.program.clone() };
    }
    let first = complaint.lines().next().unwrap_or_default();
    let why = match (first, exit, &*message) {
        ("", None, "") => "the connection ended".to_owned(),
        ("", Some(exit), _) => format!("its program ended with {exit}"),
        ("", None, message) => message.to_owned(),
        (said, ..) => said.to_owned(),
    };
    Unreached::Broken { pod, why }
}

/// Why nothing could be executed.
fn refused(agent: &Agent, error: &kube::Error) -> Unreached {
    let pod = agent.pod.clone();
    match error {
        kube::Error::Api(status) if is_forbidden(error) => Unreached::Forbidden(status.message.clone()),
        kube::Error::Api(status) => {
            Unreached::Api { pod, code: status.code, message: status.message.clone() }
        }
        kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(status)) => {
            Unreached::NoWebSockets(format!("the answer is {status}"))
        }
        kube::Error::UpgradeConnection(why) => Unreached::NoWebSockets(chain(why)),
        other => Unreached::Broken { pod, why: chain(other) },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_end_of_a_program_has_a_reason() {
        let agent = Agent {
            pod: "sluice-x".to_owned(),
            container: "agent".to_owned(),
            program: "/sluice".to_owned(),
        };
        let exit = json!({"status": "Failure", "reason": "NonZeroExitCode", "message": "command terminated with 2",
            "details": {"causes": [{"reason": "ExitCode", "message": "2"}]}});
        let no_program = json!({"status": "Failure", "reason": "InternalError",
            "message": "OCI runtime exec failed: exec: \"/sluice\": stat /sluice: no such file or directory"});
        let gone = json!({"status": "Failure", "message": "container not found (\"agent\")"});
        for (status, complaint, wanted) in [
            (
                &exit,
                "sluice: unrecognized subcommand 'relay'",
                "an agent of another version than this plugin",
            ),
            (&exit, "sluice: out of luck\nmore", "pod sluice-x: sluice: out of luck"),
            (&exit, "", "pod sluice-x: its program ended with 2"),
            (&no_program, "", "pod sluice-x has no program /sluice"),
            (&gone, "", "pod sluice-x: container not found"),
            (&json!(null), "", "pod sluice-x: the connection ended"),
            (&json!({"status": "Success"}), "", "pod sluice-x: the connection ended"),
        ] {
            let status: Option<Status> = serde_json::from_value(status.clone()).unwrap();
            let told = why(&agent, status.as_ref(), complaint).to_string();
            assert!(told.contains(wanted), "{told}");
        }
    }

    #[test]
    fn a_line_names_the_node_unless_it_is_about_all() {
        let late = Unreached::Late(Duration::from_secs(30)).on("node-1").to_string();
        assert_eq!(late, "the agent on node node-1 does not answer: no response within 30 s");
        let forbidden = Unreached::Forbidden("pods is forbidden\u{1b}".to_owned()).on("node-1").to_string();
        assert!(!forbidden.contains("node-1") && forbidden.contains("\\u{1b}"), "{forbidden}");
        assert_eq!(Unreached::Question("no".to_owned()).on("node-1").exit_code(), 2);
        assert_eq!(Unreached::Says("no such pod".to_owned()).on("node-1").to_string(), "no such pod");
    }
}
