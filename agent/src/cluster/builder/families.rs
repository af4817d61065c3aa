//! Which endpoint of the other family is the same pod: a server may listen on one family only, and clients of a dual-stack Service
//! try the other address when one is refused.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use ahash::AHashMap;
use smallvec::SmallVec;

use super::merge::{Described, may_be_same};
use crate::cluster::object::Name;

/// An endpoint of the other family: the UID of its pod, as far as it is known, and its address.
type Other<'a> = (Option<&'a Arc<str>>, SocketAddr);

/// The endpoints of a port in the other family, by their pods' names and their port numbers. Empty where there is one family.
#[derive(Default)]
pub(super) struct Others<'a>(AHashMap<(&'a Name, u16), SmallVec<[Other<'a>; 1]>>);

/// For each family of a port what there is in the other one.
pub(super) fn across<'a>(families: &[BTreeMap<SocketAddr, Described<'a>>]) -> Vec<Others<'a>> {
    match families {
        [one, other] => vec![Others::of(other), Others::of(one)],
        _ => families.iter().map(|_| Others::default()).collect(),
    }
}

impl<'a> Others<'a> {
    fn of(described: &BTreeMap<SocketAddr, Described<'a>>) -> Self {
        let mut others = Self::default();
        for (address, described) in described {
            if let Some((name, uid)) = described.whose() {
                others.0.entry((name, address.port())).or_default().push((uid, *address));
            }
        }
        others
    }

    /// The address at which the pod of an endpoint has the same port in the other family. `None` also where it seems to have several:
    /// one of them is its own no more, and may be another pod's.
    pub(super) fn of_same_pod(&self, address: SocketAddr, described: &Described<'_>) -> Option<SocketAddr> {
        let (name, uid) = described.whose()?;
        let others = self.0.get(&(name, address.port()))?;
        let mut same = others.iter().filter(|(other, _)| may_be_same(uid, *other));
        same.next().filter(|_| same.next().is_none()).map(|(_, address)| *address)
    }
}
