//! What comes in on one device for the host's address on another: a program of ours at the traffic-control hook that hands it to the kernel as if it had
//! come in there (decision 0014).
//!
//! A link partner deals its frames over the members of an aggregate whatever their address, so half of what is for the host's address on one member comes in on
//! the other, where the kernel takes it for somebody else's and drops it. Control makes one for each device of an aggregate and says whose addresses are
//! where. Nothing is pinned; the link goes with its descriptor. It never sees a frame that the switch takes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use avio_proto::config::MacAddr;

use super::assembly::{
    ADD_CONSTANT, Assembly, CALL, CHANGE_HEAD, EXIT, JUMP_EQUAL_CONSTANT, JUMP_NOT_CONSTANT, LOAD_16,
    LOAD_32, LOAD_64, LOAD_BYTES, LOAD_BYTES_RELATIVE, Label, MAP_LOOKUP, MOVE, MOVE_CONSTANT, OR, REDIRECT,
    STORE_32, STORE_BYTES, SUBTRACT, load_map, op,
};
use super::program::{Hook, MACS_MAX, key};
use super::sys;

const MAP_HASH: u32 = 1;
/// `BPF_TCX_INGRESS` (Linux 6.6): behind packet sockets, in front of the network layer, beside other programs there.
const ATTACH_TCX_INGRESS: u32 = 46;

/// The program, attached to one device while this lives.
#[derive(Debug)]
pub struct Siblings {
    addresses: OwnedFd,
    /// What is in the map of addresses.
    known: Vec<(MacAddr, u32)>,
    hook: Hook,
}

impl Drop for Siblings {
    fn drop(&mut self) {
        self.hook.close();
    }
}

impl Siblings {
    /// Attaches the program to interface number `ifindex`; it does nothing yet. Helper thread.
    ///
    /// # Errors
    /// What the system says: the kernel is older than 6.6, or we may not.
    pub fn new(ifindex: u32) -> io::Result<Self> {
        let addresses = sys::map_create(MAP_HASH, 8, 4, MACS_MAX)?;
        let program = sys::program_load(
            sys::PROG_CLASSIFIER,
            0,
            &assemble(addresses.as_fd()),
            *b"avio_siblings\0\0\0",
        )?;
        let link = sys::link_create(program.as_fd(), ifindex, ATTACH_TCX_INGRESS, 0)?;
        Ok(Self { addresses, known: Vec::new(), hook: Hook::new(link)? })
    }

    /// Where it is attached.
    #[must_use]
    pub fn hook(&self) -> &Hook {
        &self.hook
    }

    /// Unicast to each address goes to the interface of that number from now on, and to no other.
    ///
    /// # Errors
    /// The first address for which there is no room: 256 are there already.
    pub fn set(&mut self, addresses: &[(MacAddr, u32)]) -> Result<(), (MacAddr, io::Error)> {
        let map = self.addresses.as_fd();
        let is_wanted = |known: &(MacAddr, u32)| addresses.contains(known);
        self.known.retain(|known| is_wanted(known) || sys::map_delete(map, &key(known.0)).is_err());
        for &(mac, ifindex) in addresses {
            if !self.known.contains(&(mac, ifindex)) {
                sys::map_update(map, &key(mac), &ifindex.to_ne_bytes()).map_err(|error| (mac, error))?;
                self.known.push((mac, ifindex));
            }
        }
        Ok(())
    }
}

/// `BPF_F_INGRESS`: as if received there.
const INGRESS: i32 = 1;
/// `BPF_HDR_START_MAC`.
const FROM_MAC: i32 = 0;
/// `TCX_NEXT`: whoever is next decides.
const NEXT: i32 = -1;
/// An Ethernet header.
const HEADER: i32 = 14;
/// On the stack: the frame's header, what the packet begins with, and the key.
const FRAME: i16 = -16;
const BEGIN: i16 = -32;
const KEY: i16 = -40;

/// The program. Register 6 is the packet, 7 the interface number.
fn assemble(addresses: BorrowedFd<'_>) -> Vec<u64> {
    let mut program = Assembly::default();
    let place = |register: u8, at: i16| {
        [op(MOVE, register, 10, 0, 0), op(ADD_CONSTANT, register, 0, 0, i32::from(at))]
    };
    let constant = |register: u8, value: i32| op(MOVE_CONSTANT, register, 0, 0, value);
    let packet = op(MOVE, 1, 6, 0, 0);
    program.put(&[op(MOVE, 6, 1, 0, 0), constant(2, 0)]);
    program.put(&place(3, FRAME));
    program.put(&[constant(4, HEADER), constant(5, FROM_MAC), op(CALL, 0, 0, 0, LOAD_BYTES_RELATIVE)]);
    program.jump(op(JUMP_NOT_CONSTANT, 0, 0, 0, 0), Label::Pass);
    program.put(&[
        // The destination, two zero bytes behind it, is the key.
        op(LOAD_32, 1, 10, FRAME, 0),
        op(STORE_32, 10, 1, KEY, 0),
        op(LOAD_16, 1, 10, FRAME + 4, 0),
        op(STORE_32, 10, 1, KEY + 4, 0),
    ]);
    program.put(&load_map(1, addresses));
    program.put(&place(2, KEY));
    program.put(&[op(CALL, 0, 0, 0, MAP_LOOKUP)]);
    program.jump(op(JUMP_EQUAL_CONSTANT, 0, 0, 0, 0), Label::Pass);
    // Behind a generic XDP program the kernel has lost how long the header in front is where it had to copy the packet (`skb_pp_cow_data` leaves `mac_len` out, Linux
    // 6.18): the packet then begins behind it, here and where it is redirected to. It gets its header once more, and with it the length.
    program.put(&[op(LOAD_32, 7, 0, 0, 0), packet, constant(2, 0)]);
    program.put(&place(3, BEGIN));
    program.put(&[constant(4, HEADER), op(CALL, 0, 0, 0, LOAD_BYTES)]);
    program.jump(op(JUMP_NOT_CONSTANT, 0, 0, 0, 0), Label::Pass);
    program.put(&[
        op(LOAD_64, 1, 10, FRAME, 0),
        op(LOAD_64, 2, 10, BEGIN, 0),
        op(SUBTRACT, 1, 2, 0, 0),
        op(LOAD_32, 3, 10, FRAME + 8, 0),
        op(LOAD_32, 4, 10, BEGIN + 8, 0),
        op(SUBTRACT, 3, 4, 0, 0),
        op(OR, 1, 3, 0, 0),
    ]);
    program.jump(op(JUMP_EQUAL_CONSTANT, 1, 0, 0, 0), Label::Redirect);
    program.put(&[packet, constant(2, HEADER), constant(3, 0), op(CALL, 0, 0, 0, CHANGE_HEAD)]);
    program.jump(op(JUMP_NOT_CONSTANT, 0, 0, 0, 0), Label::Pass);
    program.put(&[packet, constant(2, 0)]);
    program.put(&place(3, FRAME));
    program.put(&[constant(4, HEADER), constant(5, 0), op(CALL, 0, 0, 0, STORE_BYTES)]);
    program.label(Label::Redirect);
    program.put(&[
        op(MOVE, 1, 7, 0, 0),
        constant(2, INGRESS),
        op(CALL, 0, 0, 0, REDIRECT),
        op(EXIT, 0, 0, 0, 0),
    ]);
    program.label(Label::Pass);
    program.put(&[constant(0, NEXT), op(EXIT, 0, 0, 0, 0)]);
    program.finish()
}
