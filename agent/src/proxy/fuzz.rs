//! Fuzz targets about what a connection speaks, and those of each protocol.

use super::detect::{Spoken, classify, classify_declared};
pub(crate) use super::{
    http1::fuzz::{http1_body, http1_request, http1_response},
    http2::fuzz::{hpack, http2_frames},
};
use crate::fuzzing::pieces;

/// More bytes never change what a connection was found to speak, and it is found before many have come.
pub(crate) fn detect(input: &[u8]) {
    let mut came = 0;
    let mut settled = Spoken::Unclear;
    for piece in pieces(input) {
        came += piece.len();
        let verdict = classify(&input[..came]);
        assert!(settled == Spoken::Unclear || settled == verdict, "{settled:?}, then {verdict:?}");
        settled = verdict;
    }
    assert_eq!(settled, classify(input));
    if settled == Spoken::Unclear && !input.starts_with(b"PRI * HTTP/2.0") {
        assert!(!input.contains(&b'\n'), "unclear after a whole line");
    }
    if settled == Spoken::Http1 {
        assert!(input.contains(&b'\n') && classify_declared(input) == Spoken::Http1);
    }
    if input.starts_with(&[0x16, 3]) {
        assert_eq!(settled, Spoken::Tls);
    }
}
