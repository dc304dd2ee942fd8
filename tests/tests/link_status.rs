//! What guests see of their wire: a Linux guest with virtio-net and one with QEMU's e1000, on a switch whose uplink loses its carrier.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use avio_tests::Result;
use avio_tests::case::{self, Case};
use avio_tests::config::{Config, mac_of};
use avio_tests::daemon::Daemon;
use avio_tests::failure::ensure;
use avio_tests::linux_guest::LinuxGuest;
use avio_tests::qemu::{self, Qemu};
use avio_tests::wire::Wire;

/// Two emulated guests boot, and a daemon is started again; that takes about 30 s.
const QEMU_S: u64 = 180;
/// A loss is told half a second later; an e1000 polls its link every other second, and its kernel may be busy.
const SEEN_S: u64 = 20;
const FAR: &str = "192.0.2.9";

fn main() -> ExitCode {
    case::main(&[Case::new("guests_see_their_wire", QEMU_S, guests_see_their_wire)])
}

/// Waits until the guest's kernel says `carrier` ("1": up) of its interface.
fn wait_carrier(guest: &mut LinuxGuest, who: &str, carrier: &str) -> Result {
    let end = Instant::now() + Duration::from_secs(SEEN_S);
    loop {
        let now = guest.run("cat /sys/class/net/eth0/carrier")?;
        if now == carrier {
            return Ok(());
        }
        ensure(Instant::now() < end, || format!("{who}: the carrier stays {now}, not {carrier}"))?;
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Waits until `avio net` says that the guests were told `status`; a guest without a control socket is told nothing.
fn wait_told(daemon: &Daemon, status: &str) -> Result {
    let told = |port: u32| daemon.vswitch("vs")?.port(port).map(|port| port.link_status.clone());
    let end = Instant::now() + Duration::from_secs(SEEN_S);
    loop {
        let now = [told(1)?, told(2)?, told(3)?];
        let wanted = Some(status.to_owned());
        if now == [wanted.clone(), wanted, None] {
            return Ok(());
        }
        ensure(Instant::now() < end, || format!("{now:?} instead of {status}"))?;
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn guests_see_their_wire() -> Result {
    let wire = Wire::new(&format!("{FAR}/24"))?;
    let vswitch = format!("uplink = \"{}\"", wire.near);
    let config = |vswitch: &str| {
        let config = Config::default().vswitch("vs", vswitch);
        config.guest("g1", "vs", 1, "").lan("g2", "vs", 2, "").guest("g3", "vs", 3, "")
    };
    let mut daemon = Daemon::start(config(&vswitch))?;
    let run_dir = daemon.run_folder();
    let (socket, mac) = (daemon.socket(0), mac_of(1));
    let mut one = Qemu::new("virtio", &socket, &mac);
    one.device = "id=net-0-5";
    one.arguments = qemu::control_socket(&run_dir, "g1");
    let one = one.launch()?;
    // As a guest's own daemon would have it: the folder is made by whoever starts the VMM.
    std::fs::create_dir_all(run_dir.join("guests/g2"))?;
    let two = qemu::launch_e1000("e1000", "g2-0-5", &mac_of(2), qemu::control_socket(&run_dir, "g2"))?;
    let (mut one, mut two) = (one.wait()?, two.wait()?);
    one.set_address("192.0.2.1/24")?;
    two.set_address("192.0.2.2/24")?;
    wait_told(&daemon, "Up")?;
    one.ping_until_answered(FAR, 15)?;
    two.ping_until_answered(FAR, 15)?;

    wire.far_ip(&["link", "set", &wire.far, "down"])?;
    wait_carrier(&mut one, "virtio-net", "0")?;
    wait_carrier(&mut two, "e1000", "0")?;
    wait_told(&daemon, "Down")?;
    let shown = daemon.avio(&["net", "-S", "vs", "-p", "1", "-V"])?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let line = shown.lines().find(|line| line.contains("Link Status"));
    ensure(line.is_some_and(|line| line.ends_with("Down")), || format!("avio net -V says:\n{shown}"))?;

    // QEMU sets the link up when its back-end is there again.
    daemon.kill();
    daemon.restart()?;
    wait_told(&daemon, "Down")?;
    wait_carrier(&mut one, "virtio-net after a restart", "0")?;

    wire.far_ip(&["link", "set", &wire.far, "up"])?;
    wait_carrier(&mut one, "virtio-net", "1")?;
    wait_carrier(&mut two, "e1000", "1")?;
    one.ping_until_answered(FAR, 15)?;
    two.ping_until_answered(FAR, 15)?;

    // Guests need not see it.
    wire.far_ip(&["link", "set", &wire.far, "down"])?;
    wait_carrier(&mut one, "virtio-net", "0")?;
    daemon.config = config(&format!("{vswitch}\n[[uplink]]\nname = \"{}\"\nlink_status = false", wire.near));
    daemon.reload()?;
    wait_carrier(&mut one, "virtio-net", "1")?;
    daemon.ensure_healthy()?;
    let log = daemon.console()?.output();
    ensure(!log.contains("cannot be told"), || "a VMM could not be told".to_owned())
}
