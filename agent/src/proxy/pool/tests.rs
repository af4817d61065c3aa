use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{idle::SPARE, *};

const SECOND: Nanos = Nanos::of(Duration::from_secs(1));
/// Of a new client, and of one that has kept its connection for long.
const AGAIN: Need = Need { repeatable: true, rested: None };
const ONCE: Need = Need { repeatable: false, rested: Some(Nanos::ZERO) };

async fn pair() -> (Opened, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
    let mut opened = Opened::new(client.unwrap(), address, &Arc::default());
    // Just now, whatever time a test takes it to be.
    opened.since = Nanos(u64::MAX);
    (opened, server.unwrap().0)
}

fn key(pod: u64) -> Key {
    Key { pod, dialled: "10.96.0.1:80".parse().unwrap(), options: SocketOptions::default() }
}

/// So many clients of pod 1.
fn seats(pool: &Pool, clients: usize) -> Vec<Seat> {
    (0..clients).map(|_| pool.enter(key(1))).collect()
}

fn endpoint() -> Endpoint {
    Endpoint::new("10.0.0.1:80".parse().unwrap())
}

async fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_last_used_comes_first_and_never_another_pods() {
    let pool = Pool::default();
    let seats = seats(&pool, 2);
    let seat = &seats[0];
    let endpoint = endpoint();
    let (first, _keep1) = pair().await;
    let (second, _keep2) = pair().await;
    let last = second.local_addr().unwrap();
    seat.give(&endpoint, first, None, Nanos::ZERO);
    seat.give(&endpoint, second, None, Nanos::ZERO);
    assert_eq!(pool.len(), 2);
    assert!(pool.enter(key(2)).take(&endpoint, AGAIN, SECOND).is_none());
    assert_eq!(seat.take(&endpoint, AGAIN, SECOND).unwrap().local_addr().unwrap(), last);
    pool.forget(1);
    assert!(seat.take(&endpoint, AGAIN, SECOND).is_none());
    assert_eq!(pool.len(), 0);
}

#[tokio::test]
async fn old_ones_are_not_used() {
    let pool = Pool::default();
    let seats = seats(&pool, 2);
    let seat = &seats[0];
    let endpoint = endpoint();
    let (stream, _keep) = pair().await;
    seat.give(&endpoint, stream, Some(5), Nanos::ZERO);
    assert!(seat.take(&endpoint, AGAIN, SECOND * 5).is_none(), "a second before the server's own limit");
    let (stream, _keep) = pair().await;
    seat.give(&endpoint, stream, None, Nanos::ZERO);
    assert!(seat.take(&endpoint, ONCE, SECOND * 2).is_none(), "not for what cannot be repeated");
    assert!(seat.take(&endpoint, AGAIN, SECOND * 2).is_some(), "which leaves it to the others");
    let (stream, _keep) = pair().await;
    seat.give(&endpoint, stream, Some(0), Nanos::ZERO);
    assert_eq!(pool.len(), 0);
}

#[tokio::test]
async fn closed_and_talkative_ones_are_not_used() {
    let pool = Pool::default();
    let seats = seats(&pool, 2);
    let seat = &seats[0];
    let endpoint = endpoint();
    let (stream, server) = pair().await;
    seat.give(&endpoint, stream, None, Nanos::ZERO);
    drop(server);
    until(|| {
        pool.sweep(Nanos::ZERO);
        pool.len() == 0
    })
    .await;

    let (stream, mut server) = pair().await;
    server.write_all(b"HTTP/1.1 408 Timeout\r\n\r\n").await.unwrap();
    seat.give(&endpoint, stream, None, Nanos::ZERO);
    assert!(seat.take(&endpoint, ONCE, Nanos::ZERO).is_none(), "the kernel knows at once");
}

#[tokio::test]
async fn none_that_leads_to_who_leaves_or_is_another_is_used() {
    let (pool, old) = (Pool::default(), endpoint());
    let seat = pool.enter(key(1));
    let (stream, _keep1) = pair().await;
    seat.give(&old, stream, None, Nanos::ZERO);
    assert!(seat.take(&endpoint(), AGAIN, Nanos::ZERO).is_none(), "another at the same address");
    let (stream, _keep2) = pair().await;
    seat.give(&old, stream, None, Nanos::ZERO);
    old.load.set_terminating(true, 1);
    pool.sweep(Nanos::ZERO);
    assert_eq!(pool.len(), 0);
    let (stream, _keep3) = pair().await;
    seat.give(&old, stream, None, Nanos::ZERO);
    assert_eq!(pool.len(), 0);
}

#[tokio::test]
async fn a_client_gets_one_that_is_no_older_than_its_own() {
    let (pool, endpoint) = (Pool::default(), endpoint());
    let mut seats = seats(&pool, 3);
    let seat = seats.pop().unwrap();
    let mut servers = Vec::new();
    let mut addresses = Vec::new();
    for second in 1..=3 {
        let (stream, server) = pair().await;
        addresses.push(stream.local_addr().unwrap());
        servers.push(server);
        seat.give(&endpoint, stream, None, SECOND * second);
    }
    let now = SECOND * 3;
    let take = |repeatable, rested: Option<u64>| {
        let need = Need { repeatable, rested: rested.map(|seconds| SECOND * seconds) };
        let taken = seat.take(&endpoint, need, now);
        taken.map(|stream| {
            let at = addresses.iter().position(|address| *address == stream.local_addr().unwrap());
            seat.give(&endpoint, stream, None, SECOND * (at.unwrap() as u64 + 1));
            at.unwrap() + 1
        })
    };
    // Giving back puts it at the end, so only the last is taken and given back here.
    assert_eq!(take(false, Some(3)), Some(3), "its own");
    assert_eq!(take(true, None), Some(3), "the last used");
    assert_eq!(take(false, None), None, "a new client that cannot ask again gets none");
    assert_eq!(take(false, Some(4)), None, "all are older than its own");
    assert_eq!(take(true, Some(4)), Some(3), "but it can ask again");
    let oldest_that_fits = Need { repeatable: true, rested: Some(SECOND * 2) };
    let stream = seat.take(&endpoint, oldest_that_fits, now).unwrap();
    assert_eq!(stream.local_addr().unwrap(), addresses[1], "the others have theirs");
    let once = Need { repeatable: false, rested: Some(Nanos::ZERO) };
    let stream = seat.take(&endpoint, once, now).unwrap();
    assert_eq!(stream.local_addr().unwrap(), addresses[2], "the first was idle for too long");
}

#[tokio::test(flavor = "local")]
async fn no_more_is_kept_than_clients_keep() {
    let (pool, endpoint) = (Rc::new(Pool::default()), endpoint());
    let mut seats = seats(&pool, 3);
    let seat = seats.pop().unwrap();
    let mut servers = Vec::new();
    for _ in 0..4 {
        let (stream, server) = pair().await;
        servers.push(server);
        seat.give(&endpoint, stream, None, Nanos::ZERO);
    }
    assert_eq!(pool.len(), 3);
    let last = servers[3].peer_addr().unwrap();
    seats.clear();
    assert_eq!(pool.len(), 3, "until it has been looked whether others come");
    let closer = pool.clone();
    let closer = tokio::task::spawn_local(async move { closer.close_surplus().await });
    until(|| pool.len() == 1).await;
    let kept = seat.take(&endpoint, AGAIN, SECOND).unwrap();
    assert_eq!(kept.local_addr().unwrap(), last, "the last used one is the one that stays");
    seat.give(&endpoint, kept, None, SECOND);
    assert_eq!(pool.len(), 1);
    drop(seat);
    until(|| pool.len() == 0).await;
    let kept = servers[3].read(&mut [0]).await;
    assert_eq!(kept.unwrap(), 0, "it is closed");
    pool.sweep(SECOND);
    assert!(pool.groups.borrow().is_empty());
    closer.abort();
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn who_comes_when_others_leave_finds_what_they_leave() {
    let (pool, endpoint) = (Rc::new(Pool::default()), endpoint());
    let closer = pool.clone();
    let closer = tokio::task::spawn_local(async move { closer.close_surplus().await });
    let (stream, _keep) = pair().await;
    let first = pool.enter(key(1));
    first.give(&endpoint, stream, None, Nanos::ZERO);
    drop(first);
    tokio::time::sleep(LOOK_EVERY).await;
    let second = pool.enter(key(1));
    tokio::time::sleep(10 * LOOK_EVERY).await;
    let stream = second.take(&endpoint, AGAIN, SECOND).unwrap();
    second.give(&endpoint, stream, None, SECOND);
    drop(second);
    tokio::time::sleep(3 * LOOK_EVERY).await;
    assert_eq!(pool.len(), 0, "nobody has come");
    closer.abort();
}

#[tokio::test]
async fn clients_do_not_pass_on_a_connection_for_ever() {
    let (pool, endpoint) = (Pool::default(), endpoint());
    let seat = pool.enter(key(1));
    let (mut stream, mut server) = pair().await;
    stream.since = Nanos::ZERO;
    seat.give(&endpoint, stream, None, SECOND);
    let stream = seat.take(&endpoint, AGAIN, SECOND).unwrap();
    seat.give(&endpoint, stream, None, SECOND * 2);
    let its_own = Need { repeatable: true, rested: Some(SECOND * 2) };
    let stream = seat.take(&endpoint, its_own, SECOND * 3).unwrap();
    seat.give(&endpoint, stream, None, SECOND * 3);
    assert!(seat.take(&endpoint, AGAIN, SECOND * 3).is_none());
    assert_eq!(pool.len(), 0);
    assert_eq!(server.read(&mut [0]).await.unwrap(), 0, "who waits for it to end waits no longer");
}

#[tokio::test]
async fn many_clients_of_many_endpoints_keep_no_connection_for_each_pair() {
    let pool = Pool::default();
    let seats = seats(&pool, 10);
    let endpoints: Vec<_> = (1..=30).map(|last| Endpoint::new(([10, 0, 0, last], 80).into())).collect();
    let mut servers = Vec::new();
    for second in 1..=10 {
        servers.clear();
        for endpoint in &endpoints {
            let (stream, server) = pair().await;
            servers.push(server);
            seats[0].give(endpoint, stream, None, SECOND * second);
        }
    }
    assert_eq!(pool.len(), 10 + SPARE);
    for endpoint in &endpoints {
        assert!(seats[0].take(endpoint, AGAIN, SECOND * 10).is_some(), "the last ones are kept");
    }
    pool.sweep(SECOND * 10);
    assert_eq!(pool.len(), 0, "the servers of the others have closed theirs");
}

/// What a read has left over says nothing, and must not be taken for an answer to who asks to be woken.
#[tokio::test(flavor = "local")]
async fn a_connection_that_was_readable_once_tells_that_its_server_closes_it() {
    let pool = Pool::default();
    let seat = pool.enter(key(1));
    let (mut stream, mut server) = pair().await;
    server.write_all(b"exactly").await.unwrap();
    stream.read_exact(&mut [0; 7]).await.unwrap();
    seat.give(&endpoint(), stream, None, Nanos::ZERO);
    let mut asked = tokio::task::spawn_local(async move { poll_fn(|cx| seat.poll_closed(cx)).await });
    tokio::task::yield_now().await;
    assert!(!asked.is_finished(), "nothing has come");
    drop(server);
    tokio::time::timeout(Duration::from_secs(60), &mut asked).await.expect("it is woken").unwrap();
}
