use super::*;

const REFUSAL: &str = "pods is forbidden: User \"system:serviceaccount:sluice-system:sluice\" cannot list resource \"pods\" in API group \"\" in the namespace \"shop\"";

fn action(message: &str, grant: Grant) -> String {
    Cause::of_refusal(403, message, || grant).map(|cause| cause.action().into_owned()).unwrap_or_default()
}

#[test]
fn a_missing_permission_is_named_with_who_has_it_and_how_to_see_it() {
    let account = "--as=system:serviceaccount:sluice-system:sluice";
    for (grant, says, check) in [
        (
            Grant::new("list", "pods", "shop"),
            "list on pods: apply the ClusterRole in deploy/base/rbac.yaml.",
            format!("list pods -n shop {account}"),
        ),
        (Grant::new("watch", "services", ""), "watch on services: ", format!("watch services -A {account}")),
        (Grant::new("list", "namespaces", ""), "list on namespaces: ", format!("list namespaces {account}")),
        (
            Grant::new("patch", "trafficlanes.sluice.dev/status", ""),
            "patch on trafficlanes.sluice.dev/status: ",
            format!("patch trafficlanes.sluice.dev --subresource=status -A {account}"),
        ),
        (
            Grant::own("update", "leases.coordination.k8s.io"),
            "apply the Role in deploy/base/rbac.yaml.",
            format!("update leases.coordination.k8s.io -n sluice-system {account}"),
        ),
        (
            Grant::new("patch", "pods/status", ""),
            "apply deploy/overlays/warm-gate.",
            format!("patch pods --subresource=status -A {account}"),
        ),
        (Grant::taint("patch"), "apply deploy/overlays/startup-taint.", format!("patch nodes {account}")),
    ] {
        let action = action(REFUSAL, grant);
        assert!(
            action.starts_with("Grant the agent's service account ") && action.contains(says),
            "{action}"
        );
        assert!(action.contains(&format!("`kubectl auth can-i {check}`")), "{action}");
    }
}

#[test]
fn whom_the_api_server_does_not_name_in_plain_letters_is_not_named() {
    for message in
        ["no", "User \"", "User \"\" cannot", "User \"a; reboot\" cannot list", "User \"$(id)\" cannot"]
    {
        let action = action(message, Grant::new("list", "pods", "shop"));
        assert!(action.contains("`kubectl auth can-i list pods -n shop` says"), "{action}");
    }
}

#[test]
fn who_is_taken_for_nobody_lacks_no_permission() {
    let nobody = "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\"";
    let grant = || Grant::new("list", "pods", "");
    assert_eq!(Cause::of_refusal(403, nobody, grant), Some(Cause::Unauthorized));
    assert_eq!(Cause::of_refusal(401, "Unauthorized", grant), Some(Cause::Unauthorized));
    assert_eq!(Cause::of_refusal(500, "etcd", grant), None);
}

#[test]
fn what_follows_from_the_source_has_the_action_of_its_first_cause() {
    let away = Problem::with_source("x", Cause::Away(Away::Expired));
    let file = Problem::in_file("a.yaml", "x");
    assert_eq!(Cause::action_of_source(&[file.clone(), away]), Cause::Away(Away::Expired).action());
    assert_eq!(Cause::action_of_source(&[file]), Cause::Away(Away::Otherwise).action());
}
