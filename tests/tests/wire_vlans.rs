//! VLANs on a real wire, frame by frame: access ports, trunks, the native VLAN, priority tags, offloads in a VLAN, tags in the frame's bytes and beside
//! it. (Linux' own VLAN devices are in `guest_kernels.rs`.) What leaves is read off the wire by tcpdump, what arrives is compared byte for byte. Each case has a
//! network namespace of its own (root).

use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use avio_guest::net::Offloads;
use avio_proto::virtio::net::{F_NEEDS_CSUM, GSO_TCPV4, NetHeader};
use avio_tests::capture::{Capture, hex};
use avio_tests::case::{self, Case};
use avio_tests::config::{Config, mac_of};
use avio_tests::daemon::Daemon;
use avio_tests::driver::Driver;
use avio_tests::failure::ensure;
use avio_tests::frames::{BROADCAST, EXPERIMENT, ethernet, tcp, tcp_unfinished, with_tag};
use avio_tests::netns::{host, inside};
use avio_tests::uplink::{best, device};
use avio_tests::wire::{RawSender, run};
use avio_tests::{Failure, Result};
use avio_vswitch::port::xdp::{Wanted, open_xsk};

/// For cases without a real guest, in seconds; they take about two.
const ALONE_S: u64 = 40;
/// A host at the far end.
const FAR: &str = "02:00:00:00:00:63";
/// The uplink, and the other end of its wire.
const UPLINK: &str = "up0";
const WIRE: &str = "wire0";

fn main() -> ExitCode {
    case::main(&[
        Case::new("access_port", ALONE_S, || inside(access_port)).data_path(),
        Case::new("trunk_port", ALONE_S, || inside(trunk_port)).data_path(),
        Case::new("native_vlan", ALONE_S, || inside(native_vlan)).data_path(),
        Case::new("priority_tags", ALONE_S, || inside(priority_tags)).data_path(),
        Case::new("offloads_in_vlans", ALONE_S, || inside(offloads_in_vlans)).data_path(),
        Case::new("checksums_by_metadata", ALONE_S, || inside(checksums_by_metadata)),
        Case::new("checksums_of_long_frames", ALONE_S, || inside(checksums_of_long_frames)),
        Case::new("frames_without_packets", ALONE_S, || inside(frames_without_packets)),
        Case::new("tags_beside_frames", ALONE_S, || inside(tags_beside_frames)).data_path(),
        Case::new("tags_without_metadata", ALONE_S, || inside(tags_without_metadata)),
        Case::new("service_tags", ALONE_S, || inside(service_tags)).data_path(),
    ])
}

/// A switch with a wire, guests on it, and a capture of what leaves.
struct Site {
    daemon: Daemon,
    guests: Vec<Driver>,
    capture: Capture,
    /// What [`Site::arrive`] sends with.
    from: RawSender,
    sent: u16,
}

/// A guest for each of `ports`, whose text are lines of its `[[network]]`, in front of a veth pair.
fn site(uplink: &str, ports: &[&str], offloads: Offloads) -> Result<Site> {
    site_with(&[], uplink, ports, offloads)
}

/// The same, the daemon with these variables in its environment.
fn site_with(environment: &[(&str, &str)], uplink: &str, ports: &[&str], offloads: Offloads) -> Result<Site> {
    run("ip", &["link", "add", UPLINK, "type", "veth", "peer", "name", WIRE])?;
    // A packet socket leaves checksums to the kernel, and the kernel to a device that can; a veth would pass that on to its other end.
    for device in [UPLINK, WIRE] {
        run("ethtool", &["-K", device, "tx", "off"])?;
        // No IPv6: nobody but these tests speaks here.
        host(&format!("echo 1 > /proc/sys/net/ipv6/conf/{device}/disable_ipv6"))?;
        run("ip", &["link", "set", device, "up"])?;
    }
    let vswitch = format!("uplink = \"{UPLINK}\"\n[[uplink]]\nname = \"{UPLINK}\"\n{uplink}");
    let mut config = Config::default().vswitch("vs", &vswitch);
    for (number, lines) in (1..).zip(ports) {
        config = config.guest(&format!("g{number}"), "vs", number, lines);
    }
    let mut daemon = Daemon::start(config)?;
    if !environment.is_empty() {
        daemon.stop()?;
        daemon.restart_with(environment, 5)?;
    }
    let mut guests = Vec::new();
    for index in 0..ports.len() {
        guests.push(Driver::connect(&daemon.socket(index), offloads)?);
        daemon.wait_active(index as u32 + 1)?;
    }
    let capture = Capture::start(None, WIRE, "")?;
    let site = Site { daemon, guests, capture, from: RawSender::new(WIRE)?, sent: 0 };
    site.wait_up()?;
    Ok(site)
}

impl Site {
    /// Until the device is open.
    fn wait_up(&self) -> Result {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let output = self.daemon.avio(&["--json", "net", "-S", "vs", "-A"])?;
            let shown: serde_json::Value = serde_json::from_slice(&output.stdout)?;
            if shown["wire"]["members"][0]["state"] == "Up" {
                return Ok(());
            }
            ensure(Instant::now() < end, || format!("the uplink is not up: {shown}"))?;
            sleep(Duration::from_millis(20));
        }
    }

    /// Puts one frame on the wire at the far end.
    fn arrive(&self, frame: &[u8]) -> Result {
        self.from.send(frame)
    }

    /// A frame that is told from every other.
    fn frame(&mut self, destination: &str, source: &str) -> Vec<u8> {
        self.sent += 1;
        let mut frame = ethernet(destination, source, EXPERIMENT);
        frame[20..22].copy_from_slice(&self.sent.to_be_bytes());
        frame
    }

    /// The frames of these tests that have left, once `last` has.
    fn left(&self, last: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.capture.frames_when("the last frame", |frames| frames.iter().any(|frame| frame == last))
    }

    /// Guest `index` has got exactly `wanted`, the last of which ends the wait.
    fn ensure_got(&mut self, index: usize, wanted: &[Vec<u8>], what: &str) -> Result {
        let last = wanted.last().map(Vec::as_slice).unwrap_or_default();
        let got = self.guests[index].received_until(last).map_err(|e| e.while_doing(what))?;
        ensure(got == wanted, || format!("{what}: got {}, not {}", hex(&got), hex(wanted)))
    }
}

/// Each of `frames` arrives on its own way: group-addressed ones come to the switch by way of the kernel, which takes tags out and keeps them beside the
/// frame, and unicast through XDP with its tag inside; both by way of the kernel where packet sockets are all that there is.
const TO_GUEST: [fn() -> String; 2] = [|| mac_of(1), || BROADCAST.to_owned()];

fn access_port() -> Result {
    let mut site = site("", &["vlan = 120", "vlan = 121"], Offloads::None)?;
    // Out: a tag, priority 0; also for a frame to all; none of what a guest tags itself.
    let mut wanted = Vec::new();
    for destination in [FAR, BROADCAST] {
        let frame = site.frame(destination, &mac_of(1));
        for tci in [120, 121, 0, 5 << 13] {
            site.guests[0].send(&with_tag(&frame, tci))?;
        }
        site.guests[0].send(&frame)?;
        wanted.push(with_tag(&frame, 120));
    }
    let left = site.left(&wanted[1])?;
    ensure(left == wanted, || format!("left: {}", hex(&left)))?;
    let port = site.daemon.vswitch_when("vs", 3, |v| v.port(1).is_ok_and(|p| p.counters.passed() == 2))?;
    ensure(port.port(1)?.discarded("guest_tagged") == 8, || format!("{port:?}"))?;
    // In: without its tag, whatever its priority; nothing of another VLAN, without a tag, with a priority tag, or with two.
    for to in TO_GUEST {
        let mut wanted = Vec::new();
        for tci in [120, 120 | 5 << 13, 120 | 1 << 12] {
            let frame = site.frame(&to(), FAR);
            for other in [121, 122, 0, 7 << 13, 4095] {
                site.arrive(&with_tag(&frame, other))?;
            }
            site.arrive(&frame)?;
            site.arrive(&with_tag(&with_tag(&frame, 120), 120))?;
            site.arrive(&with_tag(&frame, tci))?;
            wanted.push(frame);
        }
        site.ensure_got(0, &wanted, &to())?;
    }
    // The other guest has got its three broadcasts, without a tag, and nothing else.
    let others = site.guests[1].received()?;
    ensure(others.len() == 3 && others.iter().all(|frame| frame.len() == 60), || hex(&others))?;
    site.daemon.ensure_healthy()
}

fn trunk_port() -> Result {
    let mut site = site("", &["trunk = [10, 20]", "vlan = 20"], Offloads::None)?;
    // Out: the tags that it may send, and no others.
    let mut wanted = Vec::new();
    for vlan in [10, 20] {
        let frame = site.frame(FAR, &mac_of(1));
        for other in [30, 1, 4094, 4095] {
            site.guests[0].send(&with_tag(&frame, other))?;
        }
        site.guests[0].send(&with_tag(&with_tag(&frame, vlan), vlan))?;
        site.guests[0].send(&with_tag(&frame, vlan))?;
        wanted.push(with_tag(&frame, vlan));
    }
    let left = site.left(&wanted[1])?;
    ensure(left == wanted, || format!("left: {}", hex(&left)))?;
    // In: with their tags.
    for to in TO_GUEST {
        let mut wanted = Vec::new();
        for vlan in [10, 20] {
            let frame = site.frame(&to(), FAR);
            for other in [30, 1, 4095] {
                site.arrive(&with_tag(&frame, other))?;
            }
            site.arrive(&with_tag(&frame, vlan))?;
            wanted.push(with_tag(&frame, vlan));
        }
        site.ensure_got(0, &wanted, &to())?;
    }
    // The access port of VLAN 20 got one broadcast from the wire.
    let others = site.guests[1].received()?;
    ensure(others.len() == 1 && others[0].len() == 60, || hex(&others))?;
    site.daemon.ensure_healthy()
}

fn native_vlan() -> Result {
    let mut site = site("native_vlan = 10", &["vlan = 10", "vlan = 20", "trunk = [10, 20]"], Offloads::None)?;
    // Out: VLAN 10 goes without a tag, from an access port and from a trunk; VLAN 20 with it.
    let frames: Vec<Vec<u8>> = (1..=3).map(|port| site.frame(FAR, &mac_of(port))).collect();
    site.guests[0].send(&frames[0])?;
    site.guests[1].send(&frames[1])?;
    site.guests[2].send(&with_tag(&frames[2], 10))?;
    site.guests[2].send(&with_tag(&frames[2], 20))?;
    let wanted = [frames[0].clone(), with_tag(&frames[1], 20), frames[2].clone(), with_tag(&frames[2], 20)];
    let left = site.left(&wanted[3])?;
    ensure(left == wanted, || format!("left: {}", hex(&left)))?;
    // In: what has no tag, or a priority tag, is VLAN 10's; so is what has its tag.
    let mut of_ten = Vec::new();
    for tag in [None, Some(0), Some(3 << 13), Some(10)] {
        let frame = site.frame(BROADCAST, FAR);
        site.arrive(&tag.map_or_else(|| frame.clone(), |tci| with_tag(&frame, tci)))?;
        of_ten.push(frame);
        let frame = site.frame(&mac_of(1), FAR);
        site.arrive(&tag.map_or_else(|| frame.clone(), |tci| with_tag(&frame, tci)))?;
        of_ten.push(frame);
    }
    // The trunk gets it with the tag that its VLAN has for it.
    let to_trunk = site.frame(&mac_of(3), FAR);
    site.arrive(&to_trunk)?;
    let got = site.guests[2].received_until(&with_tag(&to_trunk, 10))?;
    let broadcasts = of_ten.iter().step_by(2).map(|frame| with_tag(frame, 10));
    let all = broadcasts.chain([with_tag(&to_trunk, 10)]);
    ensure(all.clone().all(|frame| got.contains(&frame)) && got.len() == all.count(), || hex(&got))?;
    let of_twenty = site.frame(BROADCAST, FAR);
    site.arrive(&with_tag(&of_twenty, 20))?;
    site.ensure_got(1, &[of_twenty], "VLAN 20")?;
    let mut got = site.guests[0].received()?;
    // Broadcasts and unicast come on two ways.
    got.sort();
    of_ten.sort();
    ensure(got == of_ten, || format!("VLAN 10: {}, not {}", hex(&got), hex(&of_ten)))?;
    site.daemon.ensure_healthy()
}

fn priority_tags() -> Result {
    let mut site = site("", &["", "trunk = [10]"], Offloads::None)?;
    // From the wire a frame with a priority tag is one without (IEEE 802.1Q clause 6.9.1), with whatever priority.
    for to in TO_GUEST {
        let mut wanted = Vec::new();
        for priority in 0..8 {
            let frame = site.frame(&to(), FAR);
            site.arrive(&with_tag(&frame, priority << 13))?;
            wanted.push(frame);
        }
        site.ensure_got(0, &wanted, &to())?;
    }
    // From a guest it is a tag, and guests have none (SEMANTICS 3.2); a trunk has only its own.
    let frame = site.frame(FAR, &mac_of(1));
    for priority in 0..8 {
        site.guests[0].send(&with_tag(&frame, priority << 13))?;
        let trunk = site.frame(FAR, &mac_of(2));
        site.guests[1].send(&with_tag(&trunk, priority << 13))?;
    }
    site.guests[0].send(&frame)?;
    let left = site.left(&frame)?;
    ensure(left == [frame], || format!("left: {}", hex(&left)))?;
    let port = site.daemon.vswitch("vs")?;
    ensure(port.port(1)?.discarded("guest_tagged") == 8, || format!("{port:?}"))?;
    ensure(port.port(2)?.counters.outbound_discards == 8, || format!("{port:?}"))?;
    // The trunk is on the untagged network, too, and has got the eight broadcasts as they are there.
    let trunk = site.guests[1].received()?;
    ensure(trunk.len() == 8 && trunk.iter().all(|frame| frame.len() == 60), || hex(&trunk))?;
    site.daemon.ensure_healthy()
}

/// Headers of the guest's frames: a checksum to be filled in, and segments of `size` bytes to be cut if there is one.
fn unfinished(tag_len: u16, size: Option<u16>) -> NetHeader {
    NetHeader {
        flags: F_NEEDS_CSUM,
        gso_type: if size.is_some() { GSO_TCPV4 } else { 0 },
        hdr_len: 54 + tag_len,
        gso_size: size.unwrap_or(0),
        csum_start: 34 + tag_len,
        csum_offset: 16,
        ..NetHeader::default()
    }
}

/// What a guest leaves to the switch is done inside a tag, too: checksums, segments; seen by tcpdump.
fn offloads_in_vlans() -> Result {
    offloads(site("", &["vlan = 120", "trunk = [10]"], Offloads::Tso)?)
}

fn offloads(mut site: Site) -> Result {
    let [access, trunk] = [1, 2].map(|port| tcp_unfinished(FAR, &mac_of(port), 10_000));
    site.guests[0].send_with(&unfinished(0, Some(1000)), &access)?;
    site.guests[1].send_with(&unfinished(4, Some(1000)), &with_tag(&trunk, 10))?;
    let short = tcp_unfinished(FAR, &mac_of(1), 300);
    site.guests[0].send_with(&unfinished(0, None), &short)?;
    let last = with_tag(&tcp(FAR, &mac_of(1), 300), 120);
    let left = site.left(&last)?;
    ensure(left.len() == 21, || hex(&left))?;
    for (n, frame) in left.iter().enumerate() {
        let vlan = if (10..20).contains(&n) { 10 } else { 120 };
        ensure(frame[12..16] == [0x81, 0, 0, vlan], || format!("frame {n}: {}", hex(&left)))?;
        ensure(n == 20 || frame.len() == 1058, || format!("frame {n} has {} bytes", frame.len()))?;
    }
    let payload: Vec<u8> = left[..10].iter().flat_map(|frame| frame[58..].to_vec()).collect();
    ensure(payload == access[54..], || "the payload has changed".to_owned())?;
    // And back: tagged, complete frames; merged ones, if they are merged, have the same payload.
    let arriving = tcp(&mac_of(1), FAR, 900);
    site.arrive(&with_tag(&arriving, 120))?;
    site.ensure_got(0, &[arriving], "a tagged TCP segment")?;
    let right = site.capture.ensure_checksums()?;
    ensure(right == 21, || format!("{right} checksums"))?;
    site.daemon.ensure_healthy()
}

/// The same where an AF_XDP socket is told of checksums that are still to be filled in: the kernel does that in copy mode, and leaves it to the other end of the
/// pair once the device says that it can, so the switch has not. Without the hook that is for zero-copy alone, and the switch fills
/// them in; so it does where the kernel has no room for metadata.
fn checksums_by_metadata() -> Result {
    let ring = ("AVIO_DISABLE", "xdp_burst");
    let ports = ["vlan = 120", "trunk = [10]"];
    let hook = [ring, ("AVIO_TEST_PANIC", "uplink::tx_checksum:1")];
    let mut site = site_with(&hook, "", &ports, Offloads::Tso)?;
    for (key, wanted) in [("access", "copy"), ("sent_by", "Ring"), ("checksums_by", "Kernel")] {
        let shown = device(&site.daemon, key)?;
        ensure(shown == wanted, || format!("{key}: {shown}, not {wanted}"))?;
    }
    run("ethtool", &["-K", UPLINK, "tx", "on"])?;
    let open = tcp_unfinished(FAR, &mac_of(1), 200);
    site.guests[0].send_with(&unfinished(0, None), &open)?;
    site.left(&with_tag(&open, 120))?;
    run("ethtool", &["-K", UPLINK, "tx", "off"])?;
    site.capture = Capture::start(None, WIRE, "")?;
    offloads(site)?;
    // Not zero-copy, and then a kernel that knows nothing of metadata.
    let refused = ("AVIO_TEST_PANIC", "uplink::tx_checksum:1,uplink::tx_metadata_refused:1");
    for environment in [&[ring][..], &[ring, refused]] {
        run("ip", &["link", "del", UPLINK])?;
        let site = site_with(environment, "", &ports, Offloads::Tso)?;
        for (key, wanted) in [("sent_by", "Ring"), ("checksums_by", "Switch")] {
            let shown = device(&site.daemon, key)?;
            ensure(shown == wanted, || format!("{environment:?}: {key}: {shown}, not {wanted}"))?;
        }
        offloads(site)?;
    }
    Ok(())
}

/// A frame in several chunks has its metadata in front of the first; one without any goes out as it is.
fn checksums_of_long_frames() -> Result {
    run("ip", &["link", "add", UPLINK, "type", "veth", "peer", "name", WIRE])?;
    for device in [UPLINK, WIRE] {
        run("ethtool", &["-K", device, "tx", "off"])?;
        run("ip", &["link", "set", device, "mtu", "9000", "up"])?;
    }
    let capture = Capture::start(None, WIRE, "tcp")?;
    let index = std::fs::read_to_string(format!("/sys/class/net/{UPLINK}/ifindex"))?.trim().parse()?;
    let wanted = Wanted {
        copy: true,
        frame_len_max: 9018,
        checksums: true,
        checksums_copied: true,
        ..Wanted::default()
    };
    let (_intake, mut outlet, info, _watch) =
        open_xsk(index, 0, wanted).map_err(|e| Failure::new(e.to_string()))?;
    ensure(info.checksums && info.multi_buffer, || format!("{info:?}"))?;
    // The longest that one chunk takes, and one byte more, among them.
    let lengths = [1, 3978, 3979, 8000];
    for payload_len in lengths {
        for frame in [tcp_unfinished(FAR, &mac_of(1), payload_len), tcp(FAR, &mac_of(1), payload_len)] {
            let pieces = outlet.reserve(frame.len()).map_err(|e| Failure::new(format!("{e:?}")))?;
            let mut done = 0;
            for piece in pieces {
                done += piece.copy_from(&frame[done..]);
            }
            ensure(done == frame.len(), || format!("{done} bytes of {}", frame.len()))?;
            if frame != tcp(FAR, &mac_of(1), payload_len) {
                outlet.sum(34, 16);
            }
        }
        outlet.commit()?;
    }
    let all: Vec<Vec<u8>> = lengths.iter().flat_map(|&len| vec![tcp(FAR, &mac_of(1), len); 2]).collect();
    let left = capture.frames_when("eight frames", |frames| frames.len() >= all.len())?;
    ensure(left == all, || hex(&left))?;
    capture.ensure_checksums().map(drop)
}

/// Frames that went out past the making of packets, by the count of the device.
fn redirected() -> Result<u64> {
    let text = run("ethtool", &["-S", UPLINK])?;
    let counts = text.lines().filter_map(|line| line.trim().split_once("_xdp_xmit: "));
    counts
        .map(|(_, count)| count.trim().parse::<u64>().map_err(|e| Failure::new(format!("{e}: {text}"))))
        .sum()
}

/// Where the far end takes XDP frames, frames leave as such: each whole, in order, of any length and type, however many at once. Where it takes none,
/// where a queueing discipline or filters are to see them, and where that is switched off, they leave as packets.
fn frames_without_packets() -> Result {
    let lengths = |i: usize| [60, 61, 1514, 300, 64, 64, 1000][i % 7];
    // As many as several sizes of map are for, and runs of one type and of two.
    let batches = [1, 2, 15, 16, 17, 33, 64, 70, 128, 129, 200];
    let send = |site: &mut Site, direct: bool, what: &str| -> Result {
        let before = redirected()?;
        let mut all: Vec<Vec<u8>> = Vec::new();
        for (n, count) in batches.into_iter().enumerate() {
            let frames: Vec<Vec<u8>> = (0..count)
                .map(|i| {
                    let mut frame = site.frame(FAR, &mac_of(1));
                    frame.resize(lengths(i), i as u8);
                    if n % 2 == 0 && i % 5 == 0 {
                        frame[12..14].copy_from_slice(&[0x88, 0xb6]);
                    }
                    frame
                })
                .collect();
            site.guests[0].send_all(&NetHeader::default(), &frames)?;
            all.extend(frames.iter().map(|frame| with_tag(frame, 120)));
        }
        let left = site.left(all.last().map(Vec::as_slice).unwrap_or_default())?;
        ensure(left.ends_with(&all), || format!("{what}: {} frames of {}", left.len(), all.len()))?;
        let redirected = redirected()? - before;
        ensure(redirected == if direct { all.len() as u64 } else { 0 }, || {
            format!("{what}: {redirected} of {} without packets", all.len())
        })
    };
    let gro = |on: &str| run("ethtool", &["-K", WIRE, "gro", on]).map(drop);
    let connect = |site: &mut Site| -> Result {
        site.guests.clear();
        site.guests.push(Driver::connect_with(&site.daemon.socket(0), Offloads::None, 1518)?);
        site.daemon.wait_active(1)
    };
    let mut site = site("", &["vlan = 120"], Offloads::None)?;
    connect(&mut site)?;
    site.capture = Capture::start_with(None, WIRE, "", &["-s", "2048", "-B", "8192"])?;
    send(&mut site, false, "the far end takes none")?;
    gro("on")?;
    // It is tried again some runs after it was in vain.
    let end = Instant::now() + Duration::from_secs(10);
    while redirected()? == 0 {
        ensure(Instant::now() < end, || "never tried again".to_owned())?;
        let frame = site.frame(FAR, &mac_of(1));
        site.guests[0].send(&frame)?;
    }
    send(&mut site, true, "the far end takes them")?;
    for (set, gone) in [("root handle 1: pfifo limit 1000", "root"), ("clsact", "clsact")] {
        let tc = |how: &str, what: &str| {
            let words = ["qdisc", how, "dev", UPLINK].into_iter().chain(what.split(' '));
            run("tc", &words.collect::<Vec<_>>())
        };
        // Control hears of it a moment later.
        let is_seen = |site: &mut Site, direct: bool| -> Result {
            let end = Instant::now() + Duration::from_secs(10);
            loop {
                let before = redirected()?;
                let frame = site.frame(FAR, &mac_of(1));
                site.guests[0].send(&frame)?;
                site.left(&with_tag(&frame, 120))?;
                if (redirected()? > before) == direct {
                    return Ok(());
                }
                ensure(Instant::now() < end, || format!("{set}: not seen, {direct}"))?;
            }
        };
        tc("add", set)?;
        is_seen(&mut site, false)?;
        send(&mut site, false, set)?;
        tc("del", gone)?;
        is_seen(&mut site, true)?;
        send(&mut site, true, gone)?;
    }
    for off in ["xdp_redirect", "xdp_burst"] {
        site.daemon.stop()?;
        site.daemon.restart_with(&[("AVIO_DISABLE", off)], 5)?;
        site.wait_up()?;
        connect(&mut site)?;
        send(&mut site, false, off)?;
    }
    site.daemon.ensure_healthy()
}

/// A bridge at the far end: what it sends has its tags beside the frames, not in their bytes, and the two ends of a veth pair pass that on.
fn bridge_at_the_far_end(site: &mut Site) -> Result {
    host(&format!(
        "ip link add sw0 type bridge mcast_snooping 0 && ip link add in0 type veth peer name in1 && ip link set {WIRE} master sw0 && \
         ip link set in1 master sw0 && for d in sw0 in0 in1; do echo 1 > /proc/sys/net/ipv6/conf/$d/disable_ipv6; ip link set $d up; done"
    ))?;
    site.from = RawSender::new("in0")?;
    Ok(())
}

/// Guest 0 is in VLAN 120 and gets its frames without the tag, guest 1 has none and gets only what has none.
fn ensure_tags_count(site: &mut Site) -> Result {
    for to in TO_GUEST {
        let frame = site.frame(&to(), FAR);
        site.arrive(&with_tag(&frame, 121))?;
        site.arrive(&with_tag(&frame, 120 | 3 << 13))?;
        site.ensure_got(0, &[frame], &to())?;
    }
    let strange = site.frame(&mac_of(2), FAR);
    site.arrive(&with_tag(&strange, 120))?;
    site.arrive(&with_tag(&strange, 121))?;
    let own = site.frame(&mac_of(2), FAR);
    site.arrive(&own)?;
    site.ensure_got(1, &[own], "the guest without a VLAN")?;
    // A frame of the greatest length has room for its tag, and its bytes are where they were.
    let mut long = site.frame(&mac_of(1), FAR);
    long.extend((0..1454u16).map(|n| n as u8));
    site.arrive(&with_tag(&long, 120))?;
    site.ensure_got(0, &[long], "1,514 bytes and a tag")?;
    site.daemon.ensure_healthy()
}

/// Tags beside frames count as those in their bytes.
fn tags_beside_frames() -> Result {
    let mut site = site("", &["vlan = 120", ""], Offloads::None)?;
    if best() != "packet" {
        ensure(device(&site.daemon, "vlan_metadata")? == true, || "the program sees no tags".to_owned())?;
    }
    bridge_at_the_far_end(&mut site)?;
    ensure_tags_count(&mut site)?;
    // Those in their bytes still do.
    site.from = RawSender::new(WIRE)?;
    ensure_tags_count(&mut site)
}

/// With a kernel or a driver that does not tell of them, tags have to be in the frames, which the sender sees to.
fn tags_without_metadata() -> Result {
    let older = [("AVIO_DISABLE", "xdp_vlan_tags")];
    let mut site = site_with(&older, "", &["vlan = 120", ""], Offloads::None)?;
    ensure(device(&site.daemon, "access")? == "copy", || "no XDP".to_owned())?;
    ensure(device(&site.daemon, "vlan_metadata")? == false, || "it is not switched off".to_owned())?;
    ensure_tags_count(&mut site)?;
    bridge_at_the_far_end(&mut site)?;
    run("ethtool", &["-K", WIRE, "txvlan", "off"])?;
    ensure_tags_count(&mut site)
}

/// A service tag (802.1ad) is no customer tag of that number, wherever the kernel keeps it.
fn service_tags() -> Result {
    let mut site = site("", &["vlan = 120", ""], Offloads::None)?;
    for beside in [false, true] {
        if beside {
            bridge_at_the_far_end(&mut site)?;
        }
        for (index, port, tci) in [(0, 1, 120), (1, 2, 0)] {
            for to in [mac_of(port), BROADCAST.to_owned()] {
                let mut foreign = with_tag(&site.frame(&to, FAR), 120);
                foreign[12..14].copy_from_slice(&[0x88, 0xa8]);
                site.arrive(&foreign)?;
                let own = site.frame(&mac_of(port), FAR);
                site.arrive(&with_tag(&own, tci))?;
                site.ensure_got(index, &[own], &format!("beside: {beside}, to {to}"))?;
            }
        }
    }
    site.daemon.ensure_healthy()
}
