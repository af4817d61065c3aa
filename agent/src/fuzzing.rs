//! What is fuzzed: the readers of bytes that others send, each as a function that asserts what must hold for any input.
//!
//! Not only that nothing panics: the verdict is the same whether the bytes come at once or in pieces, what is written reads
//! the same again, and nothing takes more memory than it may. Each target stands beside what it is about.
//!
//! The same functions are run in two ways. `cargo test` changes the inputs of `agent/fuzz/corpus` at random, from a seed,
//! for as long as `SLUICE_FUZZ_SECONDS` says (see [`mutate`]); it needs nothing but a stable compiler. `cargo xtask fuzz` runs
//! them with libFuzzer, which is guided by coverage.

#[cfg(test)]
mod mutate;

use crate::{cluster, govern, observe, proxy};

/// Something that is fuzzed.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name of the program in `agent/fuzz/fuzz_targets`, and of the directory of its inputs.
    pub name: &'static str,
    /// Panics if something does not hold.
    pub run: fn(&[u8]),
}

pub const TARGETS: [Target; 9] = [
    Target { name: "http1_request", run: proxy::fuzz::http1_request },
    Target { name: "http1_response", run: proxy::fuzz::http1_response },
    Target { name: "http1_body", run: proxy::fuzz::http1_body },
    Target { name: "http2_frames", run: proxy::fuzz::http2_frames },
    Target { name: "hpack", run: proxy::fuzz::hpack },
    Target { name: "detect", run: proxy::fuzz::detect },
    Target { name: "baggage", run: govern::carrier::baggage::fuzz::baggage },
    Target { name: "trace_context", run: observe::trace::context::fuzz::trace_context },
    Target { name: "manifests", run: cluster::manifests::fuzz::manifests },
];

/// Runs the target of this name; for the programs of `agent/fuzz`.
///
/// # Panics
/// If there is none, or something that it asserts does not hold.
pub fn run(name: &str, input: &[u8]) {
    let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
        panic!("no fuzz target {name}")
    };
    (target.run)(input);
}

/// Cuts an input in pieces, as a network might: their lengths come from the input itself, so that they are the same each
/// time.
pub(crate) fn pieces(input: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rng = fastrand::Rng::with_seed(
        input
            .iter()
            .fold(input.len() as u64, |hash, byte| hash.wrapping_mul(0x0100_0000_01b3) ^ u64::from(*byte)),
    );
    let mut left = input;
    std::iter::from_fn(move || {
        let most = if rng.bool() { 3 } else { 300 };
        let (piece, rest) = left.split_at(rng.usize(1..=most).min(left.len()));
        left = rest;
        (!piece.is_empty()).then_some(piece)
    })
}
