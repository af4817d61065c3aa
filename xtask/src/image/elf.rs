//! As much of ELF as it takes to see whether a program needs a dynamic linker.

use anyhow::{Context as _, Result, ensure};

/// Names the program that is to load this one.
const PT_INTERP: u32 = 3;

/// Whether a 64-bit little-endian program starts without a dynamic linker.
/// <https://refspecs.linuxfoundation.org/elf/gabi4+/ch5.pheader.html>
pub(super) fn is_static(program: &[u8]) -> Result<bool> {
    ensure!(program.starts_with(b"\x7fELF\x02\x01"), "not a 64-bit little-endian ELF file");
    let u16_at = |at: usize| Some(u16::from_le_bytes(program.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(program.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(program.get(at..at + 8)?.try_into().ok()?));
    let headers = || {
        let (start, size, count) = (u64_at(32)? as usize, u16_at(54)? as usize, u16_at(56)? as usize);
        (0..count).map(|index| u32_at(start.checked_add(index * size)?)).collect::<Option<Vec<_>>>()
    };
    let kinds = headers().context("the ELF file is cut off")?;
    ensure!(!kinds.is_empty(), "the ELF file has no program headers");
    Ok(!kinds.contains(&PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with program headers of these kinds.
    fn program(kinds: &[u32]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01".to_vec();
        file.resize(64, 0);
        file[32] = 64;
        file[54] = 56;
        file[56] = kinds.len() as u8;
        for kind in kinds {
            file.extend(kind.to_le_bytes());
            file.extend([0; 52]);
        }
        file
    }

    #[test]
    fn programs_that_name_an_interpreter_are_not_static() {
        assert!(is_static(&program(&[1, 1, 0x6474_e551])).expect("good"));
        assert!(!is_static(&program(&[6, PT_INTERP, 1])).expect("good"));
        assert!(is_static(&program(&[])).is_err());
        assert!(is_static(&program(&[1])[..60]).is_err());
        assert!(is_static(b"#!/bin/sh\n").is_err());
        // The one that runs this test is linked dynamically wherever it is built for glibc.
        let own = std::fs::read(std::env::current_exe().expect("it runs")).expect("it is there");
        assert_eq!(is_static(&own).expect("it is one"), cfg!(target_feature = "crt-static"));
    }
}
