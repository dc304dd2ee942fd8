//! A running Linux guest, whatever runs it: commands over its console, and the network tools inside it. Made by [`crate::qemu`]
//! and [`crate::uml`]; ends with the process when dropped.

use serde_json::Value;

use crate::console::Console;
use crate::failure::ensure;
use crate::{Failure, Result, guest_image};

/// How long an ordinary command in a guest may take, in seconds: emulated guests beside a busy switch are slow.
const COMMAND_S: u64 = 30;

/// A booted guest that takes commands.
pub struct LinuxGuest {
    console: Console,
    sequence: u32,
}

/// What `ping` counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pinged {
    /// Requests sent.
    pub sent: u32,
    /// Answers received.
    pub received: u32,
}

/// What `iperf3` measured.
#[derive(Debug, Clone, Copy)]
pub struct Throughput {
    /// Payload that arrived at the receiver, in bits per second.
    pub bits_per_second: f64,
    /// TCP segments sent again.
    pub retransmits: u64,
}

impl LinuxGuest {
    /// Waits until the guest behind `console` takes commands.
    ///
    /// # Errors
    /// When that takes more than `seconds`.
    pub fn boot(mut console: Console, seconds: u64) -> Result<LinuxGuest> {
        console.wait_for(guest_image::READY, seconds)?;
        Ok(LinuxGuest { console, sequence: 0 })
    }

    /// The same guest after it has moved to the process behind `console`.
    #[must_use]
    pub fn moved_to(self, console: Console) -> LinuxGuest {
        LinuxGuest { console, sequence: self.sequence }
    }

    /// The process that the guest is.
    pub fn console(&mut self) -> &mut Console {
        &mut self.console
    }

    /// Runs a shell command in the guest; gives its exit status and what it printed.
    ///
    /// # Errors
    /// When it does not end within `seconds`.
    pub fn run_for(&mut self, seconds: u64, command: &str) -> Result<(i32, String)> {
        self.sequence += 1;
        let mark = format!("@@{}:", self.sequence);
        // The mark is put together by the guest's shell, so an echo of the command would not contain it.
        self.console.send(&format!(
            "{{ {command} ; }} 2>&1 </dev/null; printf '\\n@@%s:%s@\\n' {} $?",
            self.sequence
        ))?;
        let text = self.console.wait_until(&format!("end of '{command}'"), seconds, |output| {
            let at = output.find(&mark)? + mark.len();
            output[at..].find('@').map(|end| at + end + 1)
        })?;
        let (printed, status) = text.rsplit_once(&mark).ok_or_else(|| Failure::new("the mark was there"))?;
        let status = status.trim_end_matches('@').parse()?;
        Ok((status, printed.trim().replace('\r', "")))
    }

    /// Runs a shell command in the guest that must succeed; gives what it printed.
    ///
    /// # Errors
    /// When it fails or takes too long.
    pub fn run(&mut self, command: &str) -> Result<String> {
        let (status, printed) = self.run_for(COMMAND_S, command)?;
        ensure(status == 0, || format!("in the guest, '{command}' ended with {status}: {printed}"))?;
        Ok(printed)
    }

    /// Sets the address of `eth0` (`192.0.2.1/24`) and brings it up.
    ///
    /// # Errors
    /// When the guest has no `eth0`.
    pub fn set_address(&mut self, address: &str) -> Result {
        self.run(&format!("ip addr add {address} dev eth0 && ip link set eth0 up"))?;
        Ok(())
    }

    /// Makes `eth0.VLAN` of `eth0` (802.1Q; module 8021q) with an address and brings both up.
    ///
    /// # Errors
    /// When the guest has no `eth0`, or its kernel no VLANs.
    pub fn set_vlan(&mut self, vlan: u16, address: &str) -> Result {
        self.run(&format!(
            "ip link set eth0 up && ip link add link eth0 name eth0.{vlan} type vlan id {vlan} && \
             ip addr add {address} dev eth0.{vlan} && ip link set eth0.{vlan} up"
        ))?;
        Ok(())
    }

    /// The MAC address of `eth0`.
    ///
    /// # Errors
    /// When the guest has no `eth0`.
    pub fn mac(&mut self) -> Result<String> {
        self.run("cat /sys/class/net/eth0/address")
    }

    /// Gives `eth0` another MAC address, as a guest's administrator may.
    ///
    /// # Errors
    /// When the guest's driver refuses.
    pub fn set_mac(&mut self, mac: &str) -> Result {
        self.run(&format!("ip link set eth0 down && ip link set eth0 address {mac} && ip link set eth0 up"))?;
        Ok(())
    }

    /// Sends `count` echo requests, five a second, to `address`, each with `options` (such as `-s 8000`).
    ///
    /// # Errors
    /// When ping cannot be run; lost answers are no error.
    pub fn ping(&mut self, address: &str, count: u32, options: &str) -> Result<Pinged> {
        let (_, text) =
            self.run_for(COMMAND_S, &format!("ping -c {count} -i 0.2 -W 2 {options} {address}"))?;
        let number = |before: &str| {
            let head = text.split(before).next()?;
            head.rsplit([' ', '\n']).next()?.parse().ok()
        };
        match (number(" packets transmitted"), number(" packets received")) {
            (Some(sent), Some(received)) => Ok(Pinged { sent, received }),
            _ => Err(Failure::new(format!("ping said: {text}"))),
        }
    }

    /// Pings until one answer comes: neighbours have then learnt each other.
    ///
    /// # Errors
    /// When none has come after `seconds`.
    pub fn ping_until_answered(&mut self, address: &str, seconds: u64) -> Result {
        let (status, text) = self.run_for(
            seconds + COMMAND_S,
            &format!("for i in $(seq {seconds}); do ping -c 1 -W 1 {address} && break; done"),
        )?;
        ensure(status == 0, || format!("no answer from {address} in {seconds} s: {text}"))
    }

    /// Starts an iperf3 server in the background; it listens when this returns.
    ///
    /// # Errors
    /// When it does not listen within ten seconds.
    pub fn serve_iperf(&mut self) -> Result {
        self.run("iperf3 -s -D")?;
        // Port 5201, state LISTEN.
        let listening = "grep -q ':1451 .* 0A ' /proc/net/tcp /proc/net/tcp6 2>/dev/null";
        let (status, text) = self.run_for(
            15,
            &format!("for i in $(seq 50); do {listening} && break; sleep 0.2; done; {listening}"),
        )?;
        ensure(status == 0, || format!("iperf3 does not listen: {text}"))
    }

    /// Runs iperf3 against `address` for `seconds` with `options` (`-R` for the other direction).
    ///
    /// # Errors
    /// When iperf3 fails.
    pub fn iperf(&mut self, address: &str, seconds: u64, options: &str) -> Result<Throughput> {
        // A server that is still ending the test before refuses the next, and iperf3 says so in its JSON, with status 0.
        let command = format!("iperf3 -c {address} -t {seconds} -J {options}");
        let (mut status, mut text) = self.run_for(seconds + COMMAND_S, &command)?;
        for _ in 0..3 {
            if !text.contains("unable to ") {
                break;
            }
            std::thread::sleep(std::time::Duration::from_secs(1));
            (status, text) = self.run_for(seconds + COMMAND_S, &command)?;
        }
        ensure(status == 0, || format!("{command} ended with {status}: {text}"))?;
        let json: Value =
            serde_json::from_str(&text).map_err(|e| Failure::new(format!("iperf3: {e} in {text}")))?;
        let end = &json["end"];
        // TCP has a sum at the receiver; UDP has one sum for both.
        let arrived =
            end["sum_received"]["bits_per_second"].as_f64().or(end["sum"]["bits_per_second"].as_f64());
        Ok(Throughput {
            bits_per_second: arrived.ok_or_else(|| Failure::new(format!("iperf3 has no sum: {text}")))?,
            retransmits: end["sum_sent"]["retransmits"].as_u64().unwrap_or(0),
        })
    }

    /// Sends one raw Ethernet frame out of `eth0`, given as bytes.
    ///
    /// # Errors
    /// When the guest's kernel refuses it.
    pub fn send_raw(&mut self, frame: &[u8]) -> Result {
        let bytes: String = frame.iter().map(|byte| format!("\\x{byte:02x}")).collect();
        self.run(&format!("printf '{bytes}' | socat -u - INTERFACE:eth0"))?;
        Ok(())
    }
}
