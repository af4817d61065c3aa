//! When a pod's new connections are to go direct. Pure.
//!
//! A pod may use what it was given, and of what all pods share no more than is still free: so a single pod that takes all
//! it can get ends at a half of it, two at a third each, and whoever comes then still finds room (the dynamic thresholds of
//! Choudhury and Hahne, [IEEE/ACM Transactions on Networking 6(2), 1998](https://doi.org/10.1109/90.664262)).

/// What has been used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The pod has as many connections as it may have.
    Connections,
    /// Its part of the agent's file descriptors.
    Descriptors,
    /// Its part of the memory that connections may take.
    Memory,
}

impl Cause {
    pub const ALL: [Self; 3] = [Self::Connections, Self::Descriptors, Self::Memory];

    /// Its name in metrics.
    pub fn code(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Descriptors => "descriptors",
            Self::Memory => "memory",
        }
    }

    /// What it means, for the reference.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Connections => "The pod has as many connections open as `--connections-per-pod` allows.",
            Self::Descriptors => {
                "No file descriptors of the agent are left for more connections of the pod, next to those of all pods."
            }
            Self::Memory => {
                "What waits for slow peers of the pod takes its part of the memory for connections, in the agent and in the kernel."
            }
        }
    }
}

/// What is in use, by one pod or by all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) connections: usize,
    pub(crate) bytes: usize,
}

/// What there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Connections of one pod.
    pub(crate) pod_connections: usize,
    /// Connections of all pods, as many as there are descriptors for.
    pub(crate) connections: usize,
    /// Bytes of all pods.
    pub(crate) bytes: usize,
}

/// The part of the bytes that each pod may have, however little is left: a pod that has nearly none is not the one whose
/// connections had better go elsewhere.
const BYTES_OF_EACH: usize = 64;

/// Why a pod's new connections are to go direct; `None`: they need not. `direct`: they do now, and shall until it uses a
/// tenth less than what it may.
pub(crate) fn verdict(direct: bool, pod: Used, all: Used, bounds: &Bounds) -> Option<Cause> {
    let is_over = |used: usize, allowed: usize| {
        let allowed = if direct { allowed - allowed / 10 } else { allowed };
        used >= allowed
    };
    if is_over(pod.connections, bounds.pod_connections) {
        Some(Cause::Connections)
    } else if is_over(pod.connections, bounds.connections.saturating_sub(all.connections)) {
        Some(Cause::Descriptors)
    } else if is_over(pod.bytes, bounds.bytes.saturating_sub(all.bytes).max(bounds.bytes / BYTES_OF_EACH)) {
        Some(Cause::Memory)
    } else {
        None
    }
}

/// How many connections more a pod may open: after so many it has as many as are free, if no other does. And no more than its
/// part of what is free, of so many pods: what they may open at once, without a further word, is not more than there is.
pub(crate) fn more(pod: Used, all: Used, pods: usize, bounds: &Bounds) -> usize {
    let free = bounds.connections.saturating_sub(all.connections);
    let shared = free.saturating_sub(pod.connections).div_ceil(2);
    // One at the least, of those that it may have, or a tight part could not be used up at all.
    let part = shared.min((free / pods.saturating_add(1)).max(1));
    bounds.pod_connections.saturating_sub(pod.connections).min(part)
}

/// Whether connections that a pod has made already have to wait, until others end. It goes on long after new ones go direct:
/// what is left by then is for the other pods.
pub(crate) fn must_wait(pod: Used, all: Used, bounds: &Bounds) -> bool {
    const LEFT_FOR_OTHERS: usize = 8;
    pod.connections >= bounds.connections.saturating_sub(all.connections).saturating_mul(LEFT_FOR_OTHERS)
}

/// Whether a pod's new requests are to be rejected: its new connections have long gone direct, but those that it has make ever
/// more wait.
pub(crate) fn must_refuse(pod: Used, all: Used, bounds: &Bounds) -> bool {
    const LEFT_FOR_OTHERS: usize = 4;
    let free = bounds.bytes.saturating_sub(all.bytes).max(bounds.bytes / BYTES_OF_EACH);
    pod.bytes >= free.saturating_mul(LEFT_FOR_OTHERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { pod_connections: 100, connections: 120, bytes: 1000 };

    fn used(connections: usize, bytes: usize) -> Used {
        Used { connections, bytes }
    }

    #[test]
    fn each_bound_has_its_cause() {
        let table = [
            (used(99, 0), used(0, 0), None),
            (used(100, 0), used(0, 0), Some(Cause::Connections)),
            (used(59, 0), used(60, 0), None),
            (used(60, 0), used(60, 0), Some(Cause::Descriptors)),
            // Nothing is left, so nobody may have any.
            (used(0, 0), used(120, 0), Some(Cause::Descriptors)),
            (used(0, 0), used(500, 0), Some(Cause::Descriptors)),
            (used(1, 499), used(1, 500), None),
            (used(1, 500), used(1, 500), Some(Cause::Memory)),
            (used(1, 14), used(1, 1001), None),
            (used(1, 15), used(1, 1001), Some(Cause::Memory)),
        ];
        for (pod, all, cause) in table {
            assert_eq!(verdict(false, pod, all, &BOUNDS), cause, "{pod:?} of {all:?}");
        }
    }

    #[test]
    fn what_goes_direct_goes_on_so_until_there_is_a_tenth_less() {
        assert_eq!(verdict(false, used(95, 0), used(0, 0), &BOUNDS), None);
        assert_eq!(verdict(true, used(95, 0), used(0, 0), &BOUNDS), Some(Cause::Connections));
        assert_eq!(verdict(true, used(90, 0), used(0, 0), &BOUNDS), Some(Cause::Connections));
        assert_eq!(verdict(true, used(89, 0), used(0, 0), &BOUNDS), None);
        let tiny = Bounds { pod_connections: 1, ..BOUNDS };
        assert_eq!(
            verdict(true, used(0, 0), used(0, 0), &tiny),
            None,
            "no bound is too small to come back from"
        );
    }

    #[test]
    fn who_takes_all_it_can_leaves_as_much_to_others() {
        for greedy in 1..8_usize {
            let bounds = Bounds { pod_connections: usize::MAX, connections: 1000, bytes: usize::MAX };
            let mut each = vec![0; greedy];
            let mut went = true;
            while std::mem::take(&mut went) {
                for pod in 0..greedy {
                    let all = used(each.iter().sum(), 0);
                    if verdict(false, used(each[pod], 0), all, &bounds).is_none() {
                        each[pod] += 1;
                        went = true;
                    }
                }
            }
            let left = 1000 - each.iter().sum::<usize>();
            assert!(each.iter().all(|count| count.abs_diff(1000 / (greedy + 1)) <= 1), "{each:?}");
            assert!(left + 1 >= 1000 / (greedy + 1), "{left}");
            let all = used(1000 - left, 0);
            assert_eq!(verdict(false, used(left / 2, 0), all, &bounds), None, "a further pod finds room");
        }
    }

    #[test]
    fn so_many_more_and_no_further() {
        for (mine, others) in [(0, 0), (1, 0), (10, 30), (33, 17), (40, 40), (0, 120), (50, 200)] {
            let bounds = Bounds { pod_connections: 50, ..BOUNDS };
            let at = |more| (used(mine + more, 0), used(mine + others + more, 0));
            let (pod, all) = at(0);
            let more = more(pod, all, 1, &bounds);
            let (pod, all) = at(more);
            assert!(verdict(false, pod, all, &bounds).is_some(), "{mine} {others}: {more} is not all");
            if more > 0 {
                let (pod, all) = at(more - 1);
                assert_eq!(verdict(false, pod, all, &bounds), None, "{mine} {others}: {more} is too much");
            }
        }
    }

    #[test]
    fn what_pods_may_open_at_once_is_there() {
        for (pods, connections) in [(1, 77), (5, 77), (30, 77), (30, 500_000)] {
            let bounds = Bounds { pod_connections: 4096, connections, bytes: 0 };
            let each = more(used(0, 0), used(0, 0), pods, &bounds);
            assert!(each >= 1 && each * pods <= connections, "{each} of each of {pods}");
        }
        let plenty = Bounds { pod_connections: 4096, connections: 500_000, bytes: 0 };
        assert_eq!(
            more(used(96, 0), used(5000, 0), 100, &plenty),
            4000,
            "where there is plenty each may have its own"
        );
        assert_eq!(
            more(used(1, 0), used(70, 0), 30, &Bounds { connections: 77, ..plenty }),
            1,
            "one at the least"
        );
        assert_eq!(
            more(used(7, 0), used(70, 0), 30, &Bounds { connections: 77, ..plenty }),
            0,
            "of what it may have"
        );
    }

    #[test]
    fn requests_are_rejected_only_far_above() {
        assert!(!must_refuse(used(1, 799), used(1, 800), &BOUNDS));
        assert!(must_refuse(used(1, 800), used(1, 800), &BOUNDS));
        assert!(!must_refuse(used(1, 10), used(1, 810), &BOUNDS), "another pod's go on");
        assert!(!must_refuse(used(1, 59), used(1, 2000), &BOUNDS), "whatever others do");
        assert!(must_refuse(used(1, 60), used(1, 2000), &BOUNDS));
    }

    #[test]
    fn what_is_connected_waits_only_when_little_is_left() {
        let bounds = Bounds { pod_connections: 10, connections: 900, bytes: 1000 };
        assert!(!must_wait(used(799, 0), used(800, 0), &bounds));
        assert!(must_wait(used(800, 0), used(800, 0), &bounds));
        assert!(!must_wait(used(50, 0), used(850, 0), &bounds), "another pod's go on");
        assert!(must_wait(used(0, 0), used(900, 0), &bounds));
        let unbounded = Bounds { connections: usize::MAX, ..bounds };
        assert!(!must_wait(used(1_000_000, 0), used(1_000_000, 0), &unbounded));
    }
}
