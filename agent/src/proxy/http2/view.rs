//! A request's head as rules see it.

use http::{HeaderName, HeaderValue, request::Parts};

use crate::govern::request::Request;

#[derive(Clone, Copy)]
pub(super) struct View<'h>(pub(super) &'h Parts);

impl Request for View<'_> {
    fn method(&self) -> &[u8] {
        self.0.method.as_str().as_bytes()
    }

    fn target(&self) -> &[u8] {
        self.0.uri.path_and_query().map_or(b"/", |target| target.as_str().as_bytes())
    }

    fn header(&self, name: &HeaderName) -> Option<&[u8]> {
        self.0.headers.get(name).map(HeaderValue::as_bytes)
    }

    fn each_header(&self, name: &HeaderName, each: &mut dyn FnMut(&[u8])) {
        self.0.headers.get_all(name).iter().for_each(|value| each(value.as_bytes()));
    }
}
