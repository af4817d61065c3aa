//! A request's head as rules see it, and as its tag is put into it.

use http::{HeaderName, header::HOST};

use super::{engine::fields::Fields, hpack::StaticName};
use crate::{
    govern::{edit::Head, headers, request::Request},
    proxy::way::Came,
};

#[derive(Clone, Copy)]
pub(super) struct View<'h>(pub(super) &'h Fields);

impl View<'_> {
    /// `:authority`, which stands for the header `host` of HTTP/1 (RFC 9113, section 8.3.1).
    fn authority_as(&self, name: &HeaderName) -> Option<&[u8]> {
        if *name != HOST {
            return None;
        }
        self.0.known(StaticName::AUTHORITY)
    }
}

impl<'h> View<'h> {
    pub(super) fn method_of(self) -> &'h [u8] {
        self.0.known(StaticName::METHOD).unwrap_or_default()
    }

    /// The host that the caller means.
    pub(super) fn authority_of(self) -> &'h [u8] {
        self.0.known(StaticName::AUTHORITY).or_else(|| self.0.get(b"host")).unwrap_or_default()
    }

    pub(super) fn target_of(self) -> &'h [u8] {
        self.0.known(StaticName::PATH).unwrap_or(b"/")
    }
}

impl Request for View<'_> {
    fn method(&self) -> &[u8] {
        self.method_of()
    }

    fn target(&self) -> &[u8] {
        self.target_of()
    }

    fn header(&self, name: &HeaderName) -> Option<&[u8]> {
        self.authority_as(name).or_else(|| self.0.get(name.as_str().as_bytes()))
    }

    fn each_header(&self, name: &HeaderName, each: &mut dyn FnMut(&[u8])) {
        match self.authority_as(name) {
            Some(authority) => each(authority),
            None => self.0.get_all(name).for_each(each),
        }
    }
}

impl Came for View<'_> {
    fn authority(&self) -> &[u8] {
        self.authority_of()
    }

    fn each_line(&self, each: &mut dyn FnMut(&[u8], &[u8])) {
        self.0.iter().for_each(|field| each(field.name, field.value));
    }
}

impl Head for Fields {
    fn get_all<'h>(&'h self, name: &'h HeaderName) -> impl Iterator<Item = &'h [u8]> {
        let name = name.as_str().as_bytes();
        self.iter().filter(move |field| field.name == name).map(|field| field.value)
    }

    fn add(&mut self, name: &HeaderName, value: &[u8]) {
        self.add(name.as_str().as_bytes(), value);
    }

    fn remove(&mut self, name: &HeaderName) {
        self.remove(|other| other == name.as_str().as_bytes());
    }

    fn remove_misspelt(&mut self, name: &HeaderName) {
        self.remove(|other| headers::is_misspelt(other, name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(lines: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::default();
        for (name, value) in lines {
            fields.add(name.as_bytes(), value.as_bytes());
        }
        fields
    }

    #[test]
    fn the_authority_is_the_host() {
        for (authority, host, wanted) in [
            (Some("orders.shop:8080"), None, Some("orders.shop:8080")),
            (Some("orders.shop"), Some("other"), Some("orders.shop")),
            (None, Some("orders.shop"), Some("orders.shop")),
            (None, None, None),
        ] {
            let lines = [authority.map(|value| (":authority", value)), host.map(|value| ("host", value))];
            let fields = head(&lines.into_iter().flatten().collect::<Vec<_>>());
            let view = View(&fields);
            assert_eq!(view.header(&HOST), wanted.map(str::as_bytes), "{authority:?} {host:?}");
            let mut each = Vec::new();
            view.each_header(&HOST, &mut |value| each.push(value.to_vec()));
            assert_eq!(each, wanted.map(|host| host.as_bytes().to_vec()).into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_head_is_edited_like_any_other() {
        let lines = [("accept", "a"), ("x-twice", "1"), ("accept", "b"), ("x-twice", "2")];
        crate::govern::edit::tests::behaves(&mut head(&lines));
    }
}
