//! `sluice relay`: asks the agent of its node for somebody who is not there, over standard input and output. `kubectl sluice`
//! starts it in the agent's container, as `kubectl exec` does.
//!
//! A question is a line of JSON ([`Asked`]). An answer is a line of JSON ([`Head`]) and as many bytes as that says. So what is
//! asked, which may hold a token, is not among the arguments that an API server's audit log keeps; many questions need one
//! process; and every answer tells the version of the program.
//!
//! It ends when nobody asks any more: with standard input, and after a while without a question, because not every runtime
//! tells a process that its client has gone.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Asked, Running};
use crate::{admin::client::Answer, api::plain};

/// For so long nobody needs to ask anything.
pub const IDLE: Duration = Duration::from_secs(60);
/// More than any question has: the agent takes bodies of 256 KiB.
const MAX_QUESTION_BYTES: u64 = 1 << 20;

/// What goes before the body of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Of the program that relays, which is the agent's own.
    pub version: String,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The agent answered with this status and a body of so many bytes.
    Answer { status: u16, length: usize },
    /// It did not, and this is why. There is no body.
    Failed(String),
}

/// Answers questions until there are no more.
///
/// # Errors
/// The answers cannot be written.
pub fn run(
    agent: &Running,
    questions: impl Read + Send + 'static,
    out: &mut impl Write,
    idle: Duration,
) -> io::Result<()> {
    // A thread of its own, for a read cannot be given up; it ends with the process.
    let (sender, lines) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let mut questions = BufReader::new(questions);
        while let Ok(Some(line)) = next(&mut questions) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    while let Ok(line) = lines.recv_timeout(idle) {
        answer(agent, &line, out)?;
    }
    Ok(())
}

/// `None`: there are no more.
fn next(questions: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let count = questions.by_ref().take(MAX_QUESTION_BYTES).read_until(b'\n', &mut line)?;
    Ok((count > 0).then_some(line))
}

fn answer(agent: &Running, line: &[u8], out: &mut impl Write) -> io::Result<()> {
    let answered = serde_json::from_slice::<Asked>(line)
        .map_err(|error| format!("the question cannot be read: {}", plain::words(&error)))
        .and_then(|asked| agent.send(&asked).map_err(|error| error.to_string()));
    let (outcome, body) = match answered {
        Ok(Answer { status, body }) => (Outcome::Answer { status, length: body.len() }, body),
        Err(why) => (Outcome::Failed(why), String::new()),
    };
    let head = Head { version: env!("CARGO_PKG_VERSION").to_owned(), outcome };
    let mut told = serde_json::to_vec(&head)?;
    told.push(b'\n');
    told.extend_from_slice(body.as_bytes());
    out.write_all(&told)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, time::Instant};

    use super::*;

    /// An agent that answers each request with its request line and body, and the bytes after that.
    fn agent(directory: &std::path::Path) -> Running {
        let path = directory.join("sluice.sock");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut asked = vec![0; 4096];
                let count = stream.read(&mut asked).unwrap();
                let asked = String::from_utf8_lossy(&asked[..count]).into_owned();
                let line = asked.lines().next().unwrap_or_default();
                let body = asked.split_once("\r\n\r\n").unwrap().1;
                write!(stream, "HTTP/1.0 207 Many\r\n\r\n{line}\n{body}\u{fc}\n").unwrap();
            }
        });
        Running { admin_socket: path }
    }

    /// The heads and bodies that are told.
    fn told(mut out: &[u8]) -> Vec<(Head, String)> {
        let mut told = Vec::new();
        while let Some(end) = out.iter().position(|byte| *byte == b'\n') {
            let head: Head = serde_json::from_slice(&out[..end]).unwrap();
            let length = match head.outcome {
                Outcome::Answer { length, .. } => length,
                Outcome::Failed(_) => 0,
            };
            let body = String::from_utf8(out[end + 1..][..length].to_vec()).unwrap();
            out = &out[end + 1 + length..];
            told.push((head, body));
        }
        assert!(out.is_empty());
        told
    }

    #[test]
    fn questions_are_answered_one_after_the_other() {
        let directory = tempfile::tempdir().unwrap();
        let agent = agent(directory.path());
        let questions = "{\"verb\":\"GET\",\"target\":\"/status\"}\n\
             not JSON\n\
             {\"verb\":\"POST\",\"target\":\"/explain\",\"body\":\"{}\"}\n\
             {\"verb\":\"GET\",\"target\":\"no path\"}\n\
             {\"verb\":\"DELETE\",\"target\":\"/\"}\n";
        let mut out = Vec::new();
        run(&agent, questions.as_bytes(), &mut out, IDLE).unwrap();
        let told = told(&out);
        let bodies: Vec<_> = told.iter().map(|(_, body)| &**body).collect();
        assert_eq!(
            bodies,
            ["GET /status HTTP/1.0\n\u{fc}\n", "", "POST /explain HTTP/1.0\n{}\u{fc}\n", "", ""]
        );
        for (number, part) in
            [(1, "cannot be read"), (3, "`no path` is no path"), (4, "is not allowed: allowed are")]
        {
            assert!(
                matches!(&told[number].0.outcome, Outcome::Failed(why) if why.contains(part)),
                "{:?}",
                told[number]
            );
        }
        assert!(told.iter().all(|(head, _)| head.version == env!("CARGO_PKG_VERSION")));
        assert!(matches!(told[0].0.outcome, Outcome::Answer { status: 207, .. }));
    }

    #[test]
    fn an_agent_that_is_not_there_is_an_answer() {
        let agent = Running { admin_socket: "/nowhere/sluice.sock".into() };
        let mut out = Vec::new();
        run(&agent, &b"{\"verb\":\"GET\",\"target\":\"/status\"}"[..], &mut out, IDLE).unwrap();
        let [(Head { outcome: Outcome::Failed(why), .. }, _)] = &told(&out)[..] else { panic!() };
        assert!(why.contains("is it running"), "{why}");
    }

    #[test]
    fn it_ends_when_nobody_asks_and_when_nobody_listens() {
        let directory = tempfile::tempdir().unwrap();
        let agent = agent(directory.path());
        let (reader, _writer) = io::pipe().unwrap();
        let begun = Instant::now();
        run(&agent, reader, &mut Vec::new(), Duration::from_millis(1)).unwrap();
        assert!(begun.elapsed() < IDLE, "it waits for as long as it is told");

        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let question = &b"{\"verb\":\"GET\",\"target\":\"/status\"}\n"[..];
        let error = run(&agent, question, &mut { writer }, IDLE).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        // A line without an end is no reason to take all memory.
        let endless = io::repeat(b'a').take(3 * MAX_QUESTION_BYTES);
        let mut out = Vec::new();
        run(&agent, endless, &mut out, IDLE).unwrap();
        assert_eq!(told(&out).len(), 3);
    }
}
