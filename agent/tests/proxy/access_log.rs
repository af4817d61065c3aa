//! The access log in the way of requests.

use std::{
    io::{self, Write},
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use prometheus::IntCounter;
use serde_json::{Value, json};
use sluice::observe::{
    access_log::{AccessLog, Style},
    sampling::Ratio,
};

use crate::{
    origin::Origin,
    rig::{LIMIT, Rig},
};

/// What was written, by a writer that hangs while it is shut.
#[derive(Clone, Default)]
pub(crate) struct Sink(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    shut: bool,
    written: Vec<u8>,
}

impl Sink {
    fn set_shut(&self, shut: bool) {
        self.0.0.lock().unwrap().shut = shut;
        self.0.1.notify_all();
    }

    /// Waits for so many lines.
    #[track_caller]
    pub(crate) fn lines(&self, count: usize) -> Vec<String> {
        let began = Instant::now();
        loop {
            let written = String::from_utf8(self.0.0.lock().unwrap().written.clone()).unwrap();
            let lines: Vec<_> = written.lines().map(str::to_owned).collect();
            if lines.len() >= count {
                return lines;
            }
            assert!(began.elapsed() < LIMIT, "{} lines instead of {count}", lines.len());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let state = self.0.0.lock().unwrap();
        let mut state = self.0.1.wait_while(state, |state| state.shut).unwrap();
        state.written.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn open(style: Style, ratio: Ratio) -> (AccessLog, Sink, IntCounter) {
    let (sink, dropped) = (Sink::default(), IntCounter::new("dropped", "dropped").unwrap());
    let (log, _writer) = AccessLog::start(style, ratio, sink.clone(), dropped.clone()).unwrap();
    (log, sink, dropped)
}

/// Whoever looks for what a client sent finds it, wherever routes have sent it and whatever they have made of its path.
#[test]
fn a_line_says_what_was_called_where_a_route_has_sent_it_elsewhere() {
    let (log, sink, _) = open(Style::Json, Ratio::ALL);
    let (orders, canary) = (Origin::fixed("orders"), Origin::fixed("canary"));
    let rules = json!([
        {
            "name": "moved", "matches": [{ "path": { "value": "/a" } }],
            "filters": [{ "type": "URLRewrite", "urlRewrite": { "path": { "type": "ReplacePrefixMatch", "replacePrefixMatch": "/b" } } }],
            "backendRefs": [{ "name": "canary", "port": 80 }],
        },
        { "matches": [{ "path": { "value": "/c" } }], "backendRefs": [{ "name": "orders", "port": 80 }] },
    ]);
    let rig =
        Rig::builder().endpoint(orders.address).canary(canary.address).route(&rules).access_log(log).start();
    let mut caller = rig.dial();
    for (path, status) in [("/a/q?token=secret", 200), ("/c", 200), ("/d", 404)] {
        caller.get(path);
        assert_eq!(caller.answer().status(), status, "{path}");
    }
    let lines = sink.lines(3);
    let lines: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let fields = |line: &Value| {
        ["service", "path", "route", "called_service", "called_path"]
            .map(|field| line[field].as_str().unwrap_or("-").to_owned())
    };
    assert_eq!(
        fields(&lines[0]),
        ["canary.shop:80", "/b/q", "HTTPRoute shop/r, rule moved", "orders.shop:80", "/a/q"]
    );
    assert_eq!(fields(&lines[1]), ["orders.shop:80", "/c", "HTTPRoute shop/r, rule rules[1]", "-", "-"]);
    assert_eq!(fields(&lines[2]), ["orders.shop:80", "/d", "-", "-", "-"]);
}

#[test]
fn a_line_tells_what_became_of_a_request() {
    let (log, sink, dropped) = open(Style::Json, Ratio::ALL);
    let (baseline, gray) = (Origin::fixed("hello"), Origin::fixed("gray"));
    let rig = Rig::builder().endpoint(baseline.address).lane("gray", gray.address).access_log(log).start();
    let mut peer = rig.dial();
    peer.send(
        "POST /orders/7?token=secret HTTP/1.1\r\nHost: orders\r\nContent-Length: 3\r\nX-Mse-Tag: gray\r\n\
         Authorization: Bearer secret\r\nCookie: a=secret\r\n\
         traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00\r\n\r\nabc",
    );
    assert_eq!(peer.answer().body, "gray");
    let line = &sink.lines(1)[0];
    assert!(!line.contains("secret"), "{line}");
    let value: Value = serde_json::from_str(line).unwrap();
    for (field, wanted) in [
        ("source_namespace", "shop".into()),
        ("source_pod", "gateway-1".into()),
        ("method", "POST".into()),
        ("path", "/orders/7".into()),
        ("protocol", "HTTP/1.1".into()),
        ("status", 200.into()),
        ("service", "orders.shop:80".into()),
        ("endpoint", gray.address.to_string().into()),
        ("lane", "gray".into()),
        ("tag", "gray".into()),
        ("tag_source", "header".into()),
        ("retries", 0.into()),
        ("request_bytes", 3.into()),
        ("response_bytes", 4.into()),
        ("trace_id", "4bf92f3577b34da6a3ce929d0e0e4736".into()),
        ("span_id", "00f067aa0ba902b7".into()),
        ("reason", Value::Null),
    ] {
        let wanted: Value = wanted;
        assert_eq!(value[field], wanted, "{field} of {line}");
    }
    let time = |field: &str| value[field].as_f64().unwrap();
    assert!(0.0 < time("upstream_ms") && time("upstream_ms") <= time("duration_ms"), "{line}");
    assert_eq!(dropped.get(), 0);
}

#[test]
fn what_sluice_answers_itself_says_why() {
    let (log, sink, _) = open(Style::Text, Ratio::ALL);
    let rig = Rig::builder().access_log(log).start();
    let mut peer = rig.dial();
    peer.get("/");
    peer.answer().made_up(503, "no_endpoint");
    let line = &sink.lines(1)[0];
    assert!(
        line.contains("\"GET / HTTP/1.1\" 503 orders.shop:80 - lane=- tag=- from=- reason=no_endpoint"),
        "{line}"
    );
}

#[test]
fn no_request_can_fake_a_line() {
    for style in [Style::Text, Style::Json] {
        let (log, sink, _) = open(style, Ratio::ALL);
        let origin = Origin::fixed("");
        let rig = Rig::builder().endpoint(origin.address).access_log(log).start();
        let mut asked = 0;
        for target in [
            &b"/\"\\',{}\"status\":200"[..],
            b"/\xc2\x9b31m\xe2\x80\xae\xff",
            b"/\x1b[2J",
            b"/a\rb",
            b"/a\x0bb\x00",
            b"http://user:password@orders/x?secret",
        ] {
            let mut request = b"GET ".to_vec();
            request.extend_from_slice(target);
            request.extend_from_slice(b" HTTP/1.1\r\nHost: orders\r\nX-Mse-Tag: \x1b[31m\"x\r\n\r\n");
            let mut peer = rig.dial();
            peer.send(request);
            peer.answer();
            asked += 1;
        }
        let lines = sink.lines(asked);
        assert_eq!(lines.len(), asked, "{lines:#?}");
        for line in &lines {
            assert!(line.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{line:?}");
            assert!(!line.contains("password") && !line.contains("secret"), "{line}");
            assert!(style == Style::Text || serde_json::from_str::<Value>(line).is_ok(), "{line}");
        }
    }
}

#[test]
fn a_path_is_shown_up_to_a_length() {
    let (log, sink, _) = open(Style::Text, Ratio::ALL);
    let origin = Origin::fixed("");
    let rig = Rig::builder().endpoint(origin.address).access_log(log).start();
    let mut peer = rig.dial();
    peer.get(&format!("/{}", "a".repeat(60_000)));
    assert_eq!(peer.answer().status(), 200);
    let line = &sink.lines(1)[0];
    assert!(line.contains(&"a".repeat(2047)) && line.len() < 2500, "{} bytes", line.len());
}

#[test]
fn a_sink_that_hangs_delays_no_request() {
    let (log, sink, dropped) = open(Style::Text, Ratio::ALL);
    sink.set_shut(true);
    let origin = Origin::fixed("");
    let rig = Rig::builder().endpoint(origin.address).access_log(log).start();
    let mut peer = rig.dial();
    // More than may wait to be written, and nothing is written before the last of them is answered.
    let path = format!("/{}", "a".repeat(2047));
    let sent = 2500;
    for _ in 0..sent {
        peer.get(&path);
        assert_eq!(peer.answer().status(), 200);
    }
    let began = Instant::now();
    while dropped.get() == 0 {
        assert!(began.elapsed() < LIMIT, "no line was dropped");
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(peer);
    // The proxy ends, and with it the last line is handed over.
    drop(rig);
    sink.set_shut(false);
    let began = Instant::now();
    loop {
        let written = sink.lines(1).len() as u64;
        if written + dropped.get() == sent {
            break;
        }
        assert!(began.elapsed() < LIMIT, "{written} lines and {} dropped of {sent}", dropped.get());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_service_is_logged_or_not_while_it_runs() {
    let (log, sink, _) = open(Style::Json, Ratio::NONE);
    let origin = Origin::fixed("");
    let mut rig = Rig::builder().endpoint(origin.address).access_log(log).start();
    let mut peer = rig.dial();
    for (path, ratio) in [
        ("/common", None),
        ("/all", Some(Ratio::ALL)),
        ("/none", Some(Ratio::NONE)),
        ("/again", Some(Ratio::ALL)),
    ] {
        rig.change(|service| service.logged(ratio));
        peer.get(path);
        assert_eq!(peer.answer().status(), 200);
    }
    let paths: Vec<Value> = sink
        .lines(2)
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["path"].clone())
        .collect();
    assert_eq!(paths, ["/all", "/again"]);
}
