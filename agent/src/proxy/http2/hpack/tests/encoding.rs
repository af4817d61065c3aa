//! What the encoder makes of fields, and that a decoder makes the same of it.

use ahash::RandomState;

use super::*;

/// One whose hashes are the same in each run.
fn encoder(bound: usize) -> Encoder {
    Encoder::hashing(bound, RandomState::with_seeds(1, 2, 3, 4))
}

/// The bytes of each of `times` blocks with the same fields.
fn lengths(encoder: &mut Encoder, fields: &[Pair], times: usize) -> Vec<usize> {
    (0..times).map(|_| encode(encoder, fields).len()).collect()
}

#[test]
fn what_comes_again_is_one_byte() {
    let mut encoder = encoder(TABLE_SIZE);
    let fields = [
        pair(":method", "POST"),
        pair(":path", "/orders.v1.Orders/Place"),
        pair(":authority", "orders.shop:8080"),
        pair("te", "trailers"),
        pair("user-agent", "grpc-java-netty/1.60"),
    ];
    let lengths = lengths(&mut encoder, &fields, 6);
    assert!(lengths[1] > 20);
    // A new name takes one time more.
    assert_eq!(lengths[3..], [5, 5, 5]);
}

#[test]
fn fields_find_their_place_whatever_else_comes() {
    // Many at once, so that several meet in each set of what was seen, and some in one bucket.
    let fields: Vec<_> = (0..60).map(|n| pair(&format!("x-{n}"), "value")).collect();
    for seed in 0..50 {
        let mut encoder = Encoder::hashing(TABLE_SIZE, RandomState::with_seeds(seed, 2, 3, 4));
        let lengths = lengths(&mut encoder, &fields, 40);
        assert_eq!(lengths[39], 60, "{seed}: {lengths:?}");
    }
}

#[test]
fn what_changes_each_time_leaves_the_table_alone() {
    let mut encoder = encoder(TABLE_SIZE);
    let steady = [pair("user-agent", "one"), pair("x-tenant", "blue"), pair("x-shard", "7")];
    lengths(&mut encoder, &steady, 5);
    for n in 0..10_000 {
        let id = format!("{n:032x}");
        encode(
            &mut encoder,
            &[
                pair(":path", &format!("/orders/{n}")),
                pair("traceparent", &format!("00-{id}-{n:016x}-01")),
                pair("x-correlation", &id),
                pair("content-length", &n.to_string()),
                pair("cookie", &format!("session={id}; theme=dark")),
            ],
        );
        // Sent now and then between the others.
        if n % 50 == 0 {
            assert_eq!(encode(&mut encoder, &steady).len(), 3, "{n}");
        }
    }
    let (entries, _) = entries(encoder.table());
    let others: Vec<_> = entries.iter().filter(|entry| !steady.contains(entry)).collect();
    // Their names' entries, so that a name is one byte or two.
    assert!(others.len() <= 2 + 2, "{others:?}");
}

#[test]
fn secrets_are_in_no_table() {
    let mut encoder = encoder(TABLE_SIZE);
    let mut decoder = Decoder::new(TABLE_SIZE);
    for (name, value, secret) in [
        ("authorization", "Bearer abcdefghijklmnopqrstuvwxyz", true),
        ("proxy-authorization", "Basic abc", true),
        ("set-cookie", "session=abcdefghijklmnopqrstuvwxyz", true),
        ("cookie", "a=1234567890", true),
        ("cookie", "session=abcdefghijklmnopqrstuvwxyz", false),
        ("x-other", "abc", false),
    ] {
        for _ in 0..3 {
            let block = encode(&mut encoder, &[pair(name, value)]);
            decoder
                .decode(&block, usize::MAX, &mut |field| {
                    assert_eq!((field.name, field.value), (name.as_bytes(), value.as_bytes()));
                    assert_eq!(field.never_indexed, secret, "{name}");
                })
                .expect("it is one");
        }
        let held = entries(encoder.table()).0.iter().any(|entry| entry.0 == name.as_bytes());
        assert_eq!(held, !secret, "{name}");
    }
}

#[test]
fn what_its_sender_wants_in_no_table_is_in_none() {
    let mut encoder = encoder(TABLE_SIZE);
    let mut decoder = Decoder::new(TABLE_SIZE);
    // Also if it stands in a table already, with its value or only its name.
    for (name, value, indexing) in [
        ("x-key", "open", Indexing::Auto),
        ("x-key", "open", Indexing::Auto),
        ("x-key", "open", Indexing::Auto),
        ("x-key", "open", Indexing::Never),
        ("x-key", "closed", Indexing::Never),
        ("x-new", "closed", Indexing::Never),
        (":method", "GET", Indexing::Never),
        (":path", "/secret", Indexing::Never),
    ] {
        let mut block = BytesMut::new();
        encoder.encode(&mut block, name.as_bytes(), value.as_bytes(), indexing);
        let mut seen = None;
        decoder
            .decode(&block, usize::MAX, &mut |field| {
                seen = Some((field.name.to_vec(), field.value.to_vec(), field.never_indexed));
            })
            .expect("it is one");
        assert_eq!(seen, Some((name.into(), value.into(), indexing == Indexing::Never)));
    }
    assert_eq!(entries(encoder.table()).0, [pair("x-key", "open")]);
}

#[test]
fn a_peer_without_a_table_is_told_that_there_is_none() {
    let mut encoder = encoder(TABLE_SIZE);
    let fields = [pair("x-key", "value"), pair(":method", "GET"), pair("server", "nginx")];
    lengths(&mut encoder, &fields, 3);
    encoder.set_max_table(0);
    let mut decoder = Decoder::new(0);
    decoder.set_max_table(0);
    let block = encode(&mut encoder, &fields);
    assert_eq!(block[0], 0x20);
    for _ in 0..3 {
        let block = encode(&mut encoder, &fields);
        assert_eq!(block[0], 0, "it is told once");
    }
    assert_eq!(decode(&mut decoder, &block), Ok(fields.to_vec()));
    assert_eq!(encoder.held(), 0);
    // Down and up again: both are told, in this order.
    encoder.set_max_table(100);
    encoder.set_max_table(50);
    encoder.set_max_table(2000);
    let block = encode(&mut encoder, &fields);
    assert_eq!(block[..5], [0x3f, 50 - 31, 0x3f, 0xb1, 0x0f]);
    // More than we want is no more than we want.
    encoder.set_max_table(usize::MAX);
    assert_eq!(encode(&mut encoder, &fields)[..3], [0x3f, 0xe1, 0x1f]);
    encoder.set_max_table(1 << 20);
    assert_ne!(encode(&mut encoder, &fields)[0] & 0xe0, 0x20);
}

#[test]
fn an_encoder_that_wants_less_than_the_default_says_so_at_once() {
    let mut encoder = encoder(64);
    assert_eq!(encode(&mut encoder, &[pair(":method", "GET")])[..], [0x3f, 33, 0x82]);
}

#[test]
fn what_is_held_for_a_peer_does_not_grow() {
    let mut encoder = encoder(TABLE_SIZE);
    let mut decoder = Decoder::new(TABLE_SIZE);
    for n in 0..20_000 {
        // Each of them twice, so that it is added.
        let fields = [pair(&format!("x-{}", n / 2), "v"), pair("x-same", &format!("{}", n / 2 % 700))];
        let block = encode(&mut encoder, &fields);
        assert_eq!(decode(&mut decoder, &block), Ok(fields.to_vec()));
    }
    assert_eq!(entries(encoder.table()), entries(decoder.table()));
    assert!(entries(encoder.table()).0.len() > 50);
    assert!(encoder.held() < 32 * 1024, "{}", encoder.held());
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        (1..=fixed::COUNT).prop_map(|index| fixed::entry(index).expect("it is one").0.bytes().to_vec()),
        "x-[ab]{1,3}".prop_map(String::into_bytes),
        any::<Vec<u8>>(),
    ]
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        (1..=fixed::COUNT).prop_map(|index| fixed::entry(index).expect("it is one").1.to_vec()),
        "[a-c]{0,3}".prop_map(String::into_bytes),
        any::<Vec<u8>>(),
        (0_usize..6000).prop_map(|length| vec![b'v'; length]),
    ]
}

proptest! {
    /// Whatever is sent in whatever order with whatever table sizes arrives, and both tables are the same.
    #[test]
    fn a_decoder_reads_what_an_encoder_writes(
        bound in prop_oneof![Just(0), Just(64), Just(TABLE_SIZE)],
        fields in prop::collection::vec((name(), value(), any::<bool>()), 1..20),
        blocks in prop::collection::vec((prop::collection::vec(any::<prop::sample::Index>(), 0..30), 0_usize..20), 1..20),
    ) {
        let mut encoder = encoder(bound);
        let mut decoder = Decoder::new(8192);
        for (which, size) in blocks {
            // Now and then the peer offers another size, or two.
            if size < 3 {
                encoder.set_max_table(size * 60);
                encoder.set_max_table(size * 2000);
            }
            let mut block = BytesMut::new();
            let mut sent = Vec::new();
            for at in which {
                let (name, value, never) = at.get(&fields);
                let indexing = if *never { Indexing::Never } else { Indexing::Auto };
                encoder.encode(&mut block, name, value, indexing);
                sent.push((name.clone(), value.clone()));
            }
            // A size is told with the next field.
            let is_told = !sent.is_empty();
            prop_assert_eq!(decode(&mut decoder, &block), Ok(sent));
            if is_told {
                prop_assert_eq!(entries(encoder.table()), entries(decoder.table()));
            }
        }
    }
}
