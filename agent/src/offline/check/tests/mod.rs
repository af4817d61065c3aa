//! What `sluice check` says of files: by subject, a room each.

mod access;
mod files;
mod notes;
mod problems;
mod routes;
mod told;

use clap::Parser;

use super::{Args, run};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

/// Whether all is well, standard output, standard error.
fn check(input: &str, arguments: &[&str]) -> (bool, String, String) {
    let line = Line::try_parse_from(["check"].iter().chain(arguments)).expect("a command line");
    let (mut out, mut complaints) = (Vec::new(), Vec::new());
    let good = run(&line.args, &mut input.as_bytes(), &mut out, &mut complaints).expect("readable files");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (good, text(out), text(complaints))
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: TrafficPolicy\nmetadata:\n  name: {name}\n  namespace: shop\n\
         spec:\n{spec}---\n"
    )
}

fn route(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec:\n  parentRefs: [{{group: '', kind: Service, name: orders, port: 80}}]\n  rules:\n{spec}---\n"
    )
}
