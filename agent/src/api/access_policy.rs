//! `AccessPolicy`: who may call some Services, as users write it.
//!
//! It is enforced where the pods of the Services run, for all their clients.

use std::{collections::BTreeMap, time::Duration};

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Kind, Status,
    field::{At, Errors, FieldError, quoted, refuse_repeated},
    jwt::{JwtPolicy, TokenMatch},
    matching::{PathMatch, check_method, each},
    schema, selector,
    span::Span,
    target::{
        self, NAMESPACE_ALONE, NAMESPACE_ALONE_MESSAGE, NO_ROUTES, NO_ROUTES_MESSAGE, TargetRef,
        UNIQUE_TARGETS, UNIQUE_TARGETS_MESSAGE,
    },
    traffic_policy::{Mode, unique_names},
};
use crate::govern::{
    access::{self, Access, Block},
    policy::Target,
};

/// Who may call its target Services. It is enforced at the pods of the Services, for all clients: enrolled or not, of other
/// nodes, ingresses and hosts. While no agent attends a pod, its connections go direct and nothing is enforced, unless
/// whenUnattended says otherwise; NetworkPolicies are the fence beneath.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "AccessPolicy",
    plural = "accesspolicies",
    shortname = "ap",
    category = "sluice",
    namespaced,
    status = "Status",
    derive = "PartialEq",
    doc = "AccessPolicy says who may call Services of its namespace: pods by namespace, service account, workload and \
           labels, addresses, tokens, methods and paths; and which paths are hidden.",
    label("gateway.networking.k8s.io/policy", "Direct"),
    label("app.kubernetes.io/part-of", "sluice"),
    printcolumn(name = "Targets", type_ = "string", json_path = ".status.targets"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].reason"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new(
        "has(self.rules) && self.rules.size() > 0 || has(self.hidden) && self.hidden.size() > 0"
    ).message("empty: rules or hidden is needed"),
    validation = Rule::new(
        "!has(self.unattendedFor) || has(self.whenUnattended) && self.whenUnattended == 'Refuse'"
    ).message(WITHOUT_REFUSE)
)]
pub struct AccessPolicySpec {
    /// The Services of this namespace that the policy applies to, or ports of them. Or the Namespace itself, alone: then it
    /// applies to every Service that has no AccessPolicy of its own.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(
        validation = Rule::new(UNIQUE_TARGETS).message(UNIQUE_TARGETS_MESSAGE),
        validation = Rule::new(NAMESPACE_ALONE).message(NAMESPACE_ALONE_MESSAGE),
        validation = Rule::new(NO_ROUTES).message(NO_ROUTES_MESSAGE)
    )]
    pub target_refs: Vec<TargetRef>,
    /// Enforce, the default: requests are denied. Observe: none is, and what would have been is counted in the metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = Mode::default()))]
    pub mode: Option<Mode>,
    /// Who may call. The most specific rule that matches a request decides: by its path (Exact, then the longer PathPrefix, then
    /// RegularExpression), then by its methods, then by from; of equals the one that denies. Where none matches, a request
    /// is denied if there is a rule that allows anything, else allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub rules: Vec<AccessRule>,
    /// Paths that do not exist (404, plain) for other clients than these, such as those for management.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub hidden: Vec<HiddenPaths>,
    /// Tokens (JWT) that rules may ask for with jwt in from. A request for which a rule asks for one and that has no valid one
    /// gets 401; one whose token is valid and says something else gets 403.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt: Option<JwtPolicy>,
    /// What an agent does that cannot read the policy and knows no valid version of it. Allow, the default: nothing of it is
    /// active. Deny: all requests to its targets are denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = OnInvalid::default()))]
    pub on_invalid: Option<OnInvalid>,
    /// What becomes of new connections while no agent attends a pod: it was killed, hangs, or is being started anew. Allow, the
    /// default: they go direct, and nothing is enforced. Refuse: they are refused, on the ports of the Services that the policy
    /// targets and on no others, for as long as unattendedFor says after the last heartbeat of the agent. What comes from the
    /// pod itself passes, and where probes of the pod go, what comes from its node (of clients of a NodePort or load
    /// balancer, too, that the node shows with its own address). A pod that starts meanwhile is open. Needs a BPF file system
    /// (--bpf-file-system); has no effect with mode: Observe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = WhenUnattended::default()))]
    pub when_unattended: Option<WhenUnattended>,
    /// With whenUnattended: Refuse, after which time without an agent new connections go direct all the same: 10m if not set.
    // Without a default in the schema: the API server would put it into each policy, and then refuse those without Refuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unattended_for: Option<Span<10_000, 86_400_000>>,
}

/// How long connections are refused without an agent.
const UNATTENDED_FOR: Duration = Duration::from_secs(600);
const WITHOUT_REFUSE: &str = "unattendedFor: has no effect without whenUnattended: Refuse";

/// What becomes of connections while no agent attends a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WhenUnattended {
    #[default]
    Allow,
    Refuse,
}

/// What an agent does that cannot read the policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnInvalid {
    #[default]
    Allow,
    Deny,
}

/// Who may call, or may not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessRule {
    /// Name of the rule, in metrics and responses.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// What becomes of requests that it matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = AccessAction::default()))]
    pub action: Option<AccessAction>,
    /// Conditions on the client; one must match. Any client if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub from: Vec<AccessClient>,
    /// Conditions on the request; one must match. Any request if empty, and any connection that is encrypted or is not HTTP: to
    /// those no rule with conditions on requests applies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub to: Vec<AccessRequest>,
}

/// What becomes of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AccessAction {
    #[default]
    Allow,
    Deny,
}

/// Paths that do not exist for most.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HiddenPaths {
    /// Name, in metrics.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Conditions on the path, whatever its case; one must match, in any form in which servers are known to read a path (/%61, /x/..;/a,
    /// //x/a, /x?/../a). What servers make of other paths is not known: PathPrefix /a does not hide /a.json, /ab or "/a ", which a server that
    /// compares prefixes of text serves with /a, too. RegularExpression (?i)^/a does.
    #[schemars(length(min = 1, max = 16))]
    pub paths: Vec<PathMatch>,
    /// Clients for which the paths exist all the same. Nobody if empty, but the probes of the pod itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub from: Vec<AccessClient>,
}

/// A condition on the client. All of its parts must match. Which pod calls is told by the address that the connection comes from; pods
/// are known in enrolled namespaces, other clients by ipBlocks alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    // (A reserved word of CEL is escaped.)
    validation = Rule::new(
        "has(self.__namespace__) || has(self.serviceAccount) || has(self.workload) || \
         has(self.podLabels) && self.podLabels.size() > 0 || has(self.ipBlocks) && self.ipBlocks.size() > 0 || has(self.jwt)"
    ).message("empty: namespace, serviceAccount, workload, podLabels, ipBlocks or jwt is needed")
)]
pub struct AccessClient {
    /// The pod's namespace. Where serviceAccount, workload or podLabels is set, the policy's own if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub namespace: Option<String>,
    /// The pod's service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub service_account: Option<String>,
    /// The pod's workload: the name of its Deployment, StatefulSet, DaemonSet, CronJob or Job, or the pod's own name if
    /// nothing owns it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub workload: Option<String>,
    /// Labels that the pod has, with their values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "selector::labels")]
    pub pod_labels: BTreeMap<String, String>,
    /// Blocks of addresses, as in 10.0.0.0/8 or fd00::/8; one must have the client's address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 64), regex(pattern = r"^[0-9A-Fa-f:.]+/[0-9]{1,3}$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub ip_blocks: Vec<String>,
    /// A valid token that the request has. Connections that are encrypted or are not HTTP have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt: Option<TokenMatch>,
}

/// A condition on a request. Both of its parts must match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new(
        "has(self.methods) && self.methods.size() > 0 || has(self.paths) && self.paths.size() > 0"
    ).message("empty: methods or paths is needed")
)]
pub struct AccessRequest {
    /// Methods, of which one must match; any if empty. In upper case: GET, not get. GET is HEAD, too. With action Deny they match in
    /// any case, since some servers take post for POST.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 32), regex(pattern = r"^[A-Z0-9!#$%&'*+\-.^_`|~]+$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub methods: Vec<String>,
    /// Conditions on the path as the server sees it; one must match. Any path if empty. A path that servers take for
    /// different ones (/a%2fb, /a/..%5cb, /a/../b, //a/b) is denied if one of these is, whatever its case, and allowed if all are as they
    /// are written here. PathPrefix /a is not about /a.json, /ab or "/a ", which a server that compares prefixes of text serves with /a,
    /// too: to deny these use RegularExpression (?i)^/a. A query that leads elsewhere as a part of the path (/x?/../a, /x?file=../../a) makes
    /// such a path, too: some servers join their root with the whole target. One that stays there (/x?next=/b/../a) does not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub paths: Vec<PathMatch>,
}

impl AccessPolicy {
    /// What it asks for, with every default filled in; or all that is wrong with it.
    pub fn check(&self) -> Result<Access, Vec<FieldError>> {
        let errors = Errors::default();
        let at = errors.at("spec");
        let spec = &self.spec;
        target::check(&spec.target_refs, &at.field("targetRefs"));
        target::check_no_routes(&spec.target_refs, &at.field("targetRefs"));
        unique_names(spec.rules.iter().map(|rule| &*rule.name), &at.field("rules"));
        unique_names(spec.hidden.iter().map(|hidden| &*hidden.name), &at.field("hidden"));
        if spec.rules.is_empty() && spec.hidden.is_empty() {
            at.refuse("empty: rules or hidden is needed");
        }
        let own = self.metadata.namespace.as_deref().unwrap_or("default");
        let from = |from: &[AccessClient], at: &At<'_>| {
            each(from, at, |client, at| {
                if let Some(token) = &client.jwt {
                    token.check_provider(spec.jwt.as_ref(), &at.field("jwt"));
                }
                Some(client.check(own, at))
            })
        };
        let access = Access {
            name: super::full_name(&self.metadata).into(),
            mode: spec.mode.unwrap_or_default().policy(),
            rules: each(&spec.rules, &at.field("rules"), |rule, at| {
                Some(access::Rule {
                    name: rule.name.as_str().into(),
                    action: match rule.action.unwrap_or_default() {
                        AccessAction::Allow => access::Action::Allow,
                        AccessAction::Deny => access::Action::Deny,
                    },
                    from: from(&rule.from, &at.field("from")),
                    to: each(&rule.to, &at.field("to"), |to, at| Some(to.check(at))),
                })
            }),
            hidden: each(&spec.hidden, &at.field("hidden"), |hidden, at| {
                Some(access::Hidden {
                    name: hidden.name.as_str().into(),
                    paths: each(&hidden.paths, &at.field("paths"), PathMatch::check),
                    from: from(&hidden.from, &at.field("from")),
                })
            }),
            jwt: spec.jwt.as_ref().map(|jwt| jwt.check(&at.field("jwt"))),
            closed: false,
            refuse_unattended: spec.check_unattended(&at),
        };
        // Last: of two complaints about a field the first is kept, and those above say more.
        schema::check(<Self as Kind>::schema(), spec, &at);
        target::check_namespace(&spec.target_refs, own, &at.field("targetRefs"));
        errors.end(access)
    }
}

impl AccessPolicySpec {
    fn check_unattended(&self, at: &At<'_>) -> Option<Duration> {
        let time = self.unattended_for.as_ref().map(|time| time.check(&at.field("unattendedFor")));
        let refuses = self.when_unattended == Some(WhenUnattended::Refuse);
        if time.is_some() && !refuses {
            at.refuse(WITHOUT_REFUSE);
        }
        refuses.then(|| time.unwrap_or(UNATTENDED_FOR))
    }
}

impl AccessClient {
    fn check(&self, own: &str, at: &At<'_>) -> access::Party {
        let names_pod =
            self.service_account.is_some() || self.workload.is_some() || !self.pod_labels.is_empty();
        if self.namespace.is_none() && !names_pod && self.ip_blocks.is_empty() && self.jwt.is_none() {
            at.refuse("empty: namespace, serviceAccount, workload, podLabels, ipBlocks or jwt is needed");
        }
        selector::check_keys(self.pod_labels.keys(), &at.field("podLabels"));
        let blocks_at = at.field("ipBlocks");
        refuse_repeated(&self.ip_blocks, &blocks_at);
        let blocks = each(&self.ip_blocks, &blocks_at, |block, at| match block.parse::<Block>() {
            Ok(block) => Some(block),
            Err(error) => {
                at.refuse(format!("{} is no block of addresses: {error}", quoted(block)));
                None
            }
        });
        let labels = self.pod_labels.iter();
        access::Party {
            namespace: self.namespace.as_deref().or(names_pod.then_some(own)).map(Into::into),
            service_account: self.service_account.as_deref().map(Into::into),
            workload: self.workload.as_deref().map(Into::into),
            labels: labels.map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect(),
            blocks,
            token: self.jwt.as_ref().map(|token| token.check(&at.field("jwt"))),
        }
    }
}

impl AccessRequest {
    fn check(&self, at: &At<'_>) -> access::To {
        if self.methods.is_empty() && self.paths.is_empty() {
            at.refuse("empty: methods or paths is needed");
        }
        let methods_at = at.field("methods");
        refuse_repeated(&self.methods, &methods_at);
        access::To {
            methods: each(&self.methods, &methods_at, |method, at| check_method(method, at)),
            paths: each(&self.paths, &at.field("paths"), PathMatch::check),
        }
    }
}

/// What is to be done about an object that cannot be read: the targets that it names, as far as they can be read, if it says that
/// all is to be denied then.
pub fn closed(object: &Value) -> Option<(Vec<Target>, bool, Access)> {
    if object["spec"]["onInvalid"] != "Deny" {
        return None;
    }
    let targets = object["spec"]["targetRefs"].as_array().into_iter().flatten();
    let targets: Vec<TargetRef> =
        targets.filter_map(|target| serde_json::from_value(target.clone()).ok()).collect();
    let named = |field: &str| object["metadata"][field].as_str();
    let namespace = named("namespace").unwrap_or("default");
    let name = format!("{namespace}/{}", named("name").unwrap_or_default()).into();
    let for_namespace = targets.iter().any(|target| target.is_namespace() && target.name == namespace);
    let targets: Vec<_> = targets.iter().filter_map(TargetRef::policy).collect();
    (for_namespace || !targets.is_empty())
        .then(|| (targets, for_namespace, Access { name, closed: true, ..Access::default() }))
}
