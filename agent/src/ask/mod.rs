//! The commands that ask the agent of this node, over its Unix socket: `sluice explain`, `status`, `top`, `call`, `dump`.
//!
//! For people by default, tables; `-o json` is what the agent said. What comes from elsewhere (paths, labels, bodies) is made
//! [mod@inert] before it is shown. Exit status: 0, the answer is there (`status`: and nothing is wrong; `call`: and some status
//! came back); 1, it is not, or something is wrong; 2, the question makes no sense.

mod call;
mod explain;
pub mod inert;
mod status;
mod table;
mod top;

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use self::inert::{inert, inert_json};
use crate::{
    admin::{
        client::{self, Answer, ClientError},
        desk::{CallAnswer, CallAsked, Question, Status},
    },
    config,
    proxy::explain::Explanation,
};

/// Why there is no answer. One line.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What the agent says of the question.
    #[error("{0}")]
    Question(String),
    #[error("{0}")]
    Refused(String),
    #[error("what the agent says is not understood: {0}; is it of the same version?")]
    Foreign(#[from] serde_json::Error),
    #[error("cannot write: {0}")]
    Io(#[from] io::Error),
}

impl Failed {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Question(_) | Self::Client(ClientError::Target { .. }) => 2,
            _ => 1,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    #[default]
    Text,
    /// For scripts
    Json,
}

/// The agent that is asked.
#[derive(Args, Debug)]
pub struct Running {
    /// Where the agent listens
    #[arg(long, value_name = "PATH", env = "SLUICE_ADMIN_SOCKET", default_value = config::ADMIN_SOCKET)]
    pub admin_socket: PathBuf,
}

#[derive(Args, Debug)]
struct How {
    /// How the answer is shown
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Output,
    #[command(flatten)]
    agent: Running,
}

/// A request of a pod.
#[derive(Args, Debug)]
struct Request {
    /// The calling pod of this node, as in shop/client
    #[arg(long, value_name = "NAMESPACE/POD")]
    pod: Option<String>,
    /// Where it calls, as in orders.shop:80 or 10.96.7.3:80
    #[arg(long, value_name = "SERVICE:PORT")]
    to: Option<String>,
    /// A header, as in "x-user: anna"; may be given more than once
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The request line: a path, or a method and a path, as in POST /orders
    #[arg(value_name = "[METHOD] PATH", num_args = 0..=2)]
    line: Vec<String>,
}

impl Request {
    fn question(&self, example: &str) -> Result<Question, Failed> {
        let needed = |flag: &str, value: &Option<String>| {
            value.clone().ok_or_else(|| Failed::Question(format!("{flag} is needed, as in `{example}`")))
        };
        let (method, target) = match &*self.line {
            [] => ("GET", "/"),
            [target] if target.starts_with('/') => ("GET", &**target),
            [method] => (&**method, "/"),
            [method, target, ..] => (&**method, &**target),
        };
        Ok(Question {
            pod: needed("--pod", &self.pod)?,
            to: needed("--to", &self.to)?,
            method: method.to_owned(),
            target: target.to_owned(),
            headers: self.headers.clone(),
        })
    }
}

/// Flags of `sluice explain`.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    #[command(flatten)]
    request: Request,
    /// A request that has ended, by its x-request-id
    #[arg(long, value_name = "ID", conflicts_with_all = ["pod", "to", "line", "headers"])]
    request_id: Option<String>,
    /// A request that has ended, by the 32 digits of its trace
    #[arg(long, value_name = "ID", conflicts_with_all = ["pod", "to", "line", "headers"])]
    trace_id: Option<String>,
    /// List so many of the last requests that are kept
    #[arg(long, value_name = "N", conflicts_with_all = ["pod", "to", "line", "headers"])]
    last: Option<u8>,
    #[command(flatten)]
    how: How,
}

/// Flags of `sluice call`.
#[derive(Args, Debug)]
pub struct CallArgs {
    #[command(flatten)]
    request: Request,
    /// The lane that it is to go to: its tag is set
    #[arg(long, value_name = "TAG")]
    lane: Option<String>,
    /// An exact endpoint: the request goes straight there from within the pod's network, and nothing decides about it
    #[arg(long, value_name = "IP:PORT")]
    endpoint: Option<String>,
    /// The body
    #[arg(short, long, value_name = "TEXT")]
    data: Option<String>,
    #[command(flatten)]
    how: How,
}

/// Flags of `sluice status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    #[command(flatten)]
    how: How,
}

/// Flags of `sluice top`.
#[derive(Args, Debug)]
pub struct TopArgs {
    /// Show it so many times, a second apart, instead of until it is interrupted
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    times: Option<u32>,
    #[command(flatten)]
    agent: Running,
}

const EXPLAIN: &str = "sluice explain --pod shop/client --to orders.shop:80 -H 'x-mse-tag: gray' GET /";
const CALL: &str = "sluice call --pod shop/client --to orders.shop:80 --lane gray GET /";

/// How a command is used, for those who used it wrong.
pub fn example(command: &str) -> Option<&'static str> {
    Some(match command {
        "explain" => EXPLAIN,
        "call" => CALL,
        "status" => "sluice status -o json",
        "top" => "sluice top",
        "dump" => "sluice dump > dump.json",
        "get" => "sluice get /readyz",
        "log-level" => "sluice log-level info,sluice::proxy=debug",
        "completions" => "sluice completions bash",
        "check" => "sluice check policy.yaml",
        _ => return None,
    })
}

/// `sluice explain`
pub fn explain(args: &ExplainArgs) -> Result<(), Failed> {
    let socket = &args.how.agent.admin_socket;
    let past = [("request_id", args.request_id.clone()), ("trace_id", args.trace_id.clone())];
    let past: Vec<_> =
        past.iter().filter_map(|(name, id)| Some(format!("{name}={}", encoded(id.as_ref()?)))).collect();
    if past.is_empty() && args.last.is_none() {
        let question = args.request.question(EXPLAIN)?;
        let said = good(client::post(socket, "/explain", &json!(question).to_string())?)?;
        return show(&args.how, &said, |explanation: &Explanation| explain::shown(explanation));
    }
    let most = format!("most={}", args.last.unwrap_or(1));
    let query = past.iter().chain([&most]).map(String::as_str).collect::<Vec<_>>().join("&");
    let said = good(client::get(socket, &format!("/decisions?{query}"))?)?;
    let found: Vec<Explanation> = serde_json::from_str(&said)?;
    if found.is_empty() {
        return Err(Failed::Refused(
            "no such request is kept: all that failed or were refused are, and of the others a sample; each for as long as \
             there is room"
                .to_owned(),
        ));
    }
    show(&args.how, &said, |found: &Vec<Explanation>| match &**found {
        [one] if args.last.is_none() => explain::shown(one),
        several => explain::listed(several),
    })
}

/// `sluice call`
pub fn call(args: &CallArgs) -> Result<(), Failed> {
    let asked = CallAsked {
        request: args.request.question(CALL)?,
        lane: args.lane.clone(),
        endpoint: args.endpoint.clone(),
        body: args.data.clone(),
    };
    let said = good(client::post(&args.how.agent.admin_socket, "/call", &json!(asked).to_string())?)?;
    show(&args.how, &said, |answer: &CallAnswer| call::shown(answer))
}

/// `sluice status`. False: something is wrong.
pub fn status(args: &StatusArgs) -> Result<bool, Failed> {
    let said = good(client::get(&args.how.agent.admin_socket, "/status")?)?;
    show(&args.how, &said, |status: &Status| status::shown(status))?;
    let status: Status = serde_json::from_str(&said)?;
    Ok(status.troubles.is_empty())
}

/// `sluice dump`
pub fn dump(agent: &Running) -> Result<(), Failed> {
    let said = good(client::get(&agent.admin_socket, "/dump")?)?;
    print(&pretty(&said)?)
}

/// `sluice top`
pub fn top(args: &TopArgs) -> Result<(), Failed> {
    top::run(&args.agent.admin_socket, args.times)
}

/// A page of JSON.
fn value(socket: &Path, target: &str) -> Result<Value, Failed> {
    Ok(serde_json::from_str(&good(client::get(socket, target)?)?)?)
}

fn good(answer: Answer) -> Result<String, Failed> {
    let why = || inert(answer.body.trim_end());
    match answer.status {
        200..=299 => Ok(answer.body),
        400 => Err(Failed::Question(why())),
        _ => Err(Failed::Refused(why())),
    }
}

fn show<T: DeserializeOwned>(how: &How, said: &str, shown: impl FnOnce(&T) -> String) -> Result<(), Failed> {
    match how.output {
        Output::Json => print(&pretty(said)?),
        Output::Text => print(&shown(&serde_json::from_str(said)?)),
    }
}

fn pretty(said: &str) -> Result<String, Failed> {
    let value: Value = serde_json::from_str(said)?;
    Ok(inert_json(&serde_json::to_string_pretty(&value)?) + "\n")
}

/// Whoever reads no further has seen enough: that is no failure.
fn print(text: &str) -> Result<(), Failed> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// As it can stand in a query.
fn encoded(value: &str) -> String {
    percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests;
