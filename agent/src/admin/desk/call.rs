//! A test request, sent as a pod: through everything that its own requests go through, or straight to an endpoint.
//!
//! The agent makes a connection to itself and hands the other end to the proxy, as one of this pod's. So the request is
//! tagged, limited and balanced like the pod's own, leaves from the pod's network namespace, and counts in its numbers. To an
//! exact endpoint it is sent from the same namespace, and nothing decides about it.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, Uri,
    header::{CONTENT_TYPE, HOST, TE},
};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};

use super::{Desk, Question, Wrong};
use crate::{
    admin::view::Look,
    cluster::model::Protocol,
    govern::tag::Tag,
    proxy::{PodName, explain::Explanation},
};

/// For the whole of it; less than whoever asks over the socket waits.
const LIMIT: Duration = Duration::from_secs(8);
/// Of an answer's body, what is shown.
const MOST_BODY: usize = 64 * 1024;
/// How long it may take from an answer's last byte until its decision is kept.
const KEPT_WITHIN: Duration = Duration::from_millis(500);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A request that is to be sent.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct CallAsked {
    pub request: Question,
    /// The tag that it is to have, in the first tag header.
    #[serde(default)]
    pub lane: Option<String>,
    /// An exact endpoint, `ip:port`: nothing decides about the request then.
    #[serde(default)]
    pub endpoint: Option<String>,
    #[serde(default)]
    pub body: Option<String>,
}

/// What came back.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CallAnswer {
    pub status: u16,
    /// Each as in `content-type: text/plain`; values of cookies are left out.
    pub headers: Vec<String>,
    /// The first 64 KiB, as text.
    pub body: String,
    pub body_complete: bool,
    pub duration_ms: f64,
    /// What was decided; absent for an exact endpoint.
    pub decision: Option<Explanation>,
}

impl CallAsked {
    /// Whether it makes sense, whatever there is in the cluster.
    pub fn check(&self) -> Result<(), Wrong> {
        self.request.check()?;
        if let Some(lane) = &self.lane {
            lane.parse::<Tag>().map_err(|error| Wrong::Question(format!("lane: {error}")))?;
        }
        self.endpoint().map(drop)
    }

    fn endpoint(&self) -> Result<Option<SocketAddr>, Wrong> {
        let Some(text) = &self.endpoint else { return Ok(None) };
        let address = text.parse::<SocketAddr>().ok().filter(|address| address.port() > 0);
        let wrong = || Wrong::Question(format!("endpoint: {text:?} is no address, as in 10.244.1.7:8080"));
        address.map(Some).ok_or_else(wrong)
    }
}

impl Desk {
    /// Sends a test request and tells what came of it.
    pub(crate) async fn call(&self, asked: &CallAsked) -> Result<CallAnswer, Wrong> {
        asked.check()?;
        let endpoint = asked.endpoint()?;
        let proxy = self.proxy()?;
        let look = self.agent.look();
        let mut question = asked.request.clone();
        if let Some(lane) = &asked.lane {
            let name = self.tag_names.header();
            question.headers.push(format!("{name}: {lane}"));
        }
        let resolved = question.resolve(&look)?;
        if endpoint.is_none() {
            Question::is_managed(&look, resolved.dialled)?;
        }
        if let Some(why) = &resolved.not_captured {
            return Err(Wrong::Missing(format!("cannot call as {}: {why}", question.pod)));
        }
        let (caller, (dialled, host)) = (&resolved.caller, question.dialled(&look, &resolved.caller)?);
        let pod = PodName { namespace: caller.namespace.clone(), name: caller.name.clone() };
        let service = look.snapshot.destination(dialled).map(|found| &found.service);
        let speech = match service.map(|service| service.protocol) {
            Some(Protocol::Http2) => Speech::Http2,
            _ => Speech::Http1,
        };
        let (request, id) = request(&question, &host, asked.body.as_deref(), speech)?;
        let began = Instant::now();
        let sent = async {
            let stream = match endpoint {
                None => {
                    let (ours, theirs) = pair().await?;
                    proxy.carry(pod, theirs.into_std()?, dialled, &id);
                    ours
                }
                Some(to) => {
                    let found =
                        proxy.pod(&pod).await.ok_or_else(|| io::Error::other("the pod has just gone"))?;
                    let socket = found.network.socket(to, None)?;
                    TcpSocket::from_std_stream(socket.into()).connect(to).await?
                }
            };
            exchange(stream, request, speech).await
        };
        let answered = timeout(LIMIT, sent).await.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("no whole answer within {LIMIT:?}")))
        });
        let duration_ms = (began.elapsed().as_micros() as f64) / 1e3;
        let (response, body, body_complete) =
            answered.map_err(|error| Wrong::Missing(no_response(&error, duration_ms, &look, dialled)))?;
        let mut decision = None;
        let until = Instant::now() + KEPT_WITHIN;
        while asked.endpoint.is_none() && decision.is_none() && Instant::now() < until {
            decision = proxy.past(Some(&id), None, 1).await.pop();
            if decision.is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let headers = response.headers().iter().map(|(name, value)| {
            let secret = matches!(name.as_str(), "set-cookie" | "authorization" | "cookie");
            let value = if secret { "(not shown)".into() } else { String::from_utf8_lossy(value.as_bytes()) };
            format!("{name}: {value}")
        });
        Ok(CallAnswer {
            status: response.status().as_u16(),
            headers: headers.collect(),
            body,
            body_complete,
            duration_ms,
            decision,
        })
    }
}

/// What the port is declared to speak.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Speech {
    Http1,
    Http2,
}

/// Why there is no response. What does not speak HTTP answers in its own way, or not at all.
fn no_response(error: &io::Error, duration_ms: f64, look: &Look, dialled: SocketAddr) -> String {
    let cause = with_causes(error);
    let service = look.snapshot.destination(dialled).map(|found| &found.service);
    let because = match service.filter(|service| service.protocol == Protocol::Opaque) {
        Some(service) => {
            format!("{service} is declared not to speak HTTP, by its appProtocol or the name of its port")
        }
        None => match error.get_ref().and_then(|error| error.downcast_ref::<hyper::Error>()) {
            Some(error) if error.is_parse() => "the endpoint does not speak HTTP".to_owned(),
            Some(_) => "the connection ended before there was one; does the endpoint speak HTTP?".to_owned(),
            None => return format!("no response after {duration_ms:.1} ms: {cause}"),
        },
    };
    format!("no response after {duration_ms:.1} ms: {because} ({cause})")
}

/// An error, and what led to it.
fn with_causes(error: &io::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// The request, and the id by which its decision is found.
fn request(
    question: &Question,
    host: &str,
    body: Option<&str>,
    speech: Speech,
) -> Result<(Request<Full<Bytes>>, String), Wrong> {
    let (method, headers) = question.parts()?;
    let is_grpc = headers
        .iter()
        .any(|(name, value)| name == CONTENT_TYPE && value.as_bytes().starts_with(b"application/grpc"));
    let body = match body {
        // An empty message: what a call of gRPC has at the least.
        None if is_grpc => Bytes::from_static(&[0; 5]),
        body => body.unwrap_or_default().to_owned().into(),
    };
    let mut request = Request::new(Full::from(body));
    *request.method_mut() = method;
    *request.uri_mut() =
        question.target.parse().map_err(|error| Wrong::Question(format!("target: {error}")))?;
    for (name, value) in headers {
        request.headers_mut().append(name, value);
    }
    if !request.headers().contains_key(HOST) {
        let host =
            HeaderValue::from_str(host).map_err(|_| Wrong::Question(format!("to: {host:?} is no host")))?;
        request.headers_mut().insert(HOST, host);
    }
    let given = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).map(str::to_owned);
    let id = given.unwrap_or_else(|| format!("sluice-call-{:016x}", fastrand::u64(..)));
    if let Ok(value) = HeaderValue::from_str(&id) {
        request.headers_mut().insert(REQUEST_ID, value);
    }
    if speech == Speech::Http2 {
        // As HTTP/2 says whom it asks, and as gRPC says what its client understands.
        let authority = request.headers_mut().remove(HOST);
        let authority = authority.as_ref().map_or(host.as_bytes(), HeaderValue::as_bytes);
        let uri = Uri::builder().scheme("http").authority(authority).path_and_query(&*question.target);
        *request.uri_mut() = uri.build().map_err(|error| Wrong::Question(format!("target: {error}")))?;
        if is_grpc {
            request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
        }
    }
    Ok((request, id))
}

/// Two ends of a connection. Somebody else who connects in between is sent away.
async fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let ours = TcpStream::connect(listener.local_addr()?).await?;
    let own = ours.local_addr()?;
    loop {
        let (theirs, from) = listener.accept().await?;
        if from == own {
            return Ok((ours, theirs));
        }
    }
}

async fn exchange(
    stream: TcpStream,
    request: Request<Full<Bytes>>,
    speech: Speech,
) -> io::Result<(Response<()>, String, bool)> {
    let stream = TokioIo::new(stream);
    let (answered, connection) = match speech {
        Speech::Http1 => {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(stream).await.map_err(io::Error::other)?;
            let connection = tokio::spawn(connection);
            (answer(sender.send_request(request).await).await, connection)
        }
        Speech::Http2 => {
            let executor = TokioExecutor::new();
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(executor, stream).await.map_err(io::Error::other)?;
            let connection = tokio::spawn(connection);
            (answer(sender.send_request(request).await).await, connection)
        }
    };
    if !matches!(answered, Ok((_, _, true))) {
        connection.abort();
    }
    answered
}

async fn answer(response: hyper::Result<Response<Incoming>>) -> io::Result<(Response<()>, String, bool)> {
    let (mut head, body) = response.map_err(io::Error::other)?.into_parts();
    // Trailers, such as the status of gRPC, are shown behind the headers.
    let (body, complete) = read(body, &mut head.headers).await?;
    Ok((Response::from_parts(head, ()), String::from_utf8_lossy(&body).into_owned(), complete))
}

async fn read(mut body: Incoming, trailers: &mut HeaderMap) -> io::Result<(Vec<u8>, bool)> {
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = match frame.map_err(io::Error::other)?.into_trailers() {
            Ok(found) => {
                trailers.extend(found);
                continue;
            }
            Err(frame) => frame,
        };
        let Some(data) = frame.data_ref() else { continue };
        let room = MOST_BODY - whole.len();
        whole.extend_from_slice(&data[..data.len().min(room)]);
        if data.len() > room {
            return Ok((whole, false));
        }
    }
    Ok((whole, true))
}
