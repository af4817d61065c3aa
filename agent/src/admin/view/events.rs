//! The same, live: server-sent events, one whenever a second is over.
//! <https://html.spec.whatwg.org/multipage/server-sent-events.html>
//!
//! The first event holds all that is kept, those that follow only the seconds since the one before. An event is made when
//! the connection has room for it, so that nothing is queued for whoever reads slowly: it gets fewer events, with
//! more seconds each, and one that does not read at all is cut off by its connection. There are at most
//! [`MAX_SUBSCRIBERS`] at a time.

use std::{convert::Infallible, fmt::Write as _, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde::Serialize;
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::{Instant, timeout_at},
};

use super::{LaneName, Name, SPARK, View};
use crate::observe::history::SECONDS;

/// The page is for a few people at a time; each of them costs as much a second as a request for all that it shows.
pub(super) const MAX_SUBSCRIBERS: usize = 16;
/// A stream ends by itself before its connection is ended. The browser asks again, and misses nothing.
const LASTS: Duration = Duration::from_secs(240);
/// After how many milliseconds the browser asks again.
const RETRY_MILLIS: u32 = 1000;

/// There are as many subscribers as there may be.
#[derive(Debug, thiserror::Error)]
#[error("{MAX_SUBSCRIBERS} live views are open already: close one, or ask for /api/overview")]
pub struct TooMany;

/// What is told besides the overview.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    Service(Name),
    Lane(LaneName),
}

/// The body of an answer that goes on.
pub type EventStream = StreamBody<Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>>;

struct Subscriber {
    view: Arc<View>,
    watched: Option<Watched>,
    seconds: watch::Receiver<u64>,
    /// The newest second that was sent; `None`: nothing was.
    sent: Option<u64>,
    until: Instant,
    _place: OwnedSemaphorePermit,
}

impl View {
    /// Sends the overview each second, and the details of a service or a lane if one is named.
    pub fn events(self: &Arc<Self>, watched: Option<Watched>) -> Result<EventStream, TooMany> {
        let place = Arc::clone(&self.subscribers).try_acquire_owned().map_err(|_| TooMany)?;
        let subscriber = Subscriber {
            view: Arc::clone(self),
            watched,
            seconds: self.second.subscribe(),
            sent: None,
            until: Instant::now() + LASTS,
            _place: place,
        };
        let events = stream::unfold(subscriber, |mut subscriber| async move {
            let event = subscriber.next().await?;
            Some((Ok(Frame::data(Bytes::from(event))), subscriber))
        });
        Ok(StreamBody::new(Box::pin(events)))
    }
}

impl Subscriber {
    /// The next event, when there is something to tell; `None`: that was the last.
    async fn next(&mut self) -> Option<String> {
        let Some(sent) = self.sent else {
            let now = *self.seconds.borrow_and_update();
            self.sent = Some(now);
            let mut events = format!("retry: {RETRY_MILLIS}\n\n");
            self.write(&mut events, SPARK, SECONDS);
            return Some(events);
        };
        // Neither time is over nor is nobody there to say that it is: the view holds the sender.
        timeout_at(self.until, self.seconds.changed()).await.ok()?.ok()?;
        let now = *self.seconds.borrow_and_update();
        self.sent = Some(now);
        let since = usize::try_from(now.saturating_sub(sent)).unwrap_or(usize::MAX);
        let mut events = String::new();
        self.write(&mut events, since.min(SPARK), since.min(SECONDS));
        Some(events)
    }

    fn write(&self, out: &mut String, spark: usize, seconds: usize) {
        write(out, "overview", &self.view.overview_since(spark));
        match &self.watched {
            Some(Watched::Service(name)) => write(out, "service", &self.view.service(name, seconds)),
            Some(Watched::Lane(name)) => write(out, "lane", &self.view.lane(name)),
            None => {}
        }
    }
}

/// One event. JSON has no line breaks of its own, so that nothing in it can end the event.
fn write(out: &mut String, event: &str, data: &impl Serialize) {
    match serde_json::to_string(data) {
        Ok(json) => {
            // Writing to a string does not fail.
            let _ = write!(out, "event: {event}\ndata: {json}\n\n");
        }
        Err(error) => tracing::error!(%error, event, "admin: an event cannot be encoded"),
    }
}
