//! Room: who may send, who waits for what, and what of a connection is left to whom.

use proptest::prelude::*;

use super::*;
use crate::proxy::http2::{
    engine::{
        flow::Credit,
        limits::{OUT_LIMIT, RESERVE, WORTH},
        streams::{Key, Waiting},
    },
    frame::write,
};

/// Streams whose requests the server has, and whose responses have begun.
fn answering(client: &mut End, server: &mut End, count: usize) -> Vec<(Handle, Handle, Key)> {
    let open = |_| {
        let up = client.open(&request("GET"), true);
        exchange(client, server);
        let (down, accepted) = server.accept().expect("a request");
        assert!(down.send_head(&Pseudo::Within, &response("200"), false));
        exchange(client, server);
        (up, down, accepted.key)
    };
    (0..count).map(open).collect()
}

fn waiting(end: &End, key: Key) -> Waiting {
    end.core.borrow().stream(key).expect("it is held").waiting
}

/// As a peer that makes a window larger, of a stream or of the connection (0).
fn give(end: &mut End, id: u32, step: u32) {
    let mut frame = BytesMut::new();
    write::window_update(&mut frame, id, step);
    assert_eq!(end.give(&frame), Fed::All);
}

#[test]
fn streams_wait_for_room_in_turn() {
    let (mut client, mut server) = pair();
    let streams = answering(&mut client, &mut server, 3);
    // The connection's window is as large as that of one stream.
    let first = room(&streams[0].1).expect("room");
    assert_eq!(first, 65_535);
    streams[0].1.send_data(vec![0; first].into(), false);
    for (_, down, key) in &streams {
        assert!(room(down).is_none());
        assert_ne!(waiting(&server, *key), Waiting::Not);
    }
    assert!(!server.core.borrow_mut().serve_waiting(), "there is no room");
    exchange(&mut client, &mut server);
    // The client gives the connection's window again, though nobody has read the stream.
    server.core.borrow_mut().serve_waiting();
    assert_eq!(waiting(&server, streams[0].2), Waiting::Stream, "its own window is full");
    assert_eq!(waiting(&server, streams[1].2), Waiting::Called);
    assert!(room(&streams[0].1).is_none());
    assert!(room(&streams[1].1).is_some());
}

/// Sends as much as it may.
fn send_all(end: &End, stream: &Handle) {
    while let Some(room) = room(stream) {
        stream.send_data(vec![0; room].into(), false);
        end.all_written();
    }
}

/// As Node's client does by default: the connection's window is as large as one stream's, and both are given again by halves.
#[test]
fn a_download_that_is_read_leaves_its_turn_to_what_is_small() {
    let (mut client, mut server) = pair();
    let streams = answering(&mut client, &mut server, 6);
    let (downloads, small) = streams.split_at(2);
    for (_, download, _) in downloads {
        send_all(&server, download);
    }
    for (_, small, key) in small {
        assert!(room_for(small, 100).is_none());
        for (id, step) in [(0, 32_768), (1, 32_768), (3, 32_768)] {
            give(&mut server, id, step);
        }
        // They have heard of it first.
        for (_, download, _) in downloads {
            assert!(room(download).is_none());
        }
        server.core.borrow_mut().serve_waiting();
        assert_eq!(waiting(&server, *key), Waiting::Called);
        for (_, download, _) in downloads {
            let first = room(download);
            send_all(&server, download);
            assert!(first.is_none_or(|first| first <= 16 * 1024), "{first:?} beside others");
        }
        assert!(room_for(small, 100).is_some_and(|room| room >= 100), "its share");
        small.send_data(vec![0; 100].into(), true);
        for _ in 0..4 {
            server.core.borrow_mut().serve_waiting();
            for (_, download, _) in downloads {
                send_all(&server, download);
            }
        }
        assert_eq!(server.core.borrow().credit.left(), 0, "nothing is kept back");
    }
}

#[test]
fn heads_wait_for_what_is_unsent_and_for_no_window() {
    let (mut client, mut server) = pair();
    let streams = answering(&mut client, &mut server, 4);
    // Two of them use up the connection's window, and fill what may be unsent.
    server.core.borrow_mut().credit = Credit::new(131_000);
    for (_, down, _) in &streams[..2] {
        let room = room(down).expect("room");
        down.send_data(vec![0; room].into(), false);
    }
    assert_eq!(server.core.borrow().credit.left(), 0);
    assert!(server.core.borrow().out().len() >= OUT_LIMIT);
    let (trailers, data) = (&streams[2], &streams[3]);
    assert!(room(&data.1).is_none());
    assert!(now(|cx| trailers.1.poll_room_for_head(cx)).is_none());
    assert_eq!(waiting(&server, data.2), Waiting::Connection);
    assert_eq!(waiting(&server, trailers.2), Waiting::Unsent);
    server.all_written();
    assert!(!server.core.borrow_mut().serve_waiting());
    assert_eq!(waiting(&server, data.2), Waiting::Connection, "there is still no window for it");
    assert_eq!(waiting(&server, trailers.2), Waiting::Not, "it was woken");
    assert!(now(|cx| trailers.1.poll_room_for_head(cx)).is_some());
    // What waits for a window may turn to what needs none.
    assert!(now(|cx| data.1.poll_room_for_head(cx)).is_some());
    give(&mut server, 0, 1);
    server.core.borrow_mut().serve_waiting();
    assert_eq!((waiting(&server, data.2), room(&data.1)), (Waiting::Called, Some(1)));
}

#[test]
fn who_has_gone_waits_no_longer() {
    let (mut client, mut server) = pair();
    let mut streams = answering(&mut client, &mut server, 4);
    server.core.borrow_mut().credit = Credit::new(0);
    for (_, down, _) in &streams {
        assert!(room(down).is_none());
    }
    streams.truncate(1);
    exchange(&mut client, &mut server);
    assert_eq!(server.core.borrow().turns.len(), 1);
    // Others come to the places of those that have gone.
    streams.extend(answering(&mut client, &mut server, 3));
    give(&mut server, 0, 100);
    assert!(!server.core.borrow_mut().serve_waiting());
    assert_eq!(server.core.borrow().turns.len(), 0);
    assert_eq!(room(&streams[0].1), Some(100));
}

#[test]
fn uploads_that_are_not_taken_leave_the_last_part_to_others() {
    let client = pair().0;
    let quiet: Vec<_> = (0..3).map(|_| client.open(&request("POST"), false)).collect();
    let uploads: Vec<_> = (0..20).map(|_| client.open(&request("POST"), false)).collect();
    for upload in &uploads {
        while let Some(room) = room(upload) {
            upload.send_data(vec![0; room].into(), false);
            client.all_written();
        }
    }
    let left = client.core.borrow().credit.left();
    assert!((100..RESERVE).contains(&left), "{left}");
    // No new stream is opened where there is so little.
    assert!(client.core.borrow().is_stuck());
    for stream in &quiet {
        assert!(room_for(stream, 10).is_some_and(|room| room > 10));
        stream.send_data(vec![0; 10].into(), false);
    }
}

/// Small frames make small updates, and those small frames again; and endpoints take them for an attack.
#[test]
fn no_share_is_cut_into_frames_that_are_worth_nothing() {
    let mut client = pair().0;
    let uploads: Vec<_> = (0..16).map(|_| client.open(&request("POST"), false)).collect();
    let (mut sizes, mut owed) = (Vec::new(), vec![0; uploads.len()]);
    for round in 0..200 {
        for (n, upload) in uploads.iter().enumerate() {
            while let Some(room) = room(upload) {
                sizes.push(room);
                upload.send_data(vec![0; room].into(), false);
                owed[n] += room as u32;
                client.all_written();
            }
            // The endpoint gives again a little at a time, as its application reads.
            let a_little = owed[n].min(17 + (round * 31 + n as u32 * 7) % 400);
            owed[n] -= a_little;
            if a_little > 0 {
                give(&mut client, 0, a_little);
                give(&mut client, 2 * n as u32 + 1, a_little);
            }
            while client.core.borrow_mut().serve_waiting() {}
        }
    }
    assert!(sizes.len() > 100, "{}", sizes.len());
    assert!(sizes.iter().all(|size| *size >= WORTH), "{:?}", sizes.iter().min());
    // What is small by itself goes on.
    assert!(room_for(&client.open(&request("POST"), false), 20).is_some());
}

/// As Tomcat does, which reads twenty streams at once by default, and gives their windows again late.
#[test]
fn uploads_that_are_read_go_on_beside_many_that_are_not() {
    const READ: usize = 20;
    const BODY: usize = 20_000;
    let mut client = pair().0;
    let uploads: Vec<_> = (0..52).map(|_| client.open(&request("POST"), false)).collect();
    let (mut left, mut owed) = (vec![BODY; uploads.len()], vec![0; uploads.len()]);
    while left[..READ].iter().any(|left| *left > 0) {
        let mut sent = 0;
        for (n, upload) in uploads.iter().enumerate() {
            let Some(room) = room_for(upload, left[n]).filter(|_| left[n] > 0) else { continue };
            let amount = room.min(left[n]);
            left[n] -= amount;
            upload.send_data(vec![0; amount].into(), left[n] == 0);
            client.all_written();
            if n < READ {
                sent += amount;
                give(&mut client, 0, amount as u32);
                owed[n] += amount as u32;
                if owed[n] >= 1024 && left[n] > 0 {
                    give(&mut client, 2 * n as u32 + 1, std::mem::take(&mut owed[n]));
                }
            }
            while client.core.borrow_mut().serve_waiting() {}
        }
        assert!(sent > 0, "those that are read stand still: {:?} are left", &left[..READ]);
    }
}

#[test]
fn who_sends_alone_may_use_all() {
    let mut client = pair().0;
    let quiet = client.open(&request("POST"), false);
    let upload = client.open(&request("POST"), false);
    let key = client.core.borrow().streams.find(3).expect("open");
    let above = room(&upload).expect("room");
    assert_eq!(above, 65_535 - RESERVE);
    upload.send_data(vec![0; above].into(), false);
    assert!(room(&upload).is_none());
    assert_eq!(waiting(&client, key), Waiting::Connection);
    // What was taken of it counts no longer.
    give(&mut client, 3, above as u32);
    client.core.borrow_mut().serve_waiting();
    assert_eq!(waiting(&client, key), Waiting::Not);
    let some = room(&upload).expect("room");
    assert_eq!(some, RESERVE / 5);
    upload.send_data(vec![0; some].into(), false);
    assert!(room(&upload).is_none());
    // The other one has said all.
    quiet.send_data(Bytes::new(), true);
    client.core.borrow_mut().serve_waiting();
    assert_eq!(waiting(&client, key), Waiting::Not);
    assert_eq!(room(&upload), Some(RESERVE - some));
}

proptest! {
    /// An endpoint that takes everything, and says so for half of its windows at once, gets everything.
    #[test]
    fn who_is_taken_never_stands_still(
        streams in 1..12_usize,
        window in prop_oneof![Just(65_535_u32), Just(4096), Just(1 << 20)],
        batches in prop::collection::vec(1..60_000_usize, 1..12),
    ) {
        let mut client = pair().0;
        {
            let mut core = client.core.borrow_mut();
            core.remote.window = window;
        }
        let streams: Vec<_> = (0..streams).map(|_| client.open(&request("POST"), false)).collect();
        let mut left: Vec<usize> = streams.iter().zip(batches.iter().cycle()).map(|(_, batch)| batch * 10).collect();
        let mut owed = vec![0_u32; streams.len()];
        let mut owed_by_all = 0_u32;
        while left.iter().any(|left| *left > 0) {
            let mut sent = 0;
            for (n, stream) in streams.iter().enumerate() {
                let wanted = left[n].min(batches[n % batches.len()]);
                let Some(room) = room_for(stream, wanted).filter(|_| left[n] > 0) else { continue };
                let amount = room.min(wanted);
                left[n] -= amount;
                sent += amount;
                stream.send_data(vec![0; amount].into(), left[n] == 0);
                owed[n] += amount as u32;
                owed_by_all += amount as u32;
            }
            client.all_written();
            prop_assert!(sent > 0, "all stand still: {left:?} are left");
            for (n, owed) in owed.iter_mut().enumerate() {
                if *owed >= window / 2 && left[n] > 0 {
                    give(&mut client, 2 * n as u32 + 1, std::mem::take(owed));
                }
            }
            if owed_by_all >= 65_535 / 2 {
                give(&mut client, 0, std::mem::take(&mut owed_by_all));
            }
            while client.core.borrow_mut().serve_waiting() {}
        }
    }

    /// A client that reads everything gets everything, whoever of its streams is first.
    #[test]
    fn what_a_client_reads_never_stands_still(
        count in 1..20_usize,
        window in prop_oneof![Just(65_535_u32), Just(4096), Just(1 << 20)],
        bodies in prop::collection::vec((1..60_000_usize, 1..20_usize), 1..12),
        late in any::<bool>(),
    ) {
        let (mut client, mut server) = pair();
        let streams = answering(&mut client, &mut server, count);
        {
            let mut core = server.core.borrow_mut();
            for (_, _, key) in &streams {
                core.streams.get_mut(*key).unwrap().credit = Credit::new(window);
            }
        }
        let bodies = || bodies.iter().cycle();
        let mut left: Vec<usize> = streams.iter().zip(bodies()).map(|(_, (part, parts))| part * parts).collect();
        let mut owed = vec![0_u32; streams.len()];
        let mut owed_by_all = 0_u32;
        while left.iter().any(|left| *left > 0) {
            let mut sent = 0;
            for (n, ((_, stream, _), (part, _))) in streams.iter().zip(bodies()).enumerate() {
                let wanted = left[n].min(*part);
                let Some(room) = room_for(stream, wanted).filter(|_| left[n] > 0) else { continue };
                let amount = room.min(wanted);
                left[n] -= amount;
                sent += amount;
                stream.send_data(vec![0; amount].into(), left[n] == 0);
                owed[n] += amount as u32;
                owed_by_all += amount as u32;
            }
            server.all_written();
            // Who is not before others may be in the next round.
            let turns = server.core.borrow().turns.len();
            prop_assert!(sent > 0 || turns > 0, "all stand still: {left:?} are left");
            for (n, owed) in owed.iter_mut().enumerate() {
                if *owed >= window / 2 && left[n] > 0 {
                    give(&mut server, 2 * n as u32 + 1, std::mem::take(owed));
                }
            }
            if owed_by_all >= 65_535 / 2 {
                give(&mut server, 0, std::mem::take(&mut owed_by_all));
            }
            if late {
                server.core.borrow_mut().serve_waiting();
            } else {
                while server.core.borrow_mut().serve_waiting() {}
            }
        }
    }
}
