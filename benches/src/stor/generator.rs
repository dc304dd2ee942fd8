//! How fast the guest is when nothing holds it up: `avio-iogen`'s lane against a device that gives every chain back without looking at
//! it. A target's rate near this one says nothing about the target any more.
//!
//! The device's side is the least there can be, in place of a daemon: available entries become used elements, one index is published
//! for all that were there. Rings, memory and load are those of the rows (split, indirect tables, event indices, `avio_blk`).

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::{Duration, Instant};

use avio_guest::GuestMemory;
use avio_guest::storage::{Kind, RequestQueue, StorageOptions};
use avio_proto::mem::{GuestSlice, RegionHint};
use avio_proto::ring::DriverLayout;
use avio_proto::virtio::features::{RING_EVENT_IDX, RING_INDIRECT_DESC, VERSION_1};
use avio_tests::{Failure, Result};
use avio_tools::iogen::device::{Address, DiskInfo};
use avio_tools::iogen::lane::{Lane, Live, Load};
use avio_tools::iogen::load::JobSpec;

use super::options::Options;
use super::peers::SIZE;
use crate::beside::machine::Machine;
use crate::beside::probe;
use crate::beside::spread::spread;
use crate::beside::{GUEST_CORE, TARGET_CORE};

/// What the lane must reach (issue 5), requests a second.
const LEAST: f64 = 10e6;
/// Requests in flight, as in the rows.
const DEPTHS: [u16; 2] = [32, 128];
/// Time before the window.
const RAMP: Duration = Duration::from_millis(50);
const FEATURES: u64 = VERSION_1 | RING_INDIRECT_DESC | RING_EVENT_IDX;

/// What was measured, and its value.
///
/// # Errors
/// When there is no memory for the rings, or the lane finds a ring broken.
pub fn measure(machine: &Machine, options: &Options) -> Result<Vec<(String, String)>> {
    let mut lines = Vec::new();
    for depth in DEPTHS {
        machine.ensure_wanted()?;
        let mut rates = Vec::new();
        for _ in 0..options.round_count(true) {
            rates.push(window(depth, options.window(true))?);
        }
        let Some(s) = spread(rates.into_iter()) else { continue };
        let word = if s.median >= LEAST { "reached" } else { "MISSED" };
        lines.push((
            format!("avio-iogen alone, QD{depth}, against a device that gives chains back unread"),
            format!(
                "{:.1} M requests/s ({:.1}–{:.1}; {}), {:.0} ns each, crossing {:.0} ns (goal >= {:.0} M: {word})",
                s.median / 1e6,
                s.min / 1e6,
                s.max / 1e6,
                s.count,
                1e9 / s.median,
                probe::crossing_ns(),
                LEAST / 1e6
            ),
        ));
    }
    Ok(lines)
}

/// Requests a second in one window.
fn window(depth: u16, length: Duration) -> Result<f64> {
    let options = StorageOptions { depth, ..StorageOptions::new(Kind::Blk) };
    let fail = |e: &dyn std::fmt::Display| Failure::new(e.to_string());
    let mut memory = GuestMemory::new("generator", 4 << 20).map_err(|e| fail(&e))?;
    let mut queue = RequestQueue::alone(&mut memory, &options, FEATURES).map_err(|e| fail(&e))?;
    let layout = queue.layout();
    let mut spec = JobSpec { iodepth: depth, time_based: true, ..JobSpec::default() };
    spec.set_rw("randread", 0).map_err(Failure::new)?;
    let disk = DiskInfo { address: Address::Blk, bytes: SIZE, block: 512 };
    let mut load = Load::new(&spec, &[disk], 0, depth).map_err(Failure::new)?;
    let live = Live { asking: AtomicBool::new(true), ..Live::default() };
    let over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let memory = &memory;
        scope.spawn(move || {
            pin(TARGET_CORE);
            Mirror::new(memory, &layout).run(over);
        });
        let guest = scope.spawn(|| {
            pin(GUEST_CORE);
            let mut lane = Lane { queue: &mut queue, load: &mut load, live: &live };
            let result = drive(&mut lane, length);
            over.store(true, Ordering::Relaxed);
            result
        });
        guest.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn drive(lane: &mut Lane<'_>, length: Duration) -> Result<f64> {
    let mut turns = |length: Duration| -> Result<(u64, Duration)> {
        let (start, mut count, mut turn) = (Instant::now(), 0, 0u32);
        loop {
            count += lane.turn().map_err(|e| Failure::new(e.to_string()))? as u64;
            turn = turn.wrapping_add(1);
            if turn.is_multiple_of(256) && start.elapsed() >= length {
                return Ok((count, start.elapsed()));
            }
        }
    };
    turns(RAMP)?;
    let (count, took) = turns(length)?;
    Ok(count as f64 / took.as_secs_f64())
}

fn pin(id: usize) {
    core_affinity::set_for_current(core_affinity::CoreId { id });
}

/// Offsets in the available and used ring (virtio 1.3 §2.7.6, §2.7.8).
const INDEX: usize = 2;
const ENTRIES: usize = 4;

/// The device.
struct Mirror<'m> {
    available: GuestSlice<'m>,
    used: GuestSlice<'m>,
    mask: u16,
}

impl<'m> Mirror<'m> {
    fn new(memory: &'m GuestMemory, layout: &DriverLayout) -> Self {
        let size = usize::from(layout.size);
        // The queue has its ring in this memory.
        let area = |at, len| {
            let found = memory.table().slice(&mut RegionHint::default(), at, len);
            found.unwrap_or_else(|| unreachable!("a ring outside of guest memory"))
        };
        Self {
            available: area(layout.driver, ENTRIES + 2 * size),
            used: area(layout.device, ENTRIES + 8 * size + 2),
            mask: layout.size - 1,
        }
    }

    fn run(&self, over: &AtomicBool) {
        let mut at = 0u16;
        // The driver need not kick: as far from its index as the circle goes (§2.7.10).
        let event_at = ENTRIES + 8 * (usize::from(self.mask) + 1);
        while !over.load(Ordering::Relaxed) {
            let shown = u16::from_le_bytes(self.available.read(INDEX).unwrap_or_default());
            fence(Ordering::Acquire);
            if shown == at {
                std::hint::spin_loop();
                continue;
            }
            while at != shown {
                let place = usize::from(at & self.mask);
                let head: [u8; 2] = self.available.read(ENTRIES + 2 * place).unwrap_or_default();
                // 4 KiB and a status.
                let element = u64::from(u16::from_le_bytes(head)) | 4097 << 32;
                self.used.write(ENTRIES + 8 * place, &element.to_le_bytes());
                at = at.wrapping_add(1);
            }
            fence(Ordering::Release);
            self.used.write(INDEX, &at.to_le_bytes());
            self.used.write(event_at, &at.wrapping_sub(0x8000).to_le_bytes());
        }
    }
}
