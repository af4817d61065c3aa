//! Over which of the agent's listeners a pod's connections are spread, and so over its workers.

/// Slots for listener ports in [`Pod`](crate::Pod).
pub const PORT_SLOTS: usize = 16;

/// Spreads `ports` over all slots. Without ports all slots are 0.
pub fn port_slots(ports: &[u16]) -> [u16; PORT_SLOTS] {
    let mut slots = [0; PORT_SLOTS];
    for (slot, port) in slots.iter_mut().zip(ports.iter().cycle()) {
        *slot = *port;
    }
    slots
}

/// The slot of the connection with this number, as a pod's are counted.
///
/// Sixteen in a row have one slot each, and two in a row never those of the same one of two workers (nor four in a row of four, and so
/// on): connections that a client opens together are served alike. In which order is as good as random, so that a client with a
/// rhythm of its own, such as a long connection and a short one in turn, does not have all of one kind on one worker.
#[inline]
pub fn slot(number: u64) -> usize {
    // Each bit decides which half of what the higher ones leave is first.
    let bit = |level: u32| {
        let block = number >> (level + 1);
        let toss = block.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (63 - level);
        ((number >> level) ^ toss) & 1
    };
    (bit(0) | bit(1) << 1 | bit(2) << 2 | bit(3) << 3) as usize & (PORT_SLOTS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_in_a_row_are_spread_evenly() {
        for workers in [2, 4, 8, 16] {
            for first in (0..4096).step_by(workers) {
                let mut taken = [false; PORT_SLOTS];
                for number in first..first + workers as u64 {
                    let worker = slot(number) % workers;
                    assert!(!taken[worker], "{number} of {workers} workers");
                    taken[worker] = true;
                }
            }
        }
    }

    #[test]
    fn no_rhythm_of_a_client_finds_always_the_same_worker() {
        for rhythm in 2..=16 {
            for phase in 0..rhythm {
                let first = (0..1000).filter(|n| slot(n * rhythm + phase).is_multiple_of(2)).count();
                assert!((350..650).contains(&first), "{first} of 1000, each {rhythm}th from {phase} on");
            }
        }
    }
}
