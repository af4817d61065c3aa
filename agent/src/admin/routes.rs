//! The table of what can be asked: both listeners serve from it, and [`super::openapi`] is made from it.
//!
//! A new route is a line here. What only root may ask is not there for whoever comes over TCP.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, LazyLock},
};

use http::{StatusCode, request::Parts};
use http_body_util::Either;
use hyper::body::Bytes;
use schemars::{Schema, SchemaGenerator};

use super::{
    Rights,
    desk::{CallAnswer, CallAsked, Question, Released, Status, Wrong},
    live::{self, Parameters},
    openapi, page,
    pages::{Answer, JSON, Pages, TEXT, text},
    view::{Detail, LaneDetail, Overview},
};
use crate::{
    api::{self, plain},
    config::Settings,
    observe::metrics::Format,
    proxy::explain::Explanation,
};

const EVENTS: &str = "text/event-stream";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Put,
    Post,
}

impl Verb {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Post => "POST",
        }
    }

    /// Whether a request with this method is for the route. hyper leaves the body of an answer to HEAD out by itself.
    fn takes(self, method: &str) -> bool {
        self.as_str() == method || (self == Self::Get && method == "HEAD")
    }
}

/// Who may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// Whoever reaches the address of `--admin`, and root over the socket.
    Anybody,
    /// Root over the socket.
    Root,
}

/// A parameter of the query.
pub(super) struct Parameter {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) example: &'static str,
    pub(super) required: bool,
}

/// What a body holds.
pub(super) struct Content {
    pub(super) media_type: &'static str,
    /// Of JSON.
    pub(super) schema: Option<fn(&mut SchemaGenerator) -> Schema>,
}

/// An answer that a route may give.
pub(super) struct Said {
    pub(super) status: u16,
    pub(super) about: &'static str,
    /// Each of the media types that it may have; none, if it has no body.
    pub(super) content: Vec<Content>,
}

/// The body that a route takes.
pub(super) struct Taken {
    pub(super) content: Content,
    pub(super) most_bytes: usize,
    pub(super) example: &'static str,
}

pub(super) type Later = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// What a route does.
pub(super) enum Act {
    Read(fn(&Pages, &Parts) -> Answer),
    /// With the body. Nothing that takes long.
    Tell(fn(&Pages, &Bytes) -> Answer),
    /// What has to be waited for, with the body.
    Ask(fn(Arc<Pages>, Parts, Bytes) -> Later),
}

pub(super) struct Route {
    pub(super) verb: Verb,
    pub(super) path: &'static str,
    pub(super) who: Who,
    pub(super) summary: &'static str,
    pub(super) parameters: &'static [Parameter],
    pub(super) takes: Option<Taken>,
    pub(super) says: Vec<Said>,
    pub(super) act: Act,
}

impl Route {
    fn read(
        path: &'static str,
        summary: &'static str,
        said: Said,
        act: fn(&Pages, &Parts) -> Answer,
    ) -> Self {
        Self {
            verb: Verb::Get,
            path,
            who: Who::Anybody,
            summary,
            parameters: &[],
            takes: None,
            says: vec![said],
            act: Act::Read(act),
        }
    }

    fn with(self, parameters: &'static [Parameter]) -> Self {
        Self { parameters, ..self }
    }

    fn or(mut self, status: u16, about: &'static str) -> Self {
        self.says.push(Said { status, about, content: vec![of_text(TEXT)] });
        self
    }

    fn for_root(self) -> Self {
        Self { who: Who::Root, ..self }
    }

    fn may(&self, rights: Rights) -> bool {
        self.who == Who::Anybody || rights == Rights::Change
    }
}

pub(super) fn of_text(media_type: &'static str) -> Content {
    Content { media_type, schema: None }
}

fn is_text(media_type: &'static str, about: &'static str) -> Said {
    Said { status: 200, about, content: vec![of_text(media_type)] }
}

pub(super) fn is_json(about: &'static str, schema: fn(&mut SchemaGenerator) -> Schema) -> Said {
    Said { status: 200, about, content: vec![Content { media_type: JSON, schema: Some(schema) }] }
}

const fn parameter(name: &'static str, about: &'static str, example: &'static str) -> Parameter {
    Parameter { name, about, example, required: false }
}

const NAMESPACE: Parameter = parameter("namespace", "The namespace of the Service.", "shop");
const NAME: Parameter = parameter("name", "The name of the Service.", "orders");
const TAG: Parameter = parameter("tag", "The tag of a lane.", "gray");
const PORT: Parameter = parameter("port", "The number of the Service's port.", "80");
static SERVICE: [Parameter; 4] = [
    Parameter { required: true, ..NAMESPACE },
    Parameter { required: true, ..NAME },
    Parameter { required: true, ..PORT },
    parameter("seconds", "How many of the last seconds, at most and by default 900.", "60"),
];
static LANE: [Parameter; 2] = [
    Parameter { required: true, ..TAG },
    parameter(
        "namespace",
        "Only what is in this namespace; by default all that have to do with the lane.",
        "shop",
    ),
];
static WATCHED: [Parameter; 4] = [NAMESPACE, NAME, PORT, TAG];

/// All routes.
static ROUTES: LazyLock<Vec<Route>> = LazyLock::new(|| {
    let mut routes = vec![
        Route {
            act: Act::Ask(|pages, asked, _| Box::pin(async move { pages.metrics(&asked.headers).await })),
            says: vec![Said {
                status: 200,
                about: "All metrics, as Accept and Accept-Encoding ask for them: in the text format, or as OpenMetrics with \
                        exemplars; packed with gzip or not.",
                content: vec![of_text(Format::Text.media_type()), of_text(Format::OpenMetrics.media_type())],
            }],
            ..Route::read("/metrics", "Metrics for Prometheus", is_text(TEXT, ""), |_, _| {
                text(StatusCode::OK, TEXT, "")
            })
        },
        Route::read("/healthz", "The process works", is_text(TEXT, "It does."), |pages, _| pages.healthy())
            .or(503, "A worker has been silent for so long that the process is to be started anew."),
        Route::read("/readyz", "The agent is ready", is_text(TEXT, "It is."), |pages, _| pages.ready())
            .or(503, "It is not; each line is a reason."),
        Route::read(
            "/config",
            "Every setting, and where it comes from",
            is_json("The active settings.", SchemaGenerator::subschema_for::<Settings>),
            |pages, _| pages.config(),
        ),
        Route::read(
            "/openapi.json",
            "This document",
            is_json("OpenAPI 3.1.", |_| schemars::json_schema!({"type": "object"})),
            |_, _| openapi::answer(),
        ),
        Route::read(
            "/api/overview",
            "Services, lanes, calls, pods and policies of this node, with the last minute",
            is_json("How things stand.", SchemaGenerator::subschema_for::<Overview>),
            |pages, _| live::overview(&pages.view),
        ),
        Route::read(
            "/api/service",
            "One service port, second by second",
            is_json("Its lanes, endpoints, rules.", SchemaGenerator::subschema_for::<Detail>),
            |pages, asked| live::service(&pages.view, &asked.uri),
        )
        .with(&SERVICE)
        .or(400, "A parameter is missing or not valid.")
        .or(404, "There is no managed service port of that name."),
        Route::read(
            "/api/lane",
            "A lane: its pods by Service, where it falls back, its entry rules",
            is_json("Beside the baseline.", SchemaGenerator::subschema_for::<LaneDetail>),
            |pages, asked| live::lane(&pages.view, &asked.uri),
        )
        .with(&LANE)
        .or(400, "No tag is named.")
        .or(404, "There is no lane of that name."),
        Route::read(
            "/api/events",
            "The overview, and a service port or a lane if named, every second",
            is_text(EVENTS, "Server-sent events."),
            |pages, asked| live::events(&pages.view, &asked.uri),
        )
        .with(&WATCHED)
        .or(400, "A parameter is missing or not valid.")
        .or(503, "Too many clients listen already."),
        Route::read("/log-filter", "The log filter", is_text(TEXT, "The active filter."), |pages, _| {
            text(StatusCode::OK, TEXT, pages.log.text() + "\n")
        })
        .for_root(),
    ];
    for verb in [Verb::Put, Verb::Post] {
        let takes = Taken { content: of_text(TEXT), most_bytes: 4096, example: "info,sluice::proxy=debug" };
        let read = Route::read(
            "/log-filter",
            "Changes the log filter, until the agent ends",
            is_text(TEXT, "The filter that is active now."),
            |_, _| text(StatusCode::OK, TEXT, ""),
        );
        let act = Act::Tell(Pages::set_log_filter);
        routes.push(
            Route { verb, takes: Some(takes), act, ..read }
                .for_root()
                .or(400, "The filter cannot be read; the one before stays.")
                .or(413, "More than 4096 bytes."),
        );
    }
    routes.extend(root());
    routes.extend(page::files().map(|(path, media_type)| {
        let mut route =
            Route::read(path, "The dashboard", is_text(media_type, "A file of it."), |_, asked| {
                page::answer(asked.uri.path(), &asked.headers).map(Either::Left)
            });
        route.says.push(Said { status: 304, about: "The browser has it.", content: Vec::new() });
        route
    }));
    routes
});

static PAST: [Parameter; 3] = [
    parameter("request_id", "What the request's x-request-id says.", "0b5a9e2c"),
    parameter("trace_id", "The 32 hexadecimal digits of its trace.", "0af7651916cd43dd8448eb211c80319c"),
    parameter("most", "No more than so many, the newest; by default 20, at most 100.", "10"),
];

/// What [`super::desk`] answers.
fn root() -> Vec<Route> {
    let none = |_: &Pages, _: &Parts| text(StatusCode::OK, TEXT, "");
    let status = is_json("The status.", SchemaGenerator::subschema_for::<Status>);
    let dump = is_json("All of it.", |_| schemars::json_schema!({"type": "object"}));
    let past = is_json("Decisions, the newest first.", SchemaGenerator::subschema_for::<Vec<Explanation>>);
    let explanation = is_json("The decision.", SchemaGenerator::subschema_for::<Explanation>);
    let answer = is_json("The answer.", SchemaGenerator::subschema_for::<CallAnswer>);
    let released = is_json("What was taken away.", SchemaGenerator::subschema_for::<Released>);
    let takes = |schema, example| Taken {
        content: Content { media_type: JSON, schema: Some(schema) },
        most_bytes: 256 << 10,
        example,
    };
    let question = takes(
        SchemaGenerator::subschema_for::<Question>,
        r#"{"pod": "shop/client", "to": "orders.shop:80", "headers": ["x-mse-tag: gray"]}"#,
    );
    let call = takes(
        SchemaGenerator::subschema_for::<CallAsked>,
        r#"{"request": {"pod": "shop/client", "to": "orders.shop:80"}, "lane": "gray"}"#,
    );
    let wrong = "The question is not valid; the response says what is wrong with it.";
    vec![
        Route::read("/status", "Health of the agent: what is wrong, and what to do", status, |pages, _| {
            live::json(&pages.desk.status())
        })
        .for_root(),
        Route {
            act: Act::Ask(|pages, _, _| Box::pin(async move { live::json(&pages.desk.dump(&pages).await) })),
            ..Route::read("/dump", "Everything that the agent knows", dump, none).for_root()
        },
        Route {
            act: Act::Ask(|pages, asked, _| {
                Box::pin(async move {
                    let named = Parameters(asked.uri.query().unwrap_or_default());
                    let (id, trace, most) =
                        (named.get("request_id"), named.get("trace_id"), named.get("most"));
                    say(pages.desk.past(id, trace, most).await)
                })
            }),
            ..Route::read("/decisions", "Requests that have ended, with their decisions", past, none)
                .with(&PAST)
                .for_root()
                .or(400, wrong)
                .or(503, "There is no proxy to ask: the agent starts or stops.")
        },
        Route {
            verb: Verb::Post,
            takes: Some(question),
            act: Act::Tell(|pages, body| say(read(body).and_then(|question| pages.desk.explain(&question)))),
            ..Route::read("/explain", "What would become of a request now, and why", explanation, none)
                .for_root()
                .or(400, wrong)
                .or(404, "No such pod or service.")
                .or(413, "More than 256 KiB.")
        },
        Route {
            verb: Verb::Post,
            takes: Some(call),
            act: Act::Ask(|pages, _, body| {
                Box::pin(async move {
                    match read(&body) {
                        Ok(asked) => say(pages.desk.call(&asked).await),
                        Err(wrong) => say::<CallAnswer>(Err(wrong)),
                    }
                })
            }),
            ..Route::read("/call", "Sends a test request as a pod", answer, none)
                .for_root()
                .or(400, wrong)
                .or(404, "No such pod or service, or no answer.")
                .or(413, "More than 256 KiB.")
                .or(503, "There is no proxy to ask: the agent starts or stops.")
        },
        Route {
            verb: Verb::Post,
            act: Act::Tell(|pages, _| say(pages.desk.release())),
            ..Route::read(
                "/release",
                "Takes away what would refuse connections without an agent",
                released,
                none,
            )
            .for_root()
            .or(503, "The agent starts or stops, or something is left.")
        },
    ]
}

fn read<T: serde::de::DeserializeOwned>(body: &Bytes) -> Result<T, Wrong> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let read = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let (field, words) = (api::path_of(error.path()), plain::words(error.inner()));
        Wrong::Question(if field.is_empty() { words } else { format!("{field}: {words}") })
    })?;
    reader.end().map_err(|error| Wrong::Question(plain::words(&error)))?;
    Ok(read)
}

fn say<T: serde::Serialize>(answer: Result<T, Wrong>) -> Answer {
    let status = match &answer {
        Ok(answer) => return live::json(answer),
        Err(Wrong::Question(_)) => StatusCode::BAD_REQUEST,
        Err(Wrong::Missing(_)) => StatusCode::NOT_FOUND,
        Err(Wrong::Unavailable(_)) => StatusCode::SERVICE_UNAVAILABLE,
    };
    text(status, TEXT, answer.err().map(|wrong| format!("{wrong}\n")).unwrap_or_default())
}

pub(super) fn all() -> &'static [Route] {
    &ROUTES
}

/// What is asked, if it is there for this one.
pub(super) enum Found {
    Route(&'static Route),
    /// Only with other methods, these.
    Method(String),
    /// There are these.
    Nothing(String),
}

pub(super) fn find(method: &str, path: &str, rights: Rights) -> Found {
    let here = |route: &&Route| route.path == path && route.may(rights);
    let mut found = ROUTES.iter().filter(here).peekable();
    if found.peek().is_none() {
        let paths = ROUTES.iter().filter(|route| route.may(rights) && !route.path.starts_with("/page/"));
        let mut paths: Vec<_> = paths.map(|route| route.path).collect();
        paths.dedup();
        return Found::Nothing(paths.join(", "));
    }
    let verbs: Vec<_> = found
        .clone()
        .flat_map(|route| [Some(route.verb.as_str()), (route.verb == Verb::Get).then_some("HEAD")])
        .flatten()
        .collect();
    match found.find(|route| route.verb.takes(method)) {
        Some(route) => Found::Route(route),
        None => Found::Method(verbs.join(", ")),
    }
}
