//! `sluice-load`: puts load on a service from inside a pod, and reports every failure by its kind, as JSON.
//!
//! Closed loop: each connection sends its next request when the last one is answered. Nothing is retried. A
//! connection that the server announced to close, or had closed before the next request was written, is replaced;
//! that is no failure.

use std::{
    cell::RefCell,
    error::Error as _,
    io,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, StatusCode, Uri,
    client::conn::http1::{SendRequest, handshake},
    header::{CONNECTION, HOST, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use sluice_tests::{Answer, LoadReport};
use tokio::{
    net::TcpStream,
    signal::unix::{SignalKind, signal},
    task::{LocalSet, spawn_local},
    time::{sleep_until, timeout},
};

/// Load over HTTP/1.1; reports when it ends or on SIGTERM
#[derive(Debug, Parser)]
struct Options {
    /// Where to, as in `http://10.96.0.7:80/path`
    url: Uri,
    /// Connections that are used at the same time
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// Requests per second, all connections together [default: as fast as answers come]
    #[arg(long)]
    rate: Option<u32>,
    /// Seconds until the end [default: until SIGTERM]
    #[arg(long)]
    seconds: Option<u64>,
    /// Requests until the end
    #[arg(long)]
    requests: Option<u64>,
    /// A header for every request, as in `name: value`
    #[arg(long, value_parser = header)]
    header: Vec<(HeaderName, HeaderValue)>,
    /// Count requests that reached the last service with this header
    #[arg(long)]
    mark: Option<String>,
    /// A new connection for each request
    #[arg(long)]
    new_connections: bool,
    /// Milliseconds after which a request counts as failed
    #[arg(long, default_value_t = 5000)]
    timeout: u64,
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("name: value")?;
    let name = name.trim().parse().map_err(|_| "no header name")?;
    Ok((name, value.trim().parse().map_err(|_| "no header value")?))
}

/// What the connections share; all on one thread.
struct Load {
    options: Options,
    target: SocketAddr,
    start: Instant,
    stop: RefCell<bool>,
    report: RefCell<LoadReport>,
    latencies: RefCell<Vec<u32>>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, run(options))
}

async fn run(options: Options) -> Result<()> {
    let authority = options.url.authority().context("a URL without an address")?;
    let target = authority.as_str().parse().with_context(|| format!("{authority} is no address and port"))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let load = Rc::new(Load {
        options,
        target,
        start: Instant::now(),
        stop: RefCell::new(false),
        report: RefCell::default(),
        latencies: RefCell::default(),
    });
    let workers: Vec<_> =
        (0..load.options.connections).map(|_| spawn_local(Rc::clone(&load).work())).collect();
    println!("running");
    let all = async {
        for worker in workers {
            worker.await.context("a connection's task panicked")?;
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::pin!(all);
    let end = async {
        match load.options.seconds {
            Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = &mut all => ended?,
        () = async { tokio::select! { _ = terminate.recv() => {}, () = end => {} } } => {
            load.stop.replace(true);
            all.await?;
        }
    }
    println!("{}", serde_json::to_string(&load.finish())?);
    Ok(())
}

impl Load {
    async fn work(self: Rc<Self>) {
        let mut connection = None;
        while let Some(turn) = self.turn() {
            sleep_until(turn.into()).await;
            if *self.stop.borrow() {
                break;
            }
            let start = Instant::now();
            let limit = Duration::from_millis(self.options.timeout);
            let result = timeout(limit, self.request(&mut connection)).await;
            if !matches!(result, Ok(Ok(_))) || self.options.new_connections {
                connection = None;
            }
            self.note(start, result.unwrap_or_else(|_| Err("timeout".to_owned())));
        }
    }

    /// When the next request is due; none when all have been handed out.
    fn turn(&self) -> Option<Instant> {
        let mut report = self.report.borrow_mut();
        if *self.stop.borrow() || self.options.requests.is_some_and(|requests| report.sent >= requests) {
            return None;
        }
        let due = match self.options.rate {
            Some(rate) => self.start + Duration::from_secs(1) * report.sent as u32 / rate.max(1),
            None => Instant::now(),
        };
        report.sent += 1;
        Some(due)
    }

    async fn request(
        &self,
        connection: &mut Option<SendRequest<Empty<Bytes>>>,
    ) -> Result<Option<Answer>, String> {
        let mut idle = connection.take();
        if let Some(sender) = &mut idle
            && sender.ready().await.is_err()
        {
            idle = None;
        }
        let mut sender = match idle {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.path();
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::from_str(&self.target.to_string()).map_err(|_| "host")?);
        for (name, value) in &self.options.header {
            headers.append(name, value.clone());
        }
        if self.options.new_connections {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let response = sender.send_request(request).await.map_err(|error| kind(&error))?;
        let status = response.status();
        let reason = response.headers().get("x-sluice-reason");
        let reason = reason.map(|reason| String::from_utf8_lossy(reason.as_bytes()).into_owned());
        let body = response.into_body().collect().await.map_err(|error| kind(&error))?.to_bytes();
        *connection = Some(sender);
        if status >= StatusCode::BAD_REQUEST {
            let reason = reason.map(|reason| format!(" {reason}")).unwrap_or_default();
            return Err(format!("status {}{reason}", status.as_u16()));
        }
        Ok(serde_json::from_slice(&body).ok())
    }

    fn path(&self) -> Uri {
        let path = self.options.url.path_and_query().map_or("/", |path| path.as_str());
        let query = if self.options.mark.is_some() { "?headers" } else { "" };
        format!("{path}{query}").parse().unwrap_or_default()
    }

    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>, String> {
        let stream =
            TcpStream::connect(self.target).await.map_err(|error| format!("connect: {}", error.kind()))?;
        stream.set_nodelay(true).map_err(|error| format!("connect: {}", error.kind()))?;
        self.report.borrow_mut().connections += 1;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| kind(&error))?;
        // Its errors reach whoever sends a request.
        spawn_local(connection);
        Ok(sender)
    }

    fn note(&self, start: Instant, result: Result<Option<Answer>, String>) {
        let second = self.start.elapsed().as_secs() as usize;
        let mut report = self.report.borrow_mut();
        match result {
            Ok(answer) => {
                report.ok += 1;
                self.latencies.borrow_mut().push(start.elapsed().as_micros() as u32);
                let Some(answer) = answer else { return };
                report.tell(second, answer.versions());
                let last = answer.chain.last();
                if let (Some(mark), Some(last)) = (&self.options.mark, last) {
                    report.marked += u64::from(last.headers.contains_key(mark));
                }
                *report.chains.entry(answer.versions()).or_default() += 1;
            }
            Err(kind) => {
                report.failed += 1;
                report.tell(second, kind.clone());
                *report.failures.entry(kind).or_default() += 1;
            }
        }
    }

    fn finish(&self) -> LoadReport {
        let mut report = self.report.borrow().clone();
        // Turns that were handed out and not taken when the end came.
        report.sent = report.ok + report.failed;
        report.seconds = self.start.elapsed().as_secs_f64();
        let mut latencies = self.latencies.borrow_mut();
        latencies.sort_unstable();
        let quantile = |percent: usize| {
            let index = (latencies.len() * percent / 100).min(latencies.len().saturating_sub(1));
            latencies.get(index).copied().unwrap_or_default().into()
        };
        report.p50_us = quantile(50);
        report.p99_us = quantile(99);
        report
    }
}

/// What went wrong, in a word.
fn kind(error: &hyper::Error) -> String {
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        return "closed".to_owned();
    }
    match error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
        Some(error) if error.kind() == io::ErrorKind::ConnectionReset => "reset".to_owned(),
        Some(error) => error.kind().to_string(),
        None => error.to_string(),
    }
}
