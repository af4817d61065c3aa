//! What can be asked, and what is answered.

use std::{
    convert::Infallible,
    fmt,
    io::{self, Write as _},
    sync::Arc,
};

use flate2::{Compression, write::GzEncoder};
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, VARY},
};
use http_body_util::{BodyExt as _, Either, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};

use super::{
    Rights, accept,
    desk::Desk,
    routes::{self, Act, Found},
    view::{EventStream, View},
};
use crate::{
    config::Settings,
    observe::{
        log::LogFilter,
        metrics::{Format, Metrics},
    },
};

pub(super) const TEXT: &str = "text/plain; charset=utf-8";
pub(super) const JSON: &str = "application/json";

/// Whether the agent governs.
pub trait Readiness: Send + Sync + 'static {
    /// Why not, one sentence each; empty if it does. Called for each `/readyz`: it must not block.
    fn missing(&self) -> Vec<String>;

    /// Why the process is beyond help, and is to be started anew. Called for each `/healthz`: it must not block.
    fn stuck(&self) -> Option<String> {
        None
    }
}

impl<F: Fn() -> Vec<String> + Send + Sync + 'static> Readiness for F {
    fn missing(&self) -> Vec<String> {
        self()
    }
}

/// What the pages are made from.
pub struct Pages {
    pub metrics: Arc<Metrics>,
    pub readiness: Arc<dyn Readiness>,
    pub settings: Settings,
    pub log: LogFilter,
    pub view: Arc<View>,
    pub desk: Arc<Desk>,
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").finish_non_exhaustive()
    }
}

pub(super) type Answer = Response<Either<Full<Bytes>, EventStream>>;

impl Pages {
    pub(super) async fn answer<B>(
        self: &Arc<Self>,
        request: Request<B>,
        rights: Rights,
    ) -> Result<Answer, Infallible>
    where
        B: Body,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let method = request.method().as_str();
        let route = match routes::find(method, request.uri().path(), rights) {
            Found::Route(route) => route,
            Found::Method(allowed) => {
                let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, TEXT, format!("only {allowed}\n"));
                // Made of the table's methods, so it is one.
                if let Ok(allowed) = HeaderValue::from_str(&allowed) {
                    refused.headers_mut().insert(ALLOW, allowed);
                }
                return Ok(refused);
            }
            Found::Nothing(known) => {
                return Ok(text(StatusCode::NOT_FOUND, TEXT, format!("not found: there are {known}\n")));
            }
        };
        let (asked, body) = request.into_parts();
        let body = match &route.takes {
            None => Bytes::new(),
            Some(taken) => match Limited::new(body, taken.most_bytes).collect().await {
                Ok(body) => body.to_bytes(),
                Err(error) if error.is::<LengthLimitError>() => {
                    let why = format!("what is sent is longer than {} bytes\n", taken.most_bytes);
                    return Ok(text(StatusCode::PAYLOAD_TOO_LARGE, TEXT, why));
                }
                Err(error) => {
                    let why = format!("what is sent cannot be read: {error}\n");
                    return Ok(text(StatusCode::BAD_REQUEST, TEXT, why));
                }
            },
        };
        Ok(match route.act {
            Act::Read(act) => act(self, &asked),
            Act::Tell(act) => act(self, &body),
            Act::Ask(act) => act(Arc::clone(self), asked, body).await,
        })
    }

    /// In the format and the coding that the headers ask for. On a thread of its own: a busy node's are some megabytes.
    pub(super) async fn metrics(&self, asked: &HeaderMap) -> Answer {
        let (format, gzip) = (accept::format(asked), accept::gzip(asked));
        let metrics = self.metrics.clone();
        let rendered = tokio::task::spawn_blocking(move || render(&metrics, format, gzip)).await;
        let mut answer = match rendered.map_err(Unserved::from).and_then(|rendered| rendered) {
            Ok(body) => text(StatusCode::OK, format.media_type(), body),
            Err(error) => {
                tracing::error!(%error, "admin: the metrics cannot be rendered");
                return text(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n"));
            }
        };
        let headers = answer.headers_mut();
        headers.insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
        if gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        answer
    }

    pub(super) fn ready(&self) -> Answer {
        let missing = self.readiness.missing();
        if missing.is_empty() {
            text(StatusCode::OK, TEXT, "ok\n")
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, TEXT, missing.join("\n") + "\n")
        }
    }

    pub(super) fn healthy(&self) -> Answer {
        match self.readiness.stuck() {
            None => text(StatusCode::OK, TEXT, "ok\n"),
            Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, TEXT, why + "\n"),
        }
    }

    pub(super) fn settings_in_force(&self) -> Settings {
        self.settings.clone().with_live("--log", &self.log.text())
    }

    pub(super) fn config(&self) -> Answer {
        match serde_json::to_string_pretty(&self.settings_in_force()) {
            Ok(body) => text(StatusCode::OK, JSON, body + "\n"),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
        }
    }

    pub(super) fn set_log_filter(&self, body: &Bytes) -> Answer {
        let refuse = |why: String| text(StatusCode::BAD_REQUEST, TEXT, why + "\n");
        let Ok(filter) = std::str::from_utf8(body) else {
            return refuse("the filter is not UTF-8".to_owned());
        };
        let before = self.log.text();
        match self.log.set(filter) {
            Ok(()) => {
                let now = self.log.text();
                tracing::info!(%before, %now, "the log filter was changed over the admin socket");
                text(StatusCode::OK, TEXT, now + "\n")
            }
            Err(error) => refuse(error.to_string()),
        }
    }
}

/// Why metrics are not served.
#[derive(Debug, thiserror::Error)]
enum Unserved {
    #[error("{0}")]
    Metrics(#[from] prometheus::Error),
    #[error("cannot pack them: {0}")]
    Gzip(#[from] io::Error),
    #[error("{0}")]
    Thread(#[from] tokio::task::JoinError),
}

fn render(metrics: &Metrics, format: Format, gzip: bool) -> Result<Vec<u8>, Unserved> {
    let text = metrics.render_as(format)?.into_bytes();
    if !gzip {
        return Ok(text);
    }
    // A scrape is text that repeats itself: the fastest level makes a twentieth of it.
    let mut packed = GzEncoder::new(Vec::with_capacity(text.len() / 16), Compression::fast());
    packed.write_all(&text)?;
    Ok(packed.finish()?)
}

pub(super) fn text(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Either::Left(Full::from(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}
