use super::*;

fn address(index: u16) -> SocketAddr {
    let [high, low] = index.to_be_bytes();
    SocketAddr::from(([10, 1, high, low], 8080))
}

fn callers(count: u16) -> impl Iterator<Item = Caller> {
    (0..count).map(|n| {
        let [high, low] = n.to_be_bytes();
        Caller::new(IpAddr::from([10, 9, high, low]))
    })
}

/// Who gets the caller, if the endpoints have these shares.
fn of(caller: &Caller, shares: &[f64]) -> usize {
    let wants = |index: usize| weighted(caller.number(address(index as u16)), shares[index]);
    (0..shares.len()).max_by(|one, other| wants(*one).total_cmp(&wants(*other))).expect("there are endpoints")
}

#[test]
fn with_equal_shares_weights_order_as_numbers_do() {
    for caller in callers(500) {
        let bare = (0..10).max_by_key(|index| caller.number(address(*index)));
        for share in [1.0, 0.1] {
            assert_eq!(Some(of(&caller, &[share; 10]) as u16), bare);
        }
    }
    assert!(weighted(0, 1.0) > 0.0 && weighted(u64::MAX, 1.0).is_finite());
}

#[test]
fn a_growing_share_takes_callers_over_one_after_the_other() {
    let mut shares = [1.0; 5];
    let mut before: Vec<usize> = Vec::new();
    for step in 1..=10 {
        shares[4] = f64::from(step) / 10.0;
        let now: Vec<usize> = callers(4000).map(|caller| of(&caller, &shares)).collect();
        for (was, is) in before.iter().zip(&now) {
            assert!(was == is || *is == 4, "nobody moves between the others, or back");
        }
        let got = now.iter().filter(|index| **index == 4).count() as f64 / 4000.0;
        let due = shares[4] / (4.0 + shares[4]);
        // Within four standard deviations.
        assert!((got - due).abs() < 4.0 * (due * (1.0 - due) / 4000.0).sqrt(), "{got}, not {due}");
        before = now;
    }
}

#[test]
fn the_hash_is_the_same_after_a_restart() {
    // SplitMix64 seeded with 0 begins with these; `mix` of zero words is its finalizer applied to its own output.
    assert_eq!(mix(&[]), 0);
    let first = |word: u64| {
        let mut z = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    assert_eq!(first(0), 0xe220_a839_7b1d_cdaf, "the first number of SplitMix64 with seed 0");
    assert_eq!(mix(&[7]), first(first(0) ^ 7));
}
