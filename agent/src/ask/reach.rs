//! How an agent is reached: on its own node over the Unix socket, from elsewhere by whoever implements [`Reach`].

use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::Failed;
use crate::{
    admin::client::{self, Answer, ClientError},
    config,
};

/// What is asked of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    pub verb: Verb,
    /// Path and query.
    pub target: String,
    #[serde(default)]
    pub body: String,
}

/// The method of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verb {
    Get,
    Put,
    Post,
}

impl Asked {
    pub fn get(target: &str) -> Self {
        Self { verb: Verb::Get, target: target.to_owned(), body: String::new() }
    }

    pub fn post(target: &str, body: &impl Serialize) -> Result<Self, Failed> {
        Ok(Self { verb: Verb::Post, target: target.to_owned(), body: serde_json::to_string(body)? })
    }
}

/// The way to one agent.
pub trait Reach {
    fn ask(&self, asked: &Asked) -> Result<Answer, Failed>;

    /// How the program is called by whoever reads its complaints.
    fn program(&self) -> &'static str;
}

/// The agent of this node.
#[derive(Args, Debug)]
pub struct Running {
    /// The Unix socket on which the agent listens; only root may connect
    #[arg(long, value_name = "PATH", env = "SLUICE_ADMIN_SOCKET", default_value = config::ADMIN_SOCKET)]
    pub admin_socket: PathBuf,
}

impl Running {
    pub(super) fn send(&self, Asked { verb, target, body }: &Asked) -> Result<Answer, ClientError> {
        match verb {
            Verb::Get => client::get(&self.admin_socket, target),
            Verb::Put => client::put(&self.admin_socket, target, body),
            Verb::Post => client::post(&self.admin_socket, target, body),
        }
    }
}

impl Reach for Running {
    fn ask(&self, asked: &Asked) -> Result<Answer, Failed> {
        Ok(self.send(asked)?)
    }

    fn program(&self) -> &'static str {
        "sluice"
    }
}
