//! The page: files that are compiled in, served with a policy that lets the browser load nothing else.
//!
//! It asks for nothing from elsewhere, runs no inline script, is framed by nobody, and cannot be made to send anything
//! anywhere. What it shows comes from [`super::view`]; it changes nothing.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{
        CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY,
        X_CONTENT_TYPE_OPTIONS,
    },
};
use http_body_util::Full;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// On every answer that has to do with the page, its data too.
const SAFE: [(HeaderName, &str); 4] = [
    (CONTENT_SECURITY_POLICY, POLICY),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// A file of the page.
#[derive(Debug)]
pub(super) struct File {
    path: &'static str,
    media_type: &'static str,
    content: &'static str,
    /// Of the content, in quotes.
    tag: u64,
}

macro_rules! file {
    ($path:literal, $media_type:expr, $file:literal) => {
        File {
            path: $path,
            media_type: $media_type,
            content: include_str!(concat!("page/", $file)),
            tag: fnv(include_str!(concat!("page/", $file)).as_bytes()),
        }
    };
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

static FILES: [File; 11] = [
    file!("/", "text/html; charset=utf-8", "index.html"),
    file!("/page/style.css", "text/css; charset=utf-8", "style.css"),
    file!("/page/icon.svg", "image/svg+xml", "icon.svg"),
    file!("/page/main.js", SCRIPT, "main.js"),
    file!("/page/merge.js", SCRIPT, "merge.js"),
    file!("/page/order.js", SCRIPT, "order.js"),
    file!("/page/overview.js", SCRIPT, "overview.js"),
    file!("/page/service.js", SCRIPT, "service.js"),
    file!("/page/lane.js", SCRIPT, "lane.js"),
    file!("/page/draw.js", SCRIPT, "draw.js"),
    file!("/page/format.js", SCRIPT, "format.js"),
];

/// FNV-1a: two versions of a file are to have different tags, and nobody gains anything by making them the same.
const fn fnv(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    hash
}

/// What is answered at the path of a [`file()`].
pub(super) fn answer(path: &str, asked: &HeaderMap) -> Response<Full<Bytes>> {
    if let Some(file) = file(path) {
        return file.answer(asked);
    }
    let mut missing = Response::new(Full::default());
    *missing.status_mut() = StatusCode::NOT_FOUND;
    missing
}

/// The paths of all files, and what they are.
pub(super) fn files() -> impl Iterator<Item = (&'static str, &'static str)> {
    FILES.iter().map(|file| (file.path, file.media_type))
}

/// The file that is served at a path.
fn file(path: &str) -> Option<&'static File> {
    FILES.iter().find(|file| file.path == path)
}

impl File {
    /// The file, or that the one which the browser has is the same.
    fn answer(&self, asked: &HeaderMap) -> Response<Full<Bytes>> {
        let tag = format!("\"{:016x}\"", self.tag);
        let same =
            asked.get_all(IF_NONE_MATCH).iter().any(|known| is_among(known.as_bytes(), tag.as_bytes()));
        let mut response = Response::new(Full::default());
        if same {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        } else {
            *response.body_mut() = Full::from(self.content);
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(self.media_type));
        }
        // Hexadecimal digits and quotes are a header value.
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            response.headers_mut().insert(ETAG, tag);
        }
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        guard(response.headers_mut());
        response
    }
}

/// Tells the browser what it must not do with an answer.
pub(super) fn guard(headers: &mut HeaderMap) {
    for (name, value) in SAFE {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// Whether a tag is on a list of them, `*` is all. The `W/` of weak ones does not matter here.
/// <https://www.rfc-editor.org/rfc/rfc9110#section-13.1.2>
fn is_among(list: &[u8], tag: &[u8]) -> bool {
    list.split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .any(|known| known == b"*" || known.strip_prefix(b"W/").unwrap_or(known) == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(tags: &[&'static str]) -> HeaderMap {
        tags.iter().map(|tag| (IF_NONE_MATCH, HeaderValue::from_static(tag))).collect()
    }

    #[test]
    fn what_the_browser_has_is_not_sent_again() {
        let file = file("/").expect("the page");
        let first = file.answer(&HeaderMap::new());
        assert_eq!(first.status(), 200);
        let tag = first.headers()[ETAG].to_str().expect("text").to_owned();
        let list = format!("\"other\", W/{tag}");
        for (known, status) in [(&*tag, 304), (&*list, 304), ("*", 304), ("\"other\"", 200), ("", 200)] {
            let mut headers = HeaderMap::new();
            headers.insert(IF_NONE_MATCH, HeaderValue::from_str(known).expect("a header value"));
            assert_eq!(file.answer(&headers).status(), status, "{known}");
        }
        assert_eq!(file.answer(&asking(&["\"a\"", "*"])).status(), 304);
        let tags: std::collections::BTreeSet<_> = FILES.iter().map(|file| file.tag).collect();
        assert_eq!(tags.len(), FILES.len());
    }

    #[test]
    fn the_page_asks_for_its_own_files_only_and_has_no_inline_script_or_style() {
        let page = file("/").expect("the page").content;
        let named: Vec<_> = page
            .split(['"', '\''])
            .filter(|word| ["page/"].iter().any(|folder| word.starts_with(folder)))
            .collect();
        assert!(named.len() >= 3, "{named:?}");
        for path in named {
            assert!(file(&format!("/{path}")).is_some(), "{path}");
        }
        assert_eq!(page.matches("<script").count(), page.matches("<script type=\"module\" src=").count());
        for wrong in ["<style", " style=", " onclick", "http://", "https://", "javascript:"] {
            assert!(!page.contains(wrong), "{wrong}");
        }
    }

    #[test]
    fn scripts_make_text_and_never_markup() {
        for file in FILES.iter().filter(|file| file.media_type == SCRIPT) {
            for wrong in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "new Function",
                ".style",
                "http://",
                "https://",
            ] {
                // The namespace of SVG is a name, and nothing is loaded from it.
                let content = file.content.replace("http://www.w3.org/2000/svg", "");
                assert!(!content.contains(wrong), "{}: {wrong}", file.path);
            }
        }
    }
}
