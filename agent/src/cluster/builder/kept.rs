//! An object of Sluice's own API as it is, and the last version of it that made sense.

use crate::cluster::{
    object::{Age, Own},
    verdict::Verdict,
};

pub(super) struct Kept<T> {
    pub(super) object: Own<T>,
    /// What is in force, and its generation.
    good: Option<(T, Option<i64>)>,
}

impl<T: Clone + PartialEq> Kept<T> {
    /// `before` is what was known under the same name. An object that makes no sense leaves its good version in force;
    /// an object that takes the place of a deleted one does not.
    pub(super) fn new(object: Own<T>, before: Option<Self>) -> Self {
        let before = before.filter(|before| match (&before.object.uid, &object.uid) {
            (Some(before), Some(now)) => before == now,
            _ => true,
        });
        let good = before.and_then(|before| before.good);
        let good = match (&object.asked, good) {
            // The same one, so that what was made of it stays as well.
            (Ok(now), Some((before, _))) if before == *now => Some((before, object.generation)),
            (Ok(now), _) => Some((now.clone(), object.generation)),
            (Err(_), good) => good,
        };
        Self { object, good }
    }

    /// What it asks for, or did when it last made sense.
    pub(super) fn asked(&self) -> Option<&T> {
        self.good.as_ref().map(|(asked, _)| asked)
    }

    pub(super) fn age(&self) -> Age {
        self.object.age()
    }

    /// The verdict, if what it is now makes no sense.
    pub(super) fn invalid(&self) -> Option<Verdict> {
        let wrong = self.object.asked.as_ref().err()?;
        let version = self.good.as_ref().map(|(_, generation)| match generation {
            Some(generation) => format!("its last valid version (generation {generation})"),
            None => "its last good version".to_owned(),
        });
        Some(Verdict::invalid(wrong.iter(), version.as_deref()))
    }
}
