//! The demo's own daemon: a temporary configuration, the process, its end.
//!
//! Owns a folder under the temporary directory and one `avio-vswitchd`; both are gone when the value is dropped. Needs
//! neither root nor huge pages, and touches nothing outside its folder.

use crate::client::Client;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the daemon may take until all sockets are there.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to end after SIGTERM; then it is killed.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// Lines of its log that a failure shows.
const TAIL_LINES: usize = 10;
/// Name of the only vswitch.
pub const VSWITCH: &str = "demo";

/// A guest of the demo.
#[derive(Clone, Copy, Debug)]
pub struct DemoGuest {
    /// Its name.
    pub name: &'static str,
    /// Its MAC address.
    pub mac: [u8; 6],
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    folder: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    /// Writes a configuration with `guests` on one vswitch, one worker on `core` (not pinned without), starts the daemon and
    /// waits until it is ready.
    ///
    /// # Errors
    /// One line: what was missing, or the end of the daemon's log.
    pub fn start(guests: &[DemoGuest], core: Option<usize>) -> Result<Self, String> {
        let program = program()?;
        let folder = fresh_folder().map_err(|e| format!("temporary folder: {e}"))?;
        // From here on dropping removes the folder.
        let mut daemon = Self { folder, child: None };
        daemon.configure(guests, core).map_err(|e| format!("{}: {e}", daemon.folder.display()))?;
        let log = File::create(daemon.log()).map_err(|e| format!("{}: {e}", daemon.log().display()))?;
        let child = Command::new(&program)
            .arg("--config")
            .arg(daemon.config_dir())
            .arg("--run-dir")
            .arg(daemon.run_dir())
            .arg("--state-dir")
            .arg(daemon.folder.join("state"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|e| e.to_string())?)
            .stderr(log)
            .spawn()
            .map_err(|e| format!("{}: {e}", program.display()))?;
        daemon.child = Some(child);
        daemon.wait_ready(guests)?;
        Ok(daemon)
    }

    fn configure(&self, guests: &[DemoGuest], core: Option<usize>) -> io::Result<()> {
        for folder in [self.config_dir().join("guests"), self.run_dir(), self.folder.join("state")] {
            fs::create_dir_all(folder)?;
        }
        let workers = core.map_or_else(String::new, |c| format!("[workers]\ncores = [{c}]\n\n"));
        let text = format!("{workers}[[vswitch]]\nname = \"{VSWITCH}\"\n");
        fs::write(self.config_dir().join("vswitches.toml"), text)?;
        for (i, guest) in guests.iter().enumerate() {
            let text = format!(
                "name = \"{}\"\n\n[[network]]\nbus = 0\ndevice = 5\nadaptor = \"avio_lan\"\nvswitch = \"{VSWITCH}\"\n\
                 port = {}\nmac = \"{}\"\n",
                guest.name,
                i + 1,
                avio_proto::config::MacAddr(guest.mac),
            );
            fs::write(self.config_dir().join(format!("guests/{}.toml", guest.name)), text)?;
        }
        Ok(())
    }

    fn wait_ready(&mut self, guests: &[DemoGuest]) -> Result<(), String> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            let sockets = guests.iter().all(|g| self.socket(g.name).exists());
            if sockets && Client::vswitchd(&self.run_dir()).is_ok() {
                return Ok(());
            }
            let ended = self.child.as_mut().and_then(|c| c.try_wait().ok().flatten());
            if let Some(status) = ended {
                return Err(format!("avio-vswitchd ended with {status}:\n{}", self.log_tail()));
            }
            if Instant::now() > deadline {
                return Err(format!(
                    "avio-vswitchd is not ready after {READY_TIMEOUT:?}:\n{}",
                    self.log_tail()
                ));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Its configuration folder.
    #[must_use]
    pub fn config_dir(&self) -> PathBuf {
        self.folder.join("etc")
    }

    /// Its run folder.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// vhost-user socket of a guest.
    #[must_use]
    pub fn socket(&self, guest: &str) -> PathBuf {
        self.run_dir().join(format!("guests/{guest}/net-0-5.sock"))
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// What it logged about a refused sender, if anything.
    #[must_use]
    pub fn log_line(&self, word: &str) -> Option<String> {
        let text = fs::read_to_string(self.log()).ok()?;
        text.lines().find(|l| l.contains(word)).map(str::to_owned)
    }

    /// Ends it as an operator would.
    ///
    /// # Errors
    /// When it does not end by itself or ends with another status than 0.
    pub fn stop(mut self) -> Result<(), String> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        match end(&mut child) {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(format!("avio-vswitchd ended with {status}:\n{}", self.log_tail())),
            None => Err(format!("avio-vswitchd did not end within {END_TIMEOUT:?} of SIGTERM")),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = end(&mut child);
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// SIGTERM, a while, SIGKILL; `None` if it had to be killed.
fn end(child: &mut Child) -> Option<std::process::ExitStatus> {
    if let Some(pid) = rustix::process::Pid::from_raw(child.id() as i32) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    let deadline = Instant::now() + END_TIMEOUT;
    while Instant::now() < deadline {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

/// `avio-vswitchd` next to this program.
fn program() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|e| format!("own path: {e}"))?;
    let path = own.parent().unwrap_or(Path::new(".")).join("avio-vswitchd");
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!("{} is missing: run 'make build' first", path.display()))
    }
}

/// Short, since a Unix socket's path has at most 107 bytes; only for this user.
fn fresh_folder() -> io::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let folder = std::env::temp_dir().join(format!("avio-demo-{}", std::process::id()));
    fs::DirBuilder::new().mode(0o700).create(&folder)?;
    Ok(folder)
}
