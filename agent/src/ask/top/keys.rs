//! Keys, as they are pressed: not when a line is complete, and without being shown.

use std::{
    io::{self, IsTerminal as _, Read as _},
    thread,
};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::sync::mpsc;

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Quit,
    /// Another order.
    Sort,
    Up,
    Down,
    PageUp,
    PageDown,
    Top,
    Bottom,
}

/// The keys of the terminal, which is as it was when this is dropped.
pub(super) struct Keys {
    keys: Option<mpsc::UnboundedReceiver<Key>>,
    before: Option<Termios>,
}

impl Keys {
    /// There is nobody who could press any.
    pub(super) fn none() -> Self {
        Self { keys: None, before: None }
    }

    /// Reads them, if the input is a terminal.
    pub(super) fn read() -> io::Result<Self> {
        let input = io::stdin();
        if !input.is_terminal() {
            return Ok(Self::none());
        }
        let before = tcgetattr(&input)?;
        let mut raw = before.clone();
        // Ctrl-C stays a signal.
        raw.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        tcsetattr(&input, OptionalActions::Now, &raw)?;
        let (sender, keys) = mpsc::unbounded_channel();
        let this = Self { keys: Some(keys), before: Some(before) };
        // It ends with the process: a read of a terminal cannot be called off.
        thread::Builder::new().name("keys".to_owned()).spawn(move || {
            let mut bytes = [0; 64];
            while let Ok(count @ 1..) = io::stdin().read(&mut bytes) {
                if keys_of(&bytes[..count]).any(|key| sender.send(key).is_err()) {
                    return;
                }
            }
        })?;
        Ok(this)
    }

    /// The next one; never, if there are none.
    pub(super) async fn next(&mut self) -> Key {
        if let Some(keys) = &mut self.keys
            && let Some(key) = keys.recv().await
        {
            return key;
        }
        // The input has ended, and nothing more comes of it.
        self.keys = None;
        std::future::pending().await
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // A terminal that has gone needs nothing restored.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// What bytes of a terminal mean. What they mean to nobody is passed over.
fn keys_of(bytes: &[u8]) -> impl Iterator<Item = Key> {
    /// Of arrows and the like, as xterm and the Linux console send them; the longest first.
    const SEQUENCES: [(&[u8], Key); 14] = [
        (b"\x1b[5~", Key::PageUp),
        (b"\x1b[6~", Key::PageDown),
        (b"\x1b[1~", Key::Top),
        (b"\x1b[4~", Key::Bottom),
        (b"\x1b[A", Key::Up),
        (b"\x1b[B", Key::Down),
        (b"\x1b[H", Key::Top),
        (b"\x1b[F", Key::Bottom),
        (b"\x1bOA", Key::Up),
        (b"\x1bOB", Key::Down),
        (b"\x1bOH", Key::Top),
        (b"\x1bOF", Key::Bottom),
        (b"\x1b[7~", Key::Top),
        (b"\x1b[8~", Key::Bottom),
    ];
    let mut rest = bytes;
    std::iter::from_fn(move || {
        while let [first, behind @ ..] = rest {
            if let Some((sequence, key)) = SEQUENCES.iter().find(|(sequence, _)| rest.starts_with(sequence)) {
                rest = &rest[sequence.len()..];
                return Some(*key);
            }
            rest = behind;
            match first {
                b'q' | b'Q' => return Some(Key::Quit),
                b's' | b'S' => return Some(Key::Sort),
                b'k' => return Some(Key::Up),
                b'j' => return Some(Key::Down),
                b'b' => return Some(Key::PageUp),
                b' ' | b'f' => return Some(Key::PageDown),
                b'g' => return Some(Key::Top),
                b'G' => return Some(Key::Bottom),
                // Another sequence: its letters are no keys.
                0x1b if rest.starts_with(b"[") || rest.starts_with(b"O") => {
                    let end = rest.iter().skip(1).position(|byte| (0x40..0x7f).contains(byte));
                    rest = end.map_or(&[], |end| &rest[end + 2..]);
                }
                _ => {}
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_keys() {
        let keys = |bytes: &[u8]| keys_of(bytes).collect::<Vec<_>>();
        assert_eq!(keys(b"jk\x1b[A\x1b[B"), [Key::Down, Key::Up, Key::Up, Key::Down]);
        assert_eq!(keys(b"\x1b[5~\x1b[6~ b"), [Key::PageUp, Key::PageDown, Key::PageDown, Key::PageUp]);
        assert_eq!(keys(b"gG\x1bOH\x1b[F"), [Key::Top, Key::Bottom, Key::Top, Key::Bottom]);
        assert_eq!(keys(b"xs\nq"), [Key::Sort, Key::Quit]);
        // F5, Ctrl-right, a lone escape, and one that breaks off.
        assert_eq!(keys(b"\x1b[15~\x1b[1;5C\x1bq\x1b["), [Key::Quit]);
        assert_eq!(keys(&[0xff, 0xfe, 0]), []);
    }
}
