//! What is wrong with a message that is not passed on, told where it is noticed: in the response that Sluice makes, in the log
//! and in `sluice_invalid_messages_total`.

use std::fmt;

/// The part of a message that is not as HTTP asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessagePart {
    FirstLine,
    Header,
    Host,
    Framing,
    Chunk,
    Size,
    Protocol,
}

impl MessagePart {
    /// Its name in metrics, and what it means.
    pub(crate) const ALL: [(Self, &'static str, &'static str); 7] = [
        (Self::FirstLine, "first_line", "The request line or the status line"),
        (Self::Header, "header", "The name or the value of a header, or the end of its line"),
        (Self::Host, "host", "`Host` is missing, comes twice, or differs from the request target."),
        (
            Self::Framing,
            "framing",
            "`Content-Length` or `Transfer-Encoding`: where the message ends is not clear.",
        ),
        (Self::Chunk, "chunk", "A chunk of the body, or a trailer"),
        (Self::Size, "size", "The headers are too large, or too many."),
        (Self::Protocol, "protocol", "Another protocol than HTTP/1, or a violation of HTTP/2"),
    ];
}

/// Who sent the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    Client,
    Upstream,
}

impl Sender {
    pub(crate) const ALL: [(Self, &'static str, &'static str); 2] =
        [(Self::Client, "client", "A request"), (Self::Upstream, "upstream", "The response of an endpoint")];
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub part: MessagePart,
    /// In words: what the message has.
    pub what: &'static str,
}

impl Fault {
    pub(crate) const fn new(part: MessagePart, what: &'static str) -> Self {
        Self { part, what }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_listed_at_their_index() {
        for (index, (part, ..)) in MessagePart::ALL.into_iter().enumerate() {
            assert_eq!(part as usize, index);
        }
        for (index, (sender, ..)) in Sender::ALL.into_iter().enumerate() {
            assert_eq!(sender as usize, index);
        }
    }
}
