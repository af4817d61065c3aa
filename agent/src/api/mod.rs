//! The words of Sluice's Kubernetes API: label and annotation keys that users write on their objects.
//!
//! The cluster model reads them; nothing else in the agent spells them out.

/// Annotation on a Namespace (`enabled`) or a Pod (`enabled`, `disabled`; the pod's own word wins).
pub const CAPTURE_ANNOTATION: &str = "sluice.dev/capture";

/// Label on a Pod: the tag (lane) of that workload.
pub const TAG_LABEL: &str = "sluice.dev/tag";
