//! Flow control (RFC 9113, section 5.2): what the peer may send, and what it lets us send. Pure.
//!
//! A [`Credit`] is what we have been given and may use. A [`Window`] is what we have given: every byte of its size is still
//! `open` to the peer, or has come and is `held` here, or has been passed on and is owed, that is, to be given again. It
//! is given again in pieces of half a window, so that updates are few.

/// The largest window (RFC 9113, section 6.9.1).
pub(crate) const LARGEST: u32 = (1 << 31) - 1;

/// What every window is before anybody changes it (RFC 9113, section 6.9.2).
pub(crate) const INITIAL: u32 = 65_535;

/// Bytes that we may send. Below zero after the peer has made its windows smaller (RFC 9113, section 6.9.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Credit(i64);

/// A window has become larger than one may be, or an update is of nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overflow;

impl Credit {
    pub(crate) fn new(initial: u32) -> Self {
        Self(initial.into())
    }

    pub(crate) fn left(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }

    /// How much was used of what was given at first, `initial`, and has not been given again.
    pub(crate) fn used_of(self, initial: u32) -> usize {
        usize::try_from(i64::from(initial) - self.0).unwrap_or(0)
    }

    /// So much of it is used; never more than is [`left`](Self::left).
    pub(crate) fn take(&mut self, amount: usize) {
        debug_assert!(amount <= self.left());
        self.0 -= amount as i64;
    }

    /// The peer gives so much more.
    pub(crate) fn give(&mut self, amount: u32) -> Result<(), Overflow> {
        self.adjust(amount.into())
    }

    /// The peer has changed what its windows begin with, by so much.
    pub(crate) fn adjust(&mut self, by: i64) -> Result<(), Overflow> {
        let sum = self.0 + by;
        if sum > LARGEST.into() {
            return Err(Overflow);
        }
        self.0 = sum;
        Ok(())
    }
}

/// More has come than was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exceeded;

/// A window that the peer may fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// What the peer may still send. Below zero after we have made windows smaller.
    open: i64,
    /// What has come and was not yet passed on.
    held: u32,
    /// What may be open and held together.
    size: u32,
}

impl Window {
    pub(crate) fn new(size: u32) -> Self {
        Self { open: size.into(), held: 0, size }
    }

    pub(crate) fn open(&self) -> i64 {
        self.open
    }

    #[cfg(test)]
    pub(crate) fn held(&self) -> u32 {
        self.held
    }

    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    /// So much has come.
    pub(crate) fn receive(&mut self, amount: u32) -> Result<(), Exceeded> {
        if i64::from(amount) > self.open {
            return Err(Exceeded);
        }
        self.open -= i64::from(amount);
        self.held += amount;
        Ok(())
    }

    /// So much of what is held was passed on, or thrown away.
    pub(crate) fn release(&mut self, amount: u32) {
        debug_assert!(amount <= self.held);
        self.held = self.held.saturating_sub(amount);
    }

    /// The peer has nearly filled it, so that a larger one would have let it send more.
    pub(crate) fn is_full(&self) -> bool {
        self.open < i64::from(self.size / 4)
    }

    /// The window is to be of this size from now on. A larger one is open at the next [`update`](Self::update); a smaller
    /// one is when less is given again than was used.
    pub(crate) fn resize(&mut self, size: u32) {
        self.size = size;
    }

    /// What all windows of streams begin with has changed by so much, which the peer does to this one, too.
    pub(crate) fn adjust(&mut self, by: i64) {
        self.open += by;
        self.size = u32::try_from(i64::from(self.size) + by).unwrap_or(0);
    }

    /// What is to be given again now, if it is worth an update: `most` at most. It counts as given.
    pub(crate) fn update(&mut self, most: usize) -> Option<u32> {
        let owed = i64::from(self.size) - i64::from(self.held) - self.open;
        if owed <= 0 || owed < i64::from(self.size / 2) {
            return None;
        }
        let amount = usize::try_from(owed).unwrap_or(0).min(most) as u32;
        self.open += i64::from(amount);
        (amount > 0).then_some(amount)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn credit_is_used_and_given_and_may_be_taken_back() {
        let mut credit = Credit::new(INITIAL);
        credit.take(65_535);
        assert_eq!(credit.left(), 0);
        assert_eq!(credit.adjust(-65_535), Ok(()));
        assert_eq!(credit.left(), 0, "below zero");
        assert_eq!(credit.give(65_535 + 10), Ok(()));
        assert_eq!(credit.left(), 10);
        assert_eq!(credit.give(LARGEST), Err(Overflow));
        assert_eq!(credit.give(LARGEST - 10), Ok(()));
    }

    const ALL: usize = usize::MAX;

    #[test]
    fn a_window_is_given_again_in_halves_and_no_more_comes_than_was_given() {
        let mut window = Window::new(100);
        assert_eq!(window.receive(101), Err(Exceeded));
        assert_eq!(window.receive(60), Ok(()));
        window.release(49);
        assert_eq!(window.update(ALL), None);
        window.release(1);
        assert_eq!(window.update(ALL), Some(50));
        assert_eq!((window.open(), window.held()), (90, 10));
        assert!(!window.is_full());
        assert_eq!(window.receive(90), Ok(()));
        assert!(window.is_full());
        window.release(50);
        window.resize(200);
        assert_eq!(window.update(30), Some(30), "no more than there is for it");
        assert_eq!(window.update(ALL), Some(120));
        assert_eq!((window.open(), window.held()), (150, 50));
        assert_eq!(window.update(ALL), None);
    }

    #[test]
    fn a_smaller_window_gives_less_again() {
        let mut window = Window::new(100);
        window.receive(100).unwrap();
        window.resize(40);
        window.release(70);
        assert_eq!(window.update(ALL), None, "half of a window is not yet free");
        window.release(30);
        assert_eq!(window.update(ALL), Some(40));
        // Told by SETTINGS: the peer takes as much away, at once.
        let mut window = Window::new(100);
        window.receive(80).unwrap();
        window.adjust(-60);
        assert_eq!((window.open(), window.size()), (-40, 40));
        assert_eq!(window.receive(1), Err(Exceeded));
        window.release(80);
        assert_eq!(window.update(ALL), Some(80));
        assert_eq!(window.open(), 40);
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Receive(u32),
        Release(u32),
        Resize(u32),
        Update(usize),
        Adjust(i64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..20_000_u32).prop_map(Step::Receive),
            (0..20_000_u32).prop_map(Step::Release),
            (1..300_000_u32).prop_map(Step::Resize),
            (0..300_000_usize).prop_map(Step::Update),
            (-30_000..30_000_i64).prop_map(Step::Adjust),
        ]
    }

    proptest! {
        /// Whatever happens: what was given is what is open and what was used.
        #[test]
        fn what_was_given_is_what_was_used(steps in prop::collection::vec(step(), 0..200)) {
            let mut window = Window::new(INITIAL);
            let (mut given, mut used, mut released) = (i64::from(INITIAL), 0_i64, 0_i64);
            for step in steps {
                match step {
                    Step::Receive(amount) => {
                        if window.receive(amount).is_ok() {
                            used += i64::from(amount);
                        } else {
                            prop_assert!(given - used < i64::from(amount));
                        }
                    }
                    Step::Release(amount) => {
                        let amount = amount.min(window.held());
                        window.release(amount);
                        released += i64::from(amount);
                    }
                    Step::Resize(size) => window.resize(size),
                    Step::Update(most) => given += i64::from(window.update(most).unwrap_or(0)),
                    Step::Adjust(by) if i64::from(window.size()) + by > 0 => {
                        window.adjust(by);
                        given += by;
                    }
                    Step::Adjust(_) => {}
                }
                prop_assert_eq!(window.open(), given - used);
                prop_assert_eq!(i64::from(window.held()), used - released);
            }
        }
    }
}
