//! What can be asked, and what is answered.

use std::{convert::Infallible, fmt, sync::Arc};

use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
};
use http_body_util::{BodyExt as _, Either, Full, Limited};
use hyper::body::{Body, Bytes};

use super::{
    Rights, live, page,
    view::{EventStream, View},
};
use crate::{
    config::Settings,
    observe::{
        log::LogFilter,
        metrics::{self, Metrics},
    },
};

pub(super) const TEXT: &str = "text/plain; charset=utf-8";
pub(super) const JSON: &str = "application/json";
/// Longer than any filter that somebody means.
const MAX_FILTER_BYTES: usize = 4096;

/// Whether the agent governs.
pub trait Readiness: Send + Sync + 'static {
    /// Why not, one sentence each; empty if it does. Called for each `/readyz`: it must not block.
    fn missing(&self) -> Vec<String>;
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
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").finish_non_exhaustive()
    }
}

pub(super) type Answer = Response<Either<Full<Bytes>, EventStream>>;

impl Pages {
    pub(super) async fn answer<B>(&self, request: Request<B>, rights: Rights) -> Result<Answer, Infallible>
    where
        B: Body,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let path = request.uri().path();
        let read: fn(&Self, &Request<B>) -> Answer = match path {
            "/metrics" => |pages, _| pages.metrics(),
            "/healthz" => |_, _| text(StatusCode::OK, TEXT, "ok\n"),
            "/readyz" => |pages, _| pages.ready(),
            "/config" => |pages, _| pages.config(),
            "/api/overview" => |pages, _| live::overview(&pages.view),
            "/api/service" => |pages, request| live::service(&pages.view, request.uri()),
            "/api/events" => |pages, request| live::events(&pages.view, request.uri()),
            "/log-filter" if rights == Rights::Change => {
                |pages, _| text(StatusCode::OK, TEXT, pages.log.text() + "\n")
            }
            _ if page::file(path).is_some() => {
                |_, request| page::answer(request.uri().path(), request.headers()).map(Either::Left)
            }
            _ => {
                let more = if rights == Rights::Change { " and /log-filter" } else { "" };
                let known = format!(
                    "not found: there are / (a page for browsers), /metrics, /healthz, /readyz, /config, /api/overview, /api/service, /api/events{more}\n"
                );
                return Ok(text(StatusCode::NOT_FOUND, TEXT, known));
            }
        };
        let changes = path == "/log-filter";
        Ok(match *request.method() {
            // hyper leaves the body of an answer to HEAD out by itself.
            Method::GET | Method::HEAD => read(self, &request),
            Method::PUT | Method::POST if changes => self.set_log_filter(request.into_body()).await,
            _ => {
                let allowed = if changes { "GET, HEAD, PUT, POST" } else { "GET, HEAD" };
                let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, TEXT, format!("only {allowed}\n"));
                refused.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
                refused
            }
        })
    }

    fn metrics(&self) -> Answer {
        match self.metrics.render() {
            Ok(body) => text(StatusCode::OK, metrics::CONTENT_TYPE, body),
            Err(error) => {
                tracing::error!(%error, "admin: the metrics cannot be rendered");
                text(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n"))
            }
        }
    }

    fn ready(&self) -> Answer {
        let missing = self.readiness.missing();
        if missing.is_empty() {
            text(StatusCode::OK, TEXT, "ok\n")
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, TEXT, missing.join("\n") + "\n")
        }
    }

    fn config(&self) -> Answer {
        let settings = self.settings.clone().with_live("--log", &self.log.text());
        match serde_json::to_string_pretty(&settings) {
            Ok(body) => text(StatusCode::OK, JSON, body + "\n"),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
        }
    }

    async fn set_log_filter<B>(&self, body: B) -> Answer
    where
        B: Body,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let refuse = |why: String| text(StatusCode::BAD_REQUEST, TEXT, why + "\n");
        let body = match Limited::new(body, MAX_FILTER_BYTES).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return refuse(format!("the filter cannot be read: {error}")),
        };
        let Ok(filter) = std::str::from_utf8(&body) else {
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

pub(super) fn text(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Either::Left(Full::from(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}
