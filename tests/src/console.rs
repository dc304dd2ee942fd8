//! A child process that is talked to: lines go to its standard input, its output is searched for what is expected. Owns the
//! process: it is killed by pid when the `Console` is dropped, or by the kernel should this process die first.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{Failure, Result, scratch};

/// A running child process and everything that it has printed.
pub struct Console {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    output: Arc<Output>,
    /// How much of the output has been matched by [`Console::wait_for`] already, in bytes.
    matched: usize,
}

#[derive(Default)]
struct Output {
    state: Mutex<(Vec<u8>, /* ended */ bool)>,
    changed: Condvar,
}

/// A command for `program` that the kernel ends with `SIGKILL` when the thread that started it ends.
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

impl Console {
    /// Starts `command` (made by [`command`]) with both output streams going to the transcript `NAME.log` in the scratch folder.
    ///
    /// # Errors
    /// When the program cannot be started or the transcript not written.
    pub fn spawn(name: &str, command: &mut Command) -> Result<Console> {
        let (mut reader, writer) = std::io::pipe()?;
        let mut transcript = File::create(Console::transcript_of(name))?;
        let mut child = command.stdin(Stdio::piped()).stdout(writer.try_clone()?).stderr(writer).spawn()?;
        // The command keeps its copies of the pipe's write end otherwise, and the output would never end.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let output = Arc::new(Output::default());
        let sink = Arc::clone(&output);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let count = reader.read(&mut buffer).unwrap_or(0);
                let mut state = sink.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.0.extend_from_slice(&buffer[..count]);
                state.1 = count == 0;
                sink.changed.notify_all();
                drop(state);
                if count == 0 {
                    return;
                }
                // A transcript that cannot be written costs only the transcript.
                drop(transcript.write_all(&buffer[..count]));
            }
        });
        Ok(Console { name: name.to_owned(), stdin: child.stdin.take(), child, output, matched: 0 })
    }

    /// Where the output of the process called `name` is written.
    pub fn transcript_of(name: &str) -> PathBuf {
        scratch::folder().join(format!("{name}.log"))
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends one line to the process.
    ///
    /// # Errors
    /// When it no longer reads.
    pub fn send(&mut self, line: &str) -> Result {
        let stdin = self.stdin.as_mut().ok_or_else(|| Failure::new("its input is closed"))?;
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .and_then(|()| stdin.flush())
            .map_err(|e| Failure::from(e).while_doing(&format!("sending '{line}' to {}", self.name)))
    }

    /// Waits until `found` sees what it wants in the output not matched so far: it returns how many bytes of it are used up.
    /// Gives those bytes as text.
    ///
    /// # Errors
    /// When `seconds` pass or the output ends first; the reason carries the end of the output.
    pub fn wait_until(
        &mut self,
        what: &str,
        seconds: u64,
        found: impl Fn(&str) -> Option<usize>,
    ) -> Result<String> {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let mut state = self.output.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let text = String::from_utf8_lossy(&state.0[self.matched..]).into_owned();
            if let Some(used) = found(&text) {
                // Guests print ASCII; a stray byte would only make the next search begin a little later.
                self.matched = (self.matched + used).min(state.0.len());
                return Ok(text[..used].to_owned());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.1 || left.is_zero() {
                let why = if state.1 {
                    let status = self.child.wait().map(|status| status.to_string()).unwrap_or_default();
                    format!("it ended with {status}")
                } else {
                    format!("{seconds} s passed")
                };
                let tail: String =
                    text.chars().rev().take(600).collect::<Vec<_>>().into_iter().rev().collect();
                return Err(Failure::new(format!(
                    "{}: no {what} before {why}; last words: {tail}",
                    self.name
                )));
            }
            state = self.output.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for `text` and gives everything from the last match up to and with it.
    ///
    /// # Errors
    /// As [`Console::wait_until`].
    pub fn wait_for(&mut self, text: &str, seconds: u64) -> Result<String> {
        self.wait_until(&format!("'{text}'"), seconds, |output| output.find(text).map(|at| at + text.len()))
    }

    /// Everything printed so far.
    pub fn output(&self) -> String {
        let state = self.output.state.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&state.0).into_owned()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone already.
    pub fn signal(&self, signal: Signal) -> Result {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.ok_or_else(|| Failure::new("no pid"))?, signal)?;
        Ok(())
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for the process to end by itself.
    ///
    /// # Errors
    /// When it still runs after `seconds`.
    pub fn wait_end(&mut self, seconds: u64) -> Result<ExitStatus> {
        self.stdin = None;
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.await_last_words();
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(Failure::new(format!("{} still runs after {seconds} s", self.name)));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Console {
    /// Gives the reading thread a moment to see the end of an ended process's output.
    fn await_last_words(&self) {
        let state = self.output.state.lock().unwrap_or_else(PoisonError::into_inner);
        // A child of the process may still hold the pipe, so the end may not come.
        drop(self.output.changed.wait_timeout_while(state, Duration::from_secs(1), |state| !state.1));
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // Gone already is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
