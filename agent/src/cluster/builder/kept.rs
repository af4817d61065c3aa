//! An object of Sluice's own API as it is, and the last version of it that made sense.

use std::sync::Arc;

use serde_json::Value;

use crate::cluster::{
    object::{Age, Own},
    verdict::Verdict,
};

pub(super) struct Kept<T> {
    pub(super) object: Own<T>,
    /// What is in force.
    good: Option<Good<T>>,
}

/// A version that made sense.
struct Good<T> {
    asked: T,
    generation: Option<i64>,
    spec: Arc<Value>,
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
        let good = match &object.asked {
            Ok(now) => {
                // The same one, so that what was made of it stays as well.
                let asked = good.map(|good| good.asked).filter(|before| before == now);
                let asked = asked.unwrap_or_else(|| now.clone());
                Some(Good { asked, generation: object.generation, spec: object.spec.clone() })
            }
            Err(_) => good,
        };
        Self { object, good }
    }

    /// What it asks for, or did when it last made sense; or what is active where it never did.
    pub(super) fn asked(&self) -> Option<&T> {
        self.good.as_ref().map(|good| &good.asked).or(self.object.instead.as_deref())
    }

    pub(super) fn age(&self) -> Age {
        self.object.age()
    }

    /// What another builder needs to come to the same: the last version that made sense, where this one does not, and this one.
    pub(super) fn versions(&self) -> impl Iterator<Item = Own<T>> {
        let earlier = self.good.as_ref().filter(|_| self.object.asked.is_err());
        let earlier = earlier.map(|good| Own {
            generation: good.generation,
            asked: Ok(good.asked.clone()),
            spec: good.spec.clone(),
            ..self.object.clone()
        });
        earlier.into_iter().chain([self.object.clone()])
    }

    /// The verdict, if what it is now makes no sense.
    pub(super) fn invalid(&self) -> Option<Verdict> {
        let wrong = self.object.asked.as_ref().err()?;
        let version = self.good.as_ref().map(|good| match good.generation {
            Some(generation) => format!("its last valid version (generation {generation})"),
            None => "its last good version".to_owned(),
        });
        if version.is_none() && self.object.instead.is_some() {
            return Some(Verdict::invalid_and_closed(wrong.iter()));
        }
        Some(Verdict::invalid(wrong.iter(), version.as_deref()))
    }
}
