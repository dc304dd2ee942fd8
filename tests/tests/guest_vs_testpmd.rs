//! Our guest in a process against a back-end that nobody here wrote: DPDK's vhost library in testpmd, which forwards from one
//! guest to the other. Every ring layout and driver mode must carry every byte, in order, once; whatever our guest later
//! measures and verifies rests on this.

use std::process::ExitCode;

use avio_proto::virtio::features as f;
use avio_tests::case::{self, Case};
use avio_tests::failure::ensure;
use avio_tests::testpmd::ReferenceSwitch;
use avio_tests::{Failure, Result, scratch};
use avio_tools::pktgen::generate;
use avio_tools::pktgen::options::{Options, Plan};
use avio_tools::pktgen::report::Report;

fn main() -> ExitCode {
    case::main(&[
        Case::new("guest_vs_testpmd_split", 60, || {
            mode("", f::NET_MRG_RXBUF | f::RING_EVENT_IDX, f::RING_PACKED)
        }),
        Case::new("guest_vs_testpmd_split_not_mergeable", 60, || {
            mode("--no-mergeable", f::VERSION_1, f::NET_MRG_RXBUF)
        }),
        Case::new("guest_vs_testpmd_split_in_order", 60, || mode("--in-order", f::IN_ORDER, f::RING_PACKED)),
        Case::new("guest_vs_testpmd_split_indirect", 60, || {
            mode("--indirect", f::RING_INDIRECT_DESC, f::RING_PACKED)
        }),
        Case::new("guest_vs_testpmd_packed", 60, || {
            mode("--packed", f::RING_PACKED | f::NET_MRG_RXBUF, f::IN_ORDER)
        }),
        Case::new("guest_vs_testpmd_packed_in_order", 60, || {
            mode("--packed --in-order", f::RING_PACKED | f::IN_ORDER, f::RING_INDIRECT_DESC)
        }),
        Case::new("guest_vs_testpmd_packed_not_mergeable", 60, || {
            mode("--packed --in-order --no-mergeable", f::RING_PACKED | f::IN_ORDER, f::NET_MRG_RXBUF)
        }),
        Case::new("guest_vs_testpmd_sleeping", 60, || {
            mode("--notify wait", f::RING_EVENT_IDX, f::RING_PACKED)
        }),
        Case::new("guest_vs_testpmd_no_event_idx", 60, || {
            mode("--notify wait --no-event-idx", f::VERSION_1, f::RING_EVENT_IDX)
        }),
        Case::new("guest_vs_testpmd_jumbo_merged", 60, jumbo),
        Case::new("guest_vs_testpmd_two_queue_pairs", 60, queue_pairs),
        Case::new("guest_vs_testpmd_request_response", 60, request_response),
    ])
}

/// Each ring of 256 has then wrapped several times. No promise about speed: testpmd and the guests share two cores with
/// whatever else runs, and where five busy loops do, a second brings 3,000 frames instead of 20,000.
const ENOUGH: u64 = 1_000;

fn plan(line: &str) -> Result<Plan> {
    let (a, b) = (scratch::folder().join("a.sock"), scratch::folder().join("b.sock"));
    let line = format!("--socket {} --socket {} --quiet --cores 0 {line}", a.display(), b.display());
    let options: Options = line.parse().map_err(|e| Failure::new(format!("{e}")))?;
    options.plan(&[0]).map_err(Failure::new)
}

/// Runs `traffic` between two guests whose rings are as `driver` says. Nothing may be lost, however fast it goes: testpmd
/// holds what finds no buffer or a port that is not up yet ([`ReferenceSwitch`]), as our guest's ring holds what testpmd has not
/// taken.
fn run(queue_pairs: u16, driver: &str, traffic: &str) -> Result<Report> {
    let line = format!("{driver} {traffic}");
    let plan = plan(&line)?;
    // testpmd is killed when it is no longer needed, so its sockets stay, and it does not bind over old ones.
    for port in &plan.ports {
        drop(std::fs::remove_file(&port.socket));
    }
    let mut switch = ReferenceSwitch::start([&plan.ports[0].socket, &plan.ports[1].socket], queue_pairs)?;
    let report = generate(&plan).map_err(Failure::new)?;
    let dropped = switch.dropped()?;
    let clean = report.ok && report.duplicated == 0 && report.reordered == 0 && report.foreign == 0;
    ensure(clean && report.checked >= report.received && report.lost == Some(0) && dropped == 0, || {
        format!("{line}: testpmd dropped {dropped}; {report:?}")
    })?;
    Ok(report)
}

/// Small and large frames at a rate, then as fast as it goes; `has` and `lacks` prove that the
/// mode was really negotiated.
fn mode(driver: &str, has: u64, lacks: u64) -> Result {
    let paced = run(1, driver, "--pattern imix --rate 20k --duration 1 --verify 1")?;
    ensure(paced.received > ENOUGH, || format!("{driver}: {paced:?}"))?;
    for port in &paced.ports {
        let features = u64::from_str_radix(port.features.trim_start_matches("0x"), 16)?;
        ensure(features & has == has && features & lacks == 0, || {
            format!("{driver}: features {features:#x}")
        })?;
    }
    let flood = run(1, driver, "--size 64 --duration 1 --verify 1")?;
    ensure(flood.received > ENOUGH, || format!("{driver}: {flood:?}"))
}

/// Frames over five receive buffers.
fn jumbo() -> Result {
    let report = run(1, "", "--size 9000 --rate 5k --duration 1 --verify 1")?;
    ensure(report.received > ENOUGH / 5, || format!("{report:?}"))
}

fn queue_pairs() -> Result {
    let report = run(2, "--queues 2", "--flows 16 --rate 20k --duration 1 --verify 1")?;
    ensure(report.received > ENOUGH, || format!("{report:?}"))
}

fn request_response() -> Result {
    let report = run(1, "", "--pattern rr --duration 2 --verify 1")?;
    // A round trip wants four threads to run in turn: 10 ms each where other work has the two cores as well.
    ensure(report.rtt_us.count > 50 && report.rtt_us.p50_us > 0.0, || format!("{report:?}"))
}
