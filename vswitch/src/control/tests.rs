//! The control thread against a front-end that gives it as much to do as it can.

use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use avio_host::blocking::{Helpers, Mailbox};
use avio_host::links::Links;
use avio_host::session::{EndpointSpec, Role, Sessions};
use avio_host::worker::{ControlWaker, Workers};
use avio_proto::config::WorkersConfig;
use avio_proto::vhost_user::payload::{MemoryRegion, VringAddr, VringFd, VringState};
use avio_proto::vhost_user::{Outgoing, Request};
use avio_proto::virtio::features::VERSION_1;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::device::device_spec;
use super::fabric::Fabric;
use super::interface::{Interface, InterfaceKey};
use super::link_status::LinkStatus;
use super::switch::{Owner, Start, Switch};
use super::taps::Taps;
use super::uplink::{Allowed, Uplinks};

const USER: u64 = 0x7f00_0000_0000;
const MEM_LEN: u64 = 1 << 20;
/// How long the front-end keeps it up.
const FLOOD: Duration = Duration::from_secs(3);

/// A switch without workers, one interface, and the front-end's end of its session.
fn switch() -> (Switch, UnixStream) {
    let text = "device = 5\nvswitch = \"v\"\nport = 1\nmac = \"1e:29:8c:88:a5:eb\"\n";
    let network: avio_proto::config::NetworkConfig = toml::from_str(text).unwrap();
    let mut sessions = Sessions::new(Helpers::new(1).unwrap()).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let endpoint = sessions.add_connected(
        EndpointSpec {
            name: "guest1".into(),
            path: PathBuf::from("/socketpair"),
            role: Role::Client,
            device: device_spec("guest1", &network),
        },
        ours,
    );
    let (_, events) = crossbeam_channel::unbounded();
    let mut fabric = Fabric::new(Workers::new(Vec::new()));
    let index = fabric.take_index().unwrap();
    let poll = mio::Poll::new().unwrap();
    let waker = Arc::new(mio::Waker::new(poll.registry(), mio::Token(0)).unwrap());
    let taps =
        Taps::new(ControlWaker::new().unwrap(), Helpers::new(1).unwrap(), Mailbox::new(Arc::clone(&waker)));
    let allowed = Allowed {
        xdp: false,
        zero_copy: false,
        busy_poll: false,
        burst: false,
        redirect: false,
        vlan_tags: false,
        siblings: false,
    };
    let (links, helpers) = (Links::new().unwrap(), Helpers::new(1).unwrap());
    let uplinks = Uplinks::new(links, helpers, Mailbox::new(Arc::clone(&waker)), allowed, 1).unwrap();
    let link_status = LinkStatus::new(PathBuf::new(), Helpers::new(1).unwrap(), Mailbox::new(waker));
    let start = Start { run_dir: PathBuf::new(), workers: WorkersConfig::default() };
    let mut switch = Switch::new(start, sessions, fabric, taps, uplinks, link_status, events);
    let key = InterfaceKey { guest: "guest1".into(), bus: 0, device: 5 };
    let mut interface = Interface::new(key.clone(), network, index, 1);
    interface.attach(endpoint);
    switch.interfaces.insert(key.clone(), interface);
    switch.owners.insert(endpoint, Owner::Interface(key));
    (switch, theirs)
}

fn message(request: Request, payload: &[u8]) -> Vec<u8> {
    Outgoing::new(request.0, 0, payload, Vec::new()).bytes
}

#[test]
fn a_front_end_that_never_pauses_does_not_keep_the_control_thread() {
    let (mut switch, mut front) = switch();
    let region = MemoryRegion { guest_base: 0, len: MEM_LEN, user_base: USER, mmap_offset: 0 };
    let memory = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&memory, MEM_LEN).unwrap();
    // A ring that the device refuses (its size is no power of two), so that its stops are answered at once.
    front.write_all(&message(Request::SET_FEATURES, &VERSION_1.to_ne_bytes())).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [memory.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let table = message(Request::SET_MEM_TABLE, &MemoryRegion::encode_table(&[region]));
    sendmsg(&front, &[IoSlice::new(&table)], &mut control, SendFlags::empty()).unwrap();
    let addr =
        VringAddr { index: 0, flags: 0, desc: USER, avail: USER + 0x1000, used: USER + 0x2000, log: 0 };
    let kick = VringFd { index: 0, has_fd: false }.encode();
    front.write_all(&message(Request::SET_VRING_NUM, &VringState { index: 0, num: 3 }.encode())).unwrap();
    front.write_all(&message(Request::SET_VRING_ADDR, &addr.encode())).unwrap();
    front.write_all(&message(Request::SET_VRING_KICK, &kick)).unwrap();
    let flood = std::thread::spawn(move || {
        let many = message(Request::SET_VRING_CALL, &kick).repeat(200);
        let end = Instant::now() + FLOOD;
        while Instant::now() < end {
            front.write_all(&many).unwrap();
        }
        front
    });
    let mut longest = Duration::ZERO;
    while !flood.is_finished() {
        switch.sessions.on_ready();
        let began = Instant::now();
        switch.turn(began);
        longest = longest.max(began.elapsed());
    }
    assert!(flood.join().is_ok(), "the session ended");
    assert!(longest < FLOOD / 3, "one turn took {longest:?}");
}
