//! Help and complaints, as somebody at a terminal sees them.

use crate::{agent::Agent, said, sluice};

/// The names of all commands, from the help.
pub(crate) fn commands() -> Vec<String> {
    let (status, help, _) = said(sluice(&["--help"]));
    assert_eq!(status, 0);
    let (_, commands) = help.split_once("Commands:\n").expect("a list of commands");
    let (commands, _) = commands.split_once("\n\n").expect("its end");
    let names = commands.lines().filter(|line| !line.starts_with("   "));
    names.map(|line| line.split_whitespace().next().expect("a name").to_owned()).collect()
}

#[test]
fn every_command_has_the_same_help_in_both_places() {
    let commands = commands();
    assert!(commands.len() > 10, "{commands:?}");
    for command in &commands {
        let (status, help, complaint) = said(sluice(&[command, "--help"]));
        assert_eq!((status, &*complaint), (0, ""), "{command} --help");
        assert!(help.contains(&format!("Usage: sluice {command}")), "{help}");
        assert_eq!(said(sluice(&["help", command])), (0, help, String::new()), "help {command}");
    }
    let (status, help, _) = said(sluice(&["--help"]));
    assert_eq!(said(sluice(&["help"])), (status, help, String::new()));
    let (status, help, complaint) = said(sluice(&["help", "nope"]));
    assert_eq!((status, &*help), (2, ""));
    assert!(
        complaint.starts_with("sluice: there is no command 'nope': there are agent, get, "),
        "{complaint}"
    );
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
}

#[test]
fn the_help_of_get_names_every_page_that_can_be_read() {
    let (_, help, _) = said(sluice(&["get", "--help"]));
    let pages: Vec<_> = sluice::admin::readable().collect();
    assert!(pages.iter().any(|(path, _)| *path == "/status"), "those for root too: {pages:?}");
    let agent = Agent::start();
    let socket = agent.socket().display().to_string();
    for (path, summary) in pages {
        let line = help.lines().find(|line| line.trim_start().starts_with(&format!("{path} ")));
        assert!(line.is_some_and(|line| line.ends_with(summary)), "{path}: {help}");
        if path != "/api/events" {
            let (status, _, complaint) = said(sluice(&["get", path, "--admin-socket", &socket]));
            assert!(status == 0 || !complaint.contains("not found"), "{path}: {status} {complaint}");
        }
    }
}

#[test]
fn exit_status_tells_a_bad_question_from_a_bad_answer() {
    let agent = Agent::start();
    let socket = agent.socket().display().to_string();
    for (arguments, wanted, part) in [
        (&["get", "/healthz"][..], 0, ""),
        (&["get", "/readyz"], 1, "no kernel to capture with\n"),
        (&["get", "/nope"], 1, "not found: there are "),
        (&["get", "readyz"], 2, "begins with a slash"),
        (&["get", "/api/service"], 2, "namespace, name and port"),
        (&["log-level", "sluice=loud"], 2, "sluice=loud"),
        (&["log-level", "debug"], 0, ""),
        (&["status"], 1, ""),
        (&["status", "--colour"], 2, "unexpected argument '--colour' found, as in `sluice status -o json`"),
        (&["explain", "--pod", "shop/client"], 2, "--to is needed, as in `sluice explain --pod"),
        (&["explain", "--pod", "shop/client", "--to", "orders.shop:80"], 0, ""),
        (&["explain", "--pod", "shop/nobody", "--to", "orders.shop:80"], 1, "there is no pod"),
        (
            &["explain", "--pod", "shop/client", "--to", "ledger.bank:80"],
            1,
            "TrafficPolicy bank/limits is not active: namespace bank is not enrolled",
        ),
        (&["explain", "--trace-id", "12"], 2, "32 hexadecimal digits"),
        (&["explain", "--last", "101"], 2, "a number from 1 to 100"),
        (&["explain", "--last", "1000"], 2, "a number from 1 to 100"),
        (&["call", "--pod", "client", "--to", "orders.shop:80"], 2, "as in shop/client"),
        (
            &["call", "--pod", "shop/client", "--to", "10.244.1.11:80"],
            1,
            "to: 10.244.1.11:80 is not the address of a managed Service, so connections to it go direct: it is an endpoint of \
             orders.shop:80: `--to orders.shop:80 --endpoint 10.244.1.11:80` sends the request straight to it",
        ),
        (
            &["call", "--pod", "shop/client", "--to", "192.0.2.1:80"],
            1,
            "so connections to it go direct: call a Service of an enrolled namespace, as in orders.shop:80",
        ),
        (&["call", "--pod", "shop/client", "--to", "10.96.7.3:80"], 1, "cannot call as shop/client"),
        (&["top", "--times", "1"], 0, ""),
        (&["top", "--times", "0"], 2, "invalid value '0'"),
        (&["dump"], 0, ""),
    ] {
        let mut command = sluice(arguments);
        let (status, _, complaint) = said({
            command.arg("--admin-socket").arg(&socket);
            command
        });
        assert!(status == wanted && complaint.contains(part), "{arguments:?}: {status} {complaint}");
        assert_eq!(complaint.is_empty(), part.is_empty(), "{arguments:?}: {complaint}");
    }
    for command in ["get /healthz", "log-level", "status", "dump", "top", "explain --last 1"] {
        let mut arguments: Vec<_> = command.split(' ').collect();
        arguments.extend(["--admin-socket", "/nowhere/sluice.sock"]);
        let (status, out, complaint) = said(sluice(&arguments));
        assert_eq!((status, &*out), (1, ""), "{command}: {complaint}");
        assert_eq!(complaint.lines().count(), 1, "{command}: {complaint}");
        assert!(complaint.contains("is it running, with this --admin-socket?"), "{command}: {complaint}");
    }
}
