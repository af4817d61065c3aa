//! The commands that ask the agent of this node, over its Unix socket: `sluice get`, `log-level`, `explain`, `status`, `top`,
//! `call`, `dump`.
//!
//! For people by default, tables; `-o json` is what the agent said. What comes from elsewhere (paths, labels, bodies) is made
//! [mod@inert] before it is shown. Exit status: 0, the answer is there (`status`: and nothing is wrong; `call`: and some status
//! came back); 1, it is not, or something is wrong; 2, the question makes no sense.

mod call;
mod explain;
pub mod inert;
pub mod print;
mod status;
mod table;
mod top;

use std::{
    io,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use self::{
    inert::{inert, inert_json, inert_lines},
    print::print,
};
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
    /// A page that is not good, as it is.
    #[error("{body}")]
    Page { status: u16, body: String },
    #[error("what the agent says is not understood: {0}; is it of the same version?")]
    Foreign(#[from] serde_json::Error),
    #[error("cannot write: {0}")]
    Io(#[from] io::Error),
}

impl Failed {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Question(_) | Self::Client(ClientError::Target { .. }) | Self::Page { status: 400, .. } => {
                2
            }
            _ => 1,
        }
    }

    /// The reader has gone, which is no failure.
    pub fn is_unread(&self) -> bool {
        match self {
            Self::Io(error) | Self::Client(ClientError::Write(error)) => {
                error.kind() == io::ErrorKind::BrokenPipe
            }
            _ => false,
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
    /// The Unix socket on which the agent listens; only root may connect
    #[arg(long, value_name = "PATH", env = "SLUICE_ADMIN_SOCKET", default_value = config::ADMIN_SOCKET)]
    pub admin_socket: PathBuf,
}

#[derive(Args, Debug)]
struct How {
    /// The format of the output
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

/// A request of a pod.
#[derive(Args, Debug)]
struct Request {
    /// The calling pod of this node, as in shop/client
    #[arg(long, value_name = "NAMESPACE/POD")]
    pod: Option<String>,
    /// The called service, as in orders.shop:80 or 10.96.7.3:80
    #[arg(long, value_name = "SERVICE:PORT")]
    to: Option<String>,
    /// A request header, as in "x-user: anna"; may be given more than once
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// A path, or a method and a path, as in POST /orders [default: GET /]
    #[arg(value_name = "[METHOD] PATH", num_args = 0..=2)]
    line: Vec<String>,
}

impl Request {
    fn question(&self, example: &str) -> Result<Question, Failed> {
        let needed = |flag: &str, value: &Option<String>| {
            value
                .clone()
                .ok_or_else(|| Failed::Question(format!("{flag} is needed, as in `sluice {example}`")))
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
    /// Explain the request that has ended and had this x-request-id
    #[arg(long, value_name = "ID", conflicts_with_all = ["pod", "to", "line", "headers"])]
    request_id: Option<String>,
    /// Explain the request that has ended and belongs to this trace (32 hexadecimal digits)
    #[arg(long, value_name = "ID", conflicts_with_all = ["pod", "to", "line", "headers"])]
    trace_id: Option<String>,
    /// List the last N requests that are kept (1 to 100)
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
    /// Set the tag of this lane on the request
    #[arg(long, value_name = "TAG")]
    lane: Option<String>,
    /// Send the request straight to this endpoint from the pod's network: no lane, policy or balancing is applied
    #[arg(long, value_name = "IP:PORT")]
    endpoint: Option<String>,
    /// The request body
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
    /// Stop after N refreshes, one a second [default: until it is interrupted]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    times: Option<u32>,
}

const EXPLAIN: &str = "explain --pod shop/client --to orders.shop:80 -H 'x-mse-tag: gray' GET /";
const CALL: &str = "call --pod shop/client --to orders.shop:80 --lane gray GET /";

/// How a command is used, without the program's name, for those who used it wrong.
pub fn example(command: &str) -> Option<&'static str> {
    Some(match command {
        "explain" => EXPLAIN,
        "call" => CALL,
        "status" => "status -o json",
        "top" => "top",
        "dump" => "dump > dump.json",
        "get" => "get /readyz",
        "log-level" => "log-level info,sluice::proxy=debug",
        "completions" => "completions bash",
        "check" => "check policy.yaml",
        _ => return None,
    })
}

/// `sluice get`: the page as it comes, a stream of events too.
pub fn get(agent: &Running, target: &str) -> Result<(), Failed> {
    let Answer { status, body } = client::stream(&agent.admin_socket, target, &mut io::stdout().lock())?;
    match status {
        200..=299 => Ok(()),
        _ => Err(Failed::Page { status, body: inert_lines(body.trim_end()) }),
    }
}

/// `sluice log-level`: the filter, or another one from now on.
pub fn log_level(agent: &Running, filter: Option<&str>) -> Result<(), Failed> {
    let answer = match filter {
        None => client::get(&agent.admin_socket, "/log-filter"),
        Some(filter) => client::put(&agent.admin_socket, "/log-filter", filter),
    };
    Ok(print(good(answer?)?)?)
}

/// `sluice explain`
pub fn explain(args: &ExplainArgs, agent: &Running) -> Result<(), Failed> {
    let socket = &agent.admin_socket;
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
pub fn call(args: &CallArgs, agent: &Running) -> Result<(), Failed> {
    let asked = CallAsked {
        request: args.request.question(CALL)?,
        lane: args.lane.clone(),
        endpoint: args.endpoint.clone(),
        body: args.data.clone(),
    };
    let said = good(client::post(&agent.admin_socket, "/call", &json!(asked).to_string())?)?;
    show(&args.how, &said, |answer: &CallAnswer| call::shown(answer))
}

/// `sluice status`. False: something is wrong.
pub fn status(args: &StatusArgs, agent: &Running) -> Result<bool, Failed> {
    let said = good(client::get(&agent.admin_socket, "/status")?)?;
    show(&args.how, &said, |status: &Status| status::shown(status))?;
    let status: Status = serde_json::from_str(&said)?;
    Ok(status.problems.is_empty())
}

/// `sluice dump`
pub fn dump(agent: &Running) -> Result<(), Failed> {
    let said = good(client::get(&agent.admin_socket, "/dump")?)?;
    Ok(print(pretty(&said)?)?)
}

/// `sluice top`
pub fn top(args: &TopArgs, agent: &Running) -> Result<(), Failed> {
    top::run(&agent.admin_socket, args.times)
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
        Output::Json => print(pretty(said)?)?,
        Output::Text => print(shown(&serde_json::from_str(said)?))?,
    }
    Ok(())
}

fn pretty(said: &str) -> Result<String, Failed> {
    let value: Value = serde_json::from_str(said)?;
    Ok(inert_json(&serde_json::to_string_pretty(&value)?) + "\n")
}

/// As it can stand in a query.
fn encoded(value: &str) -> String {
    percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests;
