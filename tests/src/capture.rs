//! Frames as they are on a wire: `tcpdump` writes them into a file, tests read the bytes, and `tcpdump` itself is asked what it thinks of
//! their checksums. Put tags that the kernel keeps beside a frame back where they were (libpcap does).

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::console::{Console, command};
use crate::failure::ensure;
use crate::{Failure, Result, scratch};

/// Bytes before the first frame of a file, and before each frame (pcap-savefile(5)).
const FILE_HEADER: usize = 24;
const FRAME_HEADER: usize = 16;

/// A running capture.
pub struct Capture {
    tcpdump: Console,
    file: PathBuf,
}

impl Capture {
    /// Records what comes in at `device` and matches `filter` (pcap-filter(7)), in `namespace` if there is one. It records when this returns.
    ///
    /// # Errors
    /// When tcpdump is missing or there is no such device.
    pub fn start(namespace: Option<&str>, device: &str, filter: &str) -> Result<Capture> {
        Self::start_with(namespace, device, filter, &[])
    }

    /// The same with further options of tcpdump; with `-s`, frames are cut, and there is room for more of them at once.
    ///
    /// # Errors
    /// As [`Capture::start`].
    pub fn start_with(
        namespace: Option<&str>,
        device: &str,
        filter: &str,
        options: &[&str],
    ) -> Result<Capture> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{device}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let file = scratch::folder().join(format!("{name}.pcap"));
        let mut dump = match namespace {
            Some(namespace) => {
                let mut dump = command("ip");
                dump.args(["netns", "exec", namespace, "tcpdump"]);
                dump
            }
            None => command("tcpdump"),
        };
        // As root from end to end: the folder is nobody else's. Each frame is in the file as soon as it is here.
        dump.args(["-Z", "root", "-U", "--immediate-mode", "-n", "-Q", "in", "-i", device]);
        dump.args(options).arg("-w");
        dump.arg(&file).arg(filter);
        let mut tcpdump = Console::spawn(&format!("tcpdump-{name}"), &mut dump)?;
        tcpdump.wait_for("listening on", 10)?;
        Ok(Capture { tcpdump, file })
    }

    /// What has come so far, first come first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn frames(&self) -> Result<Vec<Vec<u8>>> {
        let bytes = std::fs::read(&self.file)?;
        let mut rest = bytes.get(FILE_HEADER..).unwrap_or_default();
        let mut frames = Vec::new();
        // Seconds, microseconds, bytes here, bytes on the wire; in this machine's order.
        while let Some((header, more)) = rest.split_at_checked(FRAME_HEADER) {
            let len = header[8..12].try_into().map_or(0, |len| u32::from_ne_bytes(len) as usize);
            // The last one may be half written.
            let Some((frame, more)) = more.split_at_checked(len) else { break };
            frames.push(frame.to_vec());
            rest = more;
        }
        Ok(frames)
    }

    /// All frames once `enough` holds for them.
    ///
    /// # Errors
    /// When it does not within ten seconds.
    pub fn frames_when(&self, what: &str, enough: impl Fn(&[Vec<u8>]) -> bool) -> Result<Vec<Vec<u8>>> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let frames = self.frames()?;
            if enough(&frames) {
                return Ok(frames);
            }
            ensure(Instant::now() < end, || format!("{what}: not on the wire: {}", hex(&frames)))?;
            sleep(Duration::from_millis(20));
        }
    }

    /// Ends it and gives what tcpdump says of each frame, checksums included, a line or more each.
    ///
    /// # Errors
    /// When tcpdump does not end, or cannot read what it wrote.
    pub fn explained(mut self) -> Result<String> {
        self.tcpdump.signal(Signal::INT)?;
        self.tcpdump.wait_end(5)?;
        let output = Command::new("tcpdump").args(["-n", "-e", "-vv", "-r"]).arg(&self.file).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure(output.status.success(), || {
            format!("tcpdump -r: {}{text}", String::from_utf8_lossy(&output.stderr))
        })?;
        Ok(text)
    }

    /// Ends it and has tcpdump verify the IP, TCP and UDP checksums of all that was recorded. Gives how many of TCP and UDP are right.
    ///
    /// # Errors
    /// When one is wrong.
    pub fn ensure_checksums(self) -> Result<usize> {
        let text = self.explained()?;
        for wrong in ["incorrect", "bad udp cksum", "bad cksum"] {
            ensure(!text.contains(wrong), || format!("{wrong}: {text}"))?;
        }
        let right = text.matches("(correct)").count() + text.matches("[udp sum ok]").count();
        if right == 0 {
            return Err(Failure::new(format!("nothing that has a checksum: {text}")));
        }
        Ok(right)
    }
}

/// The heads of frames, for failures.
#[must_use]
pub fn hex(frames: &[Vec<u8>]) -> String {
    let one = |frame: &Vec<u8>| {
        let head: String = frame.iter().take(40).map(|byte| format!("{byte:02x}")).collect();
        format!("{} bytes {head}", frame.len())
    };
    format!("{} frames: {}", frames.len(), frames.iter().map(one).collect::<Vec<_>>().join(", "))
}
