//! QEMU's control socket (QMP), as far as tests need it: executing a command, and migrating a guest to another QEMU.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::failure::ensure;
use crate::{Failure, Result};

/// How long QEMU may take to open its socket, and to answer, in seconds.
const ANSWER_S: u64 = 10;

/// An open control session.
pub struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects to the socket that `-qmp unix:PATH,server=on,wait=off` makes.
    ///
    /// # Errors
    /// When nobody answers there.
    pub fn connect(path: &Path) -> Result<Qmp> {
        let begin = Instant::now();
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if begin.elapsed().as_secs() >= ANSWER_S => {
                    return Err(Failure::from(error).while_doing(&path.display().to_string()));
                }
                Err(_) => sleep(Duration::from_millis(50)),
            }
        };
        stream.set_read_timeout(Some(Duration::from_secs(ANSWER_S)))?;
        let mut qmp = Qmp { reader: BufReader::new(stream) };
        // The greeting.
        qmp.line()?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command and returns what it returned. Events that come meanwhile are passed over.
    ///
    /// # Errors
    /// When QEMU refuses it.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let call = json!({ "execute": command, "arguments": arguments });
        self.reader.get_mut().write_all(format!("{call}\n").as_bytes())?;
        loop {
            let mut answer = self.line()?;
            if let Some(error) = answer.get("error") {
                return Err(Failure::new(format!("{command}: {error}")));
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// Starts to migrate the guest to the QEMU that waits at `uri`, at most `bytes_per_second` fast.
    ///
    /// # Errors
    /// When QEMU refuses it: a device that cannot be migrated.
    pub fn start_migration(&mut self, uri: &str, bytes_per_second: u64) -> Result {
        self.execute("migrate-set-parameters", json!({ "max-bandwidth": bytes_per_second }))?;
        self.execute("migrate", json!({ "uri": uri })).map(drop)
    }

    /// The state of the migration: `active`, `completed`, `failed`...
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub fn migration_status(&mut self) -> Result<String> {
        let state = self.execute("query-migrate", json!({}))?;
        Ok(state["status"].as_str().unwrap_or("none").to_owned())
    }

    /// Waits until the guest runs at the other side.
    ///
    /// # Errors
    /// When the migration fails or takes more than `seconds`.
    pub fn finish_migration(&mut self, seconds: u64) -> Result {
        let begin = Instant::now();
        loop {
            let status = self.migration_status()?;
            if status == "completed" {
                return Ok(());
            }
            ensure(status != "failed" && begin.elapsed().as_secs() < seconds, || {
                format!("the migration is {status} after {:.1} s", begin.elapsed().as_secs_f64())
            })?;
            sleep(Duration::from_millis(50));
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        ensure(self.reader.read_line(&mut line)? > 0, || "QEMU closed its control socket".into())?;
        Ok(serde_json::from_str(&line)?)
    }
}
