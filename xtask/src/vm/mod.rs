//! `cargo xtask test vm`: the image's binary on the kernels that nodes run, in virtual machines.
//!
//! qemu emulates the processor, so no hardware support is needed. Each machine boots one of [`kernels`] with a root file
//! system in memory ([`root`]) whose first process is `sluice-vm` of the tests crate. That makes pods in a unified cgroup
//! hierarchy, runs the agent, and prints a line for each check; what it found is shown as a table.

mod cpio;
mod kernels;
mod qemu;
mod root;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use self::kernels::Kernel;
use self::qemu::Qemu;
use crate::shell::{self, say};
use crate::{apt, build, image, setup, workspace};

/// A machine that says nothing for so long hangs. Loading the programs takes half a minute where a processor is emulated.
const SILENCE: Duration = Duration::from_secs(180);

const MEMORY: &str = "1536M";

/// How the lines begin that count; all others are shown only if something fails.
const PREFIX: &str = "sluice-vm: ";

/// What a machine found out.
#[derive(Debug, Default, PartialEq, Eq)]
struct Report {
    passed: Vec<String>,
    failed: Vec<String>,
    /// All checks were made.
    ended: bool,
}

impl Report {
    /// Takes a line of the machine's console.
    fn line(&mut self, line: &str) {
        let Some(said) = line.trim_end().split_once(PREFIX).map(|(_, said)| said) else { return };
        if let Some(check) = said.strip_prefix("ok ") {
            self.passed.push(check.to_owned());
        } else if let Some(check) = said.strip_prefix("failed ") {
            self.failed.push(check.to_owned());
        } else if said == "end" {
            self.ended = true;
        }
    }

    fn is_good(&self) -> bool {
        self.ended && self.failed.is_empty() && !self.passed.is_empty()
    }
}

/// Tries the kernels with these names, or all of them.
pub(crate) fn run(names: &[String]) -> Result<()> {
    let wanted = if names.is_empty() { kernels::KERNELS.to_vec() } else { kernels::named(names)? };
    try_kernels(&wanted)
}

/// Tries those that CI tries.
pub(crate) fn run_in_ci() -> Result<()> {
    try_kernels(&in_ci())
}

/// Fetches those that CI tries, and that are not there yet.
pub(crate) fn fetch_for_ci() -> Result<()> {
    in_ci().iter().try_for_each(|kernel| kernels::fetch(kernel).map(drop))
}

fn in_ci() -> Vec<Kernel> {
    kernels::KERNELS.into_iter().filter(|kernel| kernel.in_ci).collect()
}

fn try_kernels(wanted: &[Kernel]) -> Result<()> {
    ensure!(
        std::env::consts::ARCH == "x86_64",
        "the virtual machines are x86_64 ones, and run the programs of this machine"
    );
    prepare()?;
    let agent = image::static_agent()?;
    let built = build::all(false)?;
    let folder = workspace::target_dir()?.join("vm");
    shell::remove_dir(&folder)?;
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut programs = vec![("/bin/sluice", agent)];
    for (path, name) in [
        ("/bin/sluice-vm", "sluice-vm"),
        ("/bin/sluice-service", "sluice-service"),
        ("/bin/sluice-load", "sluice-load"),
    ] {
        programs.push((path, stripped(&built.bin.join(name), &folder)?));
    }
    eprintln!();
    let mut bad = Vec::new();
    for (kernel, booted) in wanted.iter().zip(boot_all(wanted, &programs, &folder)?) {
        let (release, report, took) = booted?;
        if !report.is_good() {
            bad.push(kernel.name);
        }
        eprintln!("{}", row(kernel, &release, &report, took));
    }
    ensure!(bad.is_empty(), "failed on {}: what the machine said is above", bad.join(", "));
    Ok(())
}

fn row(kernel: &Kernel, release: &str, report: &Report, took: Duration) -> String {
    let verdict = match (report.is_good(), kernel.supported) {
        (true, true) => "works".to_owned(),
        (true, false) => "too old, and the agent says so".to_owned(),
        (false, _) if !report.ended => "did not end".to_owned(),
        (false, _) => format!("failed: {}", report.failed.join("; ")),
    };
    let checks = report.passed.join(", ");
    format!("{:14} {release:32} {:>4} s  {verdict} ({checks})", kernel.name, took.as_secs())
}

/// Installs what runs the machines and what is in them.
pub(crate) fn prepare() -> Result<()> {
    setup::pods()?;
    Qemu::get()?;
    if shell::which("curl").is_none() {
        apt::install(&["curl"], "requests inside virtual machines", "install curl")?;
    }
    Ok(())
}

/// A copy without what debuggers need, which a machine would have to unpack into its memory.
fn stripped(program: &Path, folder: &Path) -> Result<PathBuf> {
    let to = folder.join(program.file_name().context("a program without a name")?);
    if !to.exists() {
        shell::run(Command::new("strip").arg("-o").arg(&to).arg(program))?;
    }
    Ok(to)
}

/// What became of a kernel: its release, what its checks said, and how long it took.
type Booted = Result<(String, Report, Duration)>;

/// Boots kernels, as many at once as there are processors: an emulator keeps one busy.
fn boot_all(wanted: &[Kernel], programs: &[(&str, PathBuf)], folder: &Path) -> Result<Vec<Booted>> {
    let at_once = thread::available_parallelism().context("how many processors there are")?.get();
    let next = AtomicUsize::new(0);
    let booted: Vec<Mutex<Option<Booted>>> = wanted.iter().map(|_| Mutex::default()).collect();
    thread::scope(|scope| {
        for _ in 0..at_once.min(wanted.len()) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(kernel) = wanted.get(number) else { return };
                    let outcome = boot(kernel, programs, folder);
                    *booted[number].lock().expect("nobody panics with it") = Some(outcome);
                }
            });
        }
    });
    let all = booted.into_iter().map(|booted| booted.into_inner().expect("nobody panics with it"));
    all.collect::<Option<_>>().context("a kernel was not booted")
}

/// Boots a kernel and reads what its checks say.
fn boot(kernel: &Kernel, programs: &[(&str, PathBuf)], folder: &Path) -> Booted {
    let fetched = kernels::fetch(kernel)?;
    let initramfs = folder.join(format!("{}.cpio", kernel.name));
    std::fs::write(&initramfs, root::archive(&fetched, programs)?)
        .with_context(|| format!("cannot write {}", initramfs.display()))?;
    say(&format!("booting {} ({})", kernel.name, fetched.release));
    let begun = Instant::now();
    let mut qemu = Qemu::get()?.command();
    // Two processors by turns on one thread. With a thread each, the emulator lets one run into the breakpoint that the
    // other has put into the kernel's code while it changes it (static keys), after the kernel has taken it away again:
    // "Oops: int3". It is no slower, on two processors.
    qemu.args(["-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", MEMORY]);
    qemu.args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio", "-nic", "none"]);
    qemu.arg("-kernel").arg(fetched.image()).arg("-initrd").arg(&initramfs);
    // Mitigations and a random layout cost time and change nothing here. What the kernel does not know is the
    // environment of the first process.
    let command_line = format!(
        "console=ttyS0 quiet panic=-1 mitigations=off nokaslr rdinit=/bin/sluice-vm PATH=/bin \
         SLUICE_BIN=/bin/sluice SLUICE_TEST_PATIENCE={} SLUICE_VM_SUPPORTED={}",
        SILENCE.as_secs() - 30,
        u8::from(kernel.supported)
    );
    qemu.args(["-append", &command_line]).stdin(Stdio::null()).stdout(Stdio::piped());
    let machine = Machine(qemu.spawn().context("cannot start qemu-system-x86_64")?);
    let (report, console) = machine.watch(kernel.name)?;
    if !report.is_good() {
        eprintln!("---- the console of {}\n{}", kernel.name, console.join("\n"));
    }
    Ok((fetched.release, report, begun.elapsed()))
}

/// A running machine, which does not outlive this value.
struct Machine(Child);

impl Machine {
    fn watch(mut self, name: &str) -> Result<(Report, Vec<String>)> {
        let console = self.0.stdout.take().context("qemu has no standard output")?;
        let (sender, lines) = mpsc::channel();
        // It ends with the machine.
        thread::spawn(move || {
            for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
        let (mut report, mut console) = (Report::default(), Vec::new());
        loop {
            match lines.recv_timeout(SILENCE) {
                Ok(line) => {
                    report.line(&line);
                    if line.contains(PREFIX) {
                        eprintln!("  {name}: {}", line.trim_end());
                    }
                    console.push(line);
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    eprintln!("---- the console of {name}\n{}", console.join("\n"));
                    bail!("the virtual machine has said nothing for {} s", SILENCE.as_secs());
                }
            }
        }
        let status = self.0.wait().context("cannot wait for qemu")?;
        ensure!(status.success(), "qemu failed: {status}\n{}", console.join("\n"));
        Ok((report, console))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It has ended, unless something failed here.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_from_the_console() {
        let mut report = Report::default();
        for line in ["[    0.1] Booting", "sluice-vm: ok lanes\r", "[ 1.2] noise sluice-vm: ok redirect"] {
            report.line(line);
        }
        assert!(!report.is_good(), "it has not ended");
        report.line("sluice-vm: end\r");
        assert_eq!(report.passed, ["lanes", "redirect"]);
        assert!(report.is_good());
        report.line("sluice-vm: failed memory: the agent was killed");
        assert!(!report.is_good());
        assert_eq!(report.failed, ["memory: the agent was killed"]);
    }

    #[test]
    fn a_machine_that_checked_nothing_is_not_good() {
        let mut report = Report::default();
        report.line("sluice-vm: end");
        assert!(!report.is_good());
    }
}
