//! Ways to write a path that some server takes for it, for tests of what must not be evaded by them.

use proptest::prelude::*;

use crate::govern::request::Request;

/// Ways to write `/actuator/env` and `/metrics` that some server takes for them.
pub(in crate::govern) const EVASIONS: [&str; 68] = [
    "/actuator",
    "/actuator/",
    "/actuator/env",
    "//actuator/env",
    "/./actuator/env",
    "/x/../actuator/env",
    "/actuator;jsessionid=1/env",
    "/;/actuator/env",
    "/.;/actuator/env",
    "/x/..;/actuator/env",
    "/%61ctuator/env",
    "/%61%63%74%75%61%74%6f%72/env",
    "/actuator%2fenv",
    "/actuator%2Fenv",
    "/actuator%5cenv",
    "/actuator\\env",
    "/\\actuator\\env",
    "/x%2f..%2factuator%2fenv",
    "/x/%2e%2e/actuator",
    "/x/%2e%2e%2factuator",
    "/x/..%5cactuator",
    "/%2e/actuator",
    "/%2factuator",
    "/%2f%2factuator/env",
    "/%2561ctuator/env",
    "/%252factuator",
    "/actuator%253bx/env",
    "/actuator%3bx/env",
    "/actuator%00/env",
    "/actuator/env?x=/public",
    "/actuator/..;/actuator/env",
    "/metrics",
    "/metrics/",
    "/metrics;x",
    "/ACTUATOR/env",
    "/Metrics",
    // Dot segments are removed after an encoded slash was decoded (nginx),
    "/actuator%2fx/../env",
    "/actuator%5cx/../env",
    // before slashes are joined (RFC 3986),
    "/actuator//../env",
    "/x//..//../actuator/env",
    // or not at all.
    "/actuator/../orders",
    "/actuator/..;/orders",
    // Decoded once and no further.
    "/actuator%2f%252e%252e%252fx",
    // What ends a path.
    "/metrics#x",
    "/metrics%23x",
    "/metrics%3fx",
    // What is read as a URL.
    "x:/actuator",
    "HtTp:/actuator/env",
    "x:y/../actuator",
    "file:/metrics",
    "/\\x/actuator",
    "/\\x\\actuator/env",
    "///x/actuator",
    // As IIS and Jetty 9 decode.
    "/%u0061ctuator",
    // What is read as a path with the query (Node's `path.join(root, request.url)`).
    "/open?/../actuator/env",
    "/?/../metrics",
    "/open/a?/../../actuator/env",
    "/open?next=/../actuator",
    "/open?/%2e%2e/metrics",
    "/open?%2f..%2factuator",
    "/open?%2F%2E%2E%2Factuator%2Fenv",
    "/open?\\..\\actuator",
    "/open?%5c..%5cactuator",
    "/open?/%252e%252e/metrics",
    "/open?/%u002e%u002e/metrics",
    "/open?/../%61ctuator",
    "/open?/../metrics?x",
    "/open?//../actuator",
];

/// One element of a path, and ways to write what stays the same path.
pub(in crate::govern) fn disguised() -> impl Strategy<Value = String> {
    let letter = |c: char| {
        prop_oneof![
            Just(c.to_string()),
            Just(format!("%{:02x}", c as u32)),
            Just(format!("%{:02X}", c as u32)),
            Just(format!("%25{:02x}", c as u32)),
            Just(format!("%u{:04x}", c as u32)),
        ]
    };
    let word: Vec<_> = "actuator".chars().map(letter).collect();
    let slash = prop_oneof![
        Just("/"),
        Just("//"),
        Just("/./"),
        Just("/x/../"),
        Just("/;a/"),
        Just("/%2e/"),
        Just("/x/%2e%2e/"),
        Just("/.;b/"),
        Just("/%2f"),
        Just("/%5c"),
        Just("/\\"),
        Just("/x%2f..%2f"),
        Just("/%252f"),
        Just("//x/"),
        Just("/\\x/"),
        Just("///x\\"),
        Just("/\\/x/"),
        Just("http:/"),
        Just("h-t:/"),
        Just("x:y/../"),
        Just("file://x/"),
        Just("/x?/../"),
        Just("/?/%2e%2e/"),
        Just("/x?%2f..%2f"),
        Just("/x?a=b&c=\\..\\"),
        Just("/x?/%252e%252e%252f"),
        Just("/x/y?//..//../"),
    ];
    let end = prop_oneof![
        Just(""),
        Just("/"),
        Just("/env"),
        Just(";a=1"),
        Just(";/env"),
        Just("%2fenv"),
        Just("%5cenv"),
        Just("?a=b"),
        Just("/."),
        Just("%3ba/env"),
        Just("%00"),
    ];
    (slash, word, end).prop_map(|(slash, word, end)| format!("{slash}{}{end}", word.concat()))
}

/// A request for this target.
#[derive(Debug)]
pub(in crate::govern) struct Of(pub(in crate::govern) String);

impl Request for Of {
    fn method(&self) -> &[u8] {
        b"GET"
    }

    fn target(&self) -> &[u8] {
        self.0.as_bytes()
    }

    fn header(&self, _: &http::HeaderName) -> Option<&[u8]> {
        None
    }

    fn each_header(&self, _: &http::HeaderName, _: &mut dyn FnMut(&[u8])) {}
}
