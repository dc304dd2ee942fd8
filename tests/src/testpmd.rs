//! DPDK testpmd as a guest: its virtio-user driver on a port of the switch, driven over its prompt. Also as the reference
//! switch (`net_vhost` back-ends) that the harness itself is proven against. Needs `scripts/install-test-deps`; no huge pages.

use std::path::Path;

use crate::console::{Console, command};
use crate::failure::ensure;
use crate::qemu::cache;
use crate::{Failure, Result, scratch};

/// How long testpmd may take to start or to answer, in seconds.
const ANSWER_S: u64 = 20;

/// Makes testpmd try for an hour to get rid of a burst before it drops the rest.
const HOLD: &str = "set burst tx delay 10 retry 400000000";

/// Its prompt.
const PROMPT: &str = "testpmd> ";

/// Which ring layout and driver path the guest uses, and how it is reached.
#[derive(Clone, Copy)]
pub struct Driver<'a> {
    /// Queue pairs.
    pub queue_pairs: u16,
    /// Entries of each ring.
    pub queue_size: u16,
    /// Packed virtqueues instead of split.
    pub packed: bool,
    /// Receive buffers may be merged.
    pub mergeable: bool,
    /// Buffers are used in the order in which they were made available.
    pub in_order: bool,
    /// The vectorised receive and transmit functions.
    pub vectorized: bool,
    /// testpmd listens on the socket, the switch connects.
    pub server: bool,
    /// The port's MAC address.
    pub mac: &'a str,
}

/// What the port does with frames: a forwarding mode of testpmd, with options.
#[derive(Clone, Copy)]
pub struct Mode<'a> {
    /// `rxonly`, `txonly`, `flowgen`, `io`, `mac`...
    pub name: &'a str,
    /// Where frames go (testpmd's `--eth-peer`).
    pub peer: Option<&'a str>,
    /// Further options of testpmd.
    pub options: &'a [&'a str],
}

/// A running testpmd with one virtio-user port.
pub struct Testpmd {
    console: Console,
}

/// What a port of testpmd counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Frames that arrived.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames that arrived broken.
    pub rx_errors: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
}

impl<'a> Driver<'a> {
    /// Split, mergeable, one queue pair of 256 entries, connecting.
    pub fn new(mac: &'a str) -> Driver<'a> {
        Driver {
            queue_pairs: 1,
            queue_size: 256,
            packed: false,
            mergeable: true,
            in_order: false,
            vectorized: false,
            server: false,
            mac,
        }
    }
}

impl Testpmd {
    /// Starts a guest with a port on `socket`; it forwards only after [`Testpmd::forward`].
    ///
    /// # Errors
    /// When it does not start, or no back-end answers.
    pub fn start(name: &str, socket: &Path, driver: &Driver, mode: &Mode) -> Result<Testpmd> {
        let number = u8::from;
        let device = format!(
            "net_virtio_user0,path={},mac={},queues={},queue_size={},packed_vq={},mrg_rxbuf={},in_order={},vectorized={},server={}",
            socket.display(),
            driver.mac,
            driver.queue_pairs,
            driver.queue_size,
            number(driver.packed),
            number(driver.mergeable),
            number(driver.in_order),
            number(driver.vectorized),
            number(driver.server),
        );
        let queues = driver.queue_pairs.to_string();
        let peer = mode.peer.map(|mac| format!("--eth-peer=0,{mac}"));
        let mut options = vec!["--rxq", &queues, "--txq", &queues, "--forward-mode", mode.name];
        options.extend(peer.as_deref());
        options.extend(mode.options);
        let console = spawn(name, &[&device], &["--single-file-segments"], &options)?;
        let mut testpmd = Testpmd { console };
        testpmd.console.wait_for(PROMPT, ANSWER_S)?;
        Ok(testpmd)
    }

    /// Gives a command at the prompt; gives what it printed.
    ///
    /// # Errors
    /// When no prompt follows.
    pub fn ask(&mut self, line: &str) -> Result<String> {
        self.console.send(line)?;
        self.console.wait_for(PROMPT, ANSWER_S)
    }

    /// Begins to forward.
    ///
    /// # Errors
    /// When testpmd refuses.
    pub fn forward(&mut self) -> Result {
        let said = self.ask("start")?;
        ensure(said.contains("packet forwarding"), || format!("testpmd does not start: {said}"))
    }

    /// Stops forwarding.
    ///
    /// # Errors
    /// When testpmd does not answer.
    pub fn stop(&mut self) -> Result {
        self.ask("stop")?;
        Ok(())
    }

    /// The port's counters.
    ///
    /// # Errors
    /// When testpmd does not print them.
    pub fn stats(&mut self) -> Result<PortStats> {
        let text = self.ask("show port stats 0")?;
        let value = |name: &str| -> Result<u64> {
            let after =
                text.split(name).nth(1).ok_or_else(|| Failure::new(format!("no {name} in {text}")))?;
            Ok(after.split_whitespace().next().unwrap_or("").parse()?)
        };
        Ok(PortStats {
            rx_packets: value("RX-packets:")?,
            rx_bytes: value("RX-bytes:")?,
            rx_errors: value("RX-errors:")?,
            tx_packets: value("TX-packets:")?,
            tx_bytes: value("TX-bytes:")?,
        })
    }

    /// Whether the back-end has told the port that its link is up.
    ///
    /// # Errors
    /// When testpmd does not print them.
    pub fn link_is_up(&mut self) -> Result<bool> {
        Ok(self.ask("show port info 0")?.contains("Link status: up"))
    }

    /// The process.
    pub fn console(&mut self) -> &mut Console {
        &mut self.console
    }
}

/// testpmd as a switch of two ports that knows no addresses: what comes in on one socket goes out of the other.
///
/// It loses nothing. Left to itself, testpmd frees what a port does not take at once, and counts it as TX-dropped: while that
/// port is not up yet, and whenever the guest behind it is behind by a ring, which on a machine with two cores is as often as
/// something else runs. Told to retry, it waits instead, and takes no more from the sender meanwhile.
pub struct ReferenceSwitch {
    console: Console,
}

impl ReferenceSwitch {
    /// Listens on `sockets` with `queue_pairs` each.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(sockets: [&Path; 2], queue_pairs: u16) -> Result<ReferenceSwitch> {
        let device = |n: usize| format!("net_vhost{n},iface={},queues={queue_pairs}", sockets[n].display());
        let queues = queue_pairs.to_string();
        let options = ["--rxq", &queues, "--txq", &queues];
        let mut console = spawn("reference", &[&device(0), &device(1)], &[], &options)?;
        console.wait_for(PROMPT, ANSWER_S)?;
        for line in ["set fwd io retry", HOLD, "start"] {
            console.send(line)?;
            console.wait_for(PROMPT, ANSWER_S)?;
        }
        Ok(ReferenceSwitch { console })
    }

    /// How many frames it took in and could not send, both ports together, since it started.
    ///
    /// # Errors
    /// When testpmd does not print them.
    pub fn dropped(&mut self) -> Result<u64> {
        self.console.send("show fwd stats all")?;
        // The sum over all ports comes last. Up to its closing line, not to the prompt: that is written letter by letter, and an
        // event of a port may come in between ("testPort 1: link state change event").
        self.console.wait_for("forward statistics for all ports", ANSWER_S)?;
        self.console.wait_for("TX-packets:", ANSWER_S)?;
        let text = self.console.wait_for("++++", ANSWER_S)?;
        let after = text.split("TX-dropped:").nth(1);
        let after = after.ok_or_else(|| Failure::new(format!("no TX-dropped in {text}")))?;
        Ok(after.split_whitespace().next().unwrap_or("").parse()?)
    }

    /// The process.
    pub fn console(&mut self) -> &mut Console {
        &mut self.console
    }
}

/// testpmd as an LACP partner: its bonding driver over some devices of the host, and one more device with which it exchanges all frames.
pub struct Bond {
    console: Console,
}

impl Bond {
    /// In network namespace `namespace`, in mode 4 (802.1AX) over `members`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(namespace: &str, members: &[String], beyond: &str) -> Result<Bond> {
        let name = |n: usize| format!("net_af_packet{n}");
        let devices = members.iter().map(String::as_str).chain([beyond]).enumerate();
        let mut devices: Vec<String> =
            devices.map(|(n, device)| format!("{},iface={device}", name(n))).collect();
        let slaves: String = (0..members.len()).map(|n| format!(",slave={}", name(n))).collect();
        devices.push(format!("net_bonding0,mode=4{slaves}"));
        let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
        let inside = ["ip", "netns", "exec", namespace];
        let mut console = spawn_in(&inside, "dpdk-bond", &devices, &[], &[])?;
        console.wait_for(PROMPT, ANSWER_S)?;
        // Not the members themselves, whose frames are the bond's.
        let ports = format!("set portlist {},{}", members.len(), members.len() + 1);
        // And it must not insist: a bond without a partner takes nothing, and would get nothing from one either.
        for line in [ports.as_str(), "start"] {
            console.send(line)?;
            console.wait_for(PROMPT, ANSWER_S)?;
        }
        Ok(Bond { console })
    }

    /// The process.
    pub fn console(&mut self) -> &mut Console {
        &mut self.console
    }
}

/// Where `scripts/install-test-deps` puts testpmd.
pub fn program() -> std::path::PathBuf {
    cache().join("testpmd/run")
}

fn spawn(name: &str, devices: &[&str], memory: &[&str], options: &[&str]) -> Result<Console> {
    spawn_in(&[], name, devices, memory, options)
}

/// `inside`: the program, with arguments, that runs it.
fn spawn_in(
    inside: &[&str],
    name: &str,
    devices: &[&str],
    memory: &[&str],
    options: &[&str],
) -> Result<Console> {
    let program = program();
    ensure(program.is_file(), || format!("{} is missing: run scripts/install-test-deps", program.display()))?;
    let prefix = format!("{}-{name}", scratch::folder().file_name().unwrap_or_default().to_string_lossy());
    // Its answers would sit in the C library's buffer otherwise, while its prompt, written directly, overtakes them.
    let inside: Vec<&str> = inside.iter().copied().chain(["stdbuf"]).collect();
    let mut command = command(inside[0]);
    command
        .args(&inside[1..])
        .arg("-oL")
        .arg(program)
        // Two threads, commands and forwarding, that the kernel moves about: the machine has two cores for everything.
        .args(["--lcores", "0@(0-1),1@(0-1)", "--no-huge", "--no-pci", "--no-telemetry", "-m", "192"])
        .args(["--file-prefix", &prefix])
        .args(memory);
    for device in devices {
        command.args(["--vdev", device]);
    }
    command.args(["--", "-i", "--total-num-mbufs=16384"]).args(options);
    Console::spawn(name, &mut command)
}
