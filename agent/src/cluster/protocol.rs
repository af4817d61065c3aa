//! What a service port is declared to speak.
//!
//! `appProtocol` first, then the port name's prefix up to the first `-`, as Istio reads them
//! (<https://istio.io/latest/docs/ops/configuration/traffic-management/protocol-selection/>) and with Kubernetes's
//! own names (<https://kubernetes.io/docs/concepts/services-networking/service/#application-protocol>).
//! A word that nobody knows declares nothing: the first bytes tell.

use super::model::Protocol;

/// The protocol of a service port with this `appProtocol` and name.
pub(crate) fn declared(app_protocol: Option<&str>, port_name: Option<&str>) -> Protocol {
    app_protocol.and_then(by_word).or_else(|| port_name.and_then(by_port_name)).unwrap_or_default()
}

fn by_port_name(name: &str) -> Option<Protocol> {
    let prefix = name.split_once('-').map_or(name, |(prefix, _)| prefix);
    // `grpc-web` is the one word with a dash.
    if name == "grpc-web" || name.starts_with("grpc-web-") { by_word("grpc-web") } else { by_word(prefix) }
}

fn by_word(word: &str) -> Option<Protocol> {
    Some(match word.to_ascii_lowercase().as_str() {
        "http" | "ws" | "kubernetes.io/ws" => Protocol::Http,
        "http2" | "h2c" | "grpc" | "grpc-web" | "kubernetes.io/h2c" => Protocol::Http2,
        // Encrypted: nothing to see.
        "https" | "tls" | "wss" | "grpcs" | "kubernetes.io/wss" |
        // Declared to be bytes.
        "tcp" |
        // Databases, queues, directories, mail. Many let the server speak first; none is HTTP.
        "amqp" | "amqps" | "cassandra" | "ftp" | "imap" | "imaps" | "kafka" | "ldap" | "ldaps" | "memcache"
        | "memcached" | "mongo" | "mongodb" | "mqtt" | "mqtts" | "mssql" | "ms-sql-s" | "mysql" | "nats"
        | "oracle" | "pop3" | "pop3s" | "postgres" | "postgresql" | "pulsar" | "redis" | "smtp" | "smtps"
        | "ssh" | "stomp" | "thrift" | "zookeeper" => Protocol::Opaque,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_protocol_wins_over_the_name_and_the_name_over_nothing() {
        let cases: &[(Option<&str>, Option<&str>, Protocol)] = &[
            (None, None, Protocol::Detect),
            (Some("http"), None, Protocol::Http),
            (Some("HTTP"), Some("mysql"), Protocol::Http),
            (Some("kubernetes.io/ws"), None, Protocol::Http),
            (Some("kubernetes.io/h2c"), None, Protocol::Http2),
            (Some("grpc"), Some("http"), Protocol::Http2),
            (Some("grpc-web"), None, Protocol::Http2),
            (Some("https"), None, Protocol::Opaque),
            (Some("tls"), None, Protocol::Opaque),
            (Some("kubernetes.io/wss"), None, Protocol::Opaque),
            (Some("mysql"), Some("http"), Protocol::Opaque),
            (Some("redis"), None, Protocol::Opaque),
            (Some("postgresql"), None, Protocol::Opaque),
            (Some("mongo"), None, Protocol::Opaque),
            // Nobody knows the word: the name may.
            (Some("example.com/own"), Some("http-api"), Protocol::Http),
            (Some("example.com/own"), None, Protocol::Detect),
            (None, Some("http"), Protocol::Http),
            (None, Some("http-web"), Protocol::Http),
            (None, Some("http2-web"), Protocol::Http2),
            (None, Some("grpc"), Protocol::Http2),
            (None, Some("grpc-web-api"), Protocol::Http2),
            (None, Some("https"), Protocol::Opaque),
            (None, Some("https-web"), Protocol::Opaque),
            (None, Some("tcp-admin"), Protocol::Opaque),
            (None, Some("tls-x"), Protocol::Opaque),
            // A prefix ends at the dash: these are other words.
            (None, Some("httpfoo"), Protocol::Detect),
            (None, Some("web-http"), Protocol::Detect),
            (None, Some("web"), Protocol::Detect),
        ];
        for (app_protocol, name, expected) in cases {
            assert_eq!(declared(*app_protocol, *name), *expected, "{app_protocol:?} {name:?}");
        }
    }
}
