//! One end of a connection.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Notify, mpsc, watch},
};

use super::{
    super::{
        super::{
            frame::{
                HEAD, Head, Kind,
                block::{Blocks, Bounds},
                flags, payload,
            },
            hpack::{Decoder, Field},
        },
        soon,
    },
    frames,
};

/// What came, and is not only the wire's own business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Event {
    Headers {
        stream: u32,
        end: bool,
        fields: Vec<(String, String)>,
    },
    Data {
        stream: u32,
        end: bool,
        bytes: Bytes,
    },
    Reset {
        stream: u32,
        code: u32,
    },
    Settings {
        ack: bool,
        all: Vec<(u16, u32)>,
    },
    Ping {
        ack: bool,
        payload: [u8; 8],
    },
    GoAway {
        last: u32,
        code: u32,
    },
    Window {
        stream: u32,
        step: u32,
    },
    /// The connection has ended; nothing follows.
    Closed,
}

impl Event {
    fn stream(&self) -> u32 {
        match self {
            Self::Headers { stream, .. }
            | Self::Data { stream, .. }
            | Self::Reset { stream, .. }
            | Self::Window { stream, .. } => *stream,
            _ => 0,
        }
    }
}

/// How a wire behaves.
#[derive(Clone)]
pub(in super::super) struct Wishes {
    pub(in super::super) settings: Vec<(u16, u32)>,
    /// By how much the connection's window is larger than the protocol's at the beginning.
    pub(in super::super) window: u32,
    /// Answers SETTINGS and PING.
    pub(in super::super) answers: bool,
    /// Gives the connection's window again for what comes on any stream: else only for streams that take what comes.
    pub(in super::super) shares: bool,
    /// Streams take what comes from the beginning: else once they are told to.
    pub(in super::super) takes: bool,
    /// Panics if the peer sends more than its windows let it: not if a test gives windows by itself.
    pub(in super::super) strict: bool,
    /// Bytes that the kernel keeps for us, if not as many as it likes.
    pub(in super::super) kernel: Option<usize>,
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
            kernel: None,
        }
    }
}

/// What may be sent, and who wants to.
#[derive(Default)]
struct Credit {
    connection: i64,
    streams: HashMap<u32, i64>,
    initial: i64,
    max_frame: usize,
    closed: bool,
    /// Bytes of DATA that were sent, paddings included.
    sent: u64,
    /// Streams whose sender waits for a window.
    waiting: HashSet<u32>,
}

/// What came and was not taken.
#[derive(Default)]
struct Owed {
    takes: HashMap<u32, bool>,
    streams: HashMap<u32, u32>,
    connection: HashMap<u32, u32>,
}

/// What the peer may send.
struct Given {
    connection: i64,
    initial: i64,
    streams: HashMap<u32, i64>,
    /// What a stream's window is once our SETTINGS are acknowledged.
    told: Option<i64>,
}

impl Given {
    fn new(wishes: &Wishes) -> Self {
        let told = wishes.settings.iter().find(|setting| setting.0 == 4).map(|setting| i64::from(setting.1));
        let connection = 65_535 + i64::from(wishes.window);
        Self { connection, initial: 65_535, streams: HashMap::new(), told }
    }

    fn stream(&mut self, stream: u32) -> &mut i64 {
        let initial = self.initial;
        self.streams.entry(stream).or_insert(initial)
    }

    fn give(&mut self, stream: u32, step: u32) {
        *self.stream(stream) += i64::from(step);
    }

    fn spend(&mut self, stream: u32, length: u32, strict: bool) {
        let length = i64::from(length);
        self.connection -= length;
        *self.stream(stream) -= length;
        let fits = self.connection >= 0 && *self.stream(stream) >= 0;
        assert!(fits || !strict, "the proxy overdraws a window of stream {stream}");
    }

    fn acknowledged(&mut self) {
        let Some(told) = self.told.take() else { return };
        let by = told - self.initial;
        self.initial = told;
        self.streams.values_mut().for_each(|stream| *stream += by);
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

/// To send, from anywhere.
#[derive(Clone)]
pub(in super::super) struct Handle(Arc<Shared>);

pub(in super::super) struct Wire {
    pub(in super::super) handle: Handle,
    /// What is of no stream that anybody knows.
    pub(in super::super) control: mpsc::UnboundedReceiver<Event>,
    /// Streams that the peer opens.
    pub(in super::super) accepted: mpsc::UnboundedReceiver<Stream>,
}

/// One direction of a stream.
pub(in super::super) struct Sender {
    pub(in super::super) id: u32,
    pub(in super::super) handle: Handle,
}

pub(in super::super) struct Stream {
    sender: Sender,
    events: mpsc::UnboundedReceiver<Event>,
    seen: VecDeque<Event>,
}

/// A response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Answer {
    pub(in super::super) status: u16,
    pub(in super::super) fields: Vec<(String, String)>,
    pub(in super::super) body: Vec<u8>,
    pub(in super::super) trailers: Option<Vec<(String, String)>>,
    pub(in super::super) interims: usize,
    /// How it ended, if it has no proper end: the code of a reset, or `None` for the connection's end.
    #[expect(clippy::option_option, reason = "tests compare it as it stands")]
    pub(in super::super) broken: Option<Option<u32>>,
}

impl Answer {
    pub(in super::super) fn header(&self, name: &str) -> &str {
        of(&self.fields, name)
    }

    pub(in super::super) fn trailer(&self, name: &str) -> &str {
        self.trailers.as_deref().map_or("", |trailers| of(trailers, name))
    }

    pub(in super::super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }
}

pub(in super::super) fn of<'f>(fields: &'f [(String, String)], name: &str) -> &'f str {
    fields.iter().find(|field| field.0 == name).map_or("", |field| &field.1)
}

impl Wire {
    /// A client.
    pub(in super::super) async fn connect(address: SocketAddr, wishes: Wishes) -> Self {
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
    pub(in super::super) async fn accept(mut stream: TcpStream, wishes: Wishes) -> Option<Self> {
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await.ok()?;
        assert_eq!(preface, frames::PREFACE);
        let wire = Self::new(stream, wishes, false);
        wire.greet(b"").await;
        Some(wire)
    }

    /// A client that has said nothing yet.
    pub(in super::super) async fn bare(address: SocketAddr) -> Self {
        Self::over(soon(TcpStream::connect(address)).await.expect("it listens"), true)
    }

    /// Either end of a connection, before its first byte.
    pub(in super::super) fn over(stream: TcpStream, client: bool) -> Self {
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
            ended: AtomicBool::new(false),
        }));
        tokio::spawn(read(handle.clone(), reads));
        Self { handle, control: heard, accepted: opened }
    }

    /// The next event that is of no stream.
    pub(in super::super) async fn heard(&mut self) -> Event {
        soon(self.control.recv()).await.unwrap_or(Event::Closed)
    }

    /// The code with which the peer ends the connection; `None` if it just closes it.
    pub(in super::super) async fn ended(&mut self) -> Option<u32> {
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

impl Handle {
    /// Sends bytes as they are. If the connection has ended, nothing happens.
    pub(in super::super) async fn send(&self, bytes: impl AsRef<[u8]>) -> bool {
        self.0.writes.lock().await.write_all(bytes.as_ref()).await.is_ok()
    }

    /// Stops reading the socket, or goes on with it.
    pub(in super::super) fn reads(&self, reads: bool) {
        self.0.reads.send_replace(reads);
    }

    /// Opens a stream. `more` is sent with it in the same write.
    pub(in super::super) async fn open(&self, end: bool, lines: frames::Lines<'_>) -> Stream {
        let mut writes = self.0.writes.lock().await;
        let stream = self.register();
        let _ = writes.write_all(&frames::headers(stream.id, end, lines)).await;
        stream
    }

    /// A stream of ours, with the next number: who calls this sends its HEADERS, in this order.
    pub(in super::super) fn register(&self) -> Stream {
        let mut routes = self.0.routes.lock().expect("not poisoned");
        let id = routes.next;
        routes.next += 2;
        let (to, events) = mpsc::unbounded_channel();
        routes.streams.insert(id, to);
        self.known(id);
        Stream { sender: self.borrow(id), events, seen: VecDeque::new() }
    }

    fn known(&self, id: u32) {
        let mut credit = self.0.credit.lock().expect("not poisoned");
        let initial = credit.initial;
        credit.streams.insert(id, initial);
    }

    /// A request without a body, to its end.
    pub(in super::super) async fn get(&self, path: &str) -> Answer {
        self.open(true, &frames::get(path)).await.answer().await
    }

    /// A request with a body, to its end.
    pub(in super::super) async fn post(&self, path: &str, body: &[u8]) -> Answer {
        let mut stream = self.open(false, &frames::post(path)).await;
        stream.data(body, true).await;
        stream.answer().await
    }

    /// To send on a stream that somebody else reads.
    pub(in super::super) fn borrow(&self, id: u32) -> Sender {
        Sender { id, handle: self.clone() }
    }

    /// Ends the connection.
    pub(in super::super) async fn close(&self) {
        let _ = self.0.writes.lock().await.shutdown().await;
        self.0.closes.notify_one();
    }

    /// The peer has said with GOAWAY that it ends the connection for what we did.
    pub(in super::super) fn has_ended(&self) -> bool {
        self.0.ended.load(Ordering::Relaxed)
    }

    /// The next stream has this number.
    pub(in super::super) fn skip_to(&self, stream: u32) {
        self.0.routes.lock().expect("not poisoned").next = stream;
    }

    /// The peer must put nothing into its table.
    pub(in super::super) fn no_table(&self) {
        self.0.no_table.store(true, Ordering::Relaxed);
    }

    /// What may be sent on all streams together, and what was.
    pub(in super::super) fn credit(&self) -> (i64, u64) {
        let credit = self.0.credit.lock().expect("not poisoned");
        (credit.connection, credit.sent)
    }

    /// Whether a stream's sender waits for a window.
    pub(in super::super) fn waits(&self, stream: u32) -> bool {
        self.0.credit.lock().expect("not poisoned").waiting.contains(&stream)
    }

    /// Waits until one does.
    pub(in super::super) async fn stuck(&self, stream: u32) {
        soon(async {
            while !self.waits(stream) {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        })
        .await;
    }

    /// Takes up to `wanted` bytes of the windows, at least `least`. `None`: the stream or the connection has ended.
    async fn take(&self, stream: u32, wanted: usize, least: usize) -> Option<usize> {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut credit = self.0.credit.lock().expect("not poisoned");
                let of_stream = *credit.streams.get(&stream)?;
                if credit.closed {
                    return None;
                }
                let room = credit.connection.min(of_stream).min(credit.max_frame as i64);
                let taken = wanted.min(usize::try_from(room).unwrap_or(0));
                if taken >= least {
                    credit.waiting.remove(&stream);
                    credit.connection -= taken as i64;
                    *credit.streams.entry(stream).or_default() -= taken as i64;
                    credit.sent += taken as u64;
                    return Some(taken);
                }
                credit.waiting.insert(stream);
            }
            changed.await;
        }
    }

    /// The stream takes what comes from now on, and what has come.
    pub(in super::super) async fn takes(&self, stream: u32) {
        let back = {
            // In the order in which `owe` locks them.
            let mut given = self.0.given.lock().expect("not poisoned");
            let mut owed = self.0.owed.lock().expect("not poisoned");
            owed.takes.insert(stream, true);
            let back = (owed.streams.remove(&stream), owed.connection.remove(&stream));
            given.give(stream, back.0.unwrap_or(0));
            given.connection += i64::from(back.1.unwrap_or(0));
            back
        };
        let mut updates = back.0.map(|step| frames::window(stream, step)).unwrap_or_default();
        updates.extend(back.1.map(|step| frames::window(0, step)).unwrap_or_default());
        self.send(updates).await;
    }
}

impl Stream {
    pub(in super::super) async fn next(&mut self) -> Event {
        if let Some(event) = self.seen.pop_front() {
            return event;
        }
        soon(self.events.recv()).await.unwrap_or(Event::Closed)
    }

    /// The same for an endpoint, which waits for as long as it takes.
    pub(in super::super) async fn wait(&mut self) -> Event {
        match self.seen.pop_front() {
            Some(event) => event,
            None => self.events.recv().await.unwrap_or(Event::Closed),
        }
    }

    /// What has come already.
    pub(in super::super) fn try_next(&mut self) -> Option<Event> {
        self.seen.pop_front().or_else(|| self.events.try_recv().ok())
    }

    /// The message's next part: `Err` with how it was broken.
    pub(in super::super) async fn part(&mut self) -> Result<Event, Option<u32>> {
        loop {
            match self.next().await {
                Event::Reset { code, .. } => return Err(Some(code)),
                Event::Closed => return Err(None),
                Event::Window { .. } => {}
                other => return Ok(other),
            }
        }
    }

    /// The code with which the stream is reset, if it is.
    pub(in super::super) async fn answer_to_breach(&mut self) -> Option<u32> {
        loop {
            match self.part().await {
                Ok(_) => {}
                Err(code) => return code,
            }
        }
    }

    /// The response's head, without interim ones.
    pub(in super::super) async fn head(&mut self) -> Answer {
        let mut answer = Answer::default();
        loop {
            match self.part().await {
                Ok(Event::Headers { fields, end, .. }) => {
                    answer.status = of(&fields, ":status").parse().expect("a status");
                    if answer.status < 200 {
                        assert!(!end);
                        answer.interims += 1;
                        continue;
                    }
                    answer.fields = fields;
                    if end {
                        self.seen.push_front(Event::Data { stream: self.id, end: true, bytes: Bytes::new() });
                    }
                    return answer;
                }
                Ok(other) => panic!("no head: {other:?}"),
                Err(code) => {
                    answer.broken = Some(code);
                    return answer;
                }
            }
        }
    }

    /// The whole response.
    pub(in super::super) async fn answer(&mut self) -> Answer {
        let mut answer = self.head().await;
        if answer.broken.is_some() {
            return answer;
        }
        loop {
            match self.part().await {
                Ok(Event::Data { end, bytes, .. }) => {
                    answer.body.extend_from_slice(&bytes);
                    if end {
                        return answer;
                    }
                }
                Ok(Event::Headers { fields, end, .. }) => {
                    assert!(end, "trailers end the stream");
                    answer.trailers = Some(fields);
                    return answer;
                }
                Ok(other) => panic!("what is it? {other:?}"),
                Err(code) => {
                    answer.broken = Some(code);
                    return answer;
                }
            }
        }
    }
}

impl Sender {
    /// Sends a part of the body, as the windows let it. False: the stream or the connection has ended.
    pub(in super::super) async fn data(&self, mut bytes: &[u8], end: bool) -> bool {
        if bytes.is_empty() {
            return self.handle.send(frames::data(self.id, end, b"")).await;
        }
        while !bytes.is_empty() {
            let Some(taken) = self.handle.take(self.id, bytes.len(), 1).await else { return false };
            let (part, rest) = bytes.split_at(taken);
            bytes = rest;
            if !self.handle.send(frames::data(self.id, end && rest.is_empty(), part)).await {
                return false;
            }
        }
        true
    }

    /// Sends a part of the body with so much padding, in one frame.
    pub(in super::super) async fn padded(&self, bytes: &[u8], padding: u8, end: bool) -> bool {
        let payload = [&[padding][..], bytes, &vec![0; usize::from(padding)]].concat();
        if self.handle.take(self.id, payload.len(), payload.len()).await.is_none() {
            return false;
        }
        self.handle.send(frames::frame(frames::DATA, frames::PADDED | u8::from(end), self.id, &payload)).await
    }

    /// Sends the same part so many times, each in a frame of its own, many of them in one write.
    pub(in super::super) async fn many(&self, part: &[u8], mut count: usize) -> bool {
        let frame = frames::data(self.id, false, part);
        while count > 0 {
            let wanted = count.min(1000).min(16_384 / part.len()) * part.len();
            let Some(taken) = self.handle.take(self.id, wanted, part.len()).await else { return false };
            // What is no whole part is given back.
            let over = taken % part.len();
            if over > 0 {
                let mut credit = self.handle.0.credit.lock().expect("not poisoned");
                credit.connection += over as i64;
                credit.sent -= over as u64;
                if let Some(stream) = credit.streams.get_mut(&self.id) {
                    *stream += over as i64;
                }
            }
            let parts = taken / part.len();
            count -= parts;
            if !self.handle.send(frame.repeat(parts)).await {
                return false;
            }
        }
        true
    }

    pub(in super::super) async fn headers(&self, end: bool, lines: frames::Lines<'_>) -> bool {
        self.handle.send(frames::headers(self.id, end, lines)).await
    }

    pub(in super::super) async fn reset(&self, code: u32) -> bool {
        self.handle.0.credit.lock().expect("not poisoned").streams.remove(&self.id);
        self.handle.0.changed.notify_waiters();
        self.handle.send(frames::reset(self.id, code)).await
    }
}

/// What sends can be sent by whoever reads, too.
impl std::ops::Deref for Stream {
    type Target = Sender;

    fn deref(&self) -> &Sender {
        &self.sender
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.handle.0.routes.lock().expect("not poisoned").streams.remove(&self.id);
    }
}

/// Reads until the connection ends.
async fn read(handle: Handle, mut reads: OwnedReadHalf) {
    let mut gate = handle.0.reads.subscribe();
    let mut input = BytesMut::with_capacity(64 * 1024);
    let (mut decoder, mut blocks) = (Decoder::new(4096), Blocks::default());
    loop {
        let mut back = Vec::new();
        while let Some((head, payload)) = next(&mut input) {
            take(&handle, &head, &payload, &mut decoder, &mut blocks, &mut back);
        }
        if !back.is_empty() {
            handle.send(back).await;
        }
        let read = async {
            let _ = gate.wait_for(|open| *open).await;
            reads.read_buf(&mut input).await
        };
        tokio::select! {
            read = read => if !matches!(read, Ok(1..)) { break },
            () = handle.0.closes.notified() => break,
        }
    }
    handle.0.credit.lock().expect("not poisoned").closed = true;
    handle.0.changed.notify_waiters();
    let mut routes = handle.0.routes.lock().expect("not poisoned");
    routes.streams.clear();
    let _ = routes.control.send(Event::Closed);
    // Nobody opens a stream any more.
    routes.accepted = mpsc::unbounded_channel().0;
}

fn next(input: &mut BytesMut) -> Option<(Head, Bytes)> {
    let head = Head::first(input)?;
    let whole = HEAD + head.length as usize;
    if input.len() < whole {
        input.reserve(whole - input.len());
        return None;
    }
    input.advance(HEAD);
    Some((head, input.split_to(head.length as usize).freeze()))
}

const BOUNDS: Bounds = Bounds { bytes: 1 << 24, frames: 10_000 };

fn take(
    handle: &Handle,
    head: &Head,
    payload: &Bytes,
    decoder: &mut Decoder,
    blocks: &mut Blocks,
    back: &mut Vec<u8>,
) {
    head.check(16_384).expect("the proxy's frames are right");
    blocks.check(head).expect("the proxy's frames are in order");
    let (shared, stream) = (&handle.0, head.stream);
    let event = match head.kind {
        Kind::Data => {
            let content = payload::content(head, payload.first().copied()).expect("its padding is right");
            owe(shared, stream, head.length, back);
            Event::Data { stream, end: head.has(flags::END_STREAM), bytes: payload.slice(content) }
        }
        Kind::Headers | Kind::Continuation => {
            let Some(block) = blocks.take(head, payload, &BOUNDS).expect("its blocks are right") else {
                return;
            };
            let mut fields = Vec::new();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let mut sink = |field: Field<'_>| fields.push((text(field.name), text(field.value)));
            if shared.no_table.load(Ordering::Relaxed) {
                // What it says about its table, or anything of it, is an error from now on.
                decoder.set_max_table(0);
            }
            decoder.decode(&block.bytes, usize::MAX, &mut sink).expect("its blocks can be decoded");
            Event::Headers { stream, end: block.end_stream, fields }
        }
        Kind::Reset => {
            shared.credit.lock().expect("not poisoned").streams.remove(&stream);
            shared.changed.notify_waiters();
            Event::Reset { stream, code: payload::reset(payload).expect("it is right").0 }
        }
        Kind::Settings => {
            let all: Vec<_> = payload::settings(payload)
                .map(|setting| setting.expect("the proxy's settings are right").parts())
                .collect();
            let ack = head.has(flags::ACK);
            if ack {
                shared.given.lock().expect("not poisoned").acknowledged();
            }
            let mut credit = shared.credit.lock().expect("not poisoned");
            for (id, value) in &all {
                match id {
                    4 => {
                        let by = i64::from(*value) - credit.initial;
                        credit.initial = i64::from(*value);
                        credit.streams.values_mut().for_each(|stream| *stream += by);
                    }
                    5 => credit.max_frame = (*value as usize).min(16_384),
                    _ => {}
                }
            }
            drop(credit);
            shared.changed.notify_waiters();
            if !ack && shared.wishes.answers {
                back.extend(frames::frame(frames::SETTINGS, frames::ACK, 0, b""));
            }
            Event::Settings { ack, all }
        }
        Kind::Ping => {
            let (ack, payload) = (head.has(flags::ACK), payload::ping(payload).expect("it is right"));
            if !ack && shared.wishes.answers {
                back.extend(frames::frame(frames::PING, frames::ACK, 0, &payload));
            }
            Event::Ping { ack, payload }
        }
        Kind::GoAway => {
            let gone = payload::go_away(payload).expect("it is right");
            shared.ended.fetch_or(gone.code.0 != 0, Ordering::Relaxed);
            Event::GoAway { last: gone.last, code: gone.code.0 }
        }
        Kind::WindowUpdate => {
            let step = payload::window_update(head, payload).expect("it is right");
            let mut credit = shared.credit.lock().expect("not poisoned");
            if stream == 0 {
                credit.connection += i64::from(step);
                assert!(credit.connection <= i64::from(u32::MAX >> 1), "the proxy's window overflows");
            } else if let Some(window) = credit.streams.get_mut(&stream) {
                *window += i64::from(step);
                assert!(*window <= i64::from(u32::MAX >> 1), "the proxy's window overflows");
            }
            drop(credit);
            shared.changed.notify_waiters();
            Event::Window { stream, step }
        }
        Kind::Priority | Kind::Unknown(_) => return,
        Kind::PushPromise => panic!("the proxy pushes"),
    };
    route(handle, event);
}

/// What came is to be given again, now or once it is taken.
fn owe(shared: &Shared, stream: u32, length: u32, back: &mut Vec<u8>) {
    if length == 0 {
        return;
    }
    let mut given = shared.given.lock().expect("not poisoned");
    given.spend(stream, length, shared.wishes.strict);
    let mut owed = shared.owed.lock().expect("not poisoned");
    let takes = *owed.takes.entry(stream).or_insert(shared.wishes.takes);
    if takes || shared.wishes.shares {
        back.extend(frames::window(0, length));
        given.connection += i64::from(length);
    } else {
        *owed.connection.entry(stream).or_default() += length;
    }
    if takes {
        back.extend(frames::window(stream, length));
        given.give(stream, length);
    } else {
        *owed.streams.entry(stream).or_default() += length;
    }
}

fn route(handle: &Handle, event: Event) {
    let mut routes = handle.0.routes.lock().expect("not poisoned");
    let id = event.stream();
    if let Some(stream) = routes.streams.get(&id) {
        // Whoever had it has dropped it in this moment.
        let _ = stream.send(event);
        return;
    }
    let opens = !routes.client && id % 2 == 1 && id >= routes.next && matches!(event, Event::Headers { .. });
    if opens {
        routes.next = id + 2;
        let (to, events) = mpsc::unbounded_channel();
        let _ = to.send(event);
        routes.streams.insert(id, to);
        handle.known(id);
        let stream = Stream { sender: handle.borrow(id), events, seen: VecDeque::new() };
        let accepted = routes.accepted.clone();
        drop(routes);
        // One that nobody takes is dropped, which needs the routes.
        let _ = accepted.send(stream);
    } else {
        let _ = routes.control.send(event);
    }
}

/// Listens, and gives each connection to `serve` as a wire.
pub(in super::super) async fn listen<F>(
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
