//! The commands that ask the agent of this node, over its Unix socket: `sluice get`, `log-level`, `explain`, `status`, `top`,
//! `call`, `dump`, `release`.
//!
//! For people by default, tables; `-o json` is what the agent said. What comes from elsewhere (paths, labels, bodies) is made
//! [mod@inert] before it is shown. Exit status: 0, the answer is there (`status`: and nothing is wrong; `call`: and some status
//! came back); 1, it is not, or something is wrong; 2, the question makes no sense.

mod args;
mod call;
mod explain;
pub mod inert;
pub mod print;
mod reach;
pub mod relay;
mod status;
pub(crate) mod table;
pub(crate) mod top;

use std::{io, path::Path};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

pub use self::{
    args::{CallArgs, ExplainArgs, StatusArgs, TopArgs},
    reach::{Asked, Reach, Running, Verb},
};
pub(crate) use self::{
    args::{How, Output},
    explain::{OnNode, listed_on_nodes, shown as shown_explanation},
    status::{shown_policies, shown_state},
};
use self::{
    inert::{inert, inert_json, inert_lines},
    print::print,
};
use crate::{
    admin::{
        client::{self, Answer, ClientError},
        desk::{CallAnswer, Released, Status},
    },
    api::plain,
    capture,
    observe::log,
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
    Foreign(String),
    #[error("cannot write: {0}")]
    Io(#[from] io::Error),
}

impl From<serde_json::Error> for Failed {
    fn from(error: serde_json::Error) -> Self {
        Self::Foreign(plain::words(&error))
    }
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

pub(crate) const EXPLAIN: &str = "explain --pod shop/client --to orders.shop:80 -H 'x-mse-tag: gray' GET /";
pub(crate) const CALL: &str = "call --pod shop/client --to orders.shop:80 --lane gray GET /";

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
        "release" => "release",
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
pub fn log_level(agent: &impl Reach, filter: Option<&str>) -> Result<(), Failed> {
    if let Some(filter) = filter {
        log::check(filter).map_err(|error| Failed::Question(error.to_string()))?;
    }
    let asked = filter.map_or_else(
        || Asked::get("/log-filter"),
        |filter| Asked { verb: Verb::Put, target: "/log-filter".to_owned(), body: filter.to_owned() },
    );
    Ok(print(good(agent.ask(&asked)?)?)?)
}

/// `sluice explain`
pub fn explain(args: &ExplainArgs, agent: &impl Reach) -> Result<(), Failed> {
    let Some(past) = args.past() else {
        let question = args.request.question(agent.program(), EXPLAIN)?;
        let said = answered(agent.ask(&Asked::post("/explain", &question)?)?)?;
        return show(&args.how, &said, |explanation: &Explanation| explain::shown(explanation));
    };
    let said = good(agent.ask(&past)?)?;
    let found: Vec<Explanation> = serde_json::from_str(&said)?;
    if found.is_empty() {
        return Err(not_kept());
    }
    show(&args.how, &said, |found: &Vec<Explanation>| match &**found {
        [one] if args.list().is_none() => explain::shown(one),
        several => explain::listed(several),
    })
}

/// Of a request that has ended nothing is known.
pub(crate) fn not_kept() -> Failed {
    Failed::Refused(
        "no such request is kept: all that failed or were refused are, and of the others a sample; each for as long as \
         there is room"
            .to_owned(),
    )
}

/// `sluice call`
pub fn call(args: &CallArgs, agent: &impl Reach) -> Result<(), Failed> {
    let asked = args.asked(&args.request, agent.program())?;
    let said = answered(agent.ask(&Asked::post("/call", &asked)?)?)?;
    show(&args.how, &said, |answer: &CallAnswer| call::shown(answer))
}

/// `sluice status`. False: something is wrong.
pub fn status(args: &StatusArgs, agent: &impl Reach) -> Result<bool, Failed> {
    let said = good(agent.ask(&Asked::get("/status"))?)?;
    show(&args.how, &said, |status: &Status| status::shown(status))?;
    let status: Status = serde_json::from_str(&said)?;
    Ok(status.problems.is_empty())
}

/// `sluice release`: by the agent, which leaves nothing behind any more; or without it, if there is none.
pub fn release(agent: &Running, file_system: &Path) -> Result<(), Failed> {
    let mut nowhere = None;
    let Released { removed } = match agent.ask(&Asked::post("/release", &())?) {
        Ok(said) => serde_json::from_str(&answered(said)?)?,
        Err(Failed::Client(ClientError::Connect { source, .. }))
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
        {
            let removed = capture::release(file_system).map_err(|error| {
                Failed::Refused(format!("{}: something is left: {error}", file_system.display()))
            })?;
            nowhere = capture::pinning_trouble(file_system);
            Released { removed }
        }
        Err(error) => return Err(error),
    };
    let said = match removed {
        0 => match nowhere {
            Some(why) => format!("no agent answers, and nothing was found: {why}\n"),
            None => "nothing would stay behind the agent\n".to_owned(),
        },
        1 => "released 1 pod\n".to_owned(),
        pods => format!("released {pods} pods\n"),
    };
    Ok(print(said)?)
}

/// `sluice dump`
pub fn dump(agent: &impl Reach) -> Result<(), Failed> {
    let said = good(agent.ask(&Asked::get("/dump"))?)?;
    Ok(print(pretty(&said)?)?)
}

/// `sluice top`
pub fn top(args: &TopArgs, agent: &impl Reach) -> Result<(), Failed> {
    let asked = Asked::get("/api/overview");
    top::run(args.times, args.sort, async || Ok(serde_json::from_str(&good(agent.ask(&asked)?)?)?))
}

/// The body of a good answer to a question that was made of flags.
fn answered(answer: Answer) -> Result<String, Failed> {
    good(answer).map_err(|failed| match failed {
        Failed::Question(why) => Failed::Question(args::flagged(&why)),
        other => other,
    })
}

/// The body of a good answer.
pub(crate) fn good(answer: Answer) -> Result<String, Failed> {
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
    pretty_value(&serde_json::from_str::<Value>(said)?)
}

/// JSON for whoever looks at it.
pub(crate) fn pretty_value(value: &impl Serialize) -> Result<String, Failed> {
    Ok(inert_json(&serde_json::to_string_pretty(value)?) + "\n")
}

#[cfg(test)]
mod tests;
