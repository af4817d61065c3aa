//! `pods/exec` over WebSockets: what `kubectl exec` and its like use.
//!
//! The first byte of a message is its channel: 0 standard input, 1 and 2 standard output and error, 3 how it ended, as a Status.
//! Version 5 of the protocol can close a channel (255 and its number); with version 4 standard input ends with the connection.
//! <https://github.com/kubernetes/kubernetes/blob/v1.33.0/staging/src/k8s.io/apimachinery/pkg/util/remotecommand/constants.go>

use std::{
    fmt,
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE},
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, ChildStdin},
    sync::mpsc,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, frame::coding::CloseCode},
    },
};

/// The newest first, as servers prefer them.
pub const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

const CLOSE: u8 = 255;

/// What is to be executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exec {
    pub namespace: String,
    pub pod: String,
    pub container: String,
    pub command: Vec<String>,
}

/// What is executed in its stead; the error is the kubelet's.
type Runs = dyn Fn(&Exec) -> Result<Command, String> + Send + Sync;

/// The kubelets behind the API server.
#[derive(Clone)]
pub(super) struct Kubelets {
    pub(super) runs: Arc<Runs>,
    pub(super) protocols: Vec<&'static str>,
    /// Programs that run.
    pub(super) running: Arc<AtomicUsize>,
}

impl Default for Kubelets {
    fn default() -> Self {
        Self {
            runs: Arc::new(|exec| Err(format!("error dialing backend: nobody executes in {}", exec.pod))),
            protocols: PROTOCOLS.to_vec(),
            running: Arc::default(),
        }
    }
}

impl fmt::Debug for Kubelets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kubelets").finish_non_exhaustive()
    }
}

/// Why it is refused: a status, and the message of it.
pub(super) type Refusal = (u16, String);

/// Answers with the switch of protocols, and then serves. `pod` is the one that is there.
pub(super) fn exec(
    request: Request<Incoming>,
    pod: &Value,
    kubelets: &Kubelets,
) -> Result<Response<super::answer::Body>, Refusal> {
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (mut command, mut container, mut stdin) = (Vec::new(), None, false);
    for (name, value) in super::answer::pairs(request.uri().query().unwrap_or_default()) {
        match &*name {
            "command" => command.push(value),
            "container" => container = Some(value),
            "stdin" => stdin = value == "true",
            _ => {}
        }
    }
    let exec = Exec {
        namespace: text("/metadata/namespace"),
        pod: text("/metadata/name"),
        container: container.unwrap_or_else(|| text("/spec/containers/0/name")),
        command,
    };
    let containers = pod["spec"]["containers"].as_array();
    if !containers.is_some_and(|all| all.iter().any(|one| one["name"] == *exec.container)) {
        return Err((400, format!("container {} is not valid for pod {}", exec.container, exec.pod)));
    }
    let header =
        |name| request.headers().get(name).and_then(|value: &hyper::header::HeaderValue| value.to_str().ok());
    let (Some(key), Some("websocket")) = (header(SEC_WEBSOCKET_KEY), header(UPGRADE)) else {
        return Err((400, "Upgrade request required".to_owned()));
    };
    let wanted: Vec<&str> =
        header(SEC_WEBSOCKET_PROTOCOL).unwrap_or_default().split(',').map(str::trim).collect();
    let Some(protocol) = kubelets.protocols.iter().copied().find(|protocol| wanted.contains(protocol)) else {
        return Err((403, format!("unable to upgrade: none of {wanted:?} is spoken here")));
    };
    let mut program = (kubelets.runs)(&exec).map_err(|why| (500, why))?;
    program.stdin(if stdin { Stdio::piped() } else { Stdio::null() });
    program.stdout(Stdio::piped()).stderr(Stdio::piped());

    let mut response = Response::new(super::answer::full(String::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    for (name, value) in [
        (CONNECTION, "Upgrade".to_owned()),
        (UPGRADE, "websocket".to_owned()),
        (SEC_WEBSOCKET_ACCEPT, derive_accept_key(key.as_bytes())),
        (SEC_WEBSOCKET_PROTOCOL, protocol.to_owned()),
    ] {
        headers.insert(name, value.parse().expect("it is ASCII"));
    }
    let running = kubelets.running.clone();
    tokio::spawn(async move {
        if let Ok(upgraded) = hyper::upgrade::on(request).await {
            let stream = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
            serve(stream, tokio::process::Command::from(program), &running).await;
        }
    });
    Ok(response)
}

type Stream = WebSocketStream<TokioIo<Upgraded>>;

/// A program that runs, until it is dropped.
struct Running(Arc<AtomicUsize>);

impl Running {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Passes everything on until the program has ended. A client that goes closes its standard input and no more, as container
/// runtimes do it.
async fn serve(stream: Stream, mut program: tokio::process::Command, running: &Arc<AtomicUsize>) {
    let (mut out, mut incoming) = stream.split();
    let mut child = match program.kill_on_drop(true).spawn() {
        Ok(child) => child,
        Err(error) => {
            let status = json!({
                "status": "Failure", "reason": "InternalError",
                "message": format!("OCI runtime exec failed: exec: {error}"),
            });
            let _ = out.send(message(3, status.to_string().as_bytes())).await;
            let _ = out.send(Message::Close(None)).await;
            return;
        }
    };
    let _running = Running::new(running);
    let (sender, mut messages) = mpsc::channel(16);
    // Real servers begin with an empty message on each channel.
    for channel in 1..=3 {
        let _ = out.send(message(channel, b"")).await;
    }
    let written = (child.stdout.take(), child.stderr.take());
    let copies = [
        written.0.map(|stdout| tokio::spawn(copy(stdout, 1, sender.clone()))),
        written.1.map(|stderr| tokio::spawn(copy(stderr, 2, sender.clone()))),
    ];
    drop(sender);
    let mut stdin = child.stdin.take();
    let mut gone = false;
    loop {
        tokio::select! {
            read = incoming.next(), if !gone => match read {
                Some(Ok(Message::Binary(bytes))) => input(&mut stdin, &bytes).await,
                Some(Ok(Message::Close(_)) | Err(_)) | None => {
                    (gone, stdin) = (true, None);
                }
                Some(Ok(_)) => {}
            },
            written = messages.recv() => match written {
                // Nobody reads: the program gets to know when it writes to its own closed pipe.
                Some(written) => if gone || out.send(written).await.is_err() {
                    (gone, stdin) = (true, None);
                    messages.close();
                },
                None => break,
            },
        }
    }
    for copy in copies.into_iter().flatten() {
        copy.abort();
    }
    end(child, &mut out).await;
}

async fn end(mut child: Child, out: &mut (impl futures_util::Sink<Message> + Unpin)) {
    let Ok(status) = child.wait().await else { return };
    let _ = out.send(message(3, told(status).to_string().as_bytes())).await;
    let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let _ = out.send(Message::Close(Some(normal))).await;
}

async fn input(stdin: &mut Option<ChildStdin>, bytes: &Bytes) {
    match bytes.split_first() {
        Some((0, data)) => {
            let written = match stdin {
                Some(stdin) => stdin.write_all(data).await.is_ok(),
                None => false,
            };
            if !written {
                *stdin = None;
            }
        }
        Some((&CLOSE, [0])) => *stdin = None,
        _ => {}
    }
}

async fn copy(mut from: impl AsyncRead + Unpin, channel: u8, to: mpsc::Sender<Message>) {
    let mut chunk = vec![0; 4096];
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        if to.send(message(channel, &chunk[..count])).await.is_err() {
            return;
        }
    }
}

fn message(channel: u8, data: &[u8]) -> Message {
    let mut bytes = vec![channel];
    bytes.extend_from_slice(data);
    Message::Binary(bytes.into())
}

/// As the kubelet tells how a program ended.
fn told(status: ExitStatus) -> Value {
    if status.success() {
        return json!({ "metadata": {}, "status": "Success" });
    }
    let code = status.code().unwrap_or(137).to_string();
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": { "causes": [{ "reason": "ExitCode", "message": code }] },
    })
}
