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
        draining: false,
        snapshot_age_seconds: Some(1.0),
        snapshot_generation: 1,
        snapshot_restored: true,
        pods: Pods::default(),
        services: Services::default(),
        policies: Policies::default(),
        route_rules: 1,
        problems: vec![problem],
    };
    check(&status::shown(&status));
    check(&pretty(&json!(hostile()).to_string()).unwrap());
    let refused = good(Answer { status: 404, body: HOSTILE.to_owned() }).unwrap_err();
    check(&refused.to_string());
}

#[test]
fn a_method_in_lower_case_is_told_in_upper_case() {
    for (line, wanted) in [(vec!["get", "/"], "GET"), (vec!["Post"], "POST")] {
        let request = Request {
            pod: Some("shop/client".to_owned()),
            to: Some("orders.shop:80".to_owned()),
            headers: Vec::new(),
            line: line.iter().map(|&word| word.to_owned()).collect(),
        };
        let Err(Failed::Question(why)) = request.question("sluice", CALL) else { panic!("{line:?} is good") };
        let told = format!("METHOD: {:?} is no method: methods are in upper case, as in {wanted}", line[0]);
        assert_eq!(why, told);
    }
}

#[test]
fn of_a_target_that_the_proxy_rejects_is_told_what_it_says() {
    for (target, wanted) in [
        ("http:/actuator", "a request target that is neither a path nor an http URI with a host"),
        ("actuator", "a request target that is neither a path nor an http URI with a host"),
        ("*", "the request target * with another method than OPTIONS"),
    ] {
        let request = Request {
            pod: Some("shop/client".to_owned()),
            to: Some("orders.shop:80".to_owned()),
            headers: Vec::new(),
            line: vec!["GET".to_owned(), target.to_owned()],
        };
        let Err(Failed::Question(why)) = request.question("sluice", EXPLAIN) else {
            panic!("{target:?} is good")
        };
        let told = format!(
            "PATH: {target:?} is none, as in /orders/7?full=1: the proxy answers such a request 400 bad_request: it has {wanted}"
        );
        assert_eq!(why, told);
    }
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

/// An agent that nobody may ask.
struct Silent;

impl Reach for Silent {
    fn ask(&self, asked: &Asked) -> Result<Answer, Failed> {
        panic!("{asked:?} was asked though the command line is wrong")
    }

    fn program(&self) -> &'static str {
        "sluice"
    }
}

#[derive(Debug, clap::Parser)]
struct Line<A: clap::Args> {
    #[command(flatten)]
    args: A,
}

fn parsed<A: clap::Args>(line: &str) -> Result<A, clap::Error> {
    let words = std::iter::once("sluice").chain(line.split('|').filter(|word| !word.is_empty()));
    <Line<A> as clap::Parser>::try_parse_from(words).map(|line| line.args)
}

#[test]
fn what_is_wrong_with_a_command_line_is_said_by_its_flags_before_an_agent_is_asked() {
    const GOOD: &str = "--pod|shop/client|--to|orders.shop:80";
    let table = [
        ("", "--pod is needed"),
        ("--pod|client|--to|orders.shop:80", "--pod: \"client\" is not namespace/name, as in shop/client"),
        ("--pod|A B/client|--to|orders.shop:80", "--pod: \"A B/client\" is not namespace/name"),
        ("--pod|shop/client|--to|orders.shop:x", "--to: \"x\" is no port"),
        ("--pod|shop/client|--to|orders.shop:0", "--to: \"0\" is no port"),
        ("--pod|shop/client|--to|http://orders/", "--to: \"//orders/\" is no port"),
        ("--pod|shop/client|--to|or ders:80", "--to: \"or ders:80\" names no service"),
        ("--pod|shop/client|--to|10.0.0.1", "--to: \"10.0.0.1\" names no service"),
        (&format!("{GOOD}|G T"), "METHOD: \"G T\" is none"),
        (&format!("{GOOD}|GET|x"), "PATH: \"x\" is none"),
        (&format!("{GOOD}|-H|x-a"), "--header: \"x-a\" is none"),
    ];
    for (line, wanted) in table {
        let explained = explain(&parsed(line).unwrap(), &Silent).unwrap_err();
        let called = call(&parsed(line).unwrap(), &Silent).unwrap_err();
        for error in [explained, called] {
            assert!(error.to_string().starts_with(wanted), "{line}: {error}");
            assert_eq!(error.exit_code(), 2);
        }
    }
    for (more, wanted) in
        [("--lane|ue_!", "--lane: \"ue_!\""), ("--endpoint|x:80", "--endpoint: \"x:80\" is no address")]
    {
        let error = call(&parsed(&format!("{GOOD}|{more}")).unwrap(), &Silent).unwrap_err();
        assert!(error.to_string().starts_with(wanted), "{error}");
    }
    for bad in ["--last|0", "--last|101", "--trace-id|12", "--trace-id|zz000000000000000000000000000000"] {
        assert!(parsed::<ExplainArgs>(bad).is_err(), "{bad}");
    }
    assert!(log_level(&Silent, Some("lots")).unwrap_err().to_string().contains("lots"));
    // Of another namespace's pod, whose name the plugin completes, the rest is known before.
    let short: CallArgs = parsed("--pod|client|--to|orders:80|--lane|ue_!").unwrap();
    assert!(short.check("kubectl sluice").unwrap_err().to_string().starts_with("--lane: "));
    for to in ["orders", "orders:80", "orders.shop.svc.cluster.local.:80", "10.0.0.1:80", "[fd00::1]:80"] {
        let fine: ExplainArgs = parsed(&format!("--pod|client|--to|{to}")).unwrap();
        fine.check("kubectl sluice").unwrap();
    }
    let bad: ExplainArgs = parsed("--pod|A B|--to|orders").unwrap();
    assert!(
        bad.check("kubectl sluice")
            .unwrap_err()
            .to_string()
            .starts_with("--pod: \"A B\" is no name of a pod")
    );
}
