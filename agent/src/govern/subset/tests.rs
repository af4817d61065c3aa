use std::net::SocketAddr;

use super::*;
use crate::govern::{outcome::ErrorKind, outlier::CallerId};

const S: u64 = 1_000_000_000;

fn endpoint(index: u8, ready_since: u64) -> Arc<Endpoint> {
    let address = SocketAddr::from(([10, 1, 0, index], 8080));
    Arc::new(Endpoint { ready_since_nanos: Some((ready_since * S) as i64), ..Endpoint::new(address) })
}

fn policy(seconds: u64) -> WarmUp {
    WarmUp { duration: Duration::from_secs(seconds), ..WarmUp::default() }
}

#[test]
fn it_is_warm_when_all_are_and_stays_so() {
    let subset = Subset::from(vec![endpoint(1, 0), endpoint(2, 60)]);
    assert!(!subset.is_warm(&policy(60), 119 * S));
    assert!(subset.is_warm(&policy(60), 120 * S));
    // Known by now: time does not turn back.
    assert!(subset.is_warm(&policy(60), 119 * S));
    // Another policy is another matter.
    assert!(!subset.is_warm(&policy(100), 159 * S));
    assert!(subset.is_warm(&policy(100), 160 * S));
    assert!(!subset.is_warm(&WarmUp { start_on: StartOn::FirstRequest, ..policy(60) }, 120 * S));
}

#[test]
fn those_that_are_not_asked_anyway_need_not_be_warm() {
    let cold = endpoint(2, 60);
    let leaving =
        Arc::new(Endpoint { terminating: true, load: cold.load.clone(), ..Endpoint::new(cold.address) });
    assert!(Subset::from(vec![endpoint(1, 0), leaving]).is_warm(&policy(60), 60 * S));
}

#[test]
fn the_next_snapshots_subset_goes_on() {
    let (one, other) = (endpoint(1, 0), endpoint(2, 0));
    let before = Subset::from(vec![one.clone(), other.clone()]);
    assert_eq!([before.turn(), before.turn()], [0, 1]);
    let config = OutlierDetection { consecutive_errors: Some(1), ..OutlierDetection::default() };
    let mut rng = Rng::with_seed(1);
    let error = Outcome::Error(ErrorKind::Connect);
    assert_eq!(before.observe(&config, &one, CallerId::new(1), error, S, &mut rng).len(), 1);
    let after = Subset::new(vec![one, other.clone(), endpoint(3, 0)], Some(&before));
    assert_eq!(after.turn(), 2);
    assert!(!after.has_no_outliers(2 * S));
    // What it finds out, those see that have not heard of it yet.
    assert_eq!(
        after.observe(&config, &other, CallerId::new(1), error, 2 * S, &mut rng).len(),
        0,
        "one of three at most"
    );
    assert_eq!(before.usable(), 2);
    assert_eq!(after.usable(), 3);
}

#[test]
fn an_endpoint_brings_its_ejection_along() {
    let (one, other) = (endpoint(1, 0), endpoint(2, 0));
    let before = Subset::from(vec![one.clone(), other]);
    let config = OutlierDetection { consecutive_errors: Some(1), ..OutlierDetection::default() };
    let error = Outcome::Error(ErrorKind::Connect);
    assert_eq!(before.observe(&config, &one, CallerId::new(1), error, S, &mut Rng::with_seed(1)).len(), 1);
    // Its pod got a label: it is of a lane now.
    let lane = Subset::from(vec![one, endpoint(3, 0)]);
    assert!(!lane.has_no_outliers(2 * S));
    assert!(lane.has_no_outliers(100 * S));
}
