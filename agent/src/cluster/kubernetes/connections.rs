//! Connections to the API server. Over HTTP/2 one of them carries many watches.
//!
//! kube's own client offers the server HTTP/1.1 only, over which each watch has a connection of its own. This one offers both.
//! A server takes so many streams of a connection (Kubernetes's: 100, unless it is told otherwise), and what is asked beyond that
//! waits for a stream to end, which a watch does not do for minutes: so there is another connection before it comes to that.
//!
//! Where the way to the server is special (a proxy, another name in its certificate) it is kube's client after all.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Uri, uri::Scheme};
use http_body_util::{BodyExt as _, combinators::UnsyncBoxBody};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt as _},
};
use tower::{BoxError, Layer as _, ServiceExt as _};

/// An API server that cannot be reached is noticed after so long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection carries so many requests and watches at most, and leaves room for what comes between two looks at it.
const STREAMS: usize = 80;
/// A connection on which nothing has come for so long is asked whether it is there...
const PING: Duration = Duration::from_secs(20);
/// ...and is not, if nothing comes for as long again.
const PONG: Duration = Duration::from_secs(20);
/// What may be on its way to one watch, before it is read...
const STREAM_WINDOW: u32 = 256 << 10;
/// ...and to all of a connection: a watch whose events nobody reads must not hold up the others.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * 128;

/// The body of a response. The stream is in use for as long as it is held.
pub(super) type Answer = UnsyncBoxBody<Bytes, BoxError>;

/// To one server, with the same credentials.
pub(super) struct Connections {
    config: Config,
    all: Mutex<Vec<Connection>>,
}

#[derive(Clone)]
struct Connection {
    client: Client,
    streams: Arc<AtomicUsize>,
}

/// A stream in use.
struct Stream(Arc<AtomicUsize>);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Connections {
    /// None yet, but it is known that they can be made.
    pub(super) fn new(mut config: Config) -> kube::Result<Self> {
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // Time without an answer is measured where it is known what is waited for.
        config.read_timeout = None;
        // Whoever asks knows when to ask again.
        config.default_retry = false;
        let first = Connection { client: client(&config)?, streams: Arc::default() };
        Ok(Self { config, all: Mutex::new(vec![first]) })
    }

    /// Where they lead.
    pub(super) fn server(&self) -> &Uri {
        &self.config.cluster_url
    }

    pub(super) async fn send(&self, request: Request<Body>) -> kube::Result<Response<Answer>> {
        let (client, stream) = self.pick()?;
        let answer = client.send(request).await?;
        Ok(answer.map(|body| {
            let held = body.map_frame(move |frame| {
                let _in_use = &stream;
                frame
            });
            held.map_err(BoxError::from).boxed_unsync()
        }))
    }

    /// A connection with room for one more stream.
    fn pick(&self) -> kube::Result<(Client, Stream)> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = |connection: &Connection| connection.streams.load(Relaxed) < STREAMS;
        let at = if let Some(at) = all.iter().position(has_room) {
            at
        } else {
            all.push(Connection { client: client(&self.config)?, streams: Arc::default() });
            all.len() - 1
        };
        let Connection { client, streams } = all[at].clone();
        streams.fetch_add(1, Relaxed);
        // Those that are not needed any more.
        let mut index = 0;
        all.retain(|connection| {
            let stays = index <= at || connection.streams.load(Relaxed) > 0;
            index += 1;
            stays
        });
        Ok((client, Stream(streams)))
    }
}

/// A client with a connection of its own, once it is used.
fn client(config: &Config) -> kube::Result<Client> {
    let is_plain = |url: &Uri| url.scheme() == Some(&Scheme::HTTP);
    if config.proxy_url.is_some() || config.tls_server_name.is_some() || is_plain(&config.cluster_url) {
        return Client::try_from(config.clone());
    }
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let mut tls = config.rustls_client_config()?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let connector = hyper_rustls::HttpsConnector::from((http, Arc::new(tls)));
    let mut builder = legacy::Client::builder(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(PING)
        .http2_keep_alive_timeout(PONG);
    let client: legacy::Client<_, Body> = builder.build(connector);
    let client = config.extra_headers_layer()?.layer(client.map_err(BoxError::from));
    let namespace = config.default_namespace.clone();
    Ok(match config.auth_layer()? {
        Some(auth) => Client::new(config.base_uri_layer().layer(auth.layer(client)), namespace),
        None => Client::new(config.base_uri_layer().layer(client), namespace),
    })
}
