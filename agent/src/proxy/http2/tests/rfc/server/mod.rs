//! The end that clients see.

mod connection;
mod messages;

use super::{Must::*, *};

/// The section, what is sent behind the preface and SETTINGS, and what has to become of it.
type Row = (&'static str, &'static str, Vec<u8>, Must);

/// A request whose answer waits: stream 1 stays open.
fn open() -> Vec<u8> {
    frames::headers(1, false, &frames::post("/hang"))
}

/// A header block as it is.
fn raw(block: &[u8]) -> Vec<u8> {
    frames::frame(frames::HEADERS, 5, 1, block)
}

fn rows() -> impl Iterator<Item = Row> {
    connection::rows().into_iter().chain(messages::rows())
}

/// What became of a row: of stream 1, and of the connection.
async fn became(wire: &mut Wire, must: Must) -> (Option<Must>, Option<u32>) {
    let (mut stream, mut goes_on) = (None, false);
    loop {
        // Far longer than any of it takes; a row of which nothing comes is told with the others.
        let Ok(Some(event)) = timeout(Duration::from_secs(3), wire.control.recv()).await else {
            return (stream, Some(u32::MAX));
        };
        match event {
            Event::Reset { stream: 1, code } => stream = stream.or(Some(Reset(code))),
            Event::Headers { stream: 1, fields, .. } => {
                let status = wire::of(&fields, ":status").parse().expect("a status");
                stream = stream.or(Some(Answer(status)));
            }
            Event::GoAway { code, .. } if code != 0 => return (stream, Some(code)),
            Event::Closed => return (stream, Some(0)),
            // It has looked at all that was sent.
            Event::Ping { ack: true, payload: [b'e', ..] } => goes_on = true,
            _ => {}
        }
        // What is answered by an endpoint takes its time.
        let has_come = stream.is_some() || matches!(must, Ignore | End(_));
        if goes_on && has_come {
            return (stream, None);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_demand_is_met() {
    let backend = Backend::start().await;
    let bed = bed_with(&[(backend.address, None)], 1000);
    let mut missed = Vec::new();
    for (section, what, bytes, must) in rows() {
        let mut wire = Wire::connect(bed.address, Wishes::default()).await;
        wire.handle.send([bytes, frames::ping(*b"end of 1")].concat()).await;
        let (stream, ended) = became(&mut wire, must).await;
        let met = match must {
            End(code) => ended == Some(code),
            _ if ended.is_some() => false,
            Malformed => matches!(stream, Some(Reset(PROTOCOL) | Answer(400))),
            ResetEither(one, other) => matches!(stream, Some(Reset(code)) if code == one || code == other),
            Ignore => stream.is_none(),
            Reset(_) | Answer(_) => stream == Some(must),
        };
        if !met {
            missed.push(format!("{section}, {what}: {must:?}, but {stream:?}, connection ended: {ended:?}"));
        } else if let End(_) = must {
            assert_eq!(wire.ended().await, None, "{section}, {what}: GOAWAY is the last that is heard");
        } else if !what.starts_with("GOAWAY") {
            wire.handle.skip_to(101);
            assert_eq!(wire.handle.get("/").await.status, 200, "{section}, {what}: others go on");
        }
        // With what the row has left open.
        wire.handle.close().await;
    }
    assert!(missed.is_empty(), "{missed:#?}");
    backend.seen.until(|seen| seen.open.load(Ordering::Relaxed) == 0).await;
}

#[tokio::test]
async fn the_first_frame_is_settings() {
    let backend = Backend::start().await;
    let bed = bed(&[(backend.address, None)]);
    for first in [
        frames::ping([0; 8]),
        frames::headers(1, true, &frames::get("/")),
        frames::window(0, 1),
        frames::frame(frames::SETTINGS, frames::ACK, 0, b""),
        frames::frame(0x42, 0, 0, b""),
    ] {
        let mut wire = Wire::bare(bed.address).await;
        wire.handle.send([frames::PREFACE, &first].concat()).await;
        assert_eq!(wire.ended().await, Some(PROTOCOL), "{first:?}");
    }
}

#[tokio::test]
async fn settings_are_acknowledged_and_pings_answered_in_their_order() {
    let backend = Backend::start().await;
    let bed = bed(&[(backend.address, None)]);
    let mut wire = Wire::connect(bed.address, Wishes::default()).await;
    let mut sent = Vec::new();
    for n in 0..20 {
        sent.extend(frames::settings(&[(4, 1000 + n)]));
        sent.extend(frames::ping(u64::from(n).to_be_bytes()));
    }
    wire.handle.send(sent).await;
    let (mut acks, mut pings) = (0, 0);
    while acks < 21 || pings < 20 {
        match wire.heard().await {
            Event::Settings { ack: true, all } => {
                assert!(all.is_empty());
                acks += 1;
            }
            Event::Ping { ack: true, payload } => {
                assert_eq!(u64::from_be_bytes(payload), pings);
                pings += 1;
                // The first one was for the connection's own.
                assert_eq!(acks, pings + 1);
            }
            Event::Closed => panic!("it has ended"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_stream_with_a_lower_number_cannot_be_opened() {
    let backend = Backend::start().await;
    let bed = bed(&[(backend.address, None)]);
    let mut wire = Wire::connect(bed.address, Wishes::default()).await;
    let both =
        [frames::headers(5, true, &frames::get("/")), frames::headers(3, true, &frames::get("/"))].concat();
    wire.handle.send(both).await;
    assert_eq!(wire.ended().await, Some(PROTOCOL), "section 5.1.1");
}

/// What comes for a stream that both ends have ended (section 5.1): an error is told, what may still be on its way is not.
#[tokio::test]
async fn frames_on_a_stream_that_is_closed() {
    let backend = Backend::start().await;
    let bed = bed_with(&[(backend.address, None)], 1000);
    for (what, bytes, told) in [
        ("DATA", frames::data(1, true, b"?"), true),
        ("HEADERS", head(5, 1, &[("a", "b")]), true),
        ("WINDOW_UPDATE", frames::window(1, 1), false),
        ("RST_STREAM", frames::reset(1, 8), false),
        ("PRIORITY", frames::frame(frames::PRIORITY, 0, 1, &[0; 5]), false),
    ] {
        let mut wire = Wire::connect(bed.address, Wishes::default()).await;
        assert_eq!(wire.handle.get("/").await.status, 200);
        wire.handle.send([bytes, frames::ping(*b"end of 1")].concat()).await;
        let mut codes = Vec::new();
        loop {
            match wire.heard().await {
                Event::Reset { stream: 1, code } => codes.push(code),
                Event::Ping { ack: true, .. } => break,
                Event::GoAway { code, .. } => panic!("{what}: {code}"),
                Event::Closed => panic!("{what}: its connection has ended"),
                _ => {}
            }
        }
        assert_eq!(codes, if told { vec![CLOSED] } else { Vec::new() }, "{what}");
        assert_eq!(wire.handle.get("/").await.status, 200, "{what}");
    }
}

#[tokio::test]
async fn more_streams_than_allowed_are_refused() {
    let backend = Backend::start().await;
    let bed = bed_with(&[(backend.address, None)], 2000);
    let mut wire = Wire::connect(bed.address, Wishes::default()).await;
    let allowed = loop {
        if let Event::Settings { ack: false, all } = wire.heard().await {
            break all.iter().find(|setting| setting.0 == 3).expect("it says how many").1;
        }
    };
    let mut streams = Vec::new();
    for _ in 0..allowed {
        streams.push(wire.handle.open(true, &frames::get("/hang")).await);
    }
    backend.seen.until(|seen| seen.open.load(Ordering::Relaxed) as u32 >= allowed).await;
    let mut above = wire.handle.open(true, &frames::get("/")).await;
    assert_eq!(above.answer().await.broken, Some(Some(REFUSED)));
    streams.pop().expect("there are some").reset(8).await;
    backend.seen.until(|seen| (seen.open.load(Ordering::Relaxed) as u32) < allowed).await;
    assert_eq!(wire.handle.get("/").await.status, 200, "there is room again");
}

/// A client that sends more than its windows let it.
#[tokio::test]
async fn windows_are_insisted_upon() {
    let backend = Backend::with(Wishes { takes: false, shares: false, ..Wishes::default() }).await;
    let bed = bed(&[(backend.address, None)]);
    let mut wire = Wire::connect(bed.address, Wishes::default()).await;
    let mut stream = wire.handle.open(false, &frames::post("/hang")).await;
    assert!(stream.data(&vec![7; 60_000], false).await);
    wire.handle.send(frames::data(stream.id, false, &[7; 16_000]).repeat(200)).await;
    let broken = stream.answer().await.broken;
    let ended = if broken == Some(None) { wire.ended().await } else { None };
    assert!(broken == Some(Some(FLOW_CONTROL)) || ended == Some(FLOW_CONTROL), "{broken:?}, {ended:?}");
}

/// Windows that the client gives in steps, makes negative, and opens again (section 6.9.2).
#[tokio::test]
async fn a_clients_windows_are_kept() {
    let backend = Backend::start().await;
    let bed = bed(&[(backend.address, None)]);
    let wishes = Wishes { settings: vec![(4, 10)], takes: false, strict: false, ..Wishes::default() };
    let wire = Wire::connect(bed.address, wishes).await;
    let mut stream = wire.handle.open(true, &frames::get("/big/1000")).await;
    assert_eq!(stream.head().await.status, 200);
    let comes = async |stream: &mut wire::Stream, wanted: usize| {
        let mut count = 0;
        while count < wanted {
            match stream.part().await {
                Ok(Event::Data { bytes, .. }) => count += bytes.len(),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(count, wanted);
        // Nothing follows: what comes in a PING's time would have been sent.
        wire.handle.send(frames::ping(*b"0000000e")).await;
        assert!(timeout(Duration::from_millis(20), stream.next()).await.is_err());
    };
    comes(&mut stream, 10).await;
    wire.handle.send(frames::window(stream.id, 1)).await;
    comes(&mut stream, 1).await;
    // From 10 to 3: seven below nothing.
    wire.handle.send(frames::settings(&[(4, 3)])).await;
    wire.handle.send(frames::window(stream.id, 7)).await;
    comes(&mut stream, 0).await;
    wire.handle.send(frames::window(stream.id, 2)).await;
    comes(&mut stream, 2).await;
    wire.handle.send(frames::settings(&[(4, 103)])).await;
    comes(&mut stream, 100).await;
    wire.handle.send(frames::window(stream.id, 100_000)).await;
    comes(&mut stream, 1000 - 113).await;
}

/// What a client says that it can take is what it gets.
#[tokio::test]
async fn a_client_without_a_header_table_is_served() {
    let backend = Backend::start().await;
    let bed = bed(&[(backend.address, None)]);
    let wire = Wire::connect(bed.address, Wishes { settings: vec![(1, 0)], ..Wishes::default() }).await;
    wire.handle.no_table();
    for n in 0..10 {
        let path = format!("/{}", n % 2);
        assert_eq!(wire.handle.get(&path).await.header("x-path"), path);
    }
}
