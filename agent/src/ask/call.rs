//! The answer to a test request.

use std::fmt::Write as _;

use super::{
    explain,
    inert::{inert, inert_lines},
};
use crate::admin::desk::CallAnswer;

pub(super) fn shown(answer: &CallAnswer) -> String {
    let mut out = match &answer.decision {
        Some(decision) => explain::shown(decision) + "\n",
        None => "sent straight to the endpoint: nothing was decided about it\n\n".to_owned(),
    };
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{} after {:.1} ms", answer.status, answer.duration_ms);
    for header in &answer.headers {
        let _ = writeln!(out, "{}", inert(header));
    }
    let _ = writeln!(out, "\n{}", inert_lines(answer.body.trim_end()));
    if !answer.body_complete {
        out.push_str("(more was sent, and is not shown)\n");
    }
    out
}
