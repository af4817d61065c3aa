//! One end of a connection: its [`Handle`] sends, a task [reads](reading), and each [`Stream`] hears what is its own.

mod handle;
mod message;
mod reading;
mod stream;
mod windows;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize},
    },
};

use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream, tcp::OwnedWriteHalf},
    sync::{Notify, mpsc, watch},
};

use self::windows::{Credit, Given, Owed};
pub(in crate::proxy::http2::tests) use self::{
    handle::Handle,
    message::{Answer, Event, of},
    stream::Stream,
};
use super::{super::soon, frames};

/// How a wire behaves.
#[derive(Clone)]
pub(in crate::proxy::http2::tests) struct Wishes {
    pub(in crate::proxy::http2::tests) settings: Vec<(u16, u32)>,
    /// By how much the connection's window is larger than the protocol's at the beginning.
    pub(in crate::proxy::http2::tests) window: u32,
    /// Answers SETTINGS and PING.
    pub(in crate::proxy::http2::tests) answers: bool,
    /// Gives the connection's window again for what comes on any stream: else only for streams that take what comes.
    pub(in crate::proxy::http2::tests) shares: bool,
    /// Streams take what comes from the beginning: else once they are told to.
    pub(in crate::proxy::http2::tests) takes: bool,
    /// Panics if the peer sends more than its windows let it: not if a test gives windows by itself.
    pub(in crate::proxy::http2::tests) strict: bool,
    /// Ends the connection when its peer resets more streams than so many, as servers do that see an attack in it.
    pub(in crate::proxy::http2::tests) resets: Option<usize>,
    /// Bytes that the kernel keeps for us, if not as many as it likes.
    pub(in crate::proxy::http2::tests) kernel: Option<usize>,
}

impl Default for Wishes {
    fn default() -> Self {
        Self {
            settings: Vec::new(),
            window: 0,
            answers: true,
            shares: true,
            takes: true,
            strict: true,
            resets: None,
            kernel: None,
        }
    }
}

struct Shared {
    given: Mutex<Given>,
    wishes: Wishes,
    credit: Mutex<Credit>,
    changed: Notify,
    writes: tokio::sync::Mutex<OwnedWriteHalf>,
    owed: Mutex<Owed>,
    routes: Mutex<Routes>,
    reads: watch::Sender<bool>,
    closes: Notify,
    no_table: AtomicBool,
    /// Streams that the peer has reset.
    resets: AtomicUsize,
    ended: AtomicBool,
}

/// Who hears of what.
struct Routes {
    client: bool,
    next: u32,
    streams: HashMap<u32, mpsc::UnboundedSender<Event>>,
    control: mpsc::UnboundedSender<Event>,
    accepted: mpsc::UnboundedSender<Stream>,
}

pub(in crate::proxy::http2::tests) struct Wire {
    pub(in crate::proxy::http2::tests) handle: Handle,
    /// What is of no stream that anybody knows.
    pub(in crate::proxy::http2::tests) control: mpsc::UnboundedReceiver<Event>,
    /// Streams that the peer opens.
    pub(in crate::proxy::http2::tests) accepted: mpsc::UnboundedReceiver<Stream>,
}

impl Wire {
    /// A client.
    pub(in crate::proxy::http2::tests) async fn connect(address: SocketAddr, wishes: Wishes) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        if let Some(bytes) = wishes.kernel {
            socket.set_recv_buffer_size(bytes as u32).expect("a size");
        }
        let stream = soon(socket.connect(address)).await.expect("it listens");
        let wire = Self::new(stream, wishes, true);
        wire.greet(frames::PREFACE).await;
        wire
    }

    /// A server, on a connection whose preface is yet to come.
    pub(in crate::proxy::http2::tests) async fn accept(
        mut stream: TcpStream,
        wishes: Wishes,
    ) -> Option<Self> {
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await.ok()?;
        assert_eq!(preface, frames::PREFACE);
        let wire = Self::new(stream, wishes, false);
        wire.greet(b"").await;
        Some(wire)
    }

    /// A client that has said nothing yet.
    pub(in crate::proxy::http2::tests) async fn bare(address: SocketAddr) -> Self {
        Self::over(soon(TcpStream::connect(address)).await.expect("it listens"), true)
    }

    /// Either end of a connection, before its first byte.
    pub(in crate::proxy::http2::tests) fn over(stream: TcpStream, client: bool) -> Self {
        Self::new(stream, Wishes::default(), client)
    }

    async fn greet(&self, preface: &[u8]) {
        let wishes = &self.handle.0.wishes;
        let mut hello = [preface, &frames::settings(&wishes.settings)].concat();
        if wishes.window > 0 {
            hello.extend(frames::window(0, wishes.window));
        }
        self.handle.send(hello).await;
    }

    fn new(stream: TcpStream, wishes: Wishes, client: bool) -> Self {
        stream.set_nodelay(true).expect("it is TCP");
        let (reads, writes) = stream.into_split();
        let ((control, heard), (accepted, opened)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let credit = Credit { connection: 65_535, initial: 65_535, max_frame: 16_384, ..Credit::default() };
        let handle = Handle(Arc::new(Shared {
            given: Mutex::new(Given::new(&wishes)),
            wishes,
            credit: Mutex::new(credit),
            changed: Notify::new(),
            writes: tokio::sync::Mutex::new(writes),
            owed: Mutex::default(),
            routes: Mutex::new(Routes { client, next: 1, streams: HashMap::new(), control, accepted }),
            reads: watch::Sender::new(true),
            closes: Notify::new(),
            no_table: AtomicBool::new(false),
            resets: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        }));
        tokio::spawn(reading::read(handle.clone(), reads));
        Self { handle, control: heard, accepted: opened }
    }

    /// The next event that is of no stream.
    pub(in crate::proxy::http2::tests) async fn heard(&mut self) -> Event {
        soon(self.control.recv()).await.unwrap_or(Event::Closed)
    }

    /// The code with which the peer ends the connection; `None` if it just closes it.
    pub(in crate::proxy::http2::tests) async fn ended(&mut self) -> Option<u32> {
        let mut last = None;
        loop {
            match self.heard().await {
                Event::GoAway { code, .. } => last = Some(code),
                Event::Closed => return last,
                _ => {}
            }
        }
    }
}

/// Listens, and gives each connection to `serve` as a wire.
pub(in crate::proxy::http2::tests) async fn listen<F>(
    wishes: Wishes,
    serve: impl Fn(Wire) -> F + Send + Sync + 'static,
) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be bound");
    let address = listener.local_addr().expect("bound");
    let serve = Arc::new(serve);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (serve, wishes) = (serve.clone(), wishes.clone());
            tokio::spawn(async move {
                if let Some(wire) = Wire::accept(stream, wishes).await {
                    serve(wire).await;
                }
            });
        }
    });
    address
}
