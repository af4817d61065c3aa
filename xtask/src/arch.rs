//! The architectures that Sluice is built for, and what each is called by whom.

use anyhow::{Result, bail};
use clap::ValueEnum;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Arch {
    #[value(name = "x86_64")]
    X86_64,
    #[value(name = "aarch64")]
    Aarch64,
}

impl Arch {
    /// This machine's.
    pub(crate) fn native() -> Result<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Ok(Self::X86_64),
            "aarch64" => Ok(Self::Aarch64),
            other => bail!("no image is made for {other}: build on x86_64 or aarch64"),
        }
    }

    pub(crate) fn is_native(self) -> bool {
        Self::native().is_ok_and(|native| native == self)
    }

    /// As Rust, Linux and QEMU name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// As OCI, Go and Debian name it.
    pub(crate) fn oci(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// As the names of Debian's cross compilers spell it.
    pub(crate) fn gnu_package(self) -> &'static str {
        match self {
            Self::X86_64 => "x86-64-linux-gnu",
            Self::Aarch64 => "aarch64-linux-gnu",
        }
    }

    /// The target of static binaries.
    pub(crate) fn musl(self) -> String {
        format!("{}-unknown-linux-musl", self.name())
    }
}
