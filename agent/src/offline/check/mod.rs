//! `sluice check`: whether policies make sense, and what they come to, without a cluster.
//!
//! [Reads](read) manifests as [`objects`], with the annotations and labels that are for Sluice ([`marks`]), finds out what each
//! targeted service is governed by ([`effective`], by the policy that [wins](winners)), where its [`routes`] lead, and what is worth
//! a note ([`notes`], [`slips`]), and tells it ([`report`]). What is wrong is what the agent and the API server would say too: the
//! checks are [`crate::api`]'s.

mod access;
mod effective;
mod fit;
mod marks;
mod notes;
mod objects;
mod read;
mod report;
mod routes;
mod slips;
#[cfg(test)]
mod tests;
mod winners;

use std::{io, path::PathBuf, str::FromStr};

use clap::ValueEnum;
use http::HeaderName;

use self::objects::Objects;
use crate::govern::lane::DEFAULT_TAG_HEADER;

/// Arguments of `sluice check`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Manifests, directories of them (*.yaml, *.yml, *.json), or - for standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Namespace of objects that do not name one
    #[arg(short, long, value_name = "NAME", default_value = "default")]
    namespace: String,

    /// Show this service only, as namespace/name or namespace/name:port
    #[arg(long, value_name = "SERVICE")]
    service: Option<Service>,

    /// Fail on notes too, and take it that the files hold every Service that is named
    #[arg(long)]
    strict: bool,

    /// The headers that carry the tag, as the agents have them
    #[arg(
        long,
        value_name = "NAME",
        env = "SLUICE_TAG_HEADER",
        value_delimiter = ',',
        default_value = DEFAULT_TAG_HEADER
    )]
    tag_header: Vec<HeaderName>,

    /// The format of the output
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// A Service, or one port of it by name. Ordered as they are told of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Service {
    namespace: String,
    name: String,
    port: Option<String>,
}

impl FromStr for Service {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "allowed are namespace/name and namespace/name:port, with the port's name".to_owned();
        let (namespace, rest) = text.split_once('/').ok_or_else(wrong)?;
        let (name, port) = rest.split_once(':').map_or((rest, None), |(name, port)| (name, Some(port)));
        if namespace.is_empty() || name.is_empty() || name.contains('/') || port == Some("") {
            return Err(wrong());
        }
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned(), port: port.map(str::to_owned) })
    }
}

/// `shop/orders:http`
impl std::fmt::Display for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)?;
        self.port.as_ref().map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// Why nothing could be checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("there is no manifest (*.yaml, *.yml, *.json) in {0}")]
    Empty(PathBuf),
    #[error("cannot write the report: {0}")]
    Write(#[from] io::Error),
}

/// Whether everything makes sense. What was found is written to `out`, in text problems go to `complaints`.
pub fn run(
    args: &Args,
    input: &mut impl io::Read,
    out: &mut impl io::Write,
    complaints: &mut impl io::Write,
) -> Result<bool, CheckError> {
    let mut objects = Objects::new(&args.namespace, &args.tag_header);
    objects.complete = args.strict;
    read::all(&mut objects, &args.files, input)?;
    objects.note_namespaces();
    slips::all(&mut objects);
    notes::all(&mut objects);
    let services = effective::services(&mut objects, args.service.as_ref());
    let routes = routes::all(&mut objects, args.service.as_ref());
    let found = report::Found { services: &services, routes: &routes };
    match args.output {
        Output::Text => report::text(&objects, &found, out, complaints)?,
        Output::Json => report::json(&objects, &found, out)?,
    }
    Ok(objects.problems.is_empty() && (objects.notes.is_empty() || !args.strict))
}
