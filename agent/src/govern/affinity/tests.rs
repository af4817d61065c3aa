use super::*;

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
