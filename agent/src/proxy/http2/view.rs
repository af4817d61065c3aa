//! A request's head as rules see it.

use http::{HeaderName, HeaderValue, header::HOST, request::Parts};

use crate::govern::request::Request;

#[derive(Clone, Copy)]
pub(super) struct View<'h>(pub(super) &'h Parts);

impl View<'_> {
    /// `:authority`, which stands for the header `host` of HTTP/1 (RFC 9113, section 8.3.1).
    fn authority(&self, name: &HeaderName) -> Option<&[u8]> {
        if *name != HOST {
            return None;
        }
        self.0.uri.authority().map(|authority| authority.as_str().as_bytes())
    }
}

impl Request for View<'_> {
    fn method(&self) -> &[u8] {
        self.0.method.as_str().as_bytes()
    }

    fn target(&self) -> &[u8] {
        self.0.uri.path_and_query().map_or(b"/", |target| target.as_str().as_bytes())
    }

    fn header(&self, name: &HeaderName) -> Option<&[u8]> {
        self.authority(name).or_else(|| self.0.headers.get(name).map(HeaderValue::as_bytes))
    }

    fn each_header(&self, name: &HeaderName, each: &mut dyn FnMut(&[u8])) {
        match self.authority(name) {
            Some(authority) => each(authority),
            None => self.0.headers.get_all(name).iter().for_each(|value| each(value.as_bytes())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_is_the_host() {
        for (uri, host, wanted) in [
            ("http://orders.shop:8080/a?b", None, Some("orders.shop:8080")),
            ("http://orders.shop/", Some("other"), Some("orders.shop")),
            ("/a", Some("orders.shop"), Some("orders.shop")),
            ("/a", None, None),
        ] {
            let mut request = http::Request::get(uri);
            if let Some(host) = host {
                request = request.header("host", host);
            }
            let (parts, ()) = request.body(()).expect("a request").into_parts();
            let view = View(&parts);
            assert_eq!(view.header(&HOST), wanted.map(str::as_bytes), "{uri} {host:?}");
            let mut each = Vec::new();
            view.each_header(&HOST, &mut |value| each.push(value.to_vec()));
            assert_eq!(each, wanted.map(|host| host.as_bytes().to_vec()).into_iter().collect::<Vec<_>>());
        }
    }
}
