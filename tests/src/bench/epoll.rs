//! Waiting for many sockets, in the level-triggered way.

use std::{os::fd::AsFd, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};

/// What a socket is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interest {
    Read,
    Write,
}

impl Interest {
    fn event(self, token: usize) -> EpollEvent {
        let flags = match self {
            Self::Read => EpollFlags::EPOLLIN,
            Self::Write => EpollFlags::EPOLLOUT,
        };
        EpollEvent::new(flags, token as u64)
    }
}

/// A set of sockets, each with a number by which it is reported. A closed socket leaves the set by itself.
#[derive(Debug)]
pub(super) struct Poll {
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

impl Poll {
    pub(super) fn new() -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot make an epoll instance")?;
        Ok(Self { epoll, events: vec![EpollEvent::empty(); 512] })
    }

    pub(super) fn add(&self, socket: impl AsFd, token: usize, interest: Interest) -> Result<()> {
        self.epoll.add(socket, interest.event(token)).context("epoll_ctl")
    }

    pub(super) fn change(&self, socket: impl AsFd, token: usize, interest: Interest) -> Result<()> {
        self.epoll.modify(socket, &mut interest.event(token)).context("epoll_ctl")
    }

    /// Waits and writes the numbers of the sockets that are ready, or have failed, to `ready`.
    pub(super) fn wait(&mut self, ready: &mut Vec<usize>, timeout: Option<Duration>) -> Result<()> {
        ready.clear();
        let timeout = match timeout {
            Some(timeout) => EpollTimeout::try_from(timeout).context("a time too long for epoll_wait")?,
            None => EpollTimeout::NONE,
        };
        match self.epoll.wait(&mut self.events, timeout) {
            Ok(count) => ready.extend(self.events[..count].iter().map(|event| event.data() as usize)),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("epoll_wait"),
        }
        Ok(())
    }
}
