//! Sends bursts of frames to a device as XDP frames: no packet is made of them on the way, and one system call sends all.
//!
//! The kernel offers no call for it, so this is put together (decision 0013). A TAP in a network namespace of its own has an XDP program (`entry`). One frame
//! written to it is redirected, by broadcast, to a device map that has the uplink's device as many times as there are frames, and for each copy the kernel
//! runs the map's program (`filling`), which puts the next frame of `burst`'s area into it. A program at the tracepoint of such transmissions (`noting`)
//! writes down how many of each lot the driver took. Everything happens within the write, on one processor.
//!
//! Owned by `burst`, which lends the area and sends by its classifier what was not handed over here. Nothing is pinned: TAP, namespace, maps and programs go
//! with their descriptors.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::{AddressFamily, SocketType, netdevice, socket};

use super::assembly::{
    ADD, ADD_CONSTANT, ADJUST_TAIL, AND_CONSTANT, Assembly, CALL, EXIT, JUMP_EQUAL, JUMP_GREATER_CONSTANT,
    JUMP_LESS_CONSTANT, JUMP_NOT_CONSTANT, JUMP_NOT_EQUAL, JUMP_NOT_LESS, LOAD_32, LOAD_64, Label, MOVE,
    MOVE_CONSTANT, PROCESSOR, REDIRECT_MAP, SHIFT_LEFT, STORE_32, SUBTRACT, XDP_STORE_BYTES, load_map,
    load_map_value, op,
};
use super::burst::{
    AREA, DESCRIPTOR_SHIFT, DESCRIPTORS_AT, FRAMES_AT, FRAMES_MAX, LEN, LEN_MIN, NOTES_AT, OFFSET, RESULT,
};
use super::rings::word;
use super::sys::{self, RingMapping};
use crate::port::tap;

/// Longest frame, in bytes: what a page holds beside the kernel's room in front of it and behind it.
pub(super) const LEN_MAX: usize = 3072;

/// Words of the map: the frame that is filled in next, where they end, how far lots are noted, how many lots, and the processor.
const CURSOR: usize = 8;
const END: usize = 12;
const NOTED: usize = 16;
const LOTS: usize = 20;
const PROCESSOR_NOW: usize = 24;
/// A note of 16 bytes on each lot: the frame behind its last, how many the driver took, and why not all.
const NOTE_SHIFT: i32 = 4;
const TAKEN: usize = 4;
const ERROR: usize = 8;

/// What a program's verdict on a frame is (`enum xdp_action`).
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
/// `BPF_F_BROADCAST` (Linux 5.14).
const BROADCAST: i32 = 1 << 3;
const MAP_DEVICES: u32 = 14;
/// A program type, and the place of the one that a device map runs (`enum bpf_attach_type`).
const PROG_RAW_TRACEPOINT: u32 = 17;
const ATTACH_DEVICE_MAP: u32 = 33;
/// `XDP_FLAGS_DRV_MODE`.
const FLAG_NATIVE: u32 = 1 << 2;

/// Runs for which a device that took nothing is left alone.
const PAUSE: u32 = 256;

/// How many frames the device maps are for: each run takes the next one up, and what is too much is dropped unfilled.
fn sizes() -> impl Iterator<Item = usize> {
    let steps = [(0, 16, 1), (16, 32, 2), (32, 64, 4), (64, FRAMES_MAX, 8)];
    steps.into_iter().flat_map(|(from, to, step)| (from + step..=to).step_by(step))
}

/// What became of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handed {
    /// The driver took every frame.
    All,
    /// The frames' results say so one by one: [`NOT_SENT`](super::burst::NOT_SENT), refused, or taken.
    Some,
}

/// See the module.
pub(super) struct Redirect {
    tap: OwnedFd,
    /// The device's egress is free of queueing disciplines and filters, which frames would go past.
    is_free: Arc<AtomicBool>,
    /// Runs to leave out.
    pause: u32,
    _attached: OwnedFd,
    _noting: OwnedFd,
}

impl Redirect {
    /// Makes a way to interface number `ifindex` for the frames of `map`. Helper thread.
    ///
    /// # Errors
    /// What the system says: the kernel is older than 5.18, there are no TAPs, or we may not.
    pub(super) fn open(map: BorrowedFd<'_>, ifindex: u32, is_free: Arc<AtomicBool>) -> io::Result<Self> {
        let load =
            |kind, place, code: &[u64]| sys::program_load(kind, place, code, *b"avio_burst\0\0\0\0\0\0");
        let filling = load(sys::PROG_XDP, ATTACH_DEVICE_MAP, &filling(map))?;
        let noting = load(PROG_RAW_TRACEPOINT, 0, &noting(map))?;
        let noting = sys::raw_tracepoint_open(c"xdp_devmap_xmit", noting.as_fd())?;
        // `struct bpf_devmap_val`.
        let mut value = [0; 8];
        value[..4].copy_from_slice(&ifindex.to_ne_bytes());
        value[4..].copy_from_slice(&(filling.as_raw_fd() as u32).to_ne_bytes());
        let mut maps = Vec::new();
        for size in sizes() {
            let devices = sys::map_create(MAP_DEVICES, 4, 8, size as u32)?;
            for key in 0..size as u32 {
                sys::map_update(devices.as_fd(), &key.to_ne_bytes(), &value)?;
            }
            maps.push((size, devices));
        }
        let entry = load(sys::PROG_XDP, sys::ATTACH_XDP, &entry(map, &maps))?;
        let (tap, attached) = apart(entry)?;
        Ok(Self { tap, is_free, pause: 0, _attached: attached, _noting: noting })
    }

    /// Whether the next run may go this way. Counts the runs.
    #[inline]
    pub(super) fn is_open(&mut self) -> bool {
        self.pause = self.pause.saturating_sub(1);
        self.pause == 0 && self.is_free.load(Ordering::Relaxed)
    }

    /// Hands over frames `0..count`, whose descriptors say that they are not sent. `seed`: the last frame's place in the mapping and its length; the kernel
    /// makes the copies from it, and those of its length have only to be filled.
    #[inline]
    pub(super) fn run(&mut self, mapping: &RingMapping, count: usize, seed: (usize, usize)) -> Handed {
        let set = |at: usize, value: usize| word(mapping, at).store(value as u32, Ordering::Relaxed);
        let get = |at: usize| word(mapping, at).load(Ordering::Relaxed);
        for (at, value) in [(CURSOR, 0), (END, count), (NOTED, 0), (LOTS, 0)] {
            set(at, value);
        }
        let outcome = sys::inject(self.tap.as_fd(), mapping, seed.0, seed.1);
        let lots = get(LOTS) as usize;
        let note = |lot: usize| NOTES_AT + (lot << NOTE_SHIFT);
        let taken: u32 = (0..lots).map(|lot| get(note(lot) + TAKEN)).sum();
        if outcome.is_ok() && taken as usize == count {
            return Handed::All;
        }
        let result =
            |frame: u32| word(mapping, DESCRIPTORS_AT + ((frame as usize) << DESCRIPTOR_SHIFT) + RESULT);
        let mut first = 0;
        for lot in 0..lots {
            let (end, mut taken) = (get(note(lot)).min(count as u32), get(note(lot) + TAKEN));
            // A driver that takes none for an error is not ready for such frames; without one it has no room.
            let is_unable = taken == 0 && get(note(lot) + ERROR) != 0;
            if is_unable {
                self.pause = PAUSE;
            }
            for frame in first..end {
                // Filled in.
                if result(frame).load(Ordering::Relaxed) != 0 {
                    continue;
                }
                if taken > 0 {
                    taken -= 1;
                } else {
                    let what = if is_unable { super::burst::NOT_SENT } else { super::burst::REFUSED };
                    result(frame).store(what, Ordering::Relaxed);
                }
            }
            first = end;
        }
        if first == 0 {
            // It is down, or takes no such frames now.
            self.pause = PAUSE;
        }
        Handed::Some
    }
}

/// A TAP in a network namespace that nobody else is in, with `program` attached; both go with the descriptors.
fn apart(program: OwnedFd) -> io::Result<(OwnedFd, OwnedFd)> {
    const NAME: &str = "avio";
    let make = move || {
        // This thread's alone, which ends with the function.
        sys::leave_network()?;
        let tap = tap::open_bare(NAME)?;
        let any = socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
        let ifindex = netdevice::name_to_index(&any, NAME)?;
        let attached = sys::link_create(program.as_fd(), ifindex, sys::ATTACH_XDP, FLAG_NATIVE)?;
        Ok((tap, attached))
    };
    let thread = std::thread::Builder::new().name("avio-apart".to_owned()).spawn(make)?;
    thread.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
}

/// The TAP's: redirects what is written to it to the smallest map that has a place for each frame.
fn entry(map: BorrowedFd<'_>, maps: &[(usize, OwnedFd)]) -> Vec<u64> {
    let mut program = Assembly::default();
    program.put(&load_map_value(7, map));
    program.put(&[
        op(CALL, 0, 0, 0, PROCESSOR),
        op(STORE_32, 7, 0, PROCESSOR_NOW as i16, 0),
        op(LOAD_32, 6, 7, END as i16, 0),
    ]);
    for (size, devices) in maps {
        program.put(&[op(JUMP_GREATER_CONSTANT, 6, 0, 6, *size as i32)]);
        program.put(&load_map(1, devices.as_fd()));
        program.put(&[
            op(MOVE_CONSTANT, 2, 0, 0, 0),
            op(MOVE_CONSTANT, 3, 0, 0, BROADCAST),
            op(CALL, 0, 0, 0, REDIRECT_MAP),
            op(EXIT, 0, 0, 0, 0),
        ]);
    }
    program.put(&[op(MOVE_CONSTANT, 0, 0, 0, XDP_DROP), op(EXIT, 0, 0, 0, 0)]);
    program.finish()
}

/// The device maps': makes a copy the next frame. Register 6 is the copy, 7 the map, 8 the frame's descriptor, 9 its length.
fn filling(map: BorrowedFd<'_>) -> Vec<u64> {
    let field = |field: usize| (DESCRIPTORS_AT + field) as i16;
    let mut program = Assembly::default();
    program.put(&[op(MOVE, 6, 1, 0, 0)]);
    program.put(&load_map_value(7, map));
    program.put(&[op(LOAD_32, 8, 7, CURSOR as i16, 0), op(LOAD_32, 1, 7, END as i16, 0)]);
    program.jump(op(JUMP_NOT_LESS, 8, 1, 0, 0), Label::End);
    program.put(&[
        op(MOVE, 1, 8, 0, 0),
        op(ADD_CONSTANT, 1, 0, 0, 1),
        op(STORE_32, 7, 1, CURSOR as i16, 0),
        op(AND_CONSTANT, 8, 0, 0, FRAMES_MAX as i32 - 1),
        op(SHIFT_LEFT, 8, 0, 0, DESCRIPTOR_SHIFT),
        op(ADD, 8, 7, 0, 0),
        op(LOAD_32, 9, 8, field(LEN), 0),
    ]);
    program.jump(op(JUMP_LESS_CONSTANT, 9, 0, 0, LEN_MIN as i32), Label::End);
    program.jump(op(JUMP_GREATER_CONSTANT, 9, 0, 0, LEN_MAX as i32), Label::End);
    program.put(&[
        // `data` and `data_end` of `struct xdp_md`: mostly right already.
        op(LOAD_32, 1, 6, 0, 0),
        op(LOAD_32, 2, 6, 4, 0),
        op(SUBTRACT, 2, 1, 0, 0),
        op(JUMP_EQUAL, 2, 9, 6, 0),
        op(MOVE, 3, 9, 0, 0),
        op(SUBTRACT, 3, 2, 0, 0),
        op(MOVE, 2, 3, 0, 0),
        op(MOVE, 1, 6, 0, 0),
        op(CALL, 0, 0, 0, ADJUST_TAIL),
    ]);
    program.jump(op(JUMP_NOT_CONSTANT, 0, 0, 0, 0), Label::End);
    program.put(&[op(LOAD_32, 3, 8, field(OFFSET), 0)]);
    program.jump(op(JUMP_GREATER_CONSTANT, 3, 0, 0, AREA as i32), Label::End);
    program.put(&[
        op(ADD_CONSTANT, 3, 0, 0, FRAMES_AT as i32),
        op(ADD, 3, 7, 0, 0),
        op(MOVE, 1, 6, 0, 0),
        op(MOVE_CONSTANT, 2, 0, 0, 0),
        op(MOVE, 4, 9, 0, 0),
        op(CALL, 0, 0, 0, XDP_STORE_BYTES),
    ]);
    program.jump(op(JUMP_NOT_CONSTANT, 0, 0, 0, 0), Label::End);
    program.put(&[
        op(MOVE_CONSTANT, 1, 0, 0, 0),
        op(STORE_32, 8, 1, field(RESULT), 0),
        op(MOVE_CONSTANT, 0, 0, 0, XDP_PASS),
        op(EXIT, 0, 0, 0, 0),
    ]);
    program.label(Label::End);
    program.put(&[op(MOVE_CONSTANT, 0, 0, 0, XDP_DROP), op(EXIT, 0, 0, 0, 0)]);
    program.finish()
}

/// The tracepoint's (devices from and to, taken, dropped, error): notes a lot of ours. No other can come between frames being filled in and this, on the processor that
/// does it.
fn noting(map: BorrowedFd<'_>) -> Vec<u64> {
    let mut program = Assembly::default();
    program.put(&[op(MOVE, 6, 1, 0, 0)]);
    program.put(&load_map_value(7, map));
    program.put(&[op(LOAD_32, 8, 7, CURSOR as i16, 0), op(LOAD_32, 1, 7, NOTED as i16, 0)]);
    program.jump(op(JUMP_EQUAL, 8, 1, 0, 0), Label::End);
    program.put(&[op(CALL, 0, 0, 0, PROCESSOR), op(LOAD_32, 1, 7, PROCESSOR_NOW as i16, 0)]);
    program.jump(op(JUMP_NOT_EQUAL, 0, 1, 0, 0), Label::End);
    program.put(&[
        op(STORE_32, 7, 8, NOTED as i16, 0),
        op(LOAD_32, 9, 7, LOTS as i16, 0),
        op(MOVE, 1, 9, 0, 0),
        op(ADD_CONSTANT, 1, 0, 0, 1),
        op(STORE_32, 7, 1, LOTS as i16, 0),
        op(AND_CONSTANT, 9, 0, 0, FRAMES_MAX as i32 - 1),
        op(SHIFT_LEFT, 9, 0, 0, NOTE_SHIFT),
        op(ADD, 9, 7, 0, 0),
        op(STORE_32, 9, 8, NOTES_AT as i16, 0),
        op(LOAD_64, 1, 6, 16, 0),
        op(STORE_32, 9, 1, (NOTES_AT + TAKEN) as i16, 0),
        op(LOAD_64, 1, 6, 32, 0),
        op(STORE_32, 9, 1, (NOTES_AT + ERROR) as i16, 0),
    ]);
    program.label(Label::End);
    program.put(&[op(MOVE_CONSTANT, 0, 0, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    program.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_map_for_each_run_that_wastes_little() {
        let sizes: Vec<usize> = sizes().collect();
        // What a program may name (`MAX_USED_MAPS`), the area included.
        assert!(sizes.len() < 64 && sizes.is_sorted() && sizes.last() == Some(&FRAMES_MAX));
        for count in 1..=FRAMES_MAX {
            let size = sizes.iter().find(|size| **size >= count).unwrap();
            assert!((size - count) * 8 < count, "{count}: {size}");
        }
    }
}
