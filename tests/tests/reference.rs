//! The harness proven against a back-end that nobody here wrote (DPDK's): when these pass and a test of the switch fails, the
//! switch is at fault, not the harness.

use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use avio_tests::case::{self, Case};
use avio_tests::config::mac_of;
use avio_tests::failure::ensure;
use avio_tests::qemu::Qemu;
use avio_tests::testpmd::{Driver, Mode, ReferenceSwitch, Testpmd};
use avio_tests::{Result, scratch};

fn main() -> ExitCode {
    case::main(&[
        Case::new("reference_testpmd_guests", 30, testpmd_guests),
        Case::new("reference_two_qemu_guests", 120, || two_qemu_guests(1, "")),
        Case::new("reference_qemu_queue_pairs", 120, || two_qemu_guests(2, "-P 4")),
    ])
}

fn testpmd_guests() -> Result {
    let (a, b) = (scratch::folder().join("a.sock"), scratch::folder().join("b.sock"));
    let _switch = ReferenceSwitch::start([&a, &b], 1)?;
    let sink = Mode { name: "rxonly", peer: None, options: &[] };
    let source = Mode { name: "txonly", peer: Some(&mac_of(1)), options: &[] };
    let mut receiver = Testpmd::start("receiver", &a, &Driver::new(&mac_of(1)), &sink)?;
    let mut sender = Testpmd::start("sender", &b, &Driver::new(&mac_of(2)), &source)?;
    receiver.forward()?;
    sender.forward()?;
    sleep(Duration::from_secs(1));
    sender.stop()?;
    sleep(Duration::from_millis(300));
    let (sent, got) = (sender.stats()?, receiver.stats()?);
    ensure(got.rx_packets > 0 && got.rx_packets <= sent.tx_packets, || format!("sent {sent:?}, got {got:?}"))
}

fn two_qemu_guests(queue_pairs: u16, options: &str) -> Result {
    let (a, b) = (scratch::folder().join("a.sock"), scratch::folder().join("b.sock"));
    let _switch = ReferenceSwitch::start([&a, &b], queue_pairs)?;
    // Not User-Mode Linux: DPDK offers it a control queue that nobody serves.
    let (first_mac, second_mac) = (mac_of(1), mac_of(2));
    let first = Qemu { queue_pairs, ..Qemu::new("first", &a, &first_mac) }.launch()?;
    let second = Qemu { queue_pairs, ..Qemu::new("second", &b, &second_mac) }.launch()?;
    let (mut first, mut second) = (first.wait()?, second.wait()?);
    first.set_address("192.0.2.1/24")?;
    second.set_address("192.0.2.2/24")?;
    second.ping_until_answered("192.0.2.1", 10)?;
    let pinged = first.ping("192.0.2.2", 5, "")?;
    ensure(pinged.received == 5, || format!("{pinged:?}"))?;
    second.serve_iperf()?;
    let forth = first.iperf("192.0.2.2", 2, options)?;
    let back = first.iperf("192.0.2.2", 2, &format!("{options} -R"))?;
    println!("{forth:?} {back:?}");
    ensure(forth.bits_per_second > 1e6 && back.bits_per_second > 1e6, || format!("{forth:?} {back:?}"))
}
