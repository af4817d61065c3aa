//! What the page is made from, as JSON and as a stream of events.

use std::sync::Arc;

use http::{
    HeaderValue, Response, StatusCode, Uri,
    header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER},
};
use http_body_util::Either;
use percent_encoding::percent_decode_str;
use serde::Serialize;

use super::{
    page,
    pages::{Answer, JSON, TEXT, text},
    view::{LaneName, Name, View, Watched},
};
use crate::observe::history::SECONDS;

const EXAMPLE: &str = "as in /api/service?namespace=shop&name=orders&port=80";

/// `/api/overview`
pub(super) fn overview(view: &View) -> Answer {
    json(&view.overview())
}

/// `/api/service?namespace=&name=&port=`, with the last 15 minutes or `&seconds=` of them.
pub(super) fn service(view: &View, asked: &Uri) -> Answer {
    let parameters = Parameters(asked.query().unwrap_or_default());
    let name = match parameters.service() {
        Ok(Some(name)) => name,
        Ok(None) => return wrong(&format!("namespace, name and port say which service, {EXAMPLE}")),
        Err(why) => return wrong(&why),
    };
    let seconds = match parameters.get("seconds").map(|seconds| seconds.parse::<usize>()) {
        None => SECONDS,
        Some(Ok(seconds)) if seconds <= SECONDS => seconds,
        Some(_) => return wrong(&format!("seconds: a number from 0 to {SECONDS}")),
    };
    match view.service(&name, seconds) {
        Some(detail) => json(&detail),
        None => text(StatusCode::NOT_FOUND, TEXT, "there is no managed service port of that name\n"),
    }
}

/// `/api/lane?tag=`, in all namespaces or in that of `&namespace=`.
pub(super) fn lane(view: &View, asked: &Uri) -> Answer {
    let Some(name) = Parameters(asked.query().unwrap_or_default()).lane() else {
        return wrong("tag says which lane, as in /api/lane?tag=gray&namespace=shop");
    };
    match view.lane(&name) {
        Some(detail) => json(&detail),
        None => text(StatusCode::NOT_FOUND, TEXT, "there is no lane of that name\n"),
    }
}

/// `/api/events`, with the details of a service or a lane if one is named as above.
pub(super) fn events(view: &Arc<View>, asked: &Uri) -> Answer {
    let parameters = Parameters(asked.query().unwrap_or_default());
    let watched = match parameters.lane() {
        Some(lane) => Ok(Some(Watched::Lane(lane))),
        None => parameters.service().map(|service| service.map(Watched::Service)),
    };
    let watched = match watched {
        Ok(watched) => watched,
        Err(why) => return wrong(&why),
    };
    match view.events(watched) {
        Ok(events) => {
            let mut response = Response::new(Either::Right(events));
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            page::guard(headers);
            response
        }
        Err(error) => {
            let mut refused = text(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{error}\n"));
            refused.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
            refused
        }
    }
}

pub(super) fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_string(value) {
        Ok(body) => {
            let mut answer = text(StatusCode::OK, JSON, body + "\n");
            answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            page::guard(answer.headers_mut());
            answer
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
    }
}

fn wrong(why: &str) -> Answer {
    text(StatusCode::BAD_REQUEST, TEXT, format!("{why}\n"))
}

/// A query, as in `namespace=shop&name=orders`.
pub(super) struct Parameters<'q>(pub(super) &'q str);

impl Parameters<'_> {
    pub(super) fn get(&self, name: &str) -> Option<String> {
        let mut pairs = self.0.split('&').filter_map(|pair| pair.split_once('='));
        let (_, value) = pairs.find(|(key, _)| *key == name)?;
        Some(percent_decode_str(value).decode_utf8_lossy().into_owned())
    }

    /// `None`: none is named.
    fn lane(&self) -> Option<LaneName> {
        Some(LaneName {
            tag: self.get("tag")?,
            namespace: self.get("namespace").filter(|name| !name.is_empty()),
        })
    }

    /// `None`: none is named.
    fn service(&self) -> Result<Option<Name>, String> {
        match (self.get("namespace"), self.get("name"), self.get("port")) {
            (Some(namespace), Some(name), Some(port)) => {
                let port = port.parse().map_err(|_| format!("port: a number from 0 to 65535, {EXAMPLE}"))?;
                Ok(Some(Name { namespace: namespace.into(), name: name.into(), port }))
            }
            (None, None, None) => Ok(None),
            _ => Err(format!("namespace, name and port are needed together, {EXAMPLE}")),
        }
    }
}
