//! `sluice-service`: a small real service for the demo, the tests and the bench.
//!
//! Over HTTP (1 and 2) it calls the next service of its chain and answers with everybody who took part. It carries
//! `traceparent` and `baggage` on, as any traced service does, and knows nothing of Sluice. Or it plays a database:
//! a TCP server that speaks first.

mod blocking;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{self, Poll},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt as _, Empty, Full, combinators::BoxBody};
use hyper::{
    Request, Response, StatusCode, Uri, Version,
    body::{Frame, Incoming, SizeHint},
    header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue},
    service::service_fn,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use sluice_tests::{Answer, Hop};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    signal::unix::{SignalKind, signal},
    time::{sleep, sleep_until},
};

type Body = BoxBody<Bytes, hyper::Error>;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// A small HTTP or TCP service
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
#[derive(Debug, Parser)]
struct Options {
    /// Name of the service
    #[arg(long)]
    name: String,
    /// Version label of this instance
    #[arg(long, default_value = "v1")]
    version: String,
    /// Name of this instance
    #[arg(long, env = "HOSTNAME", default_value = "")]
    pod: String,
    /// Where to listen; give it more than once for several
    #[arg(long, default_value = "8080")]
    port: Vec<u16>,
    /// Listen on this address alone, as in `0.0.0.0`, not on all of both families
    #[arg(long)]
    address: Option<IpAddr>,
    /// The next service of the chain, as in `http://10.96.0.7:80`
    #[arg(long)]
    next: Option<Uri>,
    /// Milliseconds after which an idle connection to the next service is closed
    #[arg(long, default_value_t = 90_000)]
    next_idle: u64,
    /// Call the next service over HTTP/2
    #[arg(long)]
    next_http2: bool,
    /// Pass the caller's `traceparent` on as it came, as an application does that only copies headers
    #[arg(long)]
    copy_trace: bool,
    /// Pass no `baggage` on, as a tracer does that knows of ids alone: the next service hears of the trace and of nothing else
    #[arg(long)]
    no_baggage: bool,
    /// Be a blocking server: handle each connection, of one request, on a thread of its own, and pass nothing on
    #[arg(long)]
    blocking: bool,
    /// Milliseconds before each answer; a third of that from the first SIGUSR1 on
    #[arg(long, default_value_t = 0)]
    delay: u64,
    /// Get slower with load, as a service does that runs short of CPU or waits for locks: with n requests in work, the
    /// delay is --delay * (1 + (n / knee)²). It gets most done with as many as this in work, and next to nothing when
    /// it is flooded. It goes on working for callers that have gone
    #[arg(long, requires = "delay", value_parser = clap::value_parser!(u32).range(1..))]
    knee: Option<u32>,
    /// Status of each answer
    #[arg(long, default_value = "200")]
    status: StatusCode,
    /// Close each connection after one answer
    #[arg(long)]
    close: bool,
    /// Milliseconds after which an idle connection is closed
    #[arg(long)]
    idle_timeout: Option<u64>,
    /// Milliseconds to go on after SIGTERM
    #[arg(long, default_value_t = 0)]
    linger: u64,
    /// Speak first, as databases do: send a line with the name, then echo
    #[arg(long)]
    tcp: bool,
    /// With --tcp: close right after the line
    #[arg(long, requires = "tcp")]
    once: bool,
}

/// What requests need.
struct Service {
    options: Options,
    client: Client<HttpConnector, Empty<Bytes>>,
    spans: AtomicU64,
    /// Requests in work, for --knee.
    in_work: Arc<AtomicU32>,
    /// It was told to be faster.
    hurries: Arc<AtomicBool>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let mut terminate = signal(SignalKind::terminate())?;
    let listeners =
        options.port.iter().map(|&port| listen(options.address, port)).collect::<Result<Vec<_>>>()?;
    if options.blocking {
        let options: &Options = Box::leak(Box::new(options));
        for listener in listeners {
            let listener = listener.into_std()?;
            listener.set_nonblocking(false)?;
            std::thread::spawn(move || blocking::accept(&listener, options));
        }
        println!("listening");
        terminate.recv().await;
        return Ok(());
    }
    let client = Client::builder(TokioExecutor::new())
        .http2_only(options.next_http2)
        // A failure is to be seen, not smoothed over.
        .retry_canceled_requests(false)
        .pool_idle_timeout(Duration::from_millis(options.next_idle))
        .pool_timer(TokioTimer::new())
        .build_http();
    // Spans need only differ.
    let seed =
        SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64 ^ u64::from(std::process::id()) << 48;
    let linger = Duration::from_millis(options.linger);
    let service = Arc::new(Service {
        options,
        client,
        spans: AtomicU64::new(seed),
        in_work: Arc::default(),
        hurries: Arc::default(),
    });
    let (mut hurry, hurries) = (signal(SignalKind::user_defined1())?, service.hurries.clone());
    tokio::spawn(async move {
        hurry.recv().await;
        hurries.store(true, Ordering::Relaxed);
    });
    for listener in listeners {
        tokio::spawn(accept(listener, Arc::clone(&service)));
    }
    println!("listening");
    terminate.recv().await;
    sleep(linger).await;
    Ok(())
}

/// A socket for one address; else for both address families, or for IPv4 where there is no IPv6.
fn listen(address: Option<IpAddr>, port: u16) -> Result<TcpListener> {
    let bind = |socket: std::io::Result<TcpSocket>, address: SocketAddr| {
        let socket = socket?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(4096)
    };
    let bound = match address {
        Some(ip @ IpAddr::V4(_)) => bind(TcpSocket::new_v4(), (ip, port).into()),
        // One of its own is for IPv6 alone.
        Some(ip @ IpAddr::V6(_)) => bind(TcpSocket::new_v6(), (ip, port).into()),
        None => bind(TcpSocket::new_v6(), (Ipv6Addr::UNSPECIFIED, port).into())
            .or_else(|_| bind(TcpSocket::new_v4(), (Ipv4Addr::UNSPECIFIED, port).into())),
    };
    bound.with_context(|| format!("cannot listen on port {port}"))
}

async fn accept(listener: TcpListener, service: Arc<Service>) {
    loop {
        match listener.accept().await {
            Ok((connection, _)) => {
                let service = Arc::clone(&service);
                tokio::spawn(async move {
                    // Peers come and go as they like; what matters is seen at their side.
                    if service.options.tcp {
                        let _ = serve_tcp(connection, &service.options).await;
                    } else {
                        let _ = serve_http(connection, service).await;
                    }
                });
            }
            Err(error) => {
                eprintln!("cannot accept: {error}");
                sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn serve_tcp(mut connection: TcpStream, options: &Options) -> Result<()> {
    connection.write_all(format!("{} {}\n", options.name, options.version).as_bytes()).await?;
    if options.once {
        return Ok(());
    }
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = connection.read(&mut buffer).await?;
        if count == 0 {
            connection.shutdown().await?;
            return Ok(());
        }
        connection.write_all(&buffer[..count]).await?;
    }
}

async fn serve_http(connection: TcpStream, service: Arc<Service>) -> Result<()> {
    connection.set_nodelay(true)?;
    let idle = service.options.idle_timeout.map(Duration::from_millis);
    let born = Instant::now();
    let last = Arc::new(AtomicU64::new(0));
    let answering = {
        let last = Arc::clone(&last);
        service_fn(move |request| {
            let (service, last) = (Arc::clone(&service), Arc::clone(&last));
            async move {
                let answer = service.answer(request).await;
                last.store(born.elapsed().as_millis() as u64, Ordering::Relaxed);
                Ok::<_, Infallible>(answer)
            }
        })
    };
    let builder = auto::Builder::new(TokioExecutor::new());
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(connection), answering);
    tokio::pin!(serving);
    let Some(idle) = idle else {
        return serving.await.map_err(anyhow::Error::from_boxed);
    };
    loop {
        let deadline = born + Duration::from_millis(last.load(Ordering::Relaxed)) + idle;
        if deadline <= Instant::now() {
            serving.as_mut().graceful_shutdown();
            return serving.await.map_err(anyhow::Error::from_boxed);
        }
        tokio::select! {
            ended = serving.as_mut() => return ended.map_err(anyhow::Error::from_boxed),
            () = sleep_until(deadline.into()) => {}
        }
    }
}

impl Service {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        self.work().await;
        let path = request.uri().path();
        let mut response = if path == "/echo" {
            Response::new(request.into_body().boxed())
        } else if let Some(count) = path.strip_prefix("/bytes/") {
            match count.parse() {
                Ok(left) if left <= 1 << 30 => Response::new(Repeated { left }.boxed()),
                _ => refuse("/bytes/<count>, at most 1 GiB"),
            }
        } else {
            self.chain(&request).await
        };
        if response.status() == StatusCode::OK {
            *response.status_mut() = self.options.status;
        }
        if self.options.close {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    async fn work(&self) {
        let shorter = if self.hurries.load(Ordering::Relaxed) { 3 } else { 1 };
        let delay = Duration::from_millis(self.options.delay) / shorter;
        let Some(knee) = self.options.knee else {
            if !delay.is_zero() {
                sleep(delay).await;
            }
            return;
        };
        let in_work = Arc::clone(&self.in_work);
        let load = f64::from(in_work.fetch_add(1, Ordering::Relaxed) + 1) / f64::from(knee);
        let working = tokio::spawn(async move {
            sleep(delay.mul_f64(1.0 + load * load)).await;
            in_work.fetch_sub(1, Ordering::Relaxed);
        });
        // It cannot panic, and is never cancelled.
        let _ = working.await;
    }

    /// Calls the next service, if there is one, and puts this one before all that took part.
    async fn chain(&self, request: &Request<Incoming>) -> Response<Body> {
        let asked = request.uri().query().unwrap_or_default().split('&').any(|part| part == "headers");
        let own = Hop {
            service: self.options.name.clone(),
            version: self.options.version.clone(),
            pod: self.options.pod.clone(),
            headers: if asked { headers(request) } else { BTreeMap::new() },
        };
        let (status, mut answer) = match &self.options.next {
            None => (StatusCode::OK, Answer::default()),
            Some(next) => match self.call(next, request).await {
                Ok(answer) => (StatusCode::OK, answer),
                Err(error) => {
                    let error = Some(format!("{} cannot call {next}: {error:#}", self.options.name));
                    (StatusCode::BAD_GATEWAY, Answer { chain: Vec::new(), error })
                }
            },
        };
        answer.chain.insert(0, own);
        let mut response = Response::new(full(serde_json::to_vec(&answer).unwrap_or_default()));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }

    async fn call(&self, next: &Uri, request: &Request<Incoming>) -> Result<Answer> {
        let mut parts = next.clone().into_parts();
        parts.path_and_query = request.uri().path_and_query().cloned();
        let mut onward = Request::new(Empty::new());
        *onward.uri_mut() = Uri::from_parts(parts)?;
        if self.options.next_http2 {
            *onward.version_mut() = Version::HTTP_2;
        }
        let headers = onward.headers_mut();
        let trace = request.headers().get(TRACEPARENT);
        if !self.options.copy_trace {
            headers.insert(TRACEPARENT, self.traceparent(trace)?);
        } else if let Some(trace) = trace {
            headers.insert(TRACEPARENT, trace.clone());
        }
        if !self.options.no_baggage {
            for baggage in request.headers().get_all(BAGGAGE) {
                headers.append(BAGGAGE, baggage.clone());
            }
        }
        let response = self.client.request(onward).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        match serde_json::from_slice::<Answer>(&body) {
            Ok(answer) if status.is_success() => Ok(answer),
            _ => anyhow::bail!("{status}: {}", String::from_utf8_lossy(&body).trim()),
        }
    }

    /// The caller's trace with a span of our own; a new trace if the caller has none.
    /// <https://www.w3.org/TR/trace-context/#traceparent-header>
    fn traceparent(&self, caller: Option<&HeaderValue>) -> Result<HeaderValue> {
        // An odd step visits every number; the rotation makes neighbours look different.
        let span = self.spans.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed).rotate_left(17) | 1;
        let text = match caller
            .and_then(|value| value.to_str().ok())
            .map(|text| text.split('-').collect::<Vec<_>>())
        {
            Some(parts) if parts.len() == 4 && parts[1].len() == 32 => {
                format!("{}-{}-{span:016x}-{}", parts[0], parts[1], parts[3])
            }
            _ => format!("00-{:016x}{span:016x}-{span:016x}-01", !span),
        };
        HeaderValue::from_str(&text).context("a trace id that is no header value")
    }
}

/// The headers of a request as they arrived, and its path and query as HTTP/2 names them.
fn headers(request: &Request<Incoming>) -> BTreeMap<String, String> {
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let mut map = BTreeMap::from([(":path".to_owned(), path)]);
    for (name, value) in request.headers() {
        let value = String::from_utf8_lossy(value.as_bytes());
        map.entry(name.to_string())
            .and_modify(|all| *all = format!("{all}, {value}"))
            .or_insert(value.into_owned());
    }
    map
}

/// So many bytes, which take no memory: a thousand clients may want megabytes each and read nothing.
struct Repeated {
    left: u64,
}

impl hyper::body::Body for Repeated {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        static PART: [u8; 64 * 1024] = [b'x'; 64 * 1024];
        let part = self.left.min(PART.len() as u64);
        self.left -= part;
        Poll::Ready((part > 0).then(|| Ok(Frame::data(Bytes::from_static(&PART[..part as usize])))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

fn refuse(usage: &'static str) -> Response<Body> {
    let mut response = Response::new(full(usage));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response
}
