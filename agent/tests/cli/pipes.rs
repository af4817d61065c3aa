//! Readers that go away: `sluice get /metrics | head`, and disks that are full.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{PipeWriter, Read as _, pipe},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{agent::Agent, help, said, sluice};

/// Far longer than any of this takes.
const LIMIT: Duration = Duration::from_secs(60);

/// Commands that print and end. What they ask is answered, with an answer or with a complaint.
const ENDING: [&str; 27] = [
    "agent --help",
    "agent --workers 0",
    "get /metrics",
    "get /healthz",
    "get /nope",
    "log-level",
    "log-level info",
    "log-level sluice=loud",
    "explain --pod shop/client --to orders.shop:80",
    "explain --pod shop/client --to orders.shop:80 -o json",
    "explain --last 5",
    "status",
    "status -o json",
    "top --times 2",
    "call --pod shop/client --to orders.shop:80",
    "call --pod client --to orders.shop:80",
    "dump",
    "release",
    "completions bash",
    "check ../deploy/examples/gray-release/release.yaml",
    "check Cargo.toml",
    "crds",
    "reference",
    "version",
    "help",
    "help get",
    "help nope",
];

/// Those that go on until nobody listens any more.
const ENDLESS: [&str; 2] = ["top", "get /api/events"];

fn command(agent: &Agent, line: &str) -> Command {
    let arguments: Vec<_> = line.split(' ').collect();
    let mut command = sluice(&arguments);
    command.env("SLUICE_ADMIN_SOCKET", agent.socket()).current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

/// A pipe that nobody reads.
fn unread() -> PipeWriter {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    writer
}

fn ended(mut child: Child) -> ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if begun.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("it goes on though nobody reads");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn every_command_is_among_them() {
    let tried: BTreeSet<_> =
        ENDING.iter().chain(&ENDLESS).filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    assert_eq!(tried, help::commands().into_iter().collect());
}

#[test]
fn a_reader_that_is_gone_changes_nothing_else() {
    let agent = Agent::start();
    for line in ENDING {
        let (status, out, complaint) = said(command(&agent, line));
        assert!(!out.is_empty() || !complaint.is_empty(), "{line} prints nothing");

        let (unheard_status, _, unheard) = said({
            let mut command = command(&agent, line);
            // `output` would replace it by a pipe that is read.
            command.stdout(unread());
            command
        });
        assert_eq!((unheard_status, &*unheard), (status, &*complaint), "{line}, standard output unread");

        let child = command(&agent, line).stdout(Stdio::piped()).stderr(unread()).spawn().unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{line}, standard error unread");
        assert_eq!(output.stdout.is_empty(), out.is_empty(), "{line}, standard error unread");

        let child = command(&agent, line).stdout(unread()).stderr(unread()).spawn().unwrap();
        assert_eq!(ended(child).code(), Some(status), "{line}, neither read");
    }
}

#[test]
fn what_goes_on_ends_when_the_reader_goes() {
    let agent = Agent::start();
    for line in ENDLESS {
        let mut child = command(&agent, line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut begin = [0; 10];
        child.stdout.take().unwrap().read_exact(&mut begin).unwrap();
        let mut complaints = child.stderr.take().unwrap();
        assert_eq!(ended(child).code(), Some(0), "{line}");
        let mut complaint = String::new();
        complaints.read_to_string(&mut complaint).unwrap();
        assert_eq!(complaint, "", "{line}");
    }
}

#[test]
fn a_full_disk_is_no_reader_that_is_gone() {
    let agent = Agent::start();
    for line in
        ["get /metrics", "status", "top --times 1", "dump", "completions bash", "crds", "reference", "help"]
    {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = command(&agent, line).stdout(full).output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}: {complaint}");
        assert!(
            complaint.starts_with("sluice: cannot write: No space left on device"),
            "{line}: {complaint}"
        );
    }
}

/// Its log goes to standard error: the log must not be what ends it.
#[test]
fn an_agent_whose_log_nobody_reads_says_with_its_exit_status_why_it_ends() {
    let nowhere = ["agent", "--manifests", "/nowhere"];
    let (status, _, complaint) = said(sluice(&nowhere));
    assert_eq!(status, 2, "{complaint}");
    let manifests = tempfile::tempdir().unwrap();
    let directory = manifests.path().display().to_string();
    // An address that no machine has: it starts, logs its settings, and cannot go on.
    let starts = ["agent", "--manifests", &directory, "--admin", "192.0.2.1:9465", "--admin-socket", "none"];
    let (status, _, log) = said(sluice(&starts));
    assert!(
        status == 2 && log.contains("starting") && log.contains("--admin 192.0.2.1:9465"),
        "{status}: {log}"
    );
    for arguments in [&nowhere[..], &starts] {
        let child = sluice(arguments).stdout(unread()).stderr(unread()).spawn().unwrap();
        assert_eq!(ended(child).code(), Some(2), "{arguments:?}");
    }
}
