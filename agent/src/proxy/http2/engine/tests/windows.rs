//! Windows: what was given is what was used, whatever happens, and no stream can use up what others need.

use proptest::prelude::*;

use super::*;
use crate::proxy::http2::{
    engine::{flow, limits::base_window, streams::Key},
    frame::{Head, Kind, flags},
};

/// Something that happens.
#[derive(Clone, Debug)]
enum Step {
    /// The client asks.
    Open,
    /// One end sends on a stream, as much as it may.
    Send { server: bool, stream: usize, length: usize, end: bool },
    /// As [`Step::Send`], with so much padding.
    Padded { server: bool, stream: usize, length: usize, padding: u8 },
    /// One end takes of what has come.
    Take { server: bool, stream: usize, most: usize },
    /// One end gives a stream up.
    Drop { server: bool, stream: usize },
    /// So many bytes go from one end to the other.
    Move { server: bool, bytes: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let (server, stream) = (any::<bool>(), 0..8_usize);
    prop_oneof![
        2 => Just(Step::Open),
        6 => (server, stream.clone(), 0..40_000_usize, prop::bool::weighted(0.1))
            .prop_map(|(server, stream, length, end)| Step::Send { server, stream, length, end }),
        2 => (server, stream.clone(), 0..500_usize, any::<u8>())
            .prop_map(|(server, stream, length, padding)| Step::Padded { server, stream, length, padding }),
        6 => (server, stream.clone(), 1..80_000_usize)
            .prop_map(|(server, stream, most)| Step::Take { server, stream, most }),
        1 => (server, stream).prop_map(|(server, stream)| Step::Drop { server, stream }),
        8 => (server, 1..100_000_usize).prop_map(|(server, bytes)| Step::Move { server, bytes }),
    ]
}

/// Streams by their place; `None` for one that was given up.
type Held = Vec<Option<(Handle, Key)>>;

fn open_windows(end: &End) -> Vec<(u32, i64)> {
    let mut core = end.core.borrow_mut();
    let open = core.streams.iter_mut().filter(|(_, stream)| !stream.has_all());
    let mut windows: Vec<_> = open.map(|(_, stream)| (stream.id, stream.window.open())).collect();
    windows.sort_unstable();
    windows
}

fn credits(end: &End) -> Vec<(u32, i64)> {
    let mut core = end.core.borrow_mut();
    let open = core.streams.iter_mut().filter(|(_, stream)| stream.state.sending().is_some());
    let mut credits: Vec<_> = open.map(|(_, stream)| (stream.id, stream.credit.left() as i64)).collect();
    credits.sort_unstable();
    credits
}

/// What one end holds is what it says that it holds.
fn check_held(end: &End) {
    let mut core = end.core.borrow_mut();
    let there: usize = core.streams.iter_mut().map(|(_, stream)| stream.queue.len() + stream.heads).sum();
    assert_eq!(core.held, there);
    let sending = core.streams.iter_mut().filter(|(_, stream)| stream.state.sending().is_some()).count();
    assert_eq!(core.streams.sending(), sending);
}

fn send(held: &Held, stream: usize, length: usize, end: bool) {
    let Some(Some((handle, _))) = held.get(stream) else { return };
    let room = room(handle).unwrap_or(0);
    handle.send_data(vec![3; length.min(room)].into(), end);
}

/// Sends padded DATA, as this end never does by itself.
fn send_padded(end: &End, held: &Held, stream: usize, length: usize, padding: u8) {
    let Some(Some((handle, key))) = held.get(stream) else { return };
    let whole = 1 + length + usize::from(padding);
    if room(handle).unwrap_or(0) < whole {
        return;
    }
    let mut core = end.core.borrow_mut();
    let Some(stream) = core
        .stream_mut(*key)
        .filter(|stream| matches!(stream.state.sending(), Some(super::super::state::Part::Body)))
    else {
        return;
    };
    stream.credit.take(whole);
    let id = stream.id;
    core.credit.take(whole);
    let head = Head::new(Kind::Data, flags::PADDED, id, whole as u32);
    let out = core.out.tail();
    out.extend_from_slice(&head.bytes());
    out.extend_from_slice(&[padding]);
    out.extend_from_slice(&vec![4; length + usize::from(padding)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_was_given_is_what_was_used(steps in prop::collection::vec(step(), 0..150)) {
        let (mut client, mut server) = pair();
        let (mut asked, mut answered): (Held, Held) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Open if asked.len() < 8 => {
                    let handle = client.open(&request("POST"), false);
                    let key = client.core.borrow().streams.find(2 * asked.len() as u32 + 1).unwrap();
                    asked.push(Some((handle, key)));
                }
                Step::Open => {}
                Step::Send { server: true, stream, length, end } => send(&answered, stream, length, end),
                Step::Send { stream, length, end, .. } => send(&asked, stream, length, end),
                Step::Padded { server: true, stream, length, padding } => {
                    send_padded(&server, &answered, stream, length, padding);
                }
                Step::Padded { stream, length, padding, .. } => {
                    send_padded(&client, &asked, stream, length, padding);
                }
                Step::Take { server, stream, most } => {
                    let held = if server { &answered } else { &asked };
                    if let Some(Some((handle, _))) = held.get(stream) {
                        handle.take_data(most);
                    }
                }
                Step::Drop { server, stream } => {
                    let held = if server { &mut answered } else { &mut asked };
                    if let Some(slot) = held.get_mut(stream) {
                        *slot = None;
                    }
                }
                Step::Move { server: true, bytes } => {
                    let bytes = server.written(bytes);
                    prop_assert_ne!(client.give(&bytes), Fed::End);
                }
                Step::Move { bytes, .. } => {
                    let bytes = client.written(bytes);
                    prop_assert_ne!(server.give(&bytes), Fed::End);
                }
            }
            while let Some((handle, accepted)) = server.accept() {
                handle.send_head(&Pseudo::Within, &response("200"), false);
                answered.push(Some((handle, accepted.key)));
            }
            check_held(&client);
            check_held(&server);
        }
        // When nothing is on its way, both ends agree.
        exchange(&mut client, &mut server);
        while let Some((handle, accepted)) = server.accept() {
            handle.send_head(&Pseudo::Within, &response("200"), false);
            answered.push(Some((handle, accepted.key)));
        }
        exchange(&mut client, &mut server);
        prop_assert_eq!((client.ended(), server.ended()), (None, None));
        for (from, to) in [(&client, &server), (&server, &client)] {
            prop_assert_eq!(from.core.borrow().credit.left() as i64, to.core.borrow().window.open());
            prop_assert_eq!(credits(from), open_windows(to));
        }
        // And when all is over, nothing is left.
        asked.clear();
        answered.clear();
        exchange(&mut client, &mut server);
        drop(server.accept());
        exchange(&mut client, &mut server);
        for end in [&client, &server] {
            let mut core = end.core.borrow_mut();
            prop_assert_eq!((core.streams(), core.held, core.grown), (0, 0, 0));
            core.rest();
            core.charge(0);
            let tables = core.encoder.held() + core.decoder.held();
            let charged = end.allowance.bytes.limit() - end.allowance.bytes.left();
            prop_assert!(charged <= core.window.open() as usize + tables + 8 * 1024, "{}", charged);
        }
    }
}

#[test]
fn streams_that_nobody_reads_hold_no_more_than_is_allowed_and_stall_no_other() {
    const STREAMS: usize = 1000;
    let (mut client, mut server) = pair();
    let mut unread = Vec::new();
    for _ in 0..STREAMS {
        let up = client.open(&request("GET"), true);
        exchange(&mut client, &mut server);
        let (down, _) = server.accept().expect("a request");
        down.send_head(&Pseudo::Within, &response("200"), false);
        // As long as it is let.
        loop {
            client.core.borrow_mut().serve_waiting();
            server.core.borrow_mut().serve_waiting();
            let Some(room) = room(&down) else { break };
            down.send_data(vec![0; room].into(), false);
            exchange(&mut client, &mut server);
        }
        unread.push((up, down));
    }
    let core = client.core.borrow();
    let most = 128 * 65_535 + (512 - 128) * 16 * 1024 + (STREAMS - 512) * 8 * 1024 + STREAMS * 1024;
    assert!(core.held <= most, "{} bytes", core.held);
    assert!(core.held > 10 << 20, "{} bytes: less than what was asked for", core.held);
    assert_eq!(core.base, base_window(STREAMS));
    drop(core);
    // One more passes as if it were the only one.
    let up = client.open(&request("GET"), true);
    exchange(&mut client, &mut server);
    let (down, _) = server.accept().expect("a request");
    down.send_head(&Pseudo::Within, &response("200"), false);
    let mut passed = 0;
    while passed < 10 << 20 {
        server.core.borrow_mut().serve_waiting();
        let room = room(&down).expect("room");
        down.send_data(vec![0; room].into(), false);
        exchange(&mut client, &mut server);
        while up.has_data() {
            passed += up.take_data(usize::MAX).len();
        }
        exchange(&mut client, &mut server);
    }
    // Windows become larger again when there are fewer.
    unread.clear();
    exchange(&mut client, &mut server);
    drop(client.open(&request("GET"), true));
    exchange(&mut client, &mut server);
    assert_eq!(client.core.borrow().base, flow::INITIAL);
}

#[test]
fn what_the_pod_does_not_have_is_not_given() {
    let (mut client, mut server) = pair();
    // Somebody else of the pod has it all.
    let mut other = client.allowance.bytes.take_none();
    other.set(BUDGET);
    client.core.borrow_mut().charge(0);
    let mut streams = Vec::new();
    let mut sent = 0;
    for _ in 0..4 {
        let up = client.open(&request("GET"), true);
        exchange(&mut client, &mut server);
        let (down, _) = server.accept().expect("a request");
        down.send_head(&Pseudo::Within, &response("200"), false);
        while let Some(room) = room(&down) {
            down.send_data(vec![0; room].into(), false);
            sent += room;
            exchange(&mut client, &mut server);
        }
        streams.push((up, down));
    }
    assert_eq!(sent, 65_535, "what the protocol gives, and not a byte more");
    assert!(client.core.borrow().is_starved());
    drop(other);
    {
        let mut core = client.core.borrow_mut();
        core.charge(0);
        core.replenish();
        assert!(!core.is_starved());
    }
    exchange(&mut client, &mut server);
    server.core.borrow_mut().serve_waiting();
    assert!(room(&streams[3].1).is_some());
}

#[test]
fn windows_grow_for_who_fills_them_and_are_taken_at_once() {
    let (mut client, mut server) = pair();
    let up = client.open(&request("GET"), true);
    exchange(&mut client, &mut server);
    let (down, _) = server.accept().expect("a request");
    down.send_head(&Pseudo::Within, &response("200"), false);
    let mut largest = 0;
    for _ in 0..200 {
        let mut burst = 0;
        loop {
            server.core.borrow_mut().serve_waiting();
            let Some(room) = room(&down) else { break };
            down.send_data(vec![0; room].into(), false);
            burst += room;
            let bytes = server.all_written();
            client.give(&bytes);
        }
        largest = largest.max(burst);
        while up.has_data() {
            up.take_data(usize::MAX);
        }
        exchange(&mut client, &mut server);
    }
    assert_eq!(largest, 256 * 1024 - 4, "four times what it began with");
}
