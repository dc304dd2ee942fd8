//! DPDK testpmd twice: as a bare vhost forwarder, and as a pair of guests whose driver is not ours.
//!
//! The pair runs a closed loop: bursts start on both ports, and each port sends back what it receives. So both directions
//! are busy, one core drives both guests, and the rate is what the switch and that core reach together.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use avio_tests::config::mac_of;
use avio_tests::console::{Console, command};
use avio_tests::failure::ensure;
use avio_tests::{Failure, Result, scratch};

use super::{GUEST_CORE, SWITCH_CORE};

/// How long testpmd may take to start or to answer, in seconds.
const ANSWER_S: u64 = 30;
/// Buffers of its own when they hold long frames: what fits its memory.
const JUMBO_MBUFS: u32 = 16_384;
const PROMPT: &str = "testpmd> ";
/// Bursts of 32 that start the loop on each port: half of a ring, so that it never overflows.
const FIRST_BURSTS: u32 = 4;

/// What comes in on a port leaves by its partner.
pub struct Forwarder {
    /// The process.
    pub console: Console,
}

/// Rings of the guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    /// Packed instead of split.
    pub packed: bool,
    /// Buffers are used in the order in which they were made available.
    pub in_order: bool,
    /// Receive buffers may be merged.
    pub mergeable: bool,
    /// The vectorised functions, where the processor has them.
    pub vectorized: bool,
}

impl Forwarder {
    /// Listens on a socket per port. Frames of up to `mtu` bytes of payload fit one of its buffers.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start(port_count: u16, tso: bool, mtu: u16) -> Result<Self> {
        let mut arguments = eal("fwd", SWITCH_CORE, 768);
        for port in 0..port_count {
            let path = Self::socket(port);
            drop(std::fs::remove_file(&path));
            let tso = if tso { ",tso=1" } else { "" };
            arguments.push("--vdev".into());
            arguments.push(format!("net_vhost{port},iface={},queues=1{tso}", path.display()));
        }
        arguments.extend(["--", "-i", "--forward-mode=io", "--auto-start"].map(String::from));
        if mtu > 1500 {
            arguments.push(format!("--max-pkt-len={}", mtu + 18));
            arguments.push(format!("--mbuf-size={}", mtu + 728));
            arguments.push(format!("--total-num-mbufs={JUMBO_MBUFS}"));
        }
        let mut console = spawn("testpmd", &arguments)?;
        console.wait_for(PROMPT, ANSWER_S)?;
        Ok(Self { console })
    }

    /// Forwards between a network device through AF_XDP, with these further options of that driver, and the guest's socket of this number.
    ///
    /// # Errors
    /// As [`Forwarder::start`].
    pub fn start_wire(device: &str, port: u16, options: &str) -> Result<Self> {
        let mut arguments = eal(&format!("wire{port}"), SWITCH_CORE, 384);
        let path = Self::socket(port);
        drop(std::fs::remove_file(&path));
        arguments.extend(["--vdev".into(), format!("net_af_xdp0,iface={device}{options}")]);
        arguments.extend(["--vdev".into(), format!("net_vhost0,iface={},queues=1", path.display())]);
        arguments.extend(["--", "-i", "--forward-mode=io"].map(String::from));
        let mut console = spawn(&format!("testpmd-wire{port}"), &arguments)?;
        console.wait_for(PROMPT, ANSWER_S)?;
        let mut forwarder = Self { console };
        forwarder.ask("set record-core-cycles on")?;
        forwarder.ask("start")?;
        Ok(forwarder)
    }

    /// One command; gives what testpmd says.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn ask(&mut self, line: &str) -> Result<String> {
        self.console.send(line)?;
        self.console.wait_for(PROMPT, ANSWER_S)
    }

    /// The socket of a port.
    pub fn socket(port: u16) -> PathBuf {
        scratch::folder().join(format!("v{port}.sock"))
    }
}

/// Two guests in one testpmd.
pub struct Pair {
    /// The process.
    pub console: Console,
}

impl Pair {
    /// Starts them on two sockets and starts the loop of frames of `len` bytes.
    ///
    /// # Errors
    /// When it does not start, or no back-end answers.
    pub fn start(name: &str, sockets: [&Path; 2], listen: bool, rings: Rings, len: u16) -> Result<Self> {
        let mut arguments = eal(name, GUEST_CORE, 192);
        arguments.push("--single-file-segments".into());
        for (port, socket) in sockets.iter().enumerate() {
            arguments.push("--vdev".into());
            arguments.push(format!(
                "net_virtio_user{port},path={},mac={},queues=1,queue_size=256,packed_vq={},mrg_rxbuf={},in_order={},vectorized={},server={}",
                socket.display(),
                mac_of(port as u16 + 1),
                u8::from(rings.packed),
                u8::from(rings.mergeable),
                u8::from(rings.in_order),
                u8::from(rings.vectorized),
                u8::from(listen),
            ));
        }
        arguments.extend(["--", "-i", "--total-num-mbufs=8192", "--forward-mode=io"].map(String::from));
        arguments.push(format!("--eth-peer=0,{}", mac_of(2)));
        arguments.push(format!("--eth-peer=1,{}", mac_of(1)));
        arguments.push(format!("--txpkts={len}"));
        let mut console = spawn(name, &arguments)?;
        console.wait_for(PROMPT, ANSWER_S)?;
        let mut pair = Self { console };
        // The same few cycles per burst whatever the switch is; tells whether the guests or the switch are what is waited for.
        pair.ask("set record-burst-stats on")?;
        // A back-end that connects by itself does so every second.
        std::thread::sleep(Duration::from_millis(if listen { 2500 } else { 300 }));
        pair.ask(&format!("start tx_first {FIRST_BURSTS}"))?;
        Ok(pair)
    }

    fn ask(&mut self, line: &str) -> Result<String> {
        self.console.send(line)?;
        self.console.wait_for(PROMPT, ANSWER_S)
    }

    /// Frames that both guests received in `window`, per second, and the share of their looks for frames that found none.
    ///
    /// # Errors
    /// When testpmd does not answer, or the loop has run dry.
    pub fn frames_per_s(&mut self, warmup: Duration, window: Duration) -> Result<(f64, f64)> {
        std::thread::sleep(warmup);
        self.ask("clear fwd stats all")?;
        let (before, at) = (self.received()?, Instant::now());
        std::thread::sleep(window);
        let (after, now) = (self.received()?, Instant::now());
        let empty_share = empty_share(&self.ask("show fwd stats all")?)?;
        ensure(after > before, || "no frame circulates between the testpmd guests".to_owned())?;
        Ok(((after - before) as f64 / (now - at).as_secs_f64(), empty_share))
    }

    fn received(&mut self) -> Result<u64> {
        let text = self.ask("show port stats all")?;
        let mut sum = 0;
        for part in text.split("RX-packets:").skip(1) {
            sum += part.split_whitespace().next().unwrap_or("").parse::<u64>()?;
        }
        Ok(sum)
    }
}

/// The share of receive bursts of no frames over all ports, out of lines like
/// `RX-bursts : 1000 [25% of 0 pkts + 75% of 32 pkts]`: whole percents, which is all that testpmd tells.
///
/// # Errors
/// When there is no such line.
fn empty_share(text: &str) -> Result<f64> {
    let (mut bursts, mut empty) = (0.0, 0.0);
    for part in text.split("RX-bursts").skip(1) {
        let line = part.lines().next().unwrap_or("").trim_start_matches([' ', ':']);
        let count: f64 = line.split_whitespace().next().unwrap_or("").parse()?;
        // Without a burst of none its share is left out.
        let percent = line.split_once("% of 0 pkts").and_then(|(front, _)| front.rsplit('[').next());
        bursts += count;
        empty += count * percent.map_or(Ok(0.0), |p| p.trim().parse::<f64>())? / 100.0;
    }
    ensure(bursts > 0.0, || format!("testpmd counted no bursts: {text}"))?;
    Ok(empty / bursts)
}

/// Options before the devices: the main thread on the guests' core, forwarding on `core`, `memory` MiB.
fn eal(name: &str, core: usize, memory: u32) -> Vec<String> {
    let prefix = format!("avb{}{name}", std::process::id());
    let lcores = format!("0@{GUEST_CORE},1@{core}");
    let memory = memory.to_string();
    [
        "--lcores",
        &lcores,
        "--in-memory",
        "--no-pci",
        "--no-telemetry",
        "-m",
        &memory,
        "--file-prefix",
        &prefix,
    ]
    .map(String::from)
    .to_vec()
}

fn spawn(name: &str, arguments: &[String]) -> Result<Console> {
    let unpacked = avio_tests::testpmd::program();
    let system = PathBuf::from("/usr/bin/dpdk-testpmd");
    let program = [system, unpacked].into_iter().find(|p| p.is_file()).ok_or_else(|| {
        Failure::new("dpdk-testpmd is missing: run 'scripts/install-test-deps' or 'apt-get install dpdk-dev'")
    })?;
    // Its answers would sit in the C library's buffer otherwise, while its prompt, written directly, overtakes them.
    let mut command = command("stdbuf");
    command.arg("-oL").arg(program).args(arguments);
    Console::spawn(name, &mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_bursts_are_weighed_by_port() {
        let text = "  RX-bursts : 300 [50% of 0 pkts + 50% of 32 pkts]\n  TX-bursts : 7 [0% of 0 pkts + 100% of 32 pkts]\n\
                      RX-bursts : 100 [0% of 0 pkts + 100% of 32 pkts]\n";
        assert_eq!(empty_share(text).unwrap(), 150.0 / 400.0);
        assert!(empty_share("no such line").is_err());
    }
}
