//! Standard output and standard error of commands whose reader may go away, as in `sluice get /metrics | head`.
//!
//! Rust programs ignore SIGPIPE, so a reader that has gone is an error of the next write (EPIPE). `println!` and `eprintln!`
//! panic then. <https://doc.rust-lang.org/std/macro.println.html#panics>

use std::{
    fmt,
    io::{self, Write as _},
};

/// Prints the whole of it. Whoever reads no further has seen enough: that is no failure.
///
/// # Errors
/// It cannot be written for another reason: the file system is full, say.
pub fn print(text: impl AsRef<[u8]>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_ref()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Says on standard error what is wrong. If nobody reads it there, there is nobody to tell that.
pub fn complain(line: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{line}");
}
