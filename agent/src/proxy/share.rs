//! A pod's share of a worker: of HTTP/2 requests, of bytes that are kept. What one pod uses up is missing to that pod
//! alone (ARCHITECTURE.md#fairness-between-pods).

use std::{cell::Cell, rc::Rc};

/// So much of something.
pub(crate) struct Share {
    limit: usize,
    used: Cell<usize>,
}

impl Share {
    pub(crate) fn new(limit: usize) -> Rc<Self> {
        Rc::new(Self { limit, used: Cell::new(0) })
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn left(&self) -> usize {
        self.limit.saturating_sub(self.used.get())
    }

    /// One of it, if there is one left.
    pub(crate) fn take_one(self: &Rc<Self>) -> Option<Taken> {
        let mut taken = self.take_none();
        taken.grow(1).then_some(taken)
    }

    /// Nothing yet.
    pub(crate) fn take_none(self: &Rc<Self>) -> Taken {
        Taken { share: self.clone(), amount: 0 }
    }
}

/// A part of a share, given back when it is dropped.
pub(crate) struct Taken {
    share: Rc<Share>,
    amount: usize,
}

impl Taken {
    /// Takes so much more; false, and nothing taken, if the share has not that much left.
    pub(crate) fn grow(&mut self, more: usize) -> bool {
        let used = self.share.used.get() + more;
        let fits = used <= self.share.limit;
        if fits {
            self.share.used.set(used);
            self.amount += more;
        }
        fits
    }

    /// Has taken so much from now on, even if that is more than the share has: what is there already is to be counted.
    pub(crate) fn set(&mut self, amount: usize) {
        self.share.used.set(self.share.used.get() - self.amount + amount);
        self.amount = amount;
    }

    pub(crate) fn amount(&self) -> usize {
        self.amount
    }

    /// Gives everything back, and can take again.
    pub(crate) fn release(&mut self) {
        self.share.used.set(self.share.used.get() - std::mem::take(&mut self.amount));
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_taken_than_there_is_and_all_comes_back() {
        let share = Share::new(2);
        let taken = [share.take_one(), share.take_one()];
        assert!(taken.iter().all(Option::is_some) && share.take_one().is_none());
        drop(taken);
        assert!(share.take_one().is_some());
        assert_eq!(share.used.get(), 0);
    }

    #[test]
    fn what_is_there_is_counted_even_above_the_limit() {
        let share = Share::new(100);
        let (mut first, mut second) = (share.take_none(), share.take_none());
        first.set(150);
        assert_eq!((share.left(), second.grow(1)), (0, false));
        first.set(30);
        assert_eq!((share.left(), second.grow(70)), (70, true));
        drop((first, second));
        assert_eq!((share.left(), share.limit()), (100, 100));
    }

    #[test]
    fn what_grows_is_bounded_by_what_all_have() {
        let share = Share::new(100);
        let (mut first, mut second) = (share.take_none(), share.take_none());
        assert!(first.grow(60) && second.grow(40) && !second.grow(1));
        assert_eq!((first.amount(), second.amount()), (60, 40));
        first.release();
        assert!(second.grow(60) && !first.grow(1));
        drop((first, second));
        assert_eq!(share.used.get(), 0);
    }
}
