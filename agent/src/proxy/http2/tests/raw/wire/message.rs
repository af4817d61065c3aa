//! What comes over a wire, as tests see it.

use bytes::Bytes;

/// What came, and is not only the wire's own business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::proxy::http2::tests) enum Event {
    Headers {
        stream: u32,
        end: bool,
        fields: Vec<(String, String)>,
    },
    Data {
        stream: u32,
        end: bool,
        bytes: Bytes,
    },
    Reset {
        stream: u32,
        code: u32,
    },
    Settings {
        ack: bool,
        all: Vec<(u16, u32)>,
    },
    Ping {
        ack: bool,
        payload: [u8; 8],
    },
    GoAway {
        last: u32,
        code: u32,
    },
    Window {
        stream: u32,
        step: u32,
    },
    /// The connection has ended; nothing follows.
    Closed,
}

impl Event {
    pub(super) fn stream(&self) -> u32 {
        match self {
            Self::Headers { stream, .. }
            | Self::Data { stream, .. }
            | Self::Reset { stream, .. }
            | Self::Window { stream, .. } => *stream,
            _ => 0,
        }
    }
}

/// A response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::proxy::http2::tests) struct Answer {
    pub(in crate::proxy::http2::tests) status: u16,
    pub(in crate::proxy::http2::tests) fields: Vec<(String, String)>,
    pub(in crate::proxy::http2::tests) body: Vec<u8>,
    pub(in crate::proxy::http2::tests) trailers: Option<Vec<(String, String)>>,
    pub(in crate::proxy::http2::tests) interims: usize,
    /// How it ended, if it has no proper end: the code of a reset, or `None` for the connection's end.
    #[expect(clippy::option_option, reason = "tests compare it as it stands")]
    pub(in crate::proxy::http2::tests) broken: Option<Option<u32>>,
}

impl Answer {
    pub(in crate::proxy::http2::tests) fn header(&self, name: &str) -> &str {
        of(&self.fields, name)
    }

    pub(in crate::proxy::http2::tests) fn trailer(&self, name: &str) -> &str {
        self.trailers.as_deref().map_or("", |trailers| of(trailers, name))
    }

    pub(in crate::proxy::http2::tests) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }
}

pub(in crate::proxy::http2::tests) fn of<'f>(fields: &'f [(String, String)], name: &str) -> &'f str {
    fields.iter().find(|field| field.0 == name).map_or("", |field| &field.1)
}
