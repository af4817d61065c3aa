//! The words of Sluice's Kubernetes API: label and annotation keys that users write on their objects, and what
//! they may say there.
//!
//! The cluster model reads them; nothing else in the agent spells them out.

/// Annotation on a Namespace or a Pod, `enabled` or `disabled`; a Pod's own word wins over its Namespace's.
pub const CAPTURE_ANNOTATION: &str = "sluice.dev/capture";

/// Label on a Pod: the tag (lane) of that workload.
pub const TAG_LABEL: &str = "sluice.dev/tag";

/// What [`CAPTURE_ANNOTATION`] says: `true` for `enabled`, `false` for `disabled`.
pub fn parse_capture(value: &str) -> Result<bool, InvalidCapture> {
    match value {
        "enabled" => Ok(true),
        "disabled" => Ok(false),
        _ => Err(InvalidCapture(value.chars().take(80).collect())),
    }
}

/// Why a value of [`CAPTURE_ANNOTATION`] is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither \"enabled\" nor \"disabled\"; it counts as not set")]
pub struct InvalidCapture(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capture_is_enabled_or_disabled() {
        assert_eq!(parse_capture("enabled"), Ok(true));
        assert_eq!(parse_capture("disabled"), Ok(false));
        for bad in ["", "Enabled", "true", "yes", " enabled"] {
            assert!(parse_capture(bad).is_err(), "{bad:?}");
        }
    }
}
