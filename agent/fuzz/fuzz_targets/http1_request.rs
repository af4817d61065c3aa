#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sluice::fuzzing::run("http1_request", input));
