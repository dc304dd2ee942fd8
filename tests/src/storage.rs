//! Definitions for a storage daemon under test, and what `avio stor --json` says about it.
//!
//! Writes `storage.toml` and `guests/NAME.toml` as an operator would; the daemon judges them.

use std::fmt::Write;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::config::replace;
use crate::daemon::{Daemon, Definitions};
use crate::failure::ensure;
use crate::{Failure, Result, scratch};

/// Bus and device of every adapter that this harness defines.
const BUS: u8 = 0;
const DEVICE: u8 = 4;

/// How long a backing of [`delaying`] holds a write.
pub const DELAY: Duration = Duration::from_millis(1500);

/// A sparse image file of so many bytes in the scratch folder.
///
/// # Errors
/// When it cannot be made.
pub fn image(name: &str, len: u64) -> Result<PathBuf> {
    let path = scratch::folder().join(name);
    File::create(&path)?.set_len(len)?;
    Ok(path)
}

/// The backing that a file is.
pub fn file_backing(path: &Path) -> String {
    format!("file:{}", path.display())
}

/// A backing of 4 MiB of memory whose writes take [`DELAY`].
pub fn delaying() -> String {
    format!("fault:write_delay_ms={}:memory:4M", DELAY.as_millis())
}

/// What a storage daemon under test is to serve.
#[derive(Clone, Default)]
pub struct Storage {
    head: String,
    adapters: Vec<Adapter>,
}

/// One guest with one adapter.
#[derive(Clone)]
pub struct Adapter {
    guest: String,
    kind: String,
    lines: String,
    head: String,
    luns: Vec<String>,
}

impl Adapter {
    /// A guest's adapter of this kind (`avio_stor`, `avio_blk`).
    pub fn new(guest: &str, kind: &str) -> Adapter {
        Adapter {
            guest: guest.to_owned(),
            kind: kind.to_owned(),
            lines: String::new(),
            head: String::new(),
            luns: Vec::new(),
        }
    }

    /// Further lines of the `[[storage]]` table.
    #[must_use]
    pub fn lines(mut self, lines: &str) -> Adapter {
        self.lines = lines.to_owned();
        self
    }

    /// Further lines before the first table of the guest's file.
    #[must_use]
    pub fn head(mut self, lines: &str) -> Adapter {
        self.head = lines.to_owned();
        self
    }

    /// Adds a disk at `target`, with further lines of its table.
    #[must_use]
    pub fn disk(self, target: usize, backing: &str, extra: &str) -> Adapter {
        self.lun(target, "disk", backing, extra)
    }

    /// Adds a LUN.
    #[must_use]
    pub fn lun(mut self, target: usize, device: &str, backing: &str, extra: &str) -> Adapter {
        self.luns.push(format!(
            "[[storage.lun]]\ntarget = {target}\ndevice = \"{device}\"\nbacking = \"{backing}\"\n{extra}\n"
        ));
        self
    }

    /// Takes the LUN away that was added last.
    #[must_use]
    pub fn without_last(mut self) -> Adapter {
        self.luns.pop();
        self
    }

    /// The guest's file.
    pub fn text(&self) -> String {
        let Adapter { guest, kind, lines, head, luns } = self;
        format!(
            "version = 1\nname = \"{guest}\"\n{head}\n[[storage]]\nbus = {BUS}\ndevice = {DEVICE}\n\
             adaptor = \"{kind}\"\n{lines}\n{}",
            luns.concat()
        )
    }

    /// Where the daemon listens for it, under its run folder.
    pub fn socket(&self, run: &Path) -> PathBuf {
        run.join(format!("guests/{}/stor-{BUS}-{DEVICE}.sock", self.guest))
    }
}

impl Storage {
    /// One adapter.
    pub fn one(adapter: Adapter) -> Storage {
        Storage::default().adapter(adapter)
    }

    /// Sets the lines of `storage.toml`.
    #[must_use]
    pub fn head(mut self, lines: &str) -> Storage {
        self.head = lines.to_owned();
        self
    }

    /// Adds an adapter, or puts it in the place of the same guest's.
    #[must_use]
    pub fn adapter(mut self, adapter: Adapter) -> Storage {
        self.adapters.retain(|other| other.guest != adapter.guest);
        self.adapters.push(adapter);
        self
    }
}

impl Definitions for Storage {
    const PROGRAM: &str = "avio-stord";

    fn write(&self, folder: &Path) -> Result {
        fs::create_dir_all(folder.join("guests"))?;
        let mut text = String::new();
        write!(text, "{}", self.head)?;
        replace(&folder.join("storage.toml"), &text)?;
        for adapter in &self.adapters {
            replace(&folder.join(format!("guests/{}.toml", adapter.guest)), &adapter.text())?;
        }
        Ok(())
    }
}

impl Daemon<Storage> {
    /// Writes the configuration anew and has `avio stor --reload` take it over; gives what it prints.
    ///
    /// # Errors
    /// When the command fails.
    pub fn reload_by_command(&self) -> Result<String> {
        self.config.write(&self.config_folder())?;
        let output = self.avio(&["stor", "--reload"])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure(output.status.success(), || format!("avio stor --reload: {said}"))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The vhost-user socket of a guest's adapter.
    ///
    /// # Errors
    /// When there is no such guest.
    pub fn stor_socket(&self, guest: &str) -> Result<PathBuf> {
        let adapter = self.config.adapters.iter().find(|adapter| adapter.guest == guest);
        let adapter = adapter.ok_or_else(|| Failure::new(format!("no guest {guest} here")))?;
        Ok(adapter.socket(&self.run_folder()))
    }

    /// What `avio stor --json` says.
    ///
    /// # Errors
    /// When the command fails or prints something else.
    pub fn stor(&self) -> Result<Value> {
        let output = self.avio(&["stor", "--json"])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure(output.status.success(), || format!("avio stor --json: {said}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        serde_json::from_str(&text).map_err(|e| Failure::new(format!("avio stor --json: {e} in {text}")))
    }

    /// What `avio stor --json` says of one LUN.
    ///
    /// # Errors
    /// When there is none.
    pub fn lun(&self, guest: &str, target: u64) -> Result<Value> {
        let all = self.stor()?;
        let adapters = all["adapters"].as_array().cloned().unwrap_or_default();
        let luns =
            adapters.iter().filter(|a| a["guest"] == guest).filter_map(|a| a["luns"].as_array()).flatten();
        let mut found = luns.filter(|lun| lun["target"] == target);
        found.next().cloned().ok_or_else(|| Failure::new(format!("no LUN {target} of {guest} in {all}")))
    }

    /// Waits until something is true of one LUN.
    ///
    /// # Errors
    /// When it is not within `seconds`.
    pub fn lun_when(
        &self,
        guest: &str,
        target: u64,
        seconds: u64,
        settled: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            let lun = self.lun(guest, target)?;
            if settled(&lun) {
                return Ok(lun);
            }
            ensure(Instant::now() < deadline, || format!("still after {seconds} s: {lun:#}"))?;
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
