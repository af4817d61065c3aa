//! Pods of ours end when they are told to. Process 1 of a container has no default action for signals: what does not
//! handle SIGTERM runs on until the kubelet kills it after `terminationGracePeriodSeconds`, 30 s by default. The tests in
//! the kernel run the commands below as process 1.

use serde_json::Value;

use crate::manifests::all;

/// Images whose entrypoint handles SIGTERM (nginx: SIGQUIT, its `STOPSIGNAL`).
const HANDLE_IT: [&str; 2] = ["sluice", "docker.io/nginxinc/nginx-unprivileged"];

/// Images in examples that stand for the reader's own: nobody runs them.
const MADE_UP: &str = "example.org/";

/// Why a container might not end when it is told to.
fn ignores_sigterm(container: &Value) -> Option<String> {
    let words = |field: &str| -> Vec<&str> {
        container[field].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    };
    match words("command")[..] {
        [] => {
            let image = container["image"].as_str().unwrap_or_default();
            let name = image.split('@').next().unwrap_or_default();
            let name = match name.rsplit_once(':') {
                Some((name, tag)) if !tag.contains('/') => name,
                _ => name,
            };
            let known = HANDLE_IT.contains(&name) || name.ends_with("/sluice") || name.starts_with(MADE_UP);
            (!known).then(|| format!("nobody has looked at what {image} does with SIGTERM"))
        }
        // The shell must not wait for its child in the foreground: it would run the trap only after that.
        ["sh", "-c", script] if script.starts_with("trap exit TERM;") && script.ends_with("& wait") => None,
        ref command => Some(format!("{command:?} does not handle SIGTERM as process 1")),
    }
}

#[test]
fn containers_end_when_they_are_told_to() {
    let mut seen = 0;
    for manifest in all() {
        let object = &manifest.object;
        let spec =
            if object["kind"] == "Pod" { &object["spec"] } else { &object["spec"]["template"]["spec"] };
        for container in spec["containers"].as_array().into_iter().flatten() {
            seen += 1;
            if let Some(why) = ignores_sigterm(container) {
                panic!("{}: {why}", manifest.origin);
            }
        }
    }
    assert!(seen >= 7, "only {seen} containers");
}

#[test]
fn those_that_do_not_are_found() {
    for container in [
        serde_json::json!({ "image": "docker.io/curlimages/curl:8.11.1", "command": ["sleep", "infinity"] }),
        serde_json::json!({ "image": "x", "command": ["sh", "-c", "trap exit TERM; sleep infinity"] }),
        serde_json::json!({ "image": "x", "command": ["sh", "-c", "sleep infinity & wait"] }),
        serde_json::json!({ "image": "docker.io/library/busybox:1.37" }),
    ] {
        assert!(ignores_sigterm(&container).is_some(), "{container}");
    }
    for image in ["sluice:0.1.0", "registry.example.com:5000/platform/sluice@sha256:00", "sluice"] {
        assert_eq!(ignores_sigterm(&serde_json::json!({ "image": image })), None);
    }
}
