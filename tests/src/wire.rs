//! A wire for uplinks under test: a veth pair, one end here as the network device of a switch, the other in a network namespace with a host of
//! its own. Everything is made for one case and deleted with it. Needs root, as uplinks do.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::console::{Console, command};
use crate::failure::ensure;
use crate::{Failure, Result};

/// How long a device may take to be up, in seconds.
const CARRIER_S: u64 = 10;

/// Runs a program; gives what it printed.
///
/// # Errors
/// When it fails; what it said is in the reason.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output: Output = Command::new(program).args(arguments).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure(output.status.success(), || {
        format!("{program} {}: {}{text}", arguments.join(" "), String::from_utf8_lossy(&output.stderr))
    })?;
    Ok(text)
}

/// Pings `address` from a network namespace; gives how many of `count` were answered.
///
/// # Errors
/// When ping cannot be run.
pub fn ping(namespace: &str, address: &str, count: u32, options: &[&str]) -> Result<u32> {
    let count = count.to_string();
    let mut arguments = vec!["netns", "exec", namespace, "ping", "-n", "-c", &count, "-i", "0.2", "-W", "2"];
    arguments.extend(options);
    arguments.push(address);
    let output = Command::new("ip").args(arguments).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let received = text.split(',').find_map(|part| part.trim().strip_suffix(" received"));
    received.and_then(|n| n.trim().parse().ok()).ok_or_else(|| {
        Failure::new(format!("ping {address}: {text}{}", String::from_utf8_lossy(&output.stderr)))
    })
}

/// Sends one raw frame out of a network device, in `namespace` if there is one. It is gone when this returns.
///
/// # Errors
/// When the device does not take it.
pub fn send_raw(namespace: Option<&str>, device: &str, frame: &[u8]) -> Result {
    let mut socat = match namespace {
        Some(namespace) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", namespace, "socat"]);
            command
        }
        None => Command::new("socat"),
    };
    socat.args(["-u", "-", &format!("INTERFACE:{device}")]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut socat = socat.spawn()?;
    if let Some(mut input) = socat.stdin.take() {
        input.write_all(frame)?;
    }
    let output = socat.wait_with_output()?;
    ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Sends raw frames out of one network device here, in order, through one socket for as long as this lives. Each closing of a packet socket waits for an RCU
/// grace period of the kernel, which takes a second and more on a busy machine; [`send_raw`] has one for each frame.
pub struct RawSender {
    frames: UnixDatagram,
    socat: Child,
}

impl RawSender {
    /// A sender out of `device`.
    ///
    /// # Errors
    /// When socat cannot be started.
    pub fn new(device: &str) -> Result<RawSender> {
        // A datagram is read at once and alone, however many wait.
        let (frames, input) = UnixDatagram::pair()?;
        let mut socat = Command::new("socat");
        socat.args(["-u", "-", &format!("INTERFACE:{device}")]).stdin(Stdio::from(OwnedFd::from(input)));
        Ok(RawSender { frames, socat: socat.spawn()? })
    }

    /// Sends one frame; it may leave a moment after this returns, and does before the next.
    ///
    /// # Errors
    /// When the sender has ended, as it does where the device does not take a frame.
    pub fn send(&self, frame: &[u8]) -> Result {
        self.frames.send(frame).map(drop).map_err(|e| Failure::new(format!("socat has ended: {e}")))
    }
}

impl Drop for RawSender {
    fn drop(&mut self) {
        let _ = self.socat.kill();
        let _ = self.socat.wait();
    }
}

/// The two ends and the namespace of the far one.
pub struct Wire {
    /// The device on this side: what `uplink` names.
    pub near: String,
    /// The device in the namespace.
    pub far: String,
    /// The namespace.
    pub namespace: String,
}

impl Wire {
    /// A pair whose far end has `address` (`192.0.2.2/24`). Names are made of the process id, so cases do not meet.
    ///
    /// # Errors
    /// When this is not root, or the kernel has no veth.
    pub fn new(address: &str) -> Result<Wire> {
        Wire::numbered(0, address)
    }

    /// The same for one of several wires of a process.
    ///
    /// # Errors
    /// As [`Wire::new`].
    pub fn numbered(number: u32, address: &str) -> Result<Wire> {
        let id = std::process::id() % 1_000_000;
        let id = if number == 0 { id.to_string() } else { format!("{id}w{number}") };
        let wire =
            Wire { near: format!("avn{id}"), far: format!("avf{id}"), namespace: format!("avio-{id}") };
        // What a killed case with the same id left behind.
        wire.delete();
        run("ip", &["netns", "add", &wire.namespace])?;
        wire.plug()?;
        wire.far_ip(&["link", "set", "lo", "up"])?;
        wire.far_ip(&["addr", "add", address, "dev", &wire.far])?;
        Ok(wire)
    }

    /// Makes the pair of devices and sets both up.
    ///
    /// # Errors
    /// As [`Wire::new`].
    pub fn plug(&self) -> Result {
        let Wire { near, far, namespace } = self;
        run("ip", &["link", "add", near, "type", "veth", "peer", "name", far, "netns", namespace])?;
        // A frame whose checksum is left to the receiver would reach XDP without one: a veth pair has no wire on which it is filled in.
        self.far(&["ethtool", "-K", far, "tx", "off"])?;
        run("ip", &["link", "set", near, "up"])?;
        self.far_ip(&["link", "set", far, "up"])?;
        self.wait_carrier()
    }

    /// Until the kernel says of the near end that it is up: it tells of carriers in its own time, later on a busy machine, and [`Wire::state`] shows it.
    fn wait_carrier(&self) -> Result {
        let path = format!("/sys/class/net/{}/operstate", self.near);
        let end = Instant::now() + Duration::from_secs(CARRIER_S);
        loop {
            let state = std::fs::read_to_string(&path)?;
            if state.trim() == "up" {
                return Ok(());
            }
            ensure(Instant::now() < end, || format!("{} is {}, not up", self.near, state.trim()))?;
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Deletes the pair of devices: the network device is lost.
    ///
    /// # Errors
    /// When it is not there.
    pub fn unplug(&self) -> Result {
        run("ip", &["link", "del", &self.near]).map(drop)
    }

    /// Runs a command in the far namespace; gives what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn far(&self, command: &[&str]) -> Result<String> {
        let mut arguments = vec!["netns", "exec", self.namespace.as_str()];
        arguments.extend(command);
        run("ip", &arguments)
    }

    /// `ip` in the far namespace.
    ///
    /// # Errors
    /// When it fails.
    pub fn far_ip(&self, arguments: &[&str]) -> Result<String> {
        let mut all = vec!["-n", self.namespace.as_str()];
        all.extend(arguments);
        run("ip", &all)
    }

    /// Starts a program in the far namespace that runs beside the case.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, name: &str, arguments: &[&str]) -> Result<Console> {
        let mut command = command("ip");
        command.args(["netns", "exec", &self.namespace]).args(arguments);
        Console::spawn(name, &mut command)
    }

    /// The near device's MAC address.
    ///
    /// # Errors
    /// When it is not there.
    pub fn near_mac(&self) -> Result<String> {
        let text = std::fs::read_to_string(format!("/sys/class/net/{}/address", self.near))?;
        Ok(text.trim().to_owned())
    }

    /// What of the near device a switch may change: flags, program, features. To be compared.
    ///
    /// # Errors
    /// When it is not there.
    pub fn state(&self) -> Result<String> {
        let link = run("ip", &["-d", "-o", "link", "show", &self.near])?;
        let link = link.split_once(": ").map_or(link.as_str(), |(_, rest)| rest);
        let features = run("ethtool", &["-k", &self.near])?;
        Ok(format!("{link}{features}"))
    }

    /// Pings `address` from the far end; gives how many of `count` were answered.
    ///
    /// # Errors
    /// When ping cannot be run.
    pub fn ping(&self, address: &str, count: u32, options: &[&str]) -> Result<u32> {
        ping(&self.namespace, address, count, options)
    }

    fn delete(&self) {
        for arguments in [["link", "del", self.near.as_str()], ["netns", "del", self.namespace.as_str()]] {
            let _ = Command::new("ip").args(arguments).output();
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.delete();
    }
}
