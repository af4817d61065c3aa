use std::{
    net::SocketAddr,
    sync::{Arc, Condvar, Mutex},
    time::UNIX_EPOCH,
};

use super::*;

fn entry<'e>(path: &'e [u8], service: &'e dyn Display) -> Entry<'e> {
    Entry {
        time: UNIX_EPOCH + Duration::from_millis(1_709_251_199_250),
        source_namespace: "shop",
        source_pod: "gateway-1",
        method: b"GET",
        path,
        protocol: "HTTP/1.1",
        status: 200,
        service,
        endpoint: Some(SocketAddr::from(([10, 1, 0, 7], 8080))),
        tag: Some("gray"),
        lane: Some("gray"),
        tag_source: Some("header"),
        reason: None,
        rule: None,
        attempts: 1,
        upstream_duration: Some(Duration::from_millis(1)),
        duration: Duration::from_micros(1234),
        request_bytes: 5,
        response_bytes: 100,
        trace_id: TraceId::parse(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    }
}

#[test]
fn text_says_all_in_one_line() {
    let line = String::from_utf8(entry(b"/a?b=c", &"orders.shop:8080").text()).expect("text");
    assert_eq!(
        line,
        "2024-02-29T23:59:59.250Z shop/gateway-1 \"GET /a?b=c HTTP/1.1\" 200 orders.shop:8080 10.1.0.7:8080 \
         lane=gray tag=gray from=header reason=- rule=- attempts=1 upstream=1.000ms 1.234ms in=5 out=100 trace=4bf92f3577b34da6a3ce929d0e0e4736\n"
    );
}

#[test]
fn no_request_can_fake_a_line() {
    let path = b"/\n2024 fake \x1b[31m\" \\ \xff";
    let text = String::from_utf8(entry(path, &"s").text()).expect("text");
    assert!(text.contains(r"/\x0a2024 fake \x1b[31m\x22 \x5c \xff HTTP/1.1"), "{text}");
    assert_eq!(text.matches('\n').count(), 1);
    let json = String::from_utf8(entry(path, &"s").json()).expect("text");
    assert!(
        !json.bytes().any(|byte| byte < b' ' && byte != b'\n') && json.matches('\n').count() == 1,
        "{json}"
    );
    let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(value["path"], "/\n2024 fake \u{1b}[31m\" \\ \u{fffd}");
}

#[test]
fn lines_are_of_bounded_length() {
    let path = vec![b'a'; 60_000];
    for line in [entry(&path, &"s").text(), entry(&path, &"s").json()] {
        assert!(line.len() < 3000, "{} bytes", line.len());
        assert!(line.windows(2048).any(|window| window == &path[..2048]));
    }
}

#[test]
fn json_leaves_out_what_is_not_there() {
    let mut bare = entry(b"/", &"orders.shop:8080");
    (bare.endpoint, bare.tag, bare.tag_source, bare.lane, bare.trace_id) = (None, None, None, None, None);
    (bare.status, bare.reason) = (503, Some(Reason::NoEndpoint));
    let value: serde_json::Value = serde_json::from_slice(&bare.json()).expect("JSON");
    assert_eq!(
        value,
        serde_json::json!({
            "time": "2024-02-29T23:59:59.250Z", "source_namespace": "shop", "source_pod": "gateway-1",
            "method": "GET", "path": "/", "protocol": "HTTP/1.1", "status": 503, "service": "orders.shop:8080",
            "reason": "no_endpoint", "attempts": 1, "upstream_ms": 1.0, "duration_ms": 1.234, "request_bytes": 5, "response_bytes": 100,
        })
    );
}

#[test]
fn trace_ids_are_taken_from_valid_headers_only() {
    let id = "4bf92f3577b34da6a3ce929d0e0e4736";
    let good = format!("00-{id}-00f067aa0ba902b7-01");
    assert_eq!(TraceId::parse(good.as_bytes()).as_ref().map(TraceId::as_str), Some(id));
    assert!(TraceId::parse(format!("01-{id}-00f067aa0ba902b7-01-later").as_bytes()).is_some());
    for bad in [
        String::new(),
        format!("00-{id}-00f067aa0ba902b7"),
        format!("00-{id}-00f067aa0ba902b7-01-more"),
        format!("ff-{id}-00f067aa0ba902b7-01"),
        format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
        format!("00-{}-00f067aa0ba902b7-01", id.to_uppercase()),
        format!("00-{}-00f067aa0ba902b7-01", &id[1..]),
        format!("00-{id}-00f067aa0ba902bz-01"),
    ] {
        assert_eq!(TraceId::parse(bad.as_bytes()), None, "{bad:?}");
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

#[test]
fn a_log_that_cannot_keep_up_drops_and_counts_and_never_waits() {
    let gate = Gate::default();
    let dropped = IntCounter::new("dropped", "dropped").expect("a valid name");
    let (log, writer) = AccessLog::start(AccessLogFormat::Text, gate.clone(), dropped.clone())
        .expect("a thread can be started");
    assert!(log.is_on());
    let sent = 4 * QUEUE as u64;
    for _ in 0..sent {
        log.record(&entry(b"/", &"s"));
    }
    assert!(dropped.get() > 0, "the queue is bounded");
    gate.0.inner.lock().expect("not poisoned").0 = true;
    gate.0.opened.notify_all();
    drop(log);
    writer.join();
    let written = String::from_utf8(gate.0.inner.lock().expect("not poisoned").1.clone()).expect("text");
    assert_eq!(written.lines().count() as u64 + dropped.get(), sent);
}

#[test]
fn off_is_off() {
    let dropped = IntCounter::new("dropped", "dropped").expect("a valid name");
    let (log, writer) =
        AccessLog::start(AccessLogFormat::Off, io::sink(), dropped.clone()).expect("nothing to start");
    assert!(!log.is_on());
    log.record(&entry(b"/", &"s"));
    writer.join();
    assert_eq!(dropped.get(), 0);
}
