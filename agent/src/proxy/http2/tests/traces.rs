//! What collectors and the access log are told of streams.

use std::{
    io::{self, Write},
    sync::{Mutex, atomic::AtomicU32},
};

use prometheus::IntCounter;
use sluice_tests::collector::Collector;

use super::*;
use crate::observe::{
    access_log::Style,
    metrics::Format,
    otlp::{Identity, Protocol as Otlp},
    sampling::Ratio,
    trace::{self, Tracer, context::Propagation},
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

fn tracer(collector: &Collector, propagation: &[Propagation], roots: Ratio) -> Tracer {
    let options = trace::Options {
        endpoint: collector.endpoint().parse().unwrap(),
        protocol: Otlp::Http,
        propagation: propagation.to_vec(),
        roots,
        queue: 64,
        identity: Identity::new(None, &[]),
    };
    let dropped = IntCounter::new("dropped", "dropped").unwrap();
    let (tracer, exporter) = Tracer::start(&options, dropped).unwrap();
    tokio::spawn(exporter.run());
    tracer
}

/// An endpoint that gives trace headers back as it saw them.
async fn mirror() -> SocketAddr {
    endpoint(|request, mut respond| async move {
        let mut response = Response::new(());
        for name in ["traceparent", "b3", "x-b3-spanid", "x-b3-parentspanid"] {
            if let Some(value) = request.headers().get(name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
        let _ = respond.send_response(response, true);
    })
    .await
}

fn with(headers: &[(&'static str, &str)]) -> Request<()> {
    let mut request = get();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sampled_trace_goes_on_through_the_proxy() {
    let collector = Collector::start().unwrap();
    let propagation = [Propagation::W3c, Propagation::B3Multi];
    let bed = bed_told_of(
        &[(mirror().await, None)],
        Limits::default(),
        AccessLog::off(),
        tracer(&collector, &propagation, Ratio::NONE),
    );
    let mut caller = bed.caller().await;
    let unsampled = format!("00-{TRACE}-{CALLER}-00");
    let answer = ask(&mut caller, with(&[("traceparent", &unsampled)])).await;
    assert_eq!(header(answer.headers(), "traceparent"), unsampled);
    let plain = ask(&mut caller, get()).await;
    assert!(plain.headers().get("traceparent").is_none());
    let exemplars = || {
        let text = bed.metrics.render_as(Format::OpenMetrics).unwrap();
        text.lines().filter(|line| line.contains(" # {trace_id=")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(exemplars(), [""; 0]);

    let sampled = format!("00-{TRACE}-{CALLER}-01");
    let answer = ask(
        &mut caller,
        with(&[
            ("traceparent", &sampled),
            ("x-b3-traceid", TRACE),
            ("x-b3-spanid", CALLER),
            ("x-b3-parentspanid", "05e3ac9a4f6e3b90"),
        ]),
    )
    .await;
    let spans = collector.trace(TRACE, 2).unwrap();
    let (own, attempt) = (&spans[0], &spans[1]);
    assert_eq!((&*own.parent, own.client), (CALLER, false));
    assert_eq!((&attempt.parent, attempt.client), (&own.id, true));
    assert_eq!(header(answer.headers(), "traceparent"), format!("00-{TRACE}-{}-01", attempt.id));
    assert_eq!(header(answer.headers(), "x-b3-spanid"), attempt.id);
    assert_eq!(header(answer.headers(), "x-b3-parentspanid"), own.id);
    assert_eq!(own.attribute("network.protocol.version"), "2");
    assert_eq!(own.attribute("url.path"), "/things");
    let exemplars = exemplars();
    assert!(exemplars.len() == 1 && exemplars[0].contains(TRACE), "{exemplars:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_begins_here_if_it_may() {
    let collector = Collector::start().unwrap();
    let tracer = tracer(&collector, &[Propagation::W3c], Ratio::ALL);
    let bed = bed_told_of(&[(mirror().await, None)], Limits::default(), AccessLog::off(), tracer);
    let answer = ask(&mut bed.caller().await, get()).await;
    let parts: Vec<_> = header(answer.headers(), "traceparent").split('-').collect();
    let spans = collector.trace(parts[1], 2).unwrap();
    assert_eq!((&*spans[0].parent, &*spans[1].id, parts[3]), ("", parts[2], "01"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_is_told_of_in_its_own_words() {
    let collector = Collector::start().unwrap();
    let asked = Arc::new(AtomicU32::new(0));
    let seen = asked.clone();
    // Refuses the first stream before it has looked at it.
    let answer = move |request: Request<RecvStream>, mut respond: SendResponse<Bytes>| {
        let number = seen.fetch_add(1, Ordering::Relaxed);
        async move {
            if number == 0 {
                respond.send_reset(Code::REFUSED_STREAM);
                return;
            }
            let _ = read(request.into_body()).await;
            let mut back = respond.send_response(Response::new(()), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("14"));
            back.send_trailers(trailers).unwrap();
        }
    };
    // Two, for a refused stream is tried elsewhere.
    let servers = [(endpoint(answer.clone()).await, None), (endpoint(answer).await, None)];
    let lines = Lines::default();
    let dropped = IntCounter::new("dropped", "dropped").unwrap();
    let (log, _writer) = AccessLog::start(Style::Json, Ratio::ALL, lines.clone(), dropped).unwrap();
    let tracer = tracer(&collector, &[Propagation::W3c], Ratio::NONE);
    let bed = bed_told_of(&servers, Limits::default(), log, tracer);
    let mut request = post("application/grpc");
    let value = format!("00-{TRACE}-{CALLER}-01");
    request.headers_mut().insert("traceparent", value.parse().unwrap());
    let mut caller = bed.caller().await;
    let (response, mut up) = caller.send_request(request, false).unwrap();
    up.send_data(Bytes::from_static(b"\0\0\0\0\x01x"), true).unwrap();
    let (_, trailers) = read(soon(response).await.unwrap().into_body()).await.unwrap();
    assert_eq!(trailers.unwrap()["grpc-status"], "14");

    let spans = collector.trace(TRACE, 3).unwrap();
    let [own, refused, answered] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!((own.attribute("rpc.response.status_code"), own.failed), ("UNAVAILABLE", true));
    assert_eq!((refused.attribute("error.type"), refused.failed), ("upstream_reset", true));
    assert_eq!((answered.attribute("error.type"), answered.failed), ("UNAVAILABLE", true));
    assert_eq!(own.attribute("sluice.retries"), "1");
    let line = lines.first().await;
    for (field, wanted) in [("grpc_status", "14"), ("retries", "1"), ("path", "\"/things\"")] {
        assert_eq!(line[field].to_string(), wanted, "{field} of {line}");
    }
    assert_eq!(line["trace_id"], TRACE);
    assert_eq!(line["span_id"], *own.id);
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    async fn first(&self) -> serde_json::Value {
        soon(async {
            loop {
                let written = self.0.lock().unwrap().clone();
                if let Some(end) = written.iter().position(|byte| *byte == b'\n') {
                    return serde_json::from_slice(&written[..end]).unwrap();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
