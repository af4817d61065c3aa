//! The way to the cluster: what the kubeconfig and the flags say, and what the API server says of pods.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Pod};
use kube::{
    Api, Client, Config,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};

use super::agents::{AGENTS, Agents};
use crate::{
    ask::Failed,
    cluster::kubernetes::chain,
    config::{number::whole, object_name},
};

/// An API server that cannot be reached is noticed after so long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A page of a list takes less.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Objects to a page, as many as kubectl asks for.
const PAGE: u32 = 500;

/// Which cluster, and as whom. As kubectl has them.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// The kubeconfig file [default: $KUBECONFIG, else ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig [default: its current context]
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// The cluster of the kubeconfig [default: that of the context]
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// The user of the kubeconfig [default: that of the context]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Act as this user
    #[arg(long = "as", value_name = "USER")]
    as_user: Option<String>,
    /// Act as a member of this group; may be given more than once
    #[arg(long, value_name = "GROUP", requires = "as_user")]
    as_group: Vec<String>,
    /// The namespace of pods that are named without one [default: that of the context]
    #[arg(short, long, value_name = "NAME", value_parser = object_name)]
    namespace: Option<String>,
    /// How long an agent may take to answer
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = whole::<u64>(1..=600))]
    request_timeout: u64,
    /// The namespace in which the agents run
    #[arg(long, value_name = "NAME", env = "SLUICE_NAMESPACE", default_value = "sluice-system", value_parser = object_name)]
    sluice_namespace: String,
}

/// A cluster that can be asked.
pub(super) struct Cluster {
    client: Client,
    /// Its address, and where that comes from.
    server: String,
    namespace: String,
    agents: String,
    patience: Duration,
}

impl ClusterArgs {
    fn patience(&self) -> Duration {
        Duration::from_secs(self.request_timeout)
    }

    /// Does not talk to it yet.
    pub(super) async fn connect(&self) -> Result<Cluster, Failed> {
        let mut config = self.config().await?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // Of a session it is idle time: what waits for an answer has a limit of its own.
        config.read_timeout = Some(READ_TIMEOUT.max(2 * self.patience()));
        if let Some(user) = &self.as_user {
            config.auth_info.impersonate = Some(user.clone());
            config.auth_info.impersonate_groups =
                Some(self.as_group.clone()).filter(|groups| !groups.is_empty());
        }
        let namespace = self.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let unusable = |error: &dyn std::error::Error| {
            Failed::Refused(format!("the credentials for {server} cannot be used: {}", chain(error)))
        };
        let client = Client::try_from(config).map_err(|error| unusable(&error))?;
        Ok(Cluster {
            client,
            server,
            namespace,
            agents: self.sluice_namespace.clone(),
            patience: self.patience(),
        })
    }

    async fn config(&self) -> Result<Config, Failed> {
        let named = self.context.is_some() || self.cluster.is_some() || self.user.is_some();
        let kubeconfig = match &self.kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        let kubeconfig = match kubeconfig {
            Ok(kubeconfig) => kubeconfig,
            // In a pod there is none.
            Err(KubeconfigError::ReadConfig(..) | KubeconfigError::FindPath)
                if self.kubeconfig.is_none() && !named && std::env::var_os("KUBECONFIG").is_none() =>
            {
                return Config::incluster().map_err(|_| {
                    Failed::Question(
                        "there is no kubeconfig, and this is no pod of a cluster: name one with --kubeconfig"
                            .to_owned(),
                    )
                });
            }
            Err(error) => {
                return Err(Failed::Question(format!("the kubeconfig cannot be read: {}", chain(&error))));
            }
        };
        self.check(&kubeconfig)?;
        let options = KubeConfigOptions {
            context: self.context.clone(),
            cluster: self.cluster.clone(),
            user: self.user.clone(),
        };
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
        config.map_err(|error| Failed::Question(format!("the kubeconfig cannot be used: {}", chain(&error))))
    }

    /// Whether what is named is there.
    fn check(&self, kubeconfig: &Kubeconfig) -> Result<(), Failed> {
        let contexts: Vec<&str> = kubeconfig.contexts.iter().map(|one| &*one.name).collect();
        let clusters: Vec<&str> = kubeconfig.clusters.iter().map(|one| &*one.name).collect();
        let users: Vec<&str> = kubeconfig.auth_infos.iter().map(|one| &*one.name).collect();
        for (flag, wanted, there) in [
            ("--context", &self.context, &contexts),
            ("--cluster", &self.cluster, &clusters),
            ("--user", &self.user, &users),
        ] {
            if let Some(wanted) = wanted.as_deref().filter(|wanted| !there.contains(wanted)) {
                return Err(Failed::Question(format!(
                    "{flag}: there is no {} {wanted:?} in the kubeconfig: it has {}",
                    &flag[2..],
                    listed(there)
                )));
            }
        }
        let current = kubeconfig.current_context.as_deref().unwrap_or_default();
        if self.context.is_none() && !contexts.contains(&current) {
            let what = if current.is_empty() {
                "the kubeconfig has no current context".to_owned()
            } else {
                format!("the kubeconfig's current context {current:?} is not in it")
            };
            return Err(Failed::Question(format!(
                "{what}: choose one with --context: there are {}",
                listed(&contexts)
            )));
        }
        Ok(())
    }
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

impl Cluster {
    /// The pods of the agents.
    pub(super) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.agents)
    }

    /// How long an agent may take to answer.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    pub(super) fn agents_namespace(&self) -> &str {
        &self.agents
    }

    /// Of all nodes, or of one.
    pub(super) async fn agents(&self, node: Option<&str>) -> Result<Agents, Failed> {
        let mut wanted = ListParams::default().labels(AGENTS).limit(PAGE);
        if let Some(node) = node {
            wanted = wanted.fields(&format!("spec.nodeName={node}"));
        }
        let mut pods = Vec::new();
        loop {
            let page = self.pods().list(&wanted).await;
            let page = page.map_err(|error| {
                self.refused(&format!("list the agents in namespace {}", self.agents), &error)
            })?;
            pods.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => wanted.continue_token = Some(token),
                None => break,
            }
        }
        // Whoever asks for one node asks for no other. Who may not look gets along without it.
        let daemon_sets: Api<DaemonSet> = Api::namespaced(self.client.clone(), &self.agents);
        let sets = match node {
            None => daemon_sets
                .list(&ListParams::default().labels(AGENTS))
                .await
                .map_or_else(|_| Vec::new(), |sets| sets.items),
            Some(_) => Vec::new(),
        };
        let agents = Agents::new(pods, &sets);
        if node.is_none() && agents.is_empty() {
            return Err(Failed::Refused(format!(
                "there are no agents in namespace {} ({}): is Sluice installed there? Another namespace is named with \
                 --sluice-namespace",
                self.agents, self.server
            )));
        }
        Ok(agents)
    }

    /// `client` is `shop/client`, if the context's namespace is `shop`.
    pub(super) fn full_name(&self, pod: &str) -> Result<String, Failed> {
        match pod.split_once('/') {
            None if !pod.is_empty() => Ok(format!("{}/{pod}", self.namespace)),
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(pod.to_owned())
            }
            _ => Err(Failed::Question(format!("--pod: {pod:?} is not namespace/name, as in shop/client"))),
        }
    }

    /// The node on which a pod runs.
    pub(super) async fn node_of(&self, pod: &str) -> Result<String, Failed> {
        let (namespace, name) = pod.split_once('/').unwrap_or((&self.namespace, pod));
        let found = Api::<Pod>::namespaced(self.client.clone(), namespace).get_opt(name).await;
        let found = found.map_err(|error| match self.refused(&format!("look up pod {pod}"), &error) {
            Failed::Refused(why) if is_forbidden(&error) => {
                Failed::Refused(format!("{why}; if you know its node, say it with --node"))
            }
            other => other,
        })?;
        let found = found.ok_or_else(|| {
            Failed::Refused(format!("there is no pod {pod} in the cluster at {}", self.server))
        })?;
        found.spec.and_then(|spec| spec.node_name).ok_or_else(|| {
            Failed::Refused(format!(
                "pod {pod} runs on no node yet: kubectl -n {namespace} describe pod {name}"
            ))
        })
    }

    /// One line for what the API server does not do.
    fn refused(&self, what: &str, error: &kube::Error) -> Failed {
        let Self { server, .. } = self;
        Failed::Refused(match error {
            kube::Error::Api(status) if status.code == 401 => {
                format!("cannot {what}: {server} does not accept your credentials: {}", status.message)
            }
            kube::Error::Api(status) if status.code == 403 => {
                format!("you may not {what}: {}", status.message)
            }
            kube::Error::Api(status) => {
                format!("cannot {what}: {server} answers {}: {}", status.code, status.message)
            }
            other => format!("cannot reach the API server at {server}: {}", chain(other)),
        })
    }
}

pub(super) fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}
