//! By thread: which request that came to a pod one of its requests was sent for. The layouts.
//!
//! A server that answers a request on the thread that read it sends its own requests from that thread, too. So a thread that has
//! read a request and not answered it is *handling* it, and what it sends meanwhile is for that request.

/// Threads that handle a request, or did of late. The least recent go first.
pub const MAX_THREADS: usize = 8192;
/// Ports of pods whose threads are followed.
pub const MAX_SERVERS: usize = 4096;
/// Processes that read from them. The least recent go first.
pub const MAX_PROCESSES: usize = 4096;
/// Connections to their applications.
pub const MAX_CALLS: usize = 65_536;
/// Connections that their threads send requests over.
pub const MAX_TIES: usize = 65_536;

/// So many requests have to show that the threads of a server's process each handle one request at a time, before what these send
/// is tied to what they read. Others show within a few requests that they do not.
pub const TRIAL: u64 = 32;

/// Value of `CALLING`: whom an application is to see at the other end of a connection of the agent's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Client {
    pub address: crate::Address,
    /// Not 0: the threads that read from it are followed.
    pub followed: u32,
}

/// Value of `ARRIVING`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Arriving {
    pub client: Client,
    /// The cookie of the agent's socket, by which `CALLS` and [`Tie`] name the connection.
    pub call: u64,
}

/// Key of `SERVERS`: what listens on a port of a pod. The value means nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Server {
    pub netns_cookie: u64,
    pub port: u32,
    /// Always 0.
    pub reserved: u32,
}

impl Server {
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the programs must not get subprograms from it")]
    pub fn new(netns_cookie: u64, port: u32) -> Self {
        Self { netns_cookie, port, reserved: 0 }
    }
}

/// Value of `CALLS`; the key names a connection of the agent's to an application.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Call {
    /// The number of the request that is sent over it.
    pub number: u64,
    /// The same once the thread that has read it has begun to respond to it.
    pub answered: u64,
}

/// Key of `PROCESSES`: a program that runs in a process, and reads from a server's connections. Another one, after a restart or an
/// `exec`, begins anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Process {
    pub server: Server,
    /// As `LIVES` has it.
    pub life: u64,
}

/// Value of `PROCESSES`: how its threads handle requests, as far as it was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Conduct {
    /// Requests that have shown that a thread handles one at a time.
    pub shown: u64,
    /// 0, or what forbids to tie anything: one of the constants below, for good.
    pub fault: u32,
    /// In the node's numbers.
    pub process: u32,
    /// The name of the thread that showed it, with a zero after it.
    pub name: [u8; 16],
}

impl Conduct {
    /// A thread has read a request while it had not answered another one.
    pub const MULTIPLEXES: u32 = 1;
    /// A request was answered, or read on, by another thread than the one that began to read it.
    pub const HANDS_OVER: u32 = 2;
}

/// On an application's end of a connection: who reads from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Inbound {
    pub server: Server,
    /// See [`Arriving`].
    pub call: u64,
    /// The request that was read last, as `CALLS` numbers them.
    pub number: u64,
    /// The thread that has read it and not answered it yet, as the kernel numbers it (process and thread); 0: it is answered.
    pub reader: u64,
    /// The thread that has read it, answered or not.
    pub last_reader: u64,
}

/// Value of `THREADS`; the key is a thread, as in [`Inbound`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Thread {
    pub server: Server,
    /// The life of its process.
    pub life: u64,
    /// The connection and the request that it has read last.
    pub call: u64,
    pub number: u64,
    /// What it does about that: one of the constants below.
    pub state: u64,
    /// How many connections it has read from, one after the other.
    pub connections: u64,
    /// How many requests it has responded to for which it had sent some of its own.
    pub responded: u64,
}

impl Thread {
    /// Nothing: it has responded, or never will.
    pub const IDLE: u64 = 0;
    /// It handles it.
    pub const HANDLES: u64 = 1;
    /// It handles it, and has begun to send requests of its own for that.
    pub const CALLS: u64 = 2;
}

/// Value of `TIES`; the key is the cookie of an application's socket that is redirected: for which request it is written to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tie {
    /// The connection over which it came, and its number there; 0: for none that is known.
    pub call: u64,
    pub number: u64,
    /// How often that has changed.
    pub changes: u64,
}
