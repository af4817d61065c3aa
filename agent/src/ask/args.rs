//! What can be said on the command line about a question, whoever is asked.

use clap::{Args, ValueEnum};

use super::{CALL, EXPLAIN, Failed, reach::Asked, top::Sort};
use crate::{
    admin::desk::{CallAsked, Question, Wrong},
    config::{self, number::whole},
};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    #[default]
    Text,
    /// For scripts
    Json,
}

#[derive(Args, Debug)]
pub(crate) struct How {
    /// The format of the output
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(crate) output: Output,
}

/// A request of a pod.
#[derive(Args, Clone, Debug)]
pub(super) struct Request {
    /// The calling pod, as in shop/client
    #[arg(long, value_name = "NAMESPACE/POD")]
    pub(super) pod: Option<String>,
    /// The called service, as in orders.shop:80 or 10.96.7.3:80
    #[arg(long, value_name = "SERVICE:PORT")]
    pub(super) to: Option<String>,
    /// A request header, as in "x-user: anna"; may be given more than once
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    pub(super) headers: Vec<String>,
    /// A path, or a method and a path, as in POST /orders [default: GET /]
    #[arg(value_name = "[METHOD] PATH", num_args = 0..=2)]
    pub(super) line: Vec<String>,
}

impl Request {
    /// `program` and `example` are shown to those who leave out what is needed.
    pub(super) fn question(&self, program: &str, example: &str) -> Result<Question, Failed> {
        let needed = |flag: &str, value: &Option<String>| {
            value
                .clone()
                .ok_or_else(|| Failed::Question(format!("{flag} is needed, as in `{program} {example}`")))
        };
        let (method, target) = match &*self.line {
            [] => ("GET", "/"),
            [target] if target.starts_with('/') => ("GET", &**target),
            [method] => (&**method, "/"),
            [method, target, ..] => (&**method, &**target),
        };
        let question = Question {
            pod: needed("--pod", &self.pod)?,
            to: needed("--to", &self.to)?,
            method: method.to_owned(),
            target: target.to_owned(),
            headers: self.headers.clone(),
        };
        question.check().map_err(|error| wrong(&error))?;
        Ok(question)
    }

    /// The same with a pod's full name in the place of one that is not yet known.
    fn with_a_pod(&self) -> Result<Self, Failed> {
        let pod = match self.pod.as_deref() {
            None => "namespace/pod".to_owned(),
            Some(pod) if pod.contains('/') => pod.to_owned(),
            Some(pod) => {
                config::object_name(pod).map_err(|allowed| {
                    Failed::Question(format!("--pod: {pod:?} is no name of a pod: {allowed}"))
                })?;
                format!("namespace/{pod}")
            }
        };
        Ok(Self { pod: Some(pod), ..self.clone() })
    }
}

/// What the agent, or the check before it is asked, says of a question: the fields of a question are flags here.
pub(super) fn flagged(why: &str) -> String {
    let flags = [
        ("pod: ", "--pod: "),
        ("to: ", "--to: "),
        ("method: ", "METHOD: "),
        ("target: ", "PATH: "),
        ("header: ", "--header: "),
        ("lane: ", "--lane: "),
        ("endpoint: ", "--endpoint: "),
    ];
    let named = flags.iter().find_map(|(field, flag)| Some(format!("{flag}{}", why.strip_prefix(field)?)));
    named.unwrap_or_else(|| why.to_owned())
}

fn wrong(wrong: &Wrong) -> Failed {
    Failed::Question(flagged(&wrong.to_string()))
}

/// Flags of `sluice explain`.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    #[command(flatten)]
    pub(super) request: Request,
    /// Explain the request that has ended and had this x-request-id
    #[arg(long, value_name = "ID", conflicts_with_all = ["pod", "to", "line", "headers"])]
    pub(super) request_id: Option<String>,
    /// Explain the request that has ended and belongs to this trace (32 hexadecimal digits)
    #[arg(long, value_name = "ID", conflicts_with_all = ["pod", "to", "line", "headers"], value_parser = trace_id)]
    pub(super) trace_id: Option<String>,
    /// List the last N requests that are kept (1 to 100)
    #[arg(
        long,
        value_name = "N",
        conflicts_with_all = ["pod", "to", "line", "headers"],
        value_parser = last
    )]
    pub(super) last: Option<u8>,
    #[command(flatten)]
    pub(crate) how: How,
}

impl ExplainArgs {
    /// Whether it can be asked at all; the pod may yet be completed.
    pub(crate) fn check(&self, program: &str) -> Result<(), Failed> {
        match self.past() {
            Some(_) => Ok(()),
            None => self.request.with_a_pod()?.question(program, EXPLAIN).map(drop),
        }
    }

    /// What is asked of an agent if it is about requests that have ended.
    pub(crate) fn past(&self) -> Option<Asked> {
        let ids = [("request_id", &self.request_id), ("trace_id", &self.trace_id)];
        let ids = ids.into_iter().filter_map(|(name, id)| Some(format!("{name}={}", encoded(id.as_ref()?))));
        let mut query: Vec<String> = ids.collect();
        if query.is_empty() && self.last.is_none() {
            return None;
        }
        query.push(format!("most={}", self.last.unwrap_or(1)));
        Some(Asked::get(&format!("/decisions?{}", query.join("&"))))
    }

    /// So many, newest first, are to be listed.
    pub(crate) fn list(&self) -> Option<u8> {
        self.last
    }

    /// The calling pod, to be completed or looked up.
    pub(crate) fn pod(&mut self) -> &mut Option<String> {
        &mut self.request.pod
    }
}

fn last(text: &str) -> Result<u8, String> {
    let number = text.parse().ok().filter(|number| (1..=100).contains(number));
    number.ok_or_else(|| "a number from 1 to 100".to_owned())
}

fn trace_id(text: &str) -> Result<String, String> {
    let good = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if good { Ok(text.to_owned()) } else { Err("32 hexadecimal digits".to_owned()) }
}

/// As it can stand in a query.
fn encoded(value: &str) -> String {
    percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// Flags of `sluice call`.
#[derive(Args, Debug)]
pub struct CallArgs {
    #[command(flatten)]
    pub(super) request: Request,
    /// Set the tag of this lane on the request
    #[arg(long, value_name = "TAG")]
    pub(super) lane: Option<String>,
    /// Send the request straight to this endpoint from the pod's network: no lane, policy or balancing is applied
    #[arg(long, value_name = "IP:PORT")]
    pub(super) endpoint: Option<String>,
    /// The request body
    #[arg(short, long, value_name = "TEXT")]
    pub(super) data: Option<String>,
    #[command(flatten)]
    pub(crate) how: How,
}

impl CallArgs {
    /// Whether it can be asked at all; the pod may yet be completed.
    pub(crate) fn check(&self, program: &str) -> Result<(), Failed> {
        self.asked(&self.request.with_a_pod()?, program).map(drop)
    }

    pub(super) fn asked(&self, request: &Request, program: &str) -> Result<CallAsked, Failed> {
        let asked = CallAsked {
            request: request.question(program, CALL)?,
            lane: self.lane.clone(),
            endpoint: self.endpoint.clone(),
            body: self.data.clone(),
        };
        asked.check().map_err(|error| wrong(&error))?;
        Ok(asked)
    }

    /// The calling pod, to be completed or looked up.
    pub(crate) fn pod(&mut self) -> &mut Option<String> {
        &mut self.request.pod
    }
}

/// Flags of `sluice status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    #[command(flatten)]
    pub(crate) how: How,
}

/// Flags of `sluice top`.
#[derive(Args, Debug)]
pub struct TopArgs {
    /// Stop after N refreshes, one a second [default: until it is interrupted]
    #[arg(short, long, value_name = "N", value_parser = whole::<u32>(1..=u32::MAX.into()))]
    pub(crate) times: Option<u32>,
    /// What services are ordered by; on a screen the key `s` takes the next, and `q` ends
    #[arg(short, long, value_name = "KEY", default_value = "requests")]
    pub(crate) sort: Sort,
}
