use serde_json::json;

use super::{args::Request, *};
use crate::{
    admin::desk::{Pods, Policies, Problem, Services},
    proxy::explain::{Candidate, Ended, Outcome, Stage, Step, Verdict},
};

/// What somebody might name a thing who wants to own a terminal.
const HOSTILE: &str = "\u{1b}]0;owned\u{7}\u{1b}[2J\r\nforged line\u{9b}31m\u{202e}";

fn hostile() -> Explanation {
    let text = || HOSTILE.to_owned();
    Explanation {
        ended: Some(Ended { seconds_ago: 1.0, duration_ms: 2.0, trace_id: Some(text()) }),
        caller: text(),
        service: Some(text()),
        method: text(),
        path: text(),
        steps: vec![Step {
            stage: Stage::Tag,
            verdict: Verdict::Stops,
            message: text(),
            source: Some(text()),
        }],
        candidates: vec![Candidate {
            endpoint: text(),
            pod: Some(text()),
            lane: Some(text()),
            state: text(),
            share: 1.0,
            in_flight: 0,
            latency_ms: Some(1.0),
            percent: 100,
        }],
        outcome: Outcome {
            endpoint: Some(text()),
            pod: Some(text()),
            status: Some(200),
            reason: Some(text()),
            message: text(),
        },
    }
}

/// Nothing but what a terminal prints, and no line that begins with what was sent.
fn check(shown: &str) {
    assert!(!shown.chars().any(|character| character.is_control() && character != '\n'), "{shown:?}");
    assert!(
        !shown.contains('\u{202e}') && !shown.lines().any(|line| line.starts_with("forged")),
        "{shown:?}"
    );
    assert!(shown.contains("forged line"), "{shown:?}");
}

#[test]
fn hostile_text_is_inert_wherever_it_is_shown() {
    check(&explain::shown(&hostile()));
    check(&explain::listed(&[hostile(), hostile()]));
    let answer = CallAnswer {
        status: 200,
        headers: vec![format!("x-a: {HOSTILE}")],
        body: HOSTILE.replace("\r\n", ""),
        body_complete: false,
        duration_ms: 1.0,
        decision: Some(hostile()),
    };
    check(&call::shown(&answer));
    let problem = Problem { message: HOSTILE.to_owned(), action: HOSTILE.to_owned() };
    let status = Status {
        version: HOSTILE.to_owned(),
        node: Some(HOSTILE.to_owned()),
        kernel: HOSTILE.to_owned(),
        ready: true,
        snapshot_age_seconds: Some(1.0),
        snapshot_generation: 1,
        pods: Pods::default(),
        services: Services::default(),
        policies: Policies::default(),
        problems: vec![problem],
    };
    check(&status::shown(&status));
    check(&pretty(&json!(hostile()).to_string()).unwrap());
    let refused = good(Answer { status: 404, body: HOSTILE.to_owned() }).unwrap_err();
    check(&refused.to_string());
}

#[test]
fn a_request_line_is_a_path_or_a_method_and_a_path() {
    for (line, method, target) in [
        (&[][..], "GET", "/"),
        (&["/a"], "GET", "/a"),
        (&["POST"], "POST", "/"),
        (&["PUT", "/a?b=c"], "PUT", "/a?b=c"),
    ] {
        let request = Request {
            pod: Some("shop/client".to_owned()),
            to: Some("orders.shop:80".to_owned()),
            headers: Vec::new(),
            line: line.iter().map(|word| (*word).to_owned()).collect(),
        };
        let question = request.question("sluice", EXPLAIN).unwrap();
        assert_eq!((&*question.method, &*question.target), (method, target));
        let error = Request { to: None, ..request }.question("kubectl sluice", EXPLAIN).unwrap_err();
        assert!(
            error.to_string().starts_with("--to is needed, as in `kubectl sluice explain --pod"),
            "{error}"
        );
        assert_eq!(error.exit_code(), 2);
    }
}
