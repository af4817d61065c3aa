//! What comes over a wire: frames to events, and to whom they go.

use std::{collections::VecDeque, sync::atomic::Ordering};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{io::AsyncReadExt, net::tcp::OwnedReadHalf, sync::mpsc};

use super::{
    super::{
        super::super::{
            frame::{
                HEAD, Head, Kind,
                block::{Blocks, Bounds},
                flags, payload,
            },
            hpack::{Decoder, Field},
        },
        frames,
    },
    handle::Handle,
    message::Event,
    stream::Stream,
    windows::owe,
};

/// Reads until the connection ends.
pub(super) async fn read(handle: Handle, mut reads: OwnedReadHalf) {
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
        if handle.0.wishes.resets.is_some_and(|most| handle.0.resets.load(Ordering::Relaxed) > most) {
            handle.send(frames::go_away(u32::MAX >> 1, ENHANCE_YOUR_CALM)).await;
            handle.close().await;
            break;
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

const ENHANCE_YOUR_CALM: u32 = 0xb;

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
            shared.resets.fetch_add(1, Ordering::Relaxed);
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
