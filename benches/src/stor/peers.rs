//! qemu-storage-daemon and fio, as PEERS runs them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use avio_tests::console::{Console, command};
use avio_tests::failure::ensure;
use avio_tests::{Failure, Result, scratch};
use serde_json::Value;

use super::rows::{Backing, Load, MIX};
use super::target::{Target, Way};
use super::window::Reading;
use crate::beside::{GUEST_CORE, TARGET_CORE, process};

/// Size of null and memory disks, bytes.
pub const SIZE: u64 = 1 << 30;
/// What fio does before its window.
const RAMP: Duration = Duration::from_millis(100);
/// How long it may take until its jobs begin.
const START_MAX: Duration = Duration::from_secs(5);

/// Starts qemu-storage-daemon, known as `name`, on `path` (`None`: null-co); returns it and its socket. It runs on the daemon's core.
///
/// # Errors
/// When it does not start.
pub fn start_qsd(
    name: &str,
    backing: Backing,
    path: Option<&Path>,
    queues: u16,
) -> Result<(Console, PathBuf)> {
    let socket = scratch::folder().join(format!("{name}.sock"));
    let node = match path {
        None => format!("driver=null-co,node-name=d0,size={SIZE},read-zeroes=off"),
        // tmpfs takes no O_DIRECT under io_uring that would change anything: the page cache is the disk.
        Some(path) if backing == Backing::Memory => {
            format!("driver=file,node-name=d0,filename={},locking=off", path.display())
        }
        Some(path) => {
            let driver = if backing.is_file() { "file" } else { "host_device" };
            format!(
                "driver={driver},node-name=d0,filename={},aio=io_uring,cache.direct=on,locking=off",
                path.display()
            )
        }
    };
    let mut command = command("taskset");
    command.args(["-c", &TARGET_CORE.to_string(), "qemu-storage-daemon", "--object", "iothread,id=t0"]);
    command.args(["--blockdev", &node, "--export"]);
    command.arg(format!(
        "type=vhost-user-blk,id=e0,node-name=d0,addr.type=unix,addr.path={},writable=on,num-queues={queues},iothread=t0",
        socket.display()
    ));
    let mut console = Console::spawn(name, &mut command)?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while !socket.exists() {
        ensure(console.is_running() && Instant::now() < deadline, || {
            format!("qemu-storage-daemon does not start: {}", console.output())
        })?;
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok((console, socket))
}

/// Runs fio for one window on `path`, on the daemon's core.
///
/// # Errors
/// When it fails.
pub fn fio(backing: Backing, load: Load, target: Target, path: &Path, window: Duration) -> Result<Reading> {
    let mut command = Command::new("fio");
    command.args(["--name=w", "--ioengine=io_uring", "--direct=1", "--time_based", "--output-format=json"]);
    command.args(["--norandommap", "--randrepeat=1"]);
    if backing.is_zeroes() {
        command.arg("--zero_buffers");
    }
    command.arg(format!("--filename={}", path.display()));
    command.arg(format!("--rw={}", load.rw)).arg(format!("--bs={}", load.block));
    let depth = if target.way == Way::Deep { 4 * load.depth } else { load.depth };
    command.arg(format!("--iodepth={depth}")).arg(format!("--rwmixread={MIX}"));
    command
        .arg(format!("--runtime={}ms", window.as_millis()))
        .arg(format!("--ramp_time={}ms", RAMP.as_millis()));
    let cores = match target.way {
        Way::Twice => {
            command.args(["--numjobs=2", "--group_reporting=1"]);
            format!("{GUEST_CORE},{TARGET_CORE}")
        }
        _ => TARGET_CORE.to_string(),
    };
    command.arg(format!("--cpus_allowed={cores}"));
    match target.way {
        Way::Pinned => drop(command.args(["--fixedbufs=1", "--registerfiles=1"])),
        Way::Through => drop(command.arg("--sync=dsync")),
        _ => {}
    }
    // A guest that polls takes its core whole.
    let _spinner = (target.way == Way::Crowded).then(Spinner::start);
    let started = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = started.map_err(|e| Failure::new(format!("fio: {e}")))?;
    // Its own figures leave out the threads that the kernel adds to it for I/O that has to wait. It calibrates its clock first, for
    // longer than some windows are: they begin when its jobs do, each a process.
    let deadline = Instant::now() + START_MAX;
    while process::children(child.id())?.is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(RAMP + window / 3);
    let before = (process::by_family(child.id())?, Instant::now());
    std::thread::sleep(window / 3);
    let (after, elapsed) = (process::by_family(child.id())?, before.1.elapsed());
    let cpu_share = process::sum_since(&before.0, &after).ran_ns as f64 / elapsed.as_nanos() as f64;
    let output = child.wait_with_output().map_err(|e| Failure::new(format!("fio: {e}")))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure(output.status.success(), || format!("fio: {said}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let start = text.find('{').unwrap_or(0);
    let json: Value = serde_json::from_str(&text[start..]).map_err(|e| Failure::new(format!("fio: {e}")))?;
    let job = &json["jobs"][0];
    let of = |direction: &str, name: &str| job[direction][name].as_f64().unwrap_or(0.0);
    let iops = of("read", "iops") + of("write", "iops");
    ensure(iops > 0.0, || "fio: no request ended".to_owned())?;
    let main = if of("read", "iops") > 0.0 { "read" } else { "write" };
    let at = |p: &str| job[main]["clat_ns"]["percentile"][p].as_f64().unwrap_or(0.0) / 1e3;
    Ok(Reading {
        iops,
        latency_us: [at("50.000000"), at("99.000000"), at("99.900000")],
        cpu: cpu_share / iops * 1e6,
        ..Reading::default()
    })
}

/// A thread that keeps the guest's core busy until it is dropped.
struct Spinner {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Spinner {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            core_affinity::set_for_current(core_affinity::CoreId { id: GUEST_CORE });
            while !told.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It only spun: there is nothing that its end could say.
        drop(self.thread.take().map(JoinHandle::join));
    }
}
