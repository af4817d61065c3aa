//! The examples of RFC 7541, appendix C.

use super::*;

/// A field, and the dynamic table after it if it was the first field of a decoder.
#[test]
fn single_fields() {
    for (block, name, value, never, size) in [
        ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", "custom-key", "custom-header", false, 55),
        ("040c2f73616d706c652f70617468", ":path", "/sample/path", false, 0),
        ("100870617373776f726406736563726574", "password", "secret", true, 0),
        ("82", ":method", "GET", false, 0),
    ] {
        let mut decoder = Decoder::new(TABLE_SIZE);
        let mut seen = Vec::new();
        decoder
            .decode(&hex(block), usize::MAX, &mut |field| {
                seen.push((field.name.to_vec(), field.value.to_vec(), field.never_indexed));
            })
            .expect("it is one of the RFC's");
        assert_eq!(seen, [(name.into(), value.into(), never)]);
        let (entries, held) = entries(decoder.table());
        assert_eq!((entries.len(), held), (usize::from(size > 0), size));
    }
}

type Fields = &'static [(&'static str, &'static str)];

/// Blocks that come one after the other, each with what it says, the table after it, and that table's size.
fn sequence(decoder: &mut Decoder, blocks: &[(&str, Fields, Fields, usize)]) {
    let pairs =
        |list: &[(&str, &str)]| list.iter().map(|(name, value)| pair(name, value)).collect::<Vec<_>>();
    for (block, fields, table, size) in blocks {
        assert_eq!(decode(decoder, &hex(block)), Ok(pairs(fields)));
        assert_eq!(entries(decoder.table()), (pairs(table), *size));
    }
}

const FIRST_REQUEST: Fields =
    &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];
const SECOND_REQUEST: Fields = &[
    (":method", "GET"),
    (":scheme", "http"),
    (":path", "/"),
    (":authority", "www.example.com"),
    ("cache-control", "no-cache"),
];
const THIRD_REQUEST: Fields = &[
    (":method", "GET"),
    (":scheme", "https"),
    (":path", "/index.html"),
    (":authority", "www.example.com"),
    ("custom-key", "custom-value"),
];
const AFTER_REQUESTS: Fields =
    &[("custom-key", "custom-value"), ("cache-control", "no-cache"), (":authority", "www.example.com")];

#[test]
fn requests_in_plain_strings() {
    sequence(
        &mut Decoder::new(TABLE_SIZE),
        &[
            ("828684410f7777772e6578616d706c652e636f6d", FIRST_REQUEST, &AFTER_REQUESTS[2..], 57),
            ("828684be58086e6f2d6361636865", SECOND_REQUEST, &AFTER_REQUESTS[1..], 110),
            (
                "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
                THIRD_REQUEST,
                AFTER_REQUESTS,
                164,
            ),
        ],
    );
}

#[test]
fn requests_in_huffman_code() {
    sequence(
        &mut Decoder::new(TABLE_SIZE),
        &[
            ("828684418cf1e3c2e5f23a6ba0ab90f4ff", FIRST_REQUEST, &AFTER_REQUESTS[2..], 57),
            ("828684be5886a8eb10649cbf", SECOND_REQUEST, &AFTER_REQUESTS[1..], 110),
            ("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf", THIRD_REQUEST, AFTER_REQUESTS, 164),
        ],
    );
}

const COOKIE: &str = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
const FIRST_RESPONSE: Fields = &[
    (":status", "302"),
    ("cache-control", "private"),
    ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
    ("location", "https://www.example.com"),
];
const SECOND_RESPONSE: Fields = &[
    (":status", "307"),
    ("cache-control", "private"),
    ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
    ("location", "https://www.example.com"),
];
const THIRD_RESPONSE: Fields = &[
    (":status", "200"),
    ("cache-control", "private"),
    ("date", "Mon, 21 Oct 2013 20:13:22 GMT"),
    ("location", "https://www.example.com"),
    ("content-encoding", "gzip"),
    ("set-cookie", COOKIE),
];
const AFTER_FIRST: Fields = &[
    ("location", "https://www.example.com"),
    ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
    ("cache-control", "private"),
    (":status", "302"),
];
const AFTER_SECOND: Fields = &[
    (":status", "307"),
    ("location", "https://www.example.com"),
    ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
    ("cache-control", "private"),
];
const AFTER_THIRD: Fields =
    &[("set-cookie", COOKIE), ("content-encoding", "gzip"), ("date", "Mon, 21 Oct 2013 20:13:22 GMT")];

/// In a table of 256 bytes, so that entries leave it.
fn small() -> Decoder {
    let mut decoder = Decoder::new(256);
    decoder.set_max_table(256);
    // 256 = 31 + 225, which is 0xe1 0x01.
    assert_eq!(decode(&mut decoder, &[0x3f, 0xe1, 0x01]), Ok(vec![]));
    decoder
}

#[test]
fn responses_in_plain_strings() {
    sequence(
        &mut small(),
        &[
            (
                "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d546e1768747470733a2f2f7777772e6578616d706c652e636f6d",
                FIRST_RESPONSE,
                AFTER_FIRST,
                222,
            ),
            ("4803333037c1c0bf", SECOND_RESPONSE, AFTER_SECOND, 222),
            (
                "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31",
                THIRD_RESPONSE,
                AFTER_THIRD,
                215,
            ),
        ],
    );
}

#[test]
fn responses_in_huffman_code() {
    sequence(
        &mut small(),
        &[
            (
                "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
                FIRST_RESPONSE,
                AFTER_FIRST,
                222,
            ),
            ("4883640effc1c0bf", SECOND_RESPONSE, AFTER_SECOND, 222),
            (
                "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
                THIRD_RESPONSE,
                AFTER_THIRD,
                215,
            ),
        ],
    );
}

/// Appendix C.1.
#[test]
fn numbers() {
    for (number, bits, bytes) in [(10, 5, &[0x0a][..]), (1337, 5, &[0x1f, 0x9a, 0x0a]), (42, 8, &[0x2a])] {
        let mut out = BytesMut::new();
        integer::put(&mut out, 0, bits, number);
        assert_eq!(&out[..], bytes);
        let mut rest = &bytes[1..];
        assert_eq!(integer::take(bytes[0], bits, &mut rest), Ok(number));
        assert!(rest.is_empty());
    }
}
