//! A server on loopback that does what a test says with each connection.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use crate::{peer::Peer, rig::LIMIT};

#[derive(Default)]
struct Notes {
    written: Mutex<Vec<String>>,
    more: Condvar,
}

pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    notes: Arc<Notes>,
    stop: Arc<AtomicBool>,
}

impl Origin {
    /// `script` gets each connection with its number, on a thread of its own. What it notes down the test can ask for.
    pub(crate) fn new(script: impl Fn(usize, &mut Peer, &dyn Fn(String)) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let notes = Arc::new(Notes::default());
        let (stopped, noted, script) = (stop.clone(), notes.clone(), Arc::new(script));
        thread::spawn(move || {
            for number in 0.. {
                let Ok((stream, _)) = listener.accept() else { return };
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (script, noted) = (script.clone(), noted.clone());
                thread::spawn(move || {
                    script(number, &mut Peer::new(stream), &|note| {
                        noted.written.lock().unwrap().push(note);
                        noted.more.notify_all();
                    });
                });
            }
        });
        Self { address, notes, stop }
    }

    /// Answers every request with 200 and `body`, keeping connections. Notes heads, after their connection's number.
    pub(crate) fn fixed(body: &'static str) -> Self {
        Self::new(move |number, peer, note| {
            while let Some(head) = peer.request() {
                note(format!("{number} {head}"));
                peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
            }
        })
    }

    /// Answers every request with these very bytes, keeping connections. Notes heads, after their connection's number.
    pub(crate) fn raw(answer: &'static str) -> Self {
        Self::new(move |number, peer, note| {
            while let Some(head) = peer.request() {
                note(format!("{number} {head}"));
                peer.send(answer);
            }
        })
    }

    /// Answers one request of each connection with these very bytes, and ends the connection. Notes as `raw`.
    pub(crate) fn last(answer: &'static str) -> Self {
        Self::new(move |number, peer, note| {
            let Some(head) = peer.request() else { return };
            note(format!("{number} {head}"));
            peer.send(answer);
        })
    }

    /// An address at which nobody listens.
    pub(crate) fn nobody() -> SocketAddr {
        sluice_tests::nobody()
    }

    pub(crate) fn noted(&self) -> Vec<String> {
        self.notes.written.lock().unwrap().clone()
    }

    /// Waits until so much has been noted down.
    #[track_caller]
    pub(crate) fn await_notes(&self, count: usize) -> Vec<String> {
        let written = self.notes.written.lock().unwrap();
        let (written, waited) =
            self.notes.more.wait_timeout_while(written, LIMIT, |written| written.len() < count).unwrap();
        assert!(!waited.timed_out(), "only {written:?} was noted down");
        written.clone()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}
