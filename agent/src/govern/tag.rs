//! The tag: the colour that a request or a workload carries.

use std::{fmt, str::FromStr, sync::Arc};

/// A tag, such as `gray`. Its syntax is that of a Kubernetes label value, because a workload's tag is one:
/// 1 to 63 of `[A-Za-z0-9._-]`, beginning and ending with a letter or digit.
/// <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set>
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

/// Why a string is no tag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a tag: 1 to 63 letters, digits, '-', '_' or '.', beginning and ending with a letter or digit"
)]
pub struct InvalidTag(String);

impl Tag {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether these bytes are a tag. Cheaper than building one to find out.
    pub fn is_valid(bytes: &[u8]) -> bool {
        let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        bytes.len() <= 63
            && edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    }
}

impl FromStr for Tag {
    type Err = InvalidTag;

    fn from_str(text: &str) -> Result<Self, InvalidTag> {
        if Self::is_valid(text.as_bytes()) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidTag(text.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for Tag {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syntax_is_that_of_a_label_value() {
        for good in ["gray", "a", "v1.2_3-x", "7", &"a".repeat(63)] {
            assert_eq!(good.parse::<Tag>().map(|tag| tag.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "-a", "a-", ".a", "a b", "a,b", "grün", &"a".repeat(64), "a\n"] {
            assert!(bad.parse::<Tag>().is_err(), "{bad:?}");
        }
    }
}
