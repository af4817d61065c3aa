//! HTTP/1 framing, as much of it as the bench's own client and origin need, and fast.

use anyhow::{Context as _, Result, ensure};

/// The length of the head at the start of `data`, with its empty line; `None` if it has not all come.
pub(super) fn head_length(data: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = data[from..].iter().position(|&byte| byte == b'\n') {
        let end = from + at;
        if data[..end].ends_with(b"\r\n\r") {
            return Some(end + 1);
        }
        from = end + 1;
    }
    None
}

/// The length of the answer at the start of `data`, or `None` if its head has not all come. An answer that is not
/// a 200 with a length is an error: the proxy does something else than what is measured.
pub(super) fn answer_length(data: &[u8]) -> Result<Option<usize>> {
    let Some(head) = head_length(data) else { return Ok(None) };
    let shown = || String::from_utf8_lossy(&data[..head]).into_owned();
    ensure!(data.get(9..12) == Some(b"200"), "not the origin's answer: {}", shown());
    let length =
        field(&data[..head], b"content-length").with_context(|| format!("no content-length: {}", shown()))?;
    let length = std::str::from_utf8(length).ok().and_then(|text| text.parse::<usize>().ok());
    Ok(Some(head + length.with_context(|| format!("bad content-length: {}", shown()))?))
}

/// The value of the first header field called `name` (in lower case) in a message's head.
pub(super) fn field<'a>(head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    head.split(|&byte| byte == b'\n').skip(1).find_map(|line| {
        let (found, value) = line.split_at_checked(name.len())?;
        let value = value.strip_prefix(b":")?;
        found.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nDate: x\r\nContent-Length: 3\r\n\r\nabc";

    #[test]
    fn an_answer_ends_where_its_length_says() {
        assert_eq!(answer_length(ANSWER).unwrap(), Some(ANSWER.len()));
        for cut in 0..ANSWER.len() - 3 {
            assert_eq!(answer_length(&ANSWER[..cut]).unwrap(), None, "cut at {cut}");
        }
        assert_eq!(answer_length(&ANSWER[..ANSWER.len() - 3]).unwrap(), Some(ANSWER.len()));
    }

    #[test]
    fn other_answers_are_errors() {
        for answer in [
            &b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: three\r\n\r\n",
        ] {
            assert!(answer_length(answer).is_err(), "{}", String::from_utf8_lossy(answer));
        }
    }

    #[test]
    fn fields_are_found_whatever_their_case() {
        let head = b"GET /100 HTTP/1.1\r\nHost: a\r\nCONNECTION:  close \r\n\r\n";
        assert_eq!(field(head, b"connection"), Some(&b"close"[..]));
        assert_eq!(field(head, b"connect"), None);
        assert_eq!(field(head, b"get /100 http/1.1"), None);
    }
}
