//! `cargo xtask demo`: the whole path in the kernel of this machine, told in plain words by `sluice-demo`.

use anyhow::Result;

use crate::{build, setup, shell};

#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Leave everything running at the end, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::pods()?;
    let built = build::all(false)?;
    let mut demo = shell::as_root(built.bin.join("sluice-demo"), "for the demo (namespaces, cgroups, eBPF)")?;
    demo.env("SLUICE_BIN", built.agent());
    if args.keep {
        demo.arg("--keep");
    }
    shell::run(&mut demo)
}
