//! One watch, through disconnects, resyncs, silence and refusals.
//!
//! ```text
//!            streaming list, else pages
//!   nothing ----------------------------> version known ---- ended, cut ----+
//!     ^  ^                                  |   ^ |                        |
//!     |  +-- the server does not answer ----+   | +-- events, bookmarks    |
//!     |                                         +--------------------------+
//!     +---- 410 Gone; not even a bookmark; the server's history went back
//! ```
//!
//! This is what kube's `watcher` does, and four things that it does not: a watch that stood is opened again at once
//! instead of after a second; a streaming list is as new as the server's storage, where kube's may be as old as a
//! server that has just come up (and endpoints would go back in time); a list in pages takes its place where the
//! server has no streaming lists; and a watch that is silent, without even a bookmark, is believed no longer: a
//! connection that nobody notices is dead is silent, and so is a server whose storage was restored from a backup, to
//! which the version that the watch begins at is still to come.
//!
//! Nor does a watch fail in silence: watches that end as soon as they have begun, again and again, and such that bring what is no
//! event, are failures. One that goes on from a version, and stands for a second, is taken to be current.
//!
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes>

use std::{
    fmt::Debug,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _};
use kube::{
    Api, Resource,
    api::{ListParams, WatchEvent, WatchParams},
    core::Status,
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};

use super::{
    absence,
    client::chain,
    pace::{AT_MOST, Pace, STOOD, UNKNOWN_AT_MOST},
    watch::{Common, Failure, News, Pulse, Said, Told, Unheard, Voice},
};
use crate::cluster::{
    cause::Away,
    source::{Sighting, WatchEnd},
};

/// Objects to a page, as many as client-go asks for.
const PAGE: u32 = 500;
/// How long a page may take, once it was begun.
const PAGE_TIME: Duration = Duration::from_secs(60);
/// So many watches in a row that ended as soon as they had begun are no accident.
const SHORT_LIVED: u32 = 3;
/// On the bookmark that ends a streaming list.
const END_OF_LIST: &str = "k8s.io/initial-events-end";

/// What a watch goes by.
pub(super) struct Follow<T: Told = Sighting> {
    /// Of fields.
    pub(super) selector: Option<Arc<str>>,
    pub(super) pulse: Arc<Pulse>,
    pub(super) common: Common,
    pub(super) voice: Voice<T>,
}

pub(super) struct Reader<K, S, T: Told = Sighting> {
    api: Api<K>,
    follow: Follow<T>,
    strip: S,
    /// Everything up to this version has been told; `None`: nothing is known.
    version: Option<String>,
    /// The last streaming list did not come to its end: the next one is a list in pages.
    in_pages: bool,
    /// The last list in pages grew too old before its end: the next one is one page.
    in_one_page: bool,
    /// So many watches in a row have ended as soon as they began, and told nothing.
    short_lived: u32,
}

/// Why an attempt ended.
enum End {
    /// A list is there: the watch begins.
    Listed,
    /// For no special reason.
    Over(WatchEnd),
    Failed(Failure, WatchEnd),
    Unheard,
}

impl From<Unheard> for End {
    fn from(_: Unheard) -> Self {
        Self::Unheard
    }
}

impl<K, S, T> Reader<K, S, T>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    S: Fn(K) -> Option<T>,
    T: Told,
{
    pub(super) fn new(api: Api<K>, follow: Follow<T>, strip: S) -> Self {
        Self { api, follow, strip, version: None, in_pages: false, in_one_page: false, short_lived: 0 }
    }

    /// Until nobody listens.
    pub(super) async fn run(mut self) {
        let mut pace = Pace::default();
        loop {
            let began = Instant::now();
            let end = match self.version.clone() {
                Some(version) => self.resume(&version).await,
                None => self.begin().await,
            };
            let end = self.judge(end, began);
            let unknown = matches!(&end, End::Failed(failure, _) if failure.is_unknown());
            let late = match &end {
                // From nothing, which a server that lost its history asks of everybody at once.
                End::Over(WatchEnd::Gone | WatchEnd::WentBack) => self.follow.common.spread,
                // Cut off, and maybe all of them together; what is known can be gone on from, which costs little.
                End::Over(WatchEnd::Broken) => self.follow.common.spread / 10,
                _ => Duration::ZERO,
            };
            let stood = match &end {
                End::Listed => continue,
                End::Unheard => return,
                End::Over(_) | End::Failed(_, WatchEnd::Silent) => Some(began.elapsed()),
                End::Failed(..) => None,
            };
            let told = match end {
                End::Failed(failure, why) => match self.follow.voice.say(Said::Failed(failure)).await {
                    Ok(()) => self.follow.voice.say(Said::Ended(why)).await,
                    unheard => unheard,
                },
                End::Over(why) => self.follow.voice.say(Said::Ended(why)).await,
                End::Listed | End::Unheard => Ok(()),
            };
            if told.is_err() {
                return;
            }
            let at_most = if unknown { UNKNOWN_AT_MOST } else { AT_MOST };
            let wait = pace.wait(stood, at_most, fastrand::f64());
            tokio::time::sleep(wait.max(late.mul_f64(fastrand::f64()))).await;
        }
    }

    /// A watch that ends is nothing to speak of, unless none ever stands.
    fn judge(&mut self, end: End, began: Instant) -> End {
        let End::Over(why @ (WatchEnd::Ended | WatchEnd::Broken)) = end else {
            self.short_lived = 0;
            return end;
        };
        if began.elapsed() >= STOOD || self.follow.pulse.last() > began {
            self.short_lived = 0;
        } else {
            self.short_lived = self.short_lived.saturating_add(1);
        }
        if self.short_lived < SHORT_LIVED {
            return End::Over(why);
        }
        let message = "its watches end as soon as they have begun, and tell nothing";
        End::Failed(Failure::Away(Away::Otherwise, message.to_owned()), why)
    }

    /// From nothing: all objects, and with a streaming list also what follows.
    async fn begin(&mut self) -> End {
        let streaming = &self.follow.common.streaming;
        if streaming.load(Ordering::Relaxed) && !std::mem::take(&mut self.in_pages) {
            // Without a version: as new as the storage.
            match self.api.watch(&self.watch_params(true), "").await {
                Ok(events) => return self.read(events, Some(Vec::new())).await,
                // "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
                Err(kube::Error::Api(status)) if matches!(status.code, 400 | 422) => {
                    streaming.store(false, Ordering::Relaxed);
                }
                // It may be allowed to list.
                Err(kube::Error::Api(status)) if status.code == 403 => {}
                Err(error) => return failed("watch", &error),
            }
        }
        match self.list().await {
            Ok((all, version)) => {
                self.version = Some(version);
                match self.follow.voice.say(Said::Objects(News::Listed(all))).await {
                    Ok(()) => End::Listed,
                    Err(unheard) => unheard.into(),
                }
            }
            Err(end) => end,
        }
    }

    /// Page by page, so that what is not used of the objects is held for a page at a time.
    async fn list(&mut self) -> Result<(Vec<T>, String), End> {
        let mut params = ListParams {
            field_selector: self.follow.selector.as_deref().map(str::to_owned),
            limit: (!std::mem::take(&mut self.in_one_page)).then_some(PAGE),
            ..ListParams::default()
        };
        let mut all = Vec::new();
        loop {
            let page = match timeout(PAGE_TIME, self.api.list(&params)).await {
                Ok(Ok(page)) => page,
                Ok(Err(kube::Error::Api(status))) if status.code == 410 => {
                    self.in_one_page = true;
                    return Err(End::Over(WatchEnd::Gone));
                }
                Ok(Err(error)) => return Err(failed("list", &error)),
                Err(_) => {
                    let message = format!("a list does not come to its end within {} s", PAGE_TIME.as_secs());
                    return Err(End::Failed(Failure::Away(Away::Silent, message), WatchEnd::Silent));
                }
            };
            self.follow.pulse.beat();
            all.extend(page.items.into_iter().filter_map(&self.strip));
            match (page.metadata.continue_.filter(|token| !token.is_empty()), page.metadata.resource_version)
            {
                (Some(token), _) => params.continue_token = Some(token),
                (None, Some(version)) => return Ok((all, version)),
                (None, None) => {
                    let message = "it lists without a resourceVersion".to_owned();
                    return Err(End::Failed(Failure::Away(Away::Otherwise, message), WatchEnd::Broken));
                }
            }
        }
    }

    /// From what is known.
    async fn resume(&mut self, version: &str) -> End {
        match self.api.watch(&self.watch_params(false), version).await {
            Ok(events) => self.read(events, None).await,
            Err(kube::Error::Api(status)) if status.code == 410 => self.gone(),
            Err(error) => failed("watch", &error),
        }
    }

    fn watch_params(&self, initial: bool) -> WatchParams {
        WatchParams {
            field_selector: self.follow.selector.as_deref().map(str::to_owned),
            send_initial_events: initial,
            ..WatchParams::default()
        }
    }

    fn gone(&mut self) -> End {
        self.version = None;
        End::Over(WatchEnd::Gone)
    }

    /// To the watch's end. `list` holds what has come of a streaming list, until that is whole.
    async fn read(
        &mut self,
        events: impl Stream<Item = kube::Result<WatchEvent<K>>>,
        mut list: Option<Vec<T>>,
    ) -> End {
        let mut events = pin!(events.peekable());
        // A watch that goes on from what is known, and stands, tells all that comes: there was nothing. Otherwise who was away would
        // be taken to be so until the next bookmark.
        let mut is_new = list.is_none();
        loop {
            if std::mem::take(&mut is_new) {
                let mut event = pin!(events.as_mut().peek());
                if timeout(STOOD, event.as_mut()).await.is_err() {
                    self.follow.pulse.beat();
                }
            }
            let common = &self.follow.common;
            let patience = if list.is_some() { common.listing } else { common.quiet };
            let Ok(event) = timeout(patience, events.next()).await else {
                return self.silent(list.is_some(), patience);
            };
            let (changed, bookmark) = match event {
                Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object))) => {
                    (Some((object, true)), None)
                }
                Some(Ok(WatchEvent::Deleted(object))) => (Some((object, false)), None),
                Some(Ok(WatchEvent::Bookmark(bookmark))) => (None, Some(bookmark)),
                Some(Ok(WatchEvent::Error(status))) if status.code == 410 => return self.gone(),
                Some(Ok(WatchEvent::Error(status))) => {
                    self.in_pages = list.is_some();
                    return refused("watch", &status);
                }
                Some(Err(kube::Error::Api(status))) if status.code == 410 => return self.gone(),
                // It would come again.
                Some(Err(kube::Error::SerdeError(error))) => {
                    self.version = None;
                    let message = format!("a watch tells what cannot be read: {error}");
                    return End::Failed(Failure::Away(Away::Otherwise, message), WatchEnd::Broken);
                }
                Some(Err(error)) => {
                    tracing::debug!(error = chain(&error), "a watch was broken off");
                    self.in_pages = list.is_some();
                    return End::Over(WatchEnd::Broken);
                }
                None => {
                    self.in_pages = list.is_some();
                    return End::Over(WatchEnd::Ended);
                }
            };
            self.follow.pulse.beat();
            let said = if let Some((object, is_there)) = changed {
                let version = object.meta().resource_version.clone().unwrap_or_default();
                match &mut list {
                    Some(list) => {
                        list.extend((self.strip)(object));
                        None
                    }
                    None if version.is_empty() => {
                        self.version = None;
                        let message = "it tells of objects without a resourceVersion".to_owned();
                        return End::Failed(Failure::Away(Away::Otherwise, message), WatchEnd::Broken);
                    }
                    None if self.is_past(&version) => return self.went_back(&version),
                    None => {
                        self.version = Some(version);
                        (self.strip)(object).map(|told| {
                            if is_there { News::Applied(told) } else { News::Deleted(told.key()) }
                        })
                    }
                }
            } else if let Some(bookmark) = bookmark {
                let version = bookmark.metadata.resource_version;
                if self.is_past(&version) {
                    return self.went_back(&version);
                }
                let ends_list = bookmark.metadata.annotations.contains_key(END_OF_LIST);
                let listed = list.take_if(|_| ends_list);
                if list.is_none() {
                    self.version = Some(version);
                }
                listed.map(News::Listed)
            } else {
                None
            };
            if let Some(news) = said
                && let Err(unheard) = self.follow.voice.say(Said::Objects(news)).await
            {
                return unheard.into();
            }
        }
    }

    /// Versions of one resource can be compared since Kubernetes 1.35, and could always where they are numbers.
    fn is_past(&self, version: &str) -> bool {
        let number = |version: &str| version.parse::<u128>().ok();
        let known = self.version.as_deref().and_then(number);
        known.zip(number(version)).is_some_and(|(known, version)| version < known)
    }

    fn went_back(&mut self, version: &str) -> End {
        let known = self.version.take().unwrap_or_default();
        tracing::warn!(
            known,
            version,
            "the API server's history went back (restored from a backup?): everything is listed anew"
        );
        End::Over(WatchEnd::WentBack)
    }

    fn silent(&mut self, listing: bool, patience: Duration) -> End {
        self.version = None;
        self.in_pages = listing;
        let seconds = patience.as_secs();
        let what = if listing {
            format!("a list was silent for {seconds} s before its end")
        } else {
            format!("a watch was silent for {seconds} s, without even a bookmark")
        };
        End::Failed(Failure::Away(Away::Silent, what), WatchEnd::Silent)
    }
}

/// What an error means for the watch.
fn failed(verb: &'static str, error: &kube::Error) -> End {
    match error {
        kube::Error::Api(status) => refused(verb, status),
        // Its own words say that it is one.
        kube::Error::Service(inner) => {
            End::Failed(Failure::Away(absence::of(error), chain(&**inner)), WatchEnd::Unreachable)
        }
        error => End::Failed(Failure::Away(absence::of(error), chain(error)), WatchEnd::Unreachable),
    }
}

fn refused(verb: &'static str, status: &Status) -> End {
    let Status { code, message, .. } = status;
    let failure = match code {
        401 | 403 | 404 => Failure::Refused { verb, code: *code, message: message.clone() },
        _ => Failure::Away(absence::by_status(*code, message), format!("it answers {code}: {message}")),
    };
    End::Failed(failure, WatchEnd::Status(*code))
}
