//! What guests leave to the switch and the switch to guests, each with each: no offload, partial checksums, TCP segmentation at the sender and at the receiver;
//! guest to guest, guest to wire, wire to guest. Payload and checksums are compared byte for byte, on the wire by tcpdump too. In a network namespace of
//! its own (root).

use std::process::ExitCode;
use std::time::{Duration, Instant};

use avio_guest::net::Offloads;
use avio_proto::virtio::net::{F_NEEDS_CSUM, GSO_TCPV4, NetHeader};
use avio_tests::Result;
use avio_tests::capture::{Capture, hex};
use avio_tests::case::{self, Case};
use avio_tests::config::{Config, mac_of};
use avio_tests::daemon::Daemon;
use avio_tests::driver::Driver;
use avio_tests::failure::ensure;
use avio_tests::frames::{finish, is_right, tcp, tcp_unfinished};
use avio_tests::netns::{host, inside};
use avio_tests::uplink::wait_device;
use avio_tests::wire::{RawSender, run};

/// In seconds; it takes about three.
const LIMIT_S: u64 = 60;
/// A host at the far end.
const FAR: &str = "02:00:00:00:00:63";
/// The uplink, and the other end of its wire.
const UPLINK: &str = "up0";
const WIRE: &str = "wire0";
/// Who leaves what to whom.
const KINDS: [Offloads; 3] = [Offloads::None, Offloads::Checksum, Offloads::Tso];
/// Payload of a segment.
const SEGMENT: u16 = 1000;
/// Where a frame's sequence number stands, and where its payload begins.
const SEQUENCE_AT: usize = 38;
const PAYLOAD_AT: usize = 54;

fn main() -> ExitCode {
    case::main(&[Case::new("each_with_each", LIMIT_S, || inside(each_with_each)).data_path()])
}

/// What a sender with `offloads` sends to `to`, as it leaves it to the switch; and the payload that is to arrive.
fn sent(offloads: Offloads, to: &str, from: &str) -> (NetHeader, Vec<u8>) {
    let header = NetHeader {
        flags: F_NEEDS_CSUM,
        hdr_len: 54,
        csum_start: 34,
        csum_offset: 16,
        ..NetHeader::default()
    };
    match offloads {
        Offloads::None => (NetHeader::default(), tcp(to, from, SEGMENT)),
        Offloads::Checksum => (header, tcp_unfinished(to, from, SEGMENT)),
        Offloads::Tso | Offloads::All => (
            NetHeader { gso_type: GSO_TCPV4, gso_size: SEGMENT, ..header },
            tcp_unfinished(to, from, 10 * SEGMENT + 77),
        ),
    }
}

/// The payload of segments of one flow, in their order.
fn payload(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut frames: Vec<&Vec<u8>> = frames.iter().collect();
    frames.sort_by_key(|frame| frame[SEQUENCE_AT..SEQUENCE_AT + 4].to_vec());
    frames.iter().flat_map(|frame| frame[PAYLOAD_AT..].to_vec()).collect()
}

/// Waits for `wanted` at a guest; nothing is left to it that it did not ask for, and all that is not is right.
fn ensure_got(guest: &mut Driver, offloads: Offloads, wanted: &[u8], what: &str) -> Result {
    let end = Instant::now() + Duration::from_secs(5);
    let mut frames = Vec::new();
    while payload(&frames).len() < wanted.len() {
        for (header, mut frame) in guest.received_with()? {
            let told = || format!("{what}: {header:?} {}", hex(std::slice::from_ref(&frame)));
            let is_partial = header.flags & F_NEEDS_CSUM != 0;
            ensure(!is_partial || offloads != Offloads::None, told)?;
            ensure(header.gso_type == 0 || offloads == Offloads::Tso, told)?;
            ensure(header.gso_type != 0 || frame.len() <= 1514, told)?;
            if is_partial {
                ensure((header.csum_start, header.csum_offset) == (34, 16), told)?;
                finish(&mut frame);
            }
            ensure(is_right(&frame), || {
                format!("{what}: wrong checksum: {header:?} {}", hex(std::slice::from_ref(&frame)))
            })?;
            frames.push(frame);
        }
        ensure(Instant::now() < end, || format!("{what}: only {}", hex(&frames)))?;
        std::thread::sleep(Duration::from_millis(1));
    }
    ensure(payload(&frames) == wanted, || format!("{what}: another payload: {}", hex(&frames)))
}

fn each_with_each() -> Result {
    run("ip", &["link", "add", UPLINK, "type", "veth", "peer", "name", WIRE])?;
    for device in [UPLINK, WIRE] {
        run("ethtool", &["-K", device, "tx", "off"])?;
        host(&format!("echo 1 > /proc/sys/net/ipv6/conf/{device}/disable_ipv6"))?;
        run("ip", &["link", "set", device, "up"])?;
    }
    let mut config = Config::default().vswitch("vs", &format!("uplink = \"{UPLINK}\""));
    // Senders are 1 to 3, receivers 4 to 6.
    for number in 1..=6 {
        config = config.guest(&format!("g{number}"), "vs", number, "");
    }
    let mut daemon = Daemon::start(config)?;
    let mut guests = Vec::new();
    for (index, offloads) in KINDS.into_iter().chain(KINDS).enumerate() {
        guests.push(Driver::connect(&daemon.socket(index), offloads)?);
        daemon.wait_active(index as u32 + 1)?;
    }
    wait_device(&daemon, "Up")?;
    let capture = Capture::start(None, WIRE, "tcp")?;
    let far = RawSender::new(WIRE)?;
    for (from, sender) in KINDS.into_iter().enumerate() {
        let mac = mac_of(from as u16 + 1);
        for (to, receiver) in KINDS.into_iter().enumerate() {
            let (header, frame) = sent(sender, &mac_of(to as u16 + 4), &mac);
            guests[from].send_with(&header, &frame)?;
            let what = format!("{sender:?} to {receiver:?}");
            ensure_got(&mut guests[to + 3], receiver, &frame[PAYLOAD_AT..], &what)?;
        }
        let (header, frame) = sent(sender, FAR, &mac);
        let seen = capture.frames()?.len();
        guests[from].send_with(&header, &frame)?;
        let wanted = &frame[PAYLOAD_AT..];
        let left = capture.frames_when(&format!("{sender:?} to the wire"), |frames| {
            payload(&frames[seen..]).len() >= wanted.len()
        })?;
        let left = &left[seen..];
        ensure(payload(left) == wanted, || {
            format!("{sender:?} to the wire: another payload: {}", hex(left))
        })?;
        ensure(left.iter().all(|frame| frame.len() <= 1514 && is_right(frame)), || {
            format!("{sender:?} to the wire: {}", hex(left))
        })?;
    }
    for (to, receiver) in KINDS.into_iter().enumerate() {
        let segments: Vec<Vec<u8>> = (0..10u32)
            .map(|number| {
                let mut frame = tcp_unfinished(&mac_of(to as u16 + 4), FAR, SEGMENT);
                let sequence = 1 + number * u32::from(SEGMENT);
                frame[SEQUENCE_AT..SEQUENCE_AT + 4].copy_from_slice(&sequence.to_be_bytes());
                finish(&mut frame);
                frame
            })
            .collect();
        segments.iter().try_for_each(|frame| far.send(frame))?;
        ensure_got(&mut guests[to + 3], receiver, &payload(&segments), &format!("the wire to {receiver:?}"))?;
    }
    let right = capture.ensure_checksums()?;
    ensure(right == 13, || format!("{right} checksums that tcpdump found right"))?;
    daemon.ensure_healthy()
}
