//! The system call filter that `seccompProfile: RuntimeDefault` stands for. It is not ours to write: the profile is that of
//! containers/common, which CRI-O and Podman use, and containerd's and Docker's go back to the same list. Here it is only
//! put into the form that a runtime takes, as those do: its conditions on capabilities and architecture decided.

use std::{env, fs};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// The filter for a container with these capabilities on this machine. The profile is the file in `SLUICE_SECCOMP`.
pub(crate) fn runtime_default(capabilities: &[String]) -> Result<Value> {
    let path =
        env::var("SLUICE_SECCOMP").context("SLUICE_SECCOMP is not set: use `cargo xtask test image`")?;
    let profile = fs::read(&path).with_context(|| format!("cannot read {path}"))?;
    let architecture = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    filter(&serde_json::from_slice(&profile)?, capabilities, architecture)
}

fn filter(profile: &Value, capabilities: &[String], architecture: &str) -> Result<Value> {
    let native = format!("SCMP_ARCH_{}", env::consts::ARCH.to_uppercase());
    let mapped = profile["archMap"].as_array().into_iter().flatten();
    let architectures: Vec<Value> = mapped
        .filter(|entry| entry["architecture"] == *native)
        .flat_map(|entry| {
            let others = entry["subArchitectures"].as_array().cloned().unwrap_or_default();
            std::iter::once(entry["architecture"].clone()).chain(others)
        })
        .collect();
    let rules = profile["syscalls"].as_array().context("a profile without system calls")?;
    let calls: Vec<Value> = rules
        .iter()
        .filter(|rule| applies(rule, capabilities, architecture))
        .map(|rule| {
            let mut call = json!({ "names": rule["names"], "action": rule["action"] });
            for field in ["args", "errnoRet"] {
                if rule[field].as_array().is_none_or(|list| !list.is_empty()) && !rule[field].is_null() {
                    call[field] = rule[field].clone();
                }
            }
            call
        })
        .collect();
    Ok(json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": architectures,
        "syscalls": calls,
    }))
}

/// A rule counts if it is for all, or for one of our capabilities and our architecture, and not excluded.
fn applies(rule: &Value, capabilities: &[String], architecture: &str) -> bool {
    let list = |condition: &str, of: &str| -> Option<Vec<String>> {
        let list = rule[condition][of].as_array().filter(|list| !list.is_empty())?;
        Some(list.iter().filter_map(|word| word.as_str().map(str::to_owned)).collect())
    };
    let has_capability = |names: Vec<String>| names.iter().any(|name| capabilities.contains(name));
    let is_architecture = |names: Vec<String>| names.iter().any(|name| name == architecture);
    list("includes", "caps").is_none_or(has_capability)
        && list("includes", "arches").is_none_or(is_architecture)
        && !list("excludes", "caps").is_some_and(has_capability)
        && !list("excludes", "arches").is_some_and(is_architecture)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_decided() {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 38,
            "archMap": [],
            "syscalls": [
                { "names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [], "includes": {}, "excludes": {} },
                { "names": ["bpf"], "action": "SCMP_ACT_ALLOW", "args": null, "includes": { "caps": ["CAP_SYS_ADMIN"] } },
                { "names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "excludes": { "caps": ["CAP_SYS_ADMIN"] } },
                { "names": ["old"], "action": "SCMP_ACT_ALLOW", "includes": { "arches": ["s390"] } },
                { "names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{ "index": 0, "value": 8 }] },
            ],
        });
        let names = |capabilities: &[&str]| {
            let capabilities: Vec<String> = capabilities.iter().map(ToString::to_string).collect();
            filter(&profile, &capabilities, "amd64").unwrap()["syscalls"].clone()
        };
        let personality = json!({ "names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{ "index": 0, "value": 8 }] });
        let read = json!({ "names": ["read"], "action": "SCMP_ACT_ALLOW" });
        let allowed = json!({ "names": ["bpf"], "action": "SCMP_ACT_ALLOW" });
        assert_eq!(names(&["CAP_SYS_ADMIN"]), json!([read, allowed, personality]));
        let refused = json!({ "names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 });
        assert_eq!(names(&[]), json!([read, refused, personality]));
    }
}
