//! What is spoken with the store: RESP2, as much of it as is needed. <https://valkey.io/topics/protocol/>

/// Longer than anything that the agent asks for.
const LONGEST: usize = 1 << 16;
const MOST_ITEMS: usize = 64;

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// A simple or a bulk string; what is no UTF-8 is replaced, for the agent asks for none.
    Text(String),
    Integer(i64),
    Nil,
    /// As the store says it: `NOSCRIPT No matching script.`
    Error(String),
    Items(Vec<Value>),
}

/// What the store says is no RESP2, or more than anybody has asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it does not speak the protocol of Redis")]
pub(super) struct Malformed;

/// Writes a command.
pub(super) fn encode(command: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", command.len()).as_bytes());
    for word in command {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// Reads a reply from the beginning of what has come, and how long it was; `None`: it is not all there.
pub(super) fn decode(bytes: &[u8]) -> Result<Option<(Value, usize)>, Malformed> {
    decode_within(bytes, 2)
}

fn decode_within(bytes: &[u8], depth: u8) -> Result<Option<(Value, usize)>, Malformed> {
    let Some((line, start)) = line(bytes)? else { return Ok(None) };
    let (kind, rest) = line.split_at_checked(1).ok_or(Malformed)?;
    let number = || rest.parse::<i64>().map_err(|_| Malformed);
    let value = match kind {
        "+" => Value::Text(rest.to_owned()),
        "-" => Value::Error(rest.to_owned()),
        ":" => Value::Integer(number()?),
        "$" | "*" if number()? == -1 => Value::Nil,
        "$" => {
            let length = usize::try_from(number()?).ok().filter(|length| *length <= LONGEST);
            let end = start + length.ok_or(Malformed)?;
            let Some(after) = bytes.get(end..end + 2) else { return Ok(None) };
            if after != b"\r\n" {
                return Err(Malformed);
            }
            return Ok(Some((
                Value::Text(String::from_utf8_lossy(&bytes[start..end]).into_owned()),
                end + 2,
            )));
        }
        "*" => {
            let count = usize::try_from(number()?).ok().filter(|count| *count <= MOST_ITEMS);
            let depth = depth.checked_sub(1).ok_or(Malformed)?;
            let (mut items, mut end) = (Vec::new(), start);
            for _ in 0..count.ok_or(Malformed)? {
                let Some((item, length)) = decode_within(&bytes[end..], depth)? else { return Ok(None) };
                items.push(item);
                end += length;
            }
            return Ok(Some((Value::Items(items), end)));
        }
        _ => return Err(Malformed),
    };
    Ok(Some((value, start)))
}

/// The first line, and where what follows it begins.
fn line(bytes: &[u8]) -> Result<Option<(&str, usize)>, Malformed> {
    let Some(end) = memchr::memchr(b'\r', &bytes[..bytes.len().min(LONGEST)]) else {
        return if bytes.len() < LONGEST { Ok(None) } else { Err(Malformed) };
    };
    match bytes.get(end + 1) {
        None => Ok(None),
        Some(b'\n') => Ok(Some((str::from_utf8(&bytes[..end]).map_err(|_| Malformed)?, end + 2))),
        Some(_) => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_written() {
        let mut out = Vec::new();
        encode(&[b"AUTH", b"p\r\nw"], &mut out);
        assert_eq!(out, b"*2\r\n$4\r\nAUTH\r\n$4\r\np\r\nw\r\n");
    }

    #[test]
    fn replies_are_read_however_they_come() {
        let text = |text: &str| Value::Text(text.to_owned());
        for (bytes, value) in [
            (&b"+OK\r\n"[..], text("OK")),
            (b"-NOSCRIPT No matching script.\r\n", Value::Error("NOSCRIPT No matching script.".to_owned())),
            (b":-7\r\n", Value::Integer(-7)),
            (b"$-1\r\n", Value::Nil),
            (b"$4\r\n1\r\n2\r\n", text("1\r\n2")),
            (b"*2\r\n$1\r\na\r\n:1\r\n", Value::Items(vec![text("a"), Value::Integer(1)])),
            (b"*0\r\n", Value::Items(Vec::new())),
        ] {
            for end in 0..bytes.len() {
                assert_eq!(decode(&bytes[..end]), Ok(None), "{:?}", bytes[..end].escape_ascii().to_string());
            }
            let more = [bytes, b"+next"].concat();
            assert_eq!(decode(&more), Ok(Some((value, bytes.len()))));
        }
    }

    #[test]
    fn what_is_no_reply_is_told() {
        let long = [&b"+"[..], &vec![b'a'; LONGEST]].concat();
        for bytes in [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            b"$99999999999\r\n",
            b"$x\r\n",
            b"$-2\r\n",
            b"*65\r\n",
            b"*1\r\n*1\r\n*1\r\n:1\r\n",
            b"$1\r\nabc",
            b"+a\rb\n",
            b"\r\n",
            &long,
        ] {
            assert_eq!(decode(bytes), Err(Malformed), "{:?}", bytes.escape_ascii().to_string());
        }
    }
}
