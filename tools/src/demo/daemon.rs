//! The demo's own daemons: a temporary configuration, the process, its end.
//!
//! Owns a folder under the temporary directory and one `avio-vswitchd` or `avio-stord`; both are gone when the value is
//! dropped. Needs neither root nor huge pages, and touches nothing outside its folder.

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

/// Name of the guest with disks.
pub const DISK_GUEST: &str = "guest1";

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    program: &'static str,
    folder: PathBuf,
    /// The network namespace that it runs in, if not the caller's.
    namespace: Option<String>,
    child: Option<Child>,
}

impl Daemon {
    /// Writes a configuration with `guests` on one vswitch, one worker on `core` (not pinned without), starts the daemon and
    /// waits until it is ready.
    ///
    /// # Errors
    /// One line: what was missing, or the end of the daemon's log.
    pub fn switch(guests: &[DemoGuest], core: Option<usize>) -> Result<Self, String> {
        let daemon = Self::new("avio-vswitchd")?;
        daemon
            .configure(guests, &[VSWITCH], &one_vswitch(core))
            .map_err(|e| format!("{}: {e}", daemon.folder.display()))?;
        daemon.serve(guests)
    }

    /// Two guests, each on a vswitch of its own (`vs_site`, `vs_peer`); `vswitches` is the file that says how those are joined. The daemon runs in
    /// network namespace `namespace`.
    ///
    /// # Errors
    /// As [`Daemon::switch`].
    pub fn joined(guests: &[DemoGuest; 2], vswitches: &str, namespace: &str) -> Result<Self, String> {
        let mut daemon = Self::new("avio-vswitchd")?;
        daemon.namespace = Some(namespace.to_owned());
        daemon
            .configure(guests, &["vs_site", "vs_peer"], vswitches)
            .map_err(|e| format!("{}: {e}", daemon.folder.display()))?;
        daemon.serve(guests)
    }

    fn serve(mut self, guests: &[DemoGuest]) -> Result<Self, String> {
        self.spawn()?;
        let sockets: Vec<PathBuf> = guests.iter().map(|guest| self.socket(guest.name)).collect();
        self.wait_ready(&sockets, |run_dir| Client::vswitchd(run_dir).is_ok())?;
        Ok(self)
    }

    /// The same with a guest whose adapter has `luns` image files of `image_len` bytes, at targets 0 and up.
    ///
    /// # Errors
    /// As [`Daemon::switch`].
    pub fn storage(luns: u8, image_len: u64, core: Option<usize>) -> Result<Self, String> {
        let mut daemon = Self::new("avio-stord")?;
        daemon
            .configure_disks(luns, image_len, core)
            .map_err(|e| format!("{}: {e}", daemon.folder.display()))?;
        daemon.spawn()?;
        let socket = daemon.disk_socket();
        daemon.wait_ready(&[socket], |run_dir| Client::stord(run_dir).is_ok())?;
        Ok(daemon)
    }

    fn new(program: &'static str) -> Result<Self, String> {
        let folder = fresh_folder(program).map_err(|e| format!("temporary folder: {e}"))?;
        // From here on dropping removes the folder.
        Ok(Self { program, folder, namespace: None, child: None })
    }

    fn spawn(&mut self) -> Result<(), String> {
        let program = program(self.program)?;
        let log = File::create(self.log()).map_err(|e| format!("{}: {e}", self.log().display()))?;
        let mut command = match &self.namespace {
            None => Command::new(&program),
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(&program);
                command
            }
        };
        let child = command
            .arg("--config")
            .arg(self.config_dir())
            .arg("--run-dir")
            .arg(self.run_dir())
            .arg("--state-dir")
            .arg(self.folder.join("state"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|e| e.to_string())?)
            .stderr(log)
            .spawn()
            .map_err(|e| format!("{}: {e}", program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    fn make_folders(&self) -> io::Result<()> {
        for folder in [self.config_dir().join("guests"), self.run_dir(), self.folder.join("state")] {
            fs::create_dir_all(folder)?;
        }
        Ok(())
    }

    fn configure_disks(&self, luns: u8, image_len: u64, core: Option<usize>) -> io::Result<()> {
        self.make_folders()?;
        fs::write(self.config_dir().join("storage.toml"), workers(core))?;
        let mut text =
            format!("name = \"{DISK_GUEST}\"\n\n[[storage]]\nbus = 0\ndevice = 4\nadaptor = \"avio_stor\"\n");
        for target in 0..luns {
            let image = self.image(target);
            File::create(&image)?.set_len(image_len)?;
            text +=
                &format!("\n[[storage.lun]]\ntarget = {target}\nbacking = \"file:{}\"\n", image.display());
        }
        fs::write(self.config_dir().join(format!("guests/{DISK_GUEST}.toml")), text)
    }

    /// The guests go to the vswitches `on` in turn, which the file `vswitches` defines.
    fn configure(&self, guests: &[DemoGuest], on: &[&str], vswitches: &str) -> io::Result<()> {
        self.make_folders()?;
        fs::write(self.config_dir().join("vswitches.toml"), vswitches)?;
        for (i, guest) in guests.iter().enumerate() {
            let text = format!(
                "name = \"{}\"\n\n[[network]]\nbus = 0\ndevice = 5\nadaptor = \"avio_lan\"\nvswitch = \"{}\"\n\
                 port = {}\nmac = \"{}\"\n",
                guest.name,
                on[i % on.len()],
                i + 1,
                avio_proto::config::MacAddr(guest.mac),
            );
            fs::write(self.config_dir().join(format!("guests/{}.toml", guest.name)), text)?;
        }
        Ok(())
    }

    fn wait_ready(&mut self, sockets: &[PathBuf], answers: impl Fn(&Path) -> bool) -> Result<(), String> {
        let name = self.program;
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            if sockets.iter().all(|socket| socket.exists()) && answers(&self.run_dir()) {
                return Ok(());
            }
            let ended = self.child.as_mut().and_then(|c| c.try_wait().ok().flatten());
            if let Some(status) = ended {
                return Err(format!("{} ended with {status}:\n{}", self.program, self.log_tail()));
            }
            if Instant::now() > deadline {
                return Err(format!("{name} is not ready after {READY_TIMEOUT:?}:\n{}", self.log_tail()));
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

    /// vhost-user socket of the guest with disks.
    #[must_use]
    pub fn disk_socket(&self) -> PathBuf {
        self.run_dir().join(format!("guests/{DISK_GUEST}/stor-0-4.sock"))
    }

    /// The image file behind a target.
    #[must_use]
    pub fn image(&self, target: u8) -> PathBuf {
        self.folder.join(format!("disk{target}.img"))
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
            Some(status) => Err(format!("{} ended with {status}:\n{}", self.program, self.log_tail())),
            None => Err(format!("{} did not end within {END_TIMEOUT:?} of SIGTERM", self.program)),
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

/// The lines that pin the one worker.
fn workers(core: Option<usize>) -> String {
    core.map_or_else(String::new, |core| format!("[workers]\ncores = [{core}]\n\n"))
}

fn one_vswitch(core: Option<usize>) -> String {
    format!("{}[[vswitch]]\nname = \"{VSWITCH}\"\n", workers(core))
}

/// A program next to this one.
///
/// # Errors
/// When it is not there.
pub fn program(name: &str) -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|e| format!("own path: {e}"))?;
    let path = own.parent().unwrap_or(Path::new(".")).join(name);
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!("{} is missing: run 'make build' first", path.display()))
    }
}

/// Short, since a Unix socket's path has at most 107 bytes; only for this user.
fn fresh_folder(program: &str) -> io::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let folder = std::env::temp_dir().join(format!("{program}-demo-{}", std::process::id()));
    fs::DirBuilder::new().mode(0o700).create(&folder)?;
    Ok(folder)
}
