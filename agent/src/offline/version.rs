//! `sluice version`: what this binary is. Whoever packs it into an image asks whether it can capture at all.

use std::io;

use crate::capture;

/// Writes it to `out`.
///
/// # Errors
/// Nobody takes it.
pub fn run(out: &mut impl io::Write) -> io::Result<()> {
    write(out, capture::embedded_programs())
}

fn write(out: &mut impl io::Write, programs: Option<usize>) -> io::Result<()> {
    writeln!(out, "sluice {}", env!("CARGO_PKG_VERSION"))?;
    writeln!(out, "built for: {}", env!("SLUICE_TARGET"))?;
    match programs {
        Some(bytes) => writeln!(out, "eBPF programs: embedded ({bytes} bytes)"),
        None => writeln!(out, "eBPF programs: none, so this build cannot run as an agent"),
    }
}

#[cfg(test)]
mod tests {
    use super::write;

    fn said(programs: Option<usize>) -> String {
        let mut out = Vec::new();
        write(&mut out, programs).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn programs_are_told_from_none() {
        let with = said(Some(1234));
        assert!(with.starts_with(concat!("sluice ", env!("CARGO_PKG_VERSION"), "\nbuilt for: ")), "{with}");
        assert!(with.ends_with("\neBPF programs: embedded (1234 bytes)\n"), "{with}");
        assert!(said(None).ends_with("\neBPF programs: none, so this build cannot run as an agent\n"));
    }
}
