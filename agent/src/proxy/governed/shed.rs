//! What an answer's head says of an endpoint that balancing goes by: that it failed, or that it is asked too much
//! (ARCHITECTURE.md#choosing-an-endpoint).

use std::time::{Duration, SystemTime};

use crate::govern::{cost::Ending, outcome::Outcome};

/// gRPC's RESOURCE_EXHAUSTED. <https://grpc.io/docs/guides/status-codes/>
const RESOURCE_EXHAUSTED: u8 = 8;

/// How an attempt ends whose answer's head has come; `None`: well, as far as one can tell. `headers` are those of the answer,
/// `now` is the wall clock.
pub(super) fn ending<'h>(
    status: u16,
    grpc_status: Option<u8>,
    outcome: Outcome,
    headers: impl Iterator<Item = (&'h [u8], &'h [u8])>,
    now: impl FnOnce() -> SystemTime,
) -> Option<Ending> {
    let sheds = status == 429 || is_exhausted(grpc_status);
    if !sheds && !outcome.is_error() {
        return None;
    }
    let after = if sheds || status == 503 { retry_after(headers, now) } else { None };
    Some(match after {
        // Whether it calls it an error or not: it says when it wants to be asked again.
        Some(after) => Ending::Shed(Some(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX))),
        None if sheds => Ending::Shed(None),
        None => Ending::Failed,
    })
}

/// Whether a gRPC status says that the endpoint is asked too much.
pub(super) fn is_exhausted(grpc_status: Option<u8>) -> bool {
    grpc_status == Some(RESOURCE_EXHAUSTED)
}

/// `Retry-After` (RFC 9110, section 10.2.3), or gRPC's `grpc-retry-pushback-ms`
/// (<https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback>).
fn retry_after<'h>(
    mut headers: impl Iterator<Item = (&'h [u8], &'h [u8])>,
    now: impl FnOnce() -> SystemTime,
) -> Option<Duration> {
    let (is_pushback, value) = headers.find_map(|(name, value)| {
        let is_pushback = name.eq_ignore_ascii_case(b"grpc-retry-pushback-ms");
        (is_pushback || name.eq_ignore_ascii_case(b"retry-after")).then_some((is_pushback, value))
    })?;
    let value = std::str::from_utf8(value).ok()?.trim();
    match value.parse() {
        Ok(millis) if is_pushback => Some(Duration::from_millis(millis)),
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        // A negative pushback means not to try again, and says nothing of when.
        Err(_) if is_pushback => None,
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(now()).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::govern::policy::Errors;

    #[test]
    fn an_endpoint_that_is_asked_too_much_says_so() {
        let second = 1_000_000_000;
        let of = |status, grpc, headers: &[(&str, &str)]| {
            let headers = headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 5);
            ending(status, grpc, Outcome::of_answer(&Errors::default(), status, grpc), headers, || now)
        };
        for (status, grpc, headers, wanted) in [
            (200, None, &[("retry-after", "3")][..], None),
            (404, None, &[], None),
            (500, None, &[("retry-after", "3")], Some(Ending::Failed)),
            (200, Some(14), &[], Some(Ending::Failed)),
            (429, None, &[], Some(Ending::Shed(None))),
            (429, None, &[("a", "b"), ("Retry-After", " 3 ")], Some(Ending::Shed(Some(3 * second)))),
            (429, None, &[("retry-after", "soon")], Some(Ending::Shed(None))),
            (
                429,
                None,
                &[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")],
                Some(Ending::Shed(Some(5 * second))),
            ),
            // It is long past.
            (429, None, &[("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT")], Some(Ending::Shed(None))),
            (503, None, &[], Some(Ending::Failed)),
            (503, None, &[("retry-after", "2")], Some(Ending::Shed(Some(2 * second)))),
            (200, Some(8), &[], Some(Ending::Shed(None))),
            (200, Some(8), &[("grpc-retry-pushback-ms", "2000")], Some(Ending::Shed(Some(2 * second)))),
            (200, Some(8), &[("grpc-retry-pushback-ms", "-1")], Some(Ending::Shed(None))),
            (429, None, &[("retry-after", "99999999999999999999")], Some(Ending::Shed(None))),
            (429, None, &[("retry-after", "9999999999999999999")], Some(Ending::Shed(Some(u64::MAX)))),
        ] {
            assert_eq!(of(status, grpc, headers), wanted, "{status} {grpc:?} {headers:?}");
        }
    }
}
