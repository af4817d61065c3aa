//! Sources at times that the tests choose; and the transport against a server that speaks TLS.

use std::{
    collections::{BTreeMap, VecDeque},
    slice,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};

use super::{
    Failed, MOST_SOURCES, Origin, Outcome, Sources, State, Wanted,
    fetch::{self, Transport},
    https::Https,
};
use crate::{
    clock::Nanos,
    govern::jwt::{Keys, Known, Location, keys::MAX_BYTES, testing::Signer},
    tls::NoTrust,
};

const EVERY: Duration = Duration::from_secs(300);

fn at(seconds: u64) -> Nanos {
    Nanos::of(Duration::from_secs(seconds))
}

fn location(text: &str) -> Location {
    text.parse().unwrap()
}

fn sources(hosts: &[&str]) -> Sources {
    Sources::new(hosts.iter().map(|host| host.parse().unwrap()).collect())
}

fn wanted(uris: &[(&str, &Arc<Known>)]) -> BTreeMap<Origin, Wanted> {
    let wanted = |known: &Arc<Known>| Wanted {
        known: known.clone(),
        every: EVERY,
        namespaces: ["shop".into()].into(),
    };
    uris.iter().map(|(uri, known)| (location(uri).into(), wanted(known))).collect()
}

fn set(kids: &[(&Signer, &str)]) -> String {
    let keys: Vec<_> = kids.iter().map(|(signer, kid)| signer.jwk(json!({"kid": kid}))).collect();
    json!({ "keys": keys }).to_string()
}

fn keys(text: &str) -> Result<Keys, Failed> {
    fetch::read(text.as_bytes())
}

const URI: &str = "https://login.example.com/keys";

#[test]
fn keys_are_replaced_and_what_is_fetched_badly_leaves_the_last_good_ones() {
    let (old, new) = (Signer::p256(), Signer::p256());
    let (sources, known) = (sources(&["login.example.com"]), Arc::<Known>::default());
    let here = location(URI);
    sources.want(wanted(&[(URI, &known)]), at(0));
    let state = |seconds| sources.states(at(seconds)).into_iter().next().unwrap();
    assert_eq!((state(7).keys, state(7).age, state(7).trouble), (0, Duration::from_secs(7), None));
    assert_eq!(sources.due(at(7), 8), slice::from_ref(&here));
    assert_eq!(sources.due(at(7), 8), [], "it is under way");
    sources.end(&here, keys(&set(&[(&old, "a")])), at(8), 0.0);
    let first = known.keys().unwrap();
    // The same again: it stays the same, and what was verified by it.
    assert_eq!(sources.due(at(307), 8), []);
    assert_eq!(sources.due(at(308), 8), slice::from_ref(&here));
    sources.end(&here, keys(&set(&[(&old, "a")])), at(309), 0.0);
    assert!(Arc::ptr_eq(&first, &known.keys().unwrap()));
    assert_eq!(state(319).age, Duration::from_secs(10));
    // Garbage, of several kinds.
    let secret = json!({"keys": [old.jwk(json!({"d": "c2VjcmV0"}))]}).to_string();
    let large = " ".repeat(MAX_BYTES + 1);
    let many = json!({"keys": vec![json!({}); 101]}).to_string();
    for (n, (bad, why)) in [
        ("<html>", "not JSON"),
        ("{}", "not a JSON Web Key Set"),
        ("{\"keys\": []}", "it has no key"),
        (&large, "may have 262144"),
        (&many, "101 keys"),
        (&secret, "keys[0] has d, which is secret"),
    ]
    .into_iter()
    .enumerate()
    {
        let now = at(1000 + n as u64 * 400);
        assert_eq!(sources.due(now, 8), slice::from_ref(&here));
        sources.end(&here, keys(bad), now, 0.0);
        assert!(Arc::ptr_eq(&first, &known.keys().unwrap()));
        let State { trouble, counts, .. } = state(1000);
        assert!(trouble.as_ref().is_some_and(|said| said.contains(why)), "{why}: {trouble:?}");
        assert_eq!((counts[Outcome::Ok as usize], counts[Outcome::Invalid as usize]), (2, n as u64 + 1));
    }
    // Another key.
    assert_eq!(sources.due(at(9000), 8), slice::from_ref(&here));
    sources.end(&here, keys(&set(&[(&old, "a"), (&new, "b")])), at(9000), 0.0);
    assert_eq!((state(9001).keys, state(9001).trouble), (2, None));
}

#[test]
fn hosts_that_are_not_allowed_are_never_called() {
    let sources = sources(&["login.example.com", "*.corp.example"]);
    let known: Vec<Arc<Known>> = (0..4).map(|_| Arc::default()).collect();
    let uris = [
        "https://login.example.com:8443/keys",
        "https://169.254.169.254/latest/meta-data",
        "https://kubernetes.default.svc/openid/v1/jwks",
        "https://id.corp.example/keys",
    ];
    let all: Vec<_> = uris.iter().copied().zip(&known).collect();
    sources.want(wanted(&all), at(0));
    for n in 0..3 {
        for known in &known {
            known.ask();
        }
        assert_eq!(sources.due(at(n * 400), 8), [location(uris[3])]);
        sources.end(&location(uris[3]), Err(Failed::Timeout), at(n * 400), 0.0);
    }
    for known in &known[..3] {
        let trouble = known.trouble().unwrap();
        assert!(trouble.contains("--jwks-hosts") && known.keys().is_none(), "{trouble}");
    }
    sources.want(wanted(&all[3..]), at(1200));
    assert_eq!(sources.states(at(1200)).len(), 1, "what nobody wants is not told of");
}

#[test]
fn what_no_policy_wants_is_forgotten_and_there_is_an_end_to_it() {
    let sources = sources(&["login.example.com"]);
    let known = Arc::<Known>::default();
    sources.want(wanted(&[(URI, &known)]), at(0));
    assert_eq!(sources.due(at(0), 8).len(), 1);
    sources.want(BTreeMap::new(), at(1));
    sources.end(&location(URI), keys(&set(&[(&Signer::p256(), "a")])), at(2), 0.0);
    assert!(known.keys().is_none() && sources.states(at(2)).is_empty() && sources.due(at(999), 8).is_empty());
    let uris: Vec<_> = (0..=MOST_SOURCES).map(|n| format!("{URI}/{n:03}")).collect();
    let all: Vec<_> = uris.iter().map(|uri| (uri.as_str(), Arc::<Known>::default())).collect();
    let refer = |from: usize| all[from..].iter().map(|(uri, known)| (*uri, known)).collect::<Vec<_>>();
    sources.want(wanted(&refer(0)), at(3));
    assert_eq!(sources.due(at(3), 999).len(), MOST_SOURCES);
    let last = &all[MOST_SOURCES].1;
    assert!(last.trouble().is_some_and(|trouble| trouble.contains("256")));
    // Where there is room again, it has it.
    sources.want(wanted(&refer(1)), at(4));
    assert_eq!(sources.due(at(4), 999), [location(&uris[MOST_SOURCES])]);
    assert!(last.trouble().is_none());
}

#[test]
fn what_is_missing_is_told_when_it_is_known_why() {
    let (sources, known) = (sources(&["login.example.com"]), Arc::<Known>::default());
    let mut changes = sources.changes();
    let mut news = || {
        let is_news = changes.has_changed().unwrap();
        changes.mark_unchanged();
        is_news
    };
    sources.want(wanted(&[(URI, &known)]), at(0));
    assert!(!news());
    for (seconds, fetched, is_told) in [
        (0, Err(Failed::Timeout), true),
        (400, Err(Failed::Timeout), false),
        (800, Err(Failed::Status(500)), true),
        (1200, keys(&set(&[(&Signer::p256(), "a")])), true),
        (1600, Err(Failed::Timeout), false),
        (2000, keys(&set(&[(&Signer::p256(), "a")])), false),
    ] {
        assert_eq!(sources.due(at(seconds), 8).len(), 1);
        sources.end(&location(URI), fetched, at(seconds), 0.0);
        assert_eq!(news(), is_told, "at {seconds}");
    }
}

/// Gives these responses one after the other, and then none.
struct Fake {
    responses: Mutex<VecDeque<Result<Vec<u8>, Failed>>>,
    asked: Arc<AtomicUsize>,
}

impl Transport for Fake {
    async fn get(&self, _: &Location) -> Result<Vec<u8>, Failed> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let next = self.responses.lock().unwrap().pop_front();
        match next {
            Some(response) => response,
            None => std::future::pending().await,
        }
    }
}

#[tokio::test]
async fn the_fetcher_goes_on_after_failures_and_does_not_ask_more_than_once_at_a_time() {
    let (sources, known) = (Arc::new(sources(&["login.example.com"])), Arc::<Known>::default());
    let responses = [Err(Failed::Status(503)), Ok(set(&[(&Signer::p256(), "a")]).into_bytes())];
    let asked = Arc::new(AtomicUsize::new(0));
    let fake = Fake { responses: Mutex::new(responses.into()), asked: asked.clone() };
    let fetching = tokio::spawn(fetch::run(sources.clone(), fake));
    sources.want(wanted(&[(URI, &known)]), Nanos::now());
    while known.keys().is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    // A key is asked for that is not known: once, for as long as there is no answer.
    while asked.load(Ordering::Relaxed) < 3 {
        known.ask();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for _ in 0..150 {
        known.ask();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(asked.load(Ordering::Relaxed), 3);
    assert!(known.keys().is_some());
    fetching.abort();
}

/// A server at loopback with a certificate of an authority of its own.
struct Server {
    authority: String,
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Gives each request this response, and closes the connection.
    async fn start(response: Vec<u8>) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let heard = asked.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Who does not trust it is gone.
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => break,
                    }
                }
                heard.lock().unwrap().push(String::from_utf8(head).unwrap());
                // Who has had enough is gone, too.
                let _ = stream.write_all(&response).await;
                let _ = stream.shutdown().await;
            }
        });
        Self { authority: issuer.pem(), port, asked }
    }

    fn trusted(&self) -> (tempfile::TempDir, Https) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ca.pem");
        std::fs::write(&file, &self.authority).unwrap();
        let https = Https::new(Some(file)).unwrap();
        (directory, https)
    }

    async fn get(&self, host: &str) -> Result<Vec<u8>, Failed> {
        let (_directory, https) = self.trusted();
        https.get(&location(&format!("https://{host}:{}/keys?p=a", self.port))).await
    }
}

#[tokio::test]
async fn keys_come_over_https() {
    let server = Server::start(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_vec()).await;
    assert_eq!(server.get("localhost").await.unwrap(), b"{}");
    let head = server.asked.lock().unwrap()[0].to_ascii_lowercase();
    let host = format!("\r\nhost: localhost:{}\r\n", server.port);
    assert!(head.starts_with("get /keys?p=a http/1.1\r\n") && head.contains(&host), "{head}");
    assert!(!head.contains("authorization") && !head.contains("cookie"), "{head}");
    // A name that the certificate does not have.
    let error = server.get("127.0.0.1").await.unwrap_err();
    assert!(matches!(error, Failed::Tls(..)), "{error}");
    // An authority that is not trusted.
    let https = Https::new(None).unwrap();
    let error = https.get(&location(&format!("https://localhost:{}/keys", server.port))).await.unwrap_err();
    assert!(matches!(error, Failed::Tls(..)), "{error}");
    assert_eq!(server.asked.lock().unwrap().len(), 1, "nobody else got as far as a request");
}

#[tokio::test]
async fn nothing_but_a_set_of_a_bounded_size_is_taken() {
    let large = format!("HTTP/1.1 200 OK\r\n\r\n{}", " ".repeat(MAX_BYTES + 1));
    for (response, outcome) in [
        (
            "HTTP/1.1 302 Found\r\nlocation: https://localhost/\r\ncontent-length: 0\r\n\r\n",
            Outcome::Redirect,
        ),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", Outcome::Status),
        ("HTTP/1.1 204 No Content\r\n\r\n", Outcome::Status),
        (&large, Outcome::TooLarge),
        ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{}", Outcome::Http),
        ("SSH-2.0-a\r\n\r\n", Outcome::Http),
    ] {
        let server = Server::start(response.as_bytes().to_vec()).await;
        let error = server.get("localhost").await.unwrap_err();
        assert_eq!(error.outcome(), outcome, "{error}");
        assert_eq!(server.asked.lock().unwrap().len(), 1);
    }
    let https = Https::new(None).unwrap();
    let error = https.get(&location(&format!("https://{}/", sluice_tests::nobody()))).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Connect, "{error}");
}

#[tokio::test]
async fn the_file_of_authorities_may_change_and_become_bad() {
    let server = Server::start(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_vec()).await;
    let (other, uri) =
        (Server::start(Vec::new()).await, location(&format!("https://localhost:{}/keys", server.port)));
    let (directory, https) = other.trusted();
    assert!(https.get(&uri).await.is_err());
    let file = directory.path().join("ca.pem");
    std::fs::write(&file, &server.authority).unwrap();
    assert!(https.get(&uri).await.is_ok());
    for bad in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        std::fs::write(&file, bad).unwrap();
        assert!(https.get(&uri).await.is_ok(), "the last ones stay");
        assert!(matches!(Https::new(Some(file.clone())), Err(NoTrust::NoCertificate { .. })));
    }
    std::fs::remove_file(&file).unwrap();
    assert!(https.get(&uri).await.is_ok());
    assert!(matches!(Https::new(Some(file)), Err(NoTrust::Read { .. })));
}

#[test]
fn each_outcome_has_its_place() {
    for (at, outcome) in Outcome::ALL.into_iter().enumerate() {
        assert_eq!(outcome as usize, at);
    }
}

#[test]
fn a_query_is_shown_to_nobody() {
    let origin = |uri: &str| Origin::from(uri.parse::<Location>().unwrap()).without_query();
    assert_eq!(origin("https://login.example.com/keys?apikey=secret"), "https://login.example.com/keys?...");
    assert_eq!(origin("https://login.example.com/keys"), "https://login.example.com/keys");
}
