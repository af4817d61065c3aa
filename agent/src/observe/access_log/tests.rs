use std::{
    net::SocketAddr,
    sync::{Arc, Condvar, Mutex},
    time::UNIX_EPOCH,
};

use super::*;

fn entry(path: &[u8]) -> Entry<'_> {
    Entry {
        time: UNIX_EPOCH + Duration::from_millis(1_709_251_199_250),
        source_namespace: "shop",
        source_pod: "gateway-1",
        method: b"GET",
        path,
        protocol: "HTTP/1.1",
        status: 200,
        grpc_status: None,
        service: "orders",
        namespace: "shop",
        port: 8080,
        endpoint: Some(SocketAddr::from(([10, 1, 0, 7], 8080))),
        tag: Some("gray"),
        lane: Some("gray"),
        tag_source: Some("header"),
        reason: None,
        rule: None,
        policy: None,
        token: None,
        route: None,
        called: None,
        called_path: None,
        retries: 1,
        upstream_duration: Some(Duration::from_millis(1)),
        duration: Duration::from_micros(1234),
        request_bytes: 5,
        response_bytes: 100,
        trace: TraceId::new(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736)
            .zip(SpanId::new(0x00f0_67aa_0ba9_02b7)),
    }
}

fn text(entry: &Entry<'_>) -> String {
    let mut line = Vec::new();
    entry.text(&mut line);
    String::from_utf8(line).expect("text")
}

fn json(entry: &Entry<'_>) -> String {
    let mut line = Vec::new();
    entry.json(&mut line);
    String::from_utf8(line).expect("text")
}

#[test]
fn text_says_all_in_one_line() {
    assert_eq!(
        text(&entry(b"/a")),
        "2024-02-29T23:59:59.250Z shop/gateway-1 \"GET /a HTTP/1.1\" 200 orders.shop:8080 10.1.0.7:8080 lane=gray \
         tag=gray from=header reason=- rule=- policy=- retries=1 upstream=1.000ms 1.234ms in=5 out=100 \
         trace=4bf92f3577b34da6a3ce929d0e0e4736 span=00f067aa0ba902b7\n"
    );
    let grpc = Entry { grpc_status: Some(8), ..entry(b"/") };
    assert!(text(&grpc).contains(" 200/8 orders.shop:8080 "));
}

#[test]
fn no_request_can_fake_a_line() {
    // A line feed, an escape sequence of terminals, its form in one byte, in UTF-8, and a direction that hides what follows.
    let path = "/\n2024 fake \x1b[31m\" \\ \u{9b}31m\u{202e}\u{2028}\x7f".as_bytes();
    for path in [path, b"/\n2024 \x9b31m\xff\r"] {
        let hostile = Entry { method: path, ..entry(path) };
        for line in [text(&hostile), json(&hostile)] {
            let (line, end) = line.split_at(line.len() - 1);
            assert!(line.bytes().all(|byte| matches!(byte, b' '..=b'~')) && end == "\n", "{line:?}");
        }
        let value: serde_json::Value = serde_json::from_str(&json(&hostile)).expect("JSON");
        assert_eq!(value["path"], *String::from_utf8_lossy(path));
        assert_eq!(value["method"], value["path"]);
    }
    let line = text(&entry(path));
    assert!(line.contains(r"GET /\x0a2024 fake \x1b[31m\x22 \x5c \xc2\x9b31m\xe2\x80\xae"), "{line}");
    // A rule's name is the operator's, and cannot do more.
    let line = text(&Entry { rule: Some("a\" b\n"), policy: Some("shop/orders"), ..entry(b"/") });
    assert!(line.contains(r"rule=a\x22 b\x0a policy=shop/orders"), "{line}");
}

#[test]
fn what_routes_have_done_is_told() {
    let routed = Entry {
        route: Some("HTTPRoute shop/orders, rule split"),
        called: Some("orders.shop:80"),
        called_path: Some(b"/a\"b"),
        ..entry(b"/b")
    };
    let line = text(&routed);
    let wanted = r#" policy=- route="HTTPRoute shop/orders, rule split" called="orders.shop:80" asked="/a\x22b" retries="#;
    assert!(line.contains(wanted), "{line}");
    let value: serde_json::Value = serde_json::from_str(&json(&routed)).expect("JSON");
    assert_eq!(value["route"], "HTTPRoute shop/orders, rule split");
    assert_eq!((&value["called_service"], &value["path"]), (&"orders.shop:80".into(), &"/b".into()));
    assert_eq!(value["called_path"], "/a\"b");
    assert!(!text(&entry(b"/")).contains("route") && !json(&entry(b"/")).contains("called"));
}

#[test]
fn what_is_wrong_with_a_token_is_told() {
    let denied = Entry { policy: Some("shop/orders"), token: Some("expired"), ..entry(b"/") };
    let line = text(&denied);
    assert!(line.contains(" policy=shop/orders token=expired retries="), "{line}");
    let value: serde_json::Value = serde_json::from_str(&json(&denied)).expect("JSON");
    assert_eq!(value["token"], "expired");
    assert!(!text(&entry(b"/")).contains("token") && !json(&entry(b"/")).contains("token"));
}

#[test]
fn both_families_have_endpoints() {
    for endpoint in ["0.0.0.0:0", "255.255.255.255:65535", "[fd00::a:1]:8080", "[::ffff:10.0.0.1]:80"] {
        let entry = Entry { endpoint: endpoint.parse().ok(), ..entry(b"/") };
        assert!(text(&entry).contains(&format!(" {endpoint} lane")), "{endpoint}");
        let value: serde_json::Value = serde_json::from_str(&json(&entry)).expect("JSON");
        assert_eq!(value["endpoint"], endpoint);
    }
}

#[test]
fn the_largest_numbers_are_shown() {
    let entry = Entry {
        request_bytes: u64::MAX,
        response_bytes: 0,
        duration: Duration::MAX,
        upstream_duration: Some(Duration::from_micros(1_000_007)),
        ..entry(b"/")
    };
    let line = text(&entry);
    assert!(
        line.contains(" upstream=1000.007ms 18446744073709551.615ms in=18446744073709551615 out=0 "),
        "{line}"
    );
    assert!(serde_json::from_str::<serde_json::Value>(&json(&entry)).is_ok());
}

#[test]
fn json_leaves_out_what_is_not_there() {
    let bare = Entry {
        endpoint: None,
        tag: None,
        tag_source: None,
        lane: None,
        trace: None,
        upstream_duration: None,
        status: 429,
        reason: Some(Reason::RateLimited),
        rule: Some("per-caller"),
        policy: Some("shop/orders"),
        retries: 0,
        ..entry(b"/")
    };
    let value: serde_json::Value = serde_json::from_str(&json(&bare)).expect("JSON");
    assert_eq!(
        value,
        serde_json::json!({
            "time": "2024-02-29T23:59:59.250Z", "source_namespace": "shop", "source_pod": "gateway-1",
            "method": "GET", "path": "/", "protocol": "HTTP/1.1", "status": 429, "service": "orders.shop:8080",
            "reason": "rate_limited", "rule": "per-caller", "policy": "shop/orders", "retries": 0,
            "duration_ms": 1.234, "request_bytes": 5, "response_bytes": 100,
        })
    );
}

#[test]
fn json_says_what_there_is() {
    let all = Entry { grpc_status: Some(14), ..entry(b"/pkg.Orders/Get") };
    let value: serde_json::Value = serde_json::from_str(&json(&all)).expect("JSON");
    for (field, wanted) in [
        ("endpoint", "10.1.0.7:8080".into()),
        ("lane", "gray".into()),
        ("tag", "gray".into()),
        ("tag_source", "header".into()),
        ("grpc_status", 14.into()),
        ("retries", 1.into()),
        ("upstream_ms", 1.0.into()),
        ("trace_id", "4bf92f3577b34da6a3ce929d0e0e4736".into()),
        ("span_id", "00f067aa0ba902b7".into()),
    ] {
        let wanted: serde_json::Value = wanted;
        assert_eq!(value[field], wanted, "{field}");
    }
}

/// A writer that holds everything up until it is opened.
#[derive(Clone, Default)]
struct Gate(Arc<GateState>);

#[derive(Default)]
struct GateState {
    /// Whether it is open, and what was written.
    inner: Mutex<(bool, Vec<u8>)>,
    opened: Condvar,
}

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let guard = self.0.inner.lock().expect("not poisoned");
        let mut guard = self.0.opened.wait_while(guard, |(open, _)| !*open).expect("not poisoned");
        guard.1.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn start(out: impl Write + Send + 'static, ratio: Ratio) -> (AccessLog, Writer, IntCounter) {
    let dropped = IntCounter::new("dropped", "dropped").expect("a valid name");
    let (log, writer) =
        AccessLog::start(Style::Text, ratio, out, dropped.clone()).expect("a thread can be started");
    (log, writer, dropped)
}

#[test]
fn a_log_that_cannot_keep_up_drops_and_counts_and_never_waits() {
    let gate = Gate::default();
    let (log, writer, dropped) = start(gate.clone(), Ratio::ALL);
    let lines = log.lines();
    let size = text(&entry(b"/")).len();
    // Twice what may wait: none of it could be recorded if recording waited, for nothing is written.
    let sent = (2 * QUEUE / size) as u64;
    for _ in 0..sent {
        lines.record(&entry(b"/"));
    }
    lines.flush();
    let waiting = (sent - dropped.get()) as usize * size;
    assert!((QUEUE - 2 * CHUNK..=QUEUE).contains(&waiting), "{waiting}");
    gate.0.inner.lock().expect("not poisoned").0 = true;
    gate.0.opened.notify_all();
    drop((log, lines));
    writer.join();
    let written = String::from_utf8(gate.0.inner.lock().expect("not poisoned").1.clone()).expect("text");
    assert_eq!(written.lines().count() as u64 + dropped.get(), sent);
    assert!(written.lines().all(|line| line.len() + 1 == size));
}

#[test]
fn what_a_worker_has_gathered_is_written_when_it_ends() {
    let gate = Gate::default();
    gate.0.inner.lock().expect("not poisoned").0 = true;
    let (log, writer, dropped) = start(gate.clone(), Ratio::ALL);
    let lines = log.lines();
    assert!(lines.is_on());
    lines.record(&entry(b"/"));
    drop((log, lines));
    writer.join();
    assert_eq!(gate.0.inner.lock().expect("not poisoned").1, text(&entry(b"/")).as_bytes());
    assert_eq!(dropped.get(), 0);
}

#[test]
fn a_services_own_ratio_goes_before_the_common_one() {
    let mut rng = fastrand::Rng::with_seed(1);
    let (none, half) = (Ratio::NONE, Ratio::new(0.5));
    for (common, asked, wanted) in [
        (Ratio::ALL, None, 1000..=1000),
        (Ratio::ALL, Some(none), 0..=0),
        (Ratio::ALL, half, 400..=600),
        (none, None, 0..=0),
        (none, Some(Ratio::ALL), 1000..=1000),
    ] {
        let (log, _writer, _) = start(io::sink(), common);
        let lines = log.lines();
        let wants = (0..1000).filter(|_| lines.wants(asked, None, &mut rng)).count();
        assert!(wanted.contains(&wants), "{common} {asked:?}: {wants}");
    }
    let off = AccessLog::off().lines();
    assert!(!off.is_on() && !off.wants(Some(Ratio::ALL), None, &mut rng));
    off.record(&entry(b"/"));
    off.flush();
}
