//! One direction of a tunnel: read, write, and no more memory than that takes.
//!
//! The buffer grows while a stream keeps filling it and is given back when the stream pauses: its size is nearly everything in the
//! cost of bulk transfers, and nearly everything in the cost of idle ones. Urgent data of TCP goes on as such.

use std::{
    io::{self, Read as _},
    os::fd::AsFd as _,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut as _, BytesMut};
use socket2::SockRef;
use tokio::{
    io::{AsyncWrite, Interest},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
};
use tokio_util::io::poll_read_buf;

use crate::proxy::{
    Network,
    buffers::{BUFFER_BYTES, Buffers},
    pressure::Pressure,
    worker::PodHere,
};

/// The largest that a buffer grows to.
const LARGEST_BUFFER: usize = 256 * 1024;

/// Reads and writes in a row before the other direction has its turn, and how many bytes they may carry: a direction that was
/// always ready would otherwise use up, each time anew, all that the runtime lets a task do in one go.
const ROUNDS: usize = 16;
const AT_ONCE: u64 = 256 * 1024;

/// Which end of a direction broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    Source,
    Sink,
}

/// How far a direction is. It only goes forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// There may be more to come.
    Open,
    /// Its source has ended; what was read may still be on its way.
    Ended,
    /// The end has been passed on, too.
    Done,
}

/// One direction.
pub(super) struct Pump {
    buffer: BytesMut,
    /// What a read may bring at most.
    room: usize,
    moved: u64,
    /// All that was ever read.
    carried: u64,
    pressure: Pressure,
    urgent: Urgent,
    /// There may be more to read, whatever the runtime says.
    unknown: bool,
    stage: Stage,
}

/// Urgent data of TCP (RFC 6093): one byte, which both sockets keep in line, and which is read and written by itself.
struct Urgent {
    network: Arc<dyn Network>,
    /// What was read last is urgent.
    is_read: bool,
}

/// What is read at once behind urgent data.
const BEHIND_URGENT: usize = 4 * 1024;

impl Urgent {
    fn comes_next(&self, stream: &TcpStream) -> bool {
        self.network.is_at_urgent_byte(stream.as_fd())
    }

    /// Reads what comes next, urgent data alone.
    fn read(&mut self, stream: &TcpStream, into: &mut BytesMut) -> io::Result<usize> {
        self.is_read = self.comes_next(stream);
        let mut part = [0; BEHIND_URGENT];
        let most = if self.is_read { 1 } else { BEHIND_URGENT };
        let read = (&*SockRef::from(stream)).read(&mut part[..most]);
        self.is_read &= matches!(read, Ok(1..));
        into.extend_from_slice(&part[..*read.as_ref().unwrap_or(&0)]);
        read
    }
}

impl Pump {
    pub(super) fn new(buffer: BytesMut, pod: &Rc<PodHere>) -> Self {
        let pressure = Pressure::new(pod);
        let urgent = Urgent { network: pod.pod.network.clone(), is_read: false };
        Self {
            buffer,
            room: BUFFER_BYTES,
            moved: 0,
            carried: 0,
            pressure,
            urgent,
            unknown: false,
            stage: Stage::Open,
        }
    }

    /// How many bytes were passed on since it was last asked.
    pub(super) fn take_moved(&mut self) -> u64 {
        std::mem::take(&mut self.moved)
    }

    /// Carries on, to the direction's end.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut ReadHalf<'_>,
        to: &mut WriteHalf<'_>,
        buffers: &Buffers,
    ) -> Poll<Result<(), Broken>> {
        let before = self.carried;
        for _ in 0..ROUNDS {
            if self.carried - before >= AT_ONCE && self.buffer.is_empty() {
                break;
            }
            while !self.buffer.is_empty() {
                let Poll::Ready(written) = self.poll_write(cx, to) else {
                    let own = self.buffer.capacity();
                    if self.pressure.stalled(cx, self.carried, own, (*from).as_ref(), (*to).as_ref()) {
                        buffers.compact(&mut self.buffer);
                        // Nothing is read from it, so nothing else would tell that it has been reset.
                        if !matches!(AsRef::<TcpStream>::as_ref(&*from).take_error(), Ok(None)) {
                            return Poll::Ready(Err(Broken::Source));
                        }
                    }
                    return Poll::Pending;
                };
                let written = written.map_err(|_| Broken::Sink)?;
                self.buffer.advance(written);
                self.moved += written as u64;
            }
            self.urgent.is_read = false;
            if self.stage == Stage::Ended {
                let ended = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                ended.or_else(gone_is_ended).map_err(|_| Broken::Sink)?;
                self.stage = Stage::Done;
            }
            if self.stage == Stage::Done {
                return Poll::Ready(Ok(()));
            }
            match self.poll_read(cx, from, buffers) {
                Poll::Ready(Ok(0)) => {
                    self.stage = Stage::Ended;
                    self.rest(buffers);
                }
                Poll::Ready(Ok(read)) => {
                    self.carried += read as u64;
                    self.pressure.carried(self.carried, (*from).as_ref(), (*to).as_ref());
                    if self.pressure.is_denied() {
                        self.room = BUFFER_BYTES;
                    } else if read >= self.room {
                        self.room = (self.room * 2).min(LARGEST_BUFFER);
                    }
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Source)),
                Poll::Pending => {
                    self.rest(buffers);
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut ReadHalf<'_>,
        buffers: &Buffers,
    ) -> Poll<io::Result<usize>> {
        if self.unknown {
            match self.urgent.read(from.as_ref(), &mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.unknown = false,
                read => return Poll::Ready(read),
            }
        }
        loop {
            ready!(AsRef::<TcpStream>::as_ref(&*from).poll_read_ready(cx))?;
            if !self.urgent.comes_next(from.as_ref()) {
                break;
            }
            self.unknown = true;
            let stream: &TcpStream = (*from).as_ref();
            match stream.try_io(Interest::READABLE, || self.urgent.read(stream, &mut self.buffer)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read),
            }
        }
        let room = self.room.min(self.pressure.most());
        if self.buffer.capacity() == 0 && room == BUFFER_BYTES {
            self.buffer = buffers.take();
        }
        self.buffer.reserve(room);
        let read = poll_read_buf(Pin::new(&mut *from), cx, &mut (&mut self.buffer).limit(room));
        if matches!(read, Poll::Ready(Ok(1..))) {
            // A read ends before urgent data, and the runtime takes it for the last that there was to read.
            self.unknown = self.urgent.comes_next((*from).as_ref());
        }
        read
    }

    /// Urgent data goes on as such.
    fn poll_write(&mut self, cx: &mut Context<'_>, to: &mut WriteHalf<'_>) -> Poll<io::Result<usize>> {
        if !self.urgent.is_read {
            return Pin::new(to).poll_write(cx, &self.buffer);
        }
        let stream: &TcpStream = (*to).as_ref();
        loop {
            ready!(stream.poll_write_ready(cx))?;
            let send = || SockRef::from(stream).send_out_of_band(&self.buffer);
            match stream.try_io(Interest::WRITABLE, send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }

    /// Gives the buffer back while there is nothing to carry; the next burst starts small again.
    fn rest(&mut self, buffers: &Buffers) {
        buffers.give_if_empty(&mut self.buffer);
        self.room = BUFFER_BYTES;
    }
}

/// Ending a direction whose socket is gone already is no error of its own: the other direction tells.
fn gone_is_ended(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotConnected { Ok(()) } else { Err(error) }
}
