//! A daemon as a child process: its configuration, run and state folders, its life, and `avio` pointed at it. Started
//! by tests and the demo; killed on drop. Everything is asked through the operator's commands.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use std::{env, fs};

use rustix::process::Signal;
use serde_json::Value;

use crate::config::Config;
use crate::console::{Console, command};
use crate::counters::{Vswitch, of_room};
use crate::failure::ensure;
use crate::{Failure, Result, scratch};

/// How long the daemon may take until it says that it is ready, in seconds.
const READY_S: u64 = 5;

/// What a daemon is to serve, as files in a folder.
pub trait Definitions {
    /// The daemon that reads them.
    const PROGRAM: &str;

    /// Writes all files into `folder`, over what is there.
    ///
    /// # Errors
    /// When a file cannot be written.
    fn write(&self, folder: &Path) -> Result;
}

impl Definitions for Config {
    const PROGRAM: &str = "avio-vswitchd";

    fn write(&self, folder: &Path) -> Result {
        Config::write(self, folder)
    }
}

/// A running daemon with its folders.
pub struct Daemon<D = Config> {
    console: Option<Console>,
    folder: PathBuf,
    /// Another build of the daemon than this workspace's own.
    binary: Option<PathBuf>,
    starts: u32,
    /// What it serves; change it, then [`Daemon::reload`].
    pub config: D,
}

/// The path of a program of this workspace: in `AVIO_BIN_DIR` if set, else in `release` of this program's target folder.
///
/// # Errors
/// When it has not been built.
pub fn program(name: &str) -> Result<PathBuf> {
    let folder = match env::var_os("AVIO_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            // TARGET/PROFILE/PROGRAM, or TARGET/PROFILE/deps/PROGRAM.
            let own = env::current_exe()?;
            let is_deps = own.parent().is_some_and(|p| p.ends_with("deps"));
            let target = own.ancestors().nth(if is_deps { 3 } else { 2 });
            target.ok_or_else(|| Failure::new("this program is not in a target folder"))?.join("release")
        }
    };
    let path = folder.join(name);
    ensure(path.is_file(), || format!("{} is missing: run 'make build' first", path.display()))?;
    Ok(path)
}

impl<D: Definitions> Daemon<D> {
    /// Writes `config` and starts a daemon on it; returns when it is ready.
    ///
    /// # Errors
    /// When it does not get ready; its output is in `PROGRAM-N.log`.
    pub fn start(config: D) -> Result<Self> {
        Self::start_in(scratch::folder(), config)
    }

    /// As [`Daemon::start`] with folders of its own below `folder`, for a second daemon in one test.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_in(folder: PathBuf, config: D) -> Result<Self> {
        Self::start_as(None, folder, config)
    }

    /// As [`Daemon::start_in`], with the program `binary` where there is one: another build, to be compared with.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_as(binary: Option<PathBuf>, folder: PathBuf, config: D) -> Result<Self> {
        let mut daemon = Self { console: None, folder, binary, starts: 0, config };
        daemon.config.write(&daemon.config_folder())?;
        fs::create_dir_all(daemon.run_folder())?;
        fs::create_dir_all(daemon.folder.join("state"))?;
        daemon.restart()?;
        Ok(daemon)
    }

    /// Starts the process again on the same folders, after a [`Daemon::kill`] or [`Daemon::stop`].
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn restart(&mut self) -> Result {
        self.restart_with(&[], READY_S)
    }

    /// As [`Daemon::restart`], with further variables in its environment and so many seconds to get ready.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn restart_with(&mut self, environment: &[(&str, &str)], seconds: u64) -> Result {
        self.console = None;
        self.starts += 1;
        let mut command = command(match &self.binary {
            Some(binary) => binary.clone(),
            None => program(D::PROGRAM)?,
        });
        self.add_folders(&mut command);
        command.envs(environment.iter().copied());
        let name = if self.binary.is_some() { "other" } else { D::PROGRAM };
        let mut console = Console::spawn(&format!("{name}-{}", self.starts), &mut command)?;
        console.wait_for("ready", seconds)?;
        self.console = Some(console);
        Ok(())
    }

    fn add_folders(&self, command: &mut Command) {
        command.arg("--config").arg(self.config_folder()).arg("--run-dir").arg(self.run_folder());
        command.arg("--state-dir").arg(self.folder.join("state"));
    }

    /// The folder with its configuration.
    pub fn config_folder(&self) -> PathBuf {
        self.folder.join("etc")
    }

    /// The folder with its sockets.
    pub fn run_folder(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// The process.
    ///
    /// # Errors
    /// When it has been stopped.
    pub fn console(&mut self) -> Result<&mut Console> {
        self.console.as_mut().ok_or_else(|| Failure::new("the daemon is stopped"))
    }

    /// Kills it without warning.
    pub fn kill(&mut self) {
        self.console = None;
    }

    /// Asks it to end and waits until it has.
    ///
    /// # Errors
    /// When it takes more than two seconds or ends with a status other than 0.
    pub fn stop(&mut self) -> Result {
        let console = self.console()?;
        console.signal(Signal::TERM)?;
        let status = console.wait_end(2)?;
        self.console = None;
        ensure(status.success(), || format!("the daemon ended with {status}"))
    }

    /// Writes the configuration anew and asks the daemon to take it over.
    ///
    /// # Errors
    /// When the files cannot be written or the daemon is gone.
    pub fn reload(&mut self) -> Result {
        self.config.write(&self.config_folder())?;
        self.console()?.signal(Signal::HUP)
    }

    /// Fails unless the daemon still runs and has not complained of a panic.
    ///
    /// # Errors
    /// When it ended or panicked.
    pub fn ensure_healthy(&mut self) -> Result {
        let console = self.console()?;
        ensure(console.is_running(), || "the daemon has ended".to_owned())?;
        ensure(!console.output().contains("panicked at"), || "the daemon panicked".to_owned())
    }

    /// Runs `avio` with `arguments` against this daemon.
    ///
    /// # Errors
    /// When the program cannot be run; not when it fails.
    pub fn avio(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(program("avio")?);
        command.arg("--run-dir").arg(self.run_folder()).arg("--config").arg(self.config_folder());
        Ok(command.args(arguments).output()?)
    }

    /// CPU time that the daemon has used, in milliseconds, all threads together.
    ///
    /// # Errors
    /// When it is gone.
    pub fn cpu_ms(&mut self) -> Result<u64> {
        let pid = self.console()?.pid();
        let mut sum_ns = 0;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            sum_ns += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(sum_ns / 1_000_000)
    }

    /// Its own memory in KiB: anonymous pages, and private pages of files. Guest memory does not count.
    ///
    /// # Errors
    /// When it is gone.
    pub fn own_memory_kib(&mut self) -> Result<u64> {
        let pid = self.console()?.pid();
        let text = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
        let mut sum_kib = 0;
        // Memory of guests is mapped from memfds.
        let mut is_guests = false;
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("Private_Clean:" | "Private_Dirty:") if !is_guests => {
                    sum_kib += words.next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
                }
                Some(word) if !word.ends_with(':') => {
                    is_guests = line.contains("/memfd:") || line.contains("/dev/shm/")
                }
                _ => {}
            }
        }
        Ok(sum_kib)
    }
}

impl Daemon<Config> {
    /// The vhost-user socket of the `index`th port of the configuration.
    pub fn socket(&self, index: usize) -> PathBuf {
        self.config.ports()[index].socket(&self.run_folder())
    }

    /// The vswitch `name` with its ports and counters, as `avio net -S NAME -A --json` tells them.
    ///
    /// # Errors
    /// When the command fails or prints something else.
    pub fn vswitch(&self, name: &str) -> Result<Vswitch> {
        let output = self.avio(&["net", "-S", name, "-A", "--json"])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure(output.status.success(), || format!("avio net -S {name} -A --json: {said}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        serde_json::from_str(&text).map_err(|e| Failure::new(format!("avio net --json: {e} in {text}")))
    }

    /// Frames that any port of guests or the host had no room for, of all vswitches, by the catalogue of discards.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn ports_without_room(&self) -> Result<u64> {
        let mut stream = UnixStream::connect(self.run_folder().join("vswitchd.varlink"))?;
        stream.set_read_timeout(Some(Duration::from_secs(READY_S)))?;
        stream.write_all(b"{\"method\":\"io.avio.vswitchd.Discards\"}\0")?;
        let mut answer = Vec::new();
        BufReader::new(stream).read_until(0, &mut answer)?;
        answer.pop();
        let answer: Value = serde_json::from_slice(&answer)
            .map_err(|e| Failure::new(format!("{e}: {}", String::from_utf8_lossy(&answer))))?;
        let reasons =
            answer["parameters"]["reasons"].as_array().ok_or_else(|| Failure::new(answer.to_string()))?;
        let counts =
            reasons.iter().filter_map(|one| Some((one["name"].as_str()?.to_owned(), one["count"].as_u64()?)));
        Ok(of_room(&counts.collect()))
    }

    /// The vswitch `name` once `settled` holds for it: numbers follow the traffic at a little distance.
    ///
    /// # Errors
    /// When it does not hold within `seconds`; the reason shows the last numbers.
    pub fn vswitch_when(
        &self,
        name: &str,
        seconds: u64,
        settled: impl Fn(&Vswitch) -> bool,
    ) -> Result<Vswitch> {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            let vswitch = self.vswitch(name)?;
            if settled(&vswitch) {
                return Ok(vswitch);
            }
            ensure(Instant::now() < deadline, || format!("still after {seconds} s: {:#?}", vswitch.ports))?;
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until port `number` of the one vswitch `vs` has a guest's driver.
    ///
    /// # Errors
    /// When none comes within 10 seconds.
    pub fn wait_active(&self, number: u32) -> Result {
        let is_active = |v: &Vswitch| v.port(number).is_ok_and(|port| port.state == "Active");
        self.vswitch_when("vs", 10, is_active).map(drop)
    }
}
