//! The two addresses of a dual-stack endpoint. `connect()` of a client has succeeded long before it is known that the server does not
//! listen on the family that the client has called, so the client cannot try the other one. The agent does it in its place.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::time::Instant;

use super::{Opened, Terms, attempt};
use crate::{
    govern::endpoint::Endpoint,
    proxy::worker::{PodHere, Worker},
};

/// Opens a connection to an endpoint: at the address that took the last one, and where that is refused at the other one, if there is
/// one, within the same time.
pub(super) async fn open(
    worker: &Worker,
    pod: &PodHere,
    endpoint: &Arc<Endpoint>,
    terms: Terms,
) -> io::Result<Opened> {
    let (own, load) = (endpoint.address, &endpoint.load);
    // Whoever has come to the endpoint itself has an address already, at which the application listens.
    let other = endpoint.other_family.as_deref().copied().filter(|_| pod.arrival.is_none());
    let Some(other) = other else { return attempt(worker, pod, own, terms).await };
    let (first, second) = if load.answers_in_other_family() { (other, own) } else { (own, other) };
    let began = Instant::now();
    let connected = match attempt(worker, pod, first, terms).await {
        Err(refused) if is_of_family(&refused) => {
            let within = terms.within.map(|within| within.saturating_sub(began.elapsed()));
            // Boxed, for it is rare, and every request's task would carry its state.
            let again = Box::pin(attempt(worker, pod, second, Terms { within, ..terms }));
            again.await.map_err(|error| both((first, &refused), (second, &error)))
        }
        connected => connected,
    }?;
    let in_other = connected.to == other;
    if load.note_family(in_other) && in_other {
        worker.complain(|| {
            tracing::info!(
                pod = endpoint.pod.as_deref(), endpoint = %own, connected = %other,
                "an endpoint takes connections at its address of the other family only: they go there from now on. Its server should \
                 listen on both (`::`)",
            );
        });
    }
    Ok(connected)
}

/// Nobody listens there, or no way leads there: the other family may be another matter.
fn is_of_family(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::AddrNotAvailable
    )
}

/// That both have failed. It counts as a refusal that took no time, unless the second one did.
fn both((first, refused): (SocketAddr, &io::Error), (second, error): (SocketAddr, &io::Error)) -> io::Error {
    let kind = if error.kind() == io::ErrorKind::TimedOut { error.kind() } else { refused.kind() };
    io::Error::new(kind, format!("{first}: {refused}; {second}, of the same pod: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_failures_are_told() {
        let error = |code| io::Error::from_raw_os_error(code);
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let both =
            |code| both((at("[fd00::1]:80"), &error(libc::ECONNREFUSED)), (at("10.0.0.1:80"), &error(code)));
        assert_eq!(both(libc::ENETUNREACH).kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(both(libc::ETIMEDOUT).kind(), io::ErrorKind::TimedOut);
        assert_eq!(
            both(libc::ENETUNREACH).to_string(),
            "[fd00::1]:80: Connection refused (os error 111); 10.0.0.1:80, of the same pod: Network is unreachable (os error 101)"
        );
    }

    #[test]
    fn what_takes_time_or_is_of_this_side_is_not_tried_again() {
        for (code, expected) in [
            (libc::ECONNREFUSED, true),
            (libc::EHOSTUNREACH, true),
            (libc::ENETUNREACH, true),
            (libc::EADDRNOTAVAIL, true),
            (libc::ETIMEDOUT, false),
            (libc::ECONNRESET, false),
            (libc::EMFILE, false),
        ] {
            assert_eq!(is_of_family(&io::Error::from_raw_os_error(code)), expected, "{code}");
        }
    }
}
