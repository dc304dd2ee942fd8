//! QEMU's control socket (QMP), as far as a link status needs it: the greeting, `qmp_capabilities`, `set_link`.
//!
//! Runs on a helper thread, for it waits; bounded in time and in what it reads, for the VMM is not trusted.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde_json::{Value, json};

/// How long a VMM may take for everything. One that boots a guest answers after a second.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// What a VMM may say meanwhile, in bytes: a greeting is some hundred, events come between answers.
const SAID_MAX: usize = 64 << 10;

/// Why a VMM was not told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refused {
    /// It has no socket for that: nothing to be told.
    Missing,
    /// It has one, and nobody listens: not yet, or not any more.
    Deaf,
    /// It has, and this went wrong.
    Failed(String),
}

/// A conversation with one VMM.
pub(super) struct Vmm {
    stream: UnixStream,
    until: Instant,
    /// Read and not yet taken.
    pending: Vec<u8>,
    /// Bytes that may still come.
    left: usize,
}

impl Vmm {
    /// Connects to the socket that `-qmp unix:PATH,server=on,wait=off` makes. Blocks for at most `patience` from here to the end of the
    /// conversation.
    ///
    /// # Errors
    /// [`Refused`].
    pub(super) fn connect(path: &Path, patience: Duration) -> Result<Vmm, Refused> {
        let address = SocketAddrUnix::new(path).map_err(|_| Refused::Missing)?;
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .map_err(|error| Refused::Failed(error.to_string()))?;
        connect(&socket, &address).map_err(|error| match error {
            rustix::io::Errno::NOENT => Refused::Missing,
            rustix::io::Errno::CONNREFUSED => Refused::Deaf,
            rustix::io::Errno::AGAIN => Refused::Failed("another client has the socket".to_owned()),
            error => Refused::Failed(error.to_string()),
        })?;
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false).map_err(|error| Refused::Failed(error.to_string()))?;
        let mut vmm = Vmm { stream, until: Instant::now() + patience, pending: Vec::new(), left: SAID_MAX };
        let greeting = vmm.line()?;
        if greeting.get("QMP").is_none() {
            return Err(Refused::Failed("what answers does not greet as QMP does".to_owned()));
        }
        vmm.execute("qmp_capabilities", &json!({}))?;
        Ok(vmm)
    }

    /// Sets the link of the network device called `device`.
    ///
    /// # Errors
    /// [`Refused`]: the VMM has no such device, or does not answer.
    pub(super) fn set_link(&mut self, device: &str, up: bool) -> Result<(), Refused> {
        self.execute("set_link", &json!({ "name": device, "up": up }))
    }

    /// Executes a command that returns nothing of interest. Events that come meanwhile are passed over.
    fn execute(&mut self, command: &str, arguments: &Value) -> Result<(), Refused> {
        self.remaining()
            .and_then(|left| self.stream.set_write_timeout(Some(left)))
            .and_then(|()| {
                let call = json!({ "execute": command, "arguments": arguments });
                self.stream.write_all(format!("{call}\n").as_bytes())
            })
            .map_err(|error| failed(&error))?;
        loop {
            let answer = self.line()?;
            if let Some(error) = answer.get("error") {
                let why = error.get("desc").and_then(Value::as_str).unwrap_or("an error without a reason");
                // As long as a line of the log may be.
                return Err(Refused::Failed(format!(
                    "{command}: {}",
                    why.chars().take(200).collect::<String>()
                )));
            }
            if answer.get("return").is_some() {
                return Ok(());
            }
        }
    }

    fn remaining(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    fn line(&mut self) -> Result<Value, Refused> {
        loop {
            if let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return serde_json::from_slice(&line)
                    .map_err(|error| Refused::Failed(format!("what it said is not JSON: {error}")));
            }
            let mut chunk = [0; 4096];
            let room = chunk.len().min(self.left);
            let read = self
                .remaining()
                .and_then(|left| self.stream.set_read_timeout(Some(left)))
                .and_then(|()| self.stream.read(&mut chunk[..room]))
                .map_err(|error| failed(&error))?;
            if read == 0 {
                let why = if room == 0 { "it says too much" } else { "it closed its socket" };
                return Err(Refused::Failed(why.to_owned()));
            }
            self.left -= read;
            self.pending.extend_from_slice(&chunk[..read]);
        }
    }
}

fn failed(error: &io::Error) -> Refused {
    Refused::Failed(match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "no answer in time".to_owned(),
        _ => error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::thread::JoinHandle;

    use super::*;

    /// What QEMU 7.2 says first.
    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}"#;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("avio-qmp-{}-{name}", std::process::id()))
    }

    /// A VMM that greets and gives one answer per line that it is told. Returns those lines.
    fn vmm(path: &Path, greeting: &'static str, answers: &'static [&'static str]) -> JoinHandle<Vec<String>> {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            writeln!(stream, "{greeting}").unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let mut heard = Vec::new();
            for answer in answers {
                let Some(Ok(line)) = lines.next() else { break };
                heard.push(line);
                writeln!(stream, "{answer}").unwrap();
            }
            // Until the other side has had enough.
            heard.extend(lines.map_while(Result::ok));
            heard
        })
    }

    fn told(path: &Path) -> Result<(), Refused> {
        Vmm::connect(path, Duration::from_millis(300))?.set_link("net-0-5", false)
    }

    #[test]
    fn a_vmm_is_told_between_its_events() {
        let path = path("told");
        let event =
            "{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"RESUME\"}\n{\"return\": {}}";
        let vmm = vmm(&path, GREETING, Box::leak(Box::new(["{\"return\": {}}", event])));
        assert_eq!(told(&path), Ok(()));
        let heard: Vec<Value> =
            vmm.join().unwrap().iter().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(heard[0]["execute"], "qmp_capabilities");
        assert_eq!(
            heard[1],
            json!({ "execute": "set_link", "arguments": { "name": "net-0-5", "up": false } })
        );
    }

    #[test]
    fn what_is_wrong_is_said() {
        let failed = |why: &str| Err(Refused::Failed(why.to_owned()));
        let path = path("wrong");
        let _ = std::fs::remove_file(&path);
        assert_eq!(told(&path), Err(Refused::Missing));
        // Nobody listens any more.
        drop(UnixListener::bind(&path).unwrap());
        assert_eq!(told(&path), Err(Refused::Deaf));
        let refusal = r#"{"error": {"class": "DeviceNotFound", "desc": "Device 'net-0-5' not found"}}"#;
        let other = vmm(&path, GREETING, Box::leak(Box::new(["{\"return\": {}}", refusal])));
        assert_eq!(told(&path), failed("set_link: Device 'net-0-5' not found"));
        other.join().unwrap();
        let other = vmm(&path, "{\"service\": \"another\"}", &[]);
        assert_eq!(told(&path), failed("what answers does not greet as QMP does"));
        // It was told nothing.
        assert!(other.join().unwrap().is_empty());
        let other = vmm(&path, GREETING, &[]);
        assert_eq!(told(&path), failed("no answer in time"));
        other.join().unwrap();
        let endless = Box::leak(format!("\"{}\"", "x".repeat(SAID_MAX)).into_boxed_str());
        let other = vmm(&path, endless, &[]);
        assert_eq!(told(&path), failed("it says too much"));
        drop(other);
    }
}
