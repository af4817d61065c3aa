//! Who calls, as rules see it: a pod, and the workload that it is a part of.
//!
//! Rules about callers name workloads rather than pods, whose names change with each rollout: the Deployment, StatefulSet or
//! the like that owns the pod.

use std::sync::Arc;

/// A calling pod.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'c> {
    pub namespace: &'c str,
    /// The name of the workload that the pod is a part of; its own name where nothing owns it.
    pub workload: &'c str,
    pub labels: &'c Labels,
}

/// Labels of a pod, sorted. Cheap to clone: pods of one template mostly have the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Labels(Option<Arc<[Label]>>);

type Label = (Box<str>, Box<str>);

impl Labels {
    pub fn get(&self, key: &str) -> Option<&str> {
        let labels = self.0.as_deref()?;
        let at = labels.binary_search_by(|(name, _)| (**name).cmp(key)).ok()?;
        Some(&labels[at].1)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether they are in memory once.
    pub fn is_same(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().flat_map(|labels| &**labels).map(|(key, value)| (&**key, &**value))
    }

    /// Whether nobody else has these same ones.
    pub fn is_unshared(&self) -> bool {
        self.0.as_ref().is_none_or(|labels| Arc::strong_count(labels) == 1)
    }
}

/// Sorts them; of a key that comes twice either value may count.
impl<K: Into<Box<str>>, V: Into<Box<str>>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        let mut labels: Vec<Label> =
            labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        labels.sort_unstable();
        Self((!labels.is_empty()).then(|| labels.into()))
    }
}
