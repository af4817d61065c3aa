//! Runs each target with the inputs of its corpus, and with inputs that are made of these by changing them at random.
//!
//! `SLUICE_FUZZ_SECONDS`: how long for each target (otherwise a few thousand inputs, which takes about a second).
//! `SLUICE_FUZZ_SEED`: where randomness begins (otherwise where it always does). A failure says with which input.

// Whoever runs it wants to see what was tried.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{
    fmt::Write as _,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use fastrand::Rng;

use super::{TARGETS, Target};

/// Without a time.
const INPUTS: usize = 3000;
/// What is longer says nothing that something shorter does not.
const LONGEST: usize = 4096;
/// To one input.
const CHANGES: usize = 6;

/// Pieces of what the targets read: random bytes seldom make them.
const WORDS: [&[u8]; 48] = [
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"=",
    b"-",
    b"%",
    b"\"",
    b"GET / HTTP/1.1\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.0 ",
    b"Host: a\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: ",
    b"Upgrade: websocket\r\n",
    b"close",
    b"keep-alive",
    b"te: trailers\r\n",
    b"baggage: ",
    b"x-mse-tag",
    b"gray",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"ffffffffffffffff",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01",
    b"\0\0\0\x04\0\0\0\0\0",
    b"\0\0\x01\x01\x05\0\0\0\x01\x82",
    b"\0\0\x01\x09\x04\0\0\0\x01\x84",
    b"\x3f\xe1\x1f",
    b"\x20",
    b"\x40\x01a\x01b",
    b"\xbe",
    b"\x7f\xff\xff\xff\xff\x0f",
    b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"80f198ee56343ba864fe8b2a57d3eff7",
    b"---\n",
    b"&a ",
    b"*a",
    b"<<: ",
    b"|\n  ",
    b"spec:\n",
];

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target.name);
    let mut files: Vec<PathBuf> = fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no inputs", directory.display());
    files.into_iter().map(|file| (file.clone(), fs::read(&file).unwrap())).collect()
}

fn change(input: &mut Vec<u8>, others: &[Vec<u8>], rng: &mut Rng) {
    let at = rng.usize(..=input.len());
    let most = if rng.bool() { 4 } else { 64 };
    let length = rng.usize(..=(input.len() - at).min(most));
    let part = at..at + length;
    match rng.u8(..9) {
        0 if at < input.len() => input[at] ^= 1 << rng.u8(..8),
        1 if at < input.len() => input[at] = *rng.choice(&[0, 1, 0x7f, 0x80, 0xff, b' ', b'0']).unwrap_or(&0),
        2 => drop(input.drain(part)),
        3 => {
            let copy = input[part].to_vec();
            for _ in 0..rng.usize(1..40) {
                input.splice(at..at, copy.iter().copied());
            }
        }
        4 => drop(
            input.splice(part, std::iter::repeat_with(|| rng.u8(..)).take(length + 1).collect::<Vec<_>>()),
        ),
        5 => input.truncate(at),
        6 => {
            let other = &others[rng.usize(..others.len())];
            let from = rng.usize(..=other.len());
            let to = rng.usize(from..=other.len());
            input.splice(part, other[from..to].iter().copied());
        }
        _ => drop(input.splice(part, WORDS[rng.usize(..WORDS.len())].iter().copied())),
    }
    input.truncate(LONGEST);
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// As a Rust literal, to become a test or a new input of the corpus.
fn literal(input: &[u8]) -> String {
    let mut text = String::new();
    for byte in input {
        let _ = write!(text, "{}", byte.escape_ascii());
    }
    format!("b\"{text}\"")
}

/// On a thread with room: without optimization a deep manifest takes several times the stack that it takes in a release.
fn fuzz(name: &'static str) {
    let thread = std::thread::Builder::new().stack_size(8 << 20).spawn(|| fuzz_here(name)).expect("a thread");
    if let Err(cause) = thread.join() {
        std::panic::resume_unwind(cause);
    }
}

fn fuzz_here(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
    let try_one = |input: &[u8], what: &dyn Fn() -> String| {
        if let Err(cause) = catch_unwind(AssertUnwindSafe(|| (target.run)(input))) {
            eprintln!("{name} fails for {}: {}", what(), literal(input));
            std::panic::resume_unwind(cause);
        }
    };
    let mut inputs = vec![Vec::new()];
    for (file, input) in corpus(target) {
        try_one(&input, &|| file.display().to_string());
        inputs.push(input);
    }
    let seed = number("SLUICE_FUZZ_SEED").unwrap_or(0x51_u64);
    let time = number("SLUICE_FUZZ_SECONDS").map(Duration::from_secs);
    let (mut rng, began) = (Rng::with_seed(seed), Instant::now());
    let goes_on = |tried| time.map_or(tried < INPUTS, |time| began.elapsed() < time);
    let mut tried = 0;
    while goes_on(tried) {
        let mut input = inputs[rng.usize(..inputs.len())].clone();
        for _ in 0..rng.usize(1..=CHANGES) {
            change(&mut input, &inputs, &mut rng);
        }
        try_one(&input, &|| format!("input {tried} of seed {seed}"));
        tried += 1;
    }
    println!("{name}: {tried} inputs from {} of the corpus", inputs.len());
}

macro_rules! tests {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                fuzz(stringify!($name));
            }
        )*

        #[test]
        fn every_target_has_a_test_a_program_and_a_corpus() {
            let tested = [$(stringify!($name)),*];
            assert_eq!(tested, TARGETS.map(|target| target.name));
            let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
            let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
            for name in tested {
                let program = fs::read_to_string(fuzz.join(format!("fuzz_targets/{name}.rs"))).unwrap();
                assert!(program.contains(&format!("\"{name}\"")), "{program}");
                assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"")), "{name}");
            }
            for directory in ["fuzz_targets", "corpus"] {
                assert_eq!(fs::read_dir(fuzz.join(directory)).unwrap().count(), tested.len(), "{directory}");
            }
        }
    };
}

tests! { http1_request http1_response http1_body http2_frames hpack detect baggage trace_context manifests }

#[test]
fn inputs_are_cut_in_pieces_that_make_the_whole() {
    for length in [0, 1, 2, 5, 1000] {
        let input: Vec<u8> = (0..length).map(|index| index as u8).collect();
        assert_eq!(super::pieces(&input).flatten().copied().collect::<Vec<_>>(), input);
        assert!(super::pieces(&input).eq(super::pieces(&input)));
        assert!(super::pieces(&input).all(|piece| !piece.is_empty()));
    }
}

#[test]
fn an_input_is_shown_as_it_can_be_written_in_a_test() {
    assert_eq!(literal(b"a\r\n\"\\\xff"), r#"b"a\r\n\"\\\xff""#);
}
