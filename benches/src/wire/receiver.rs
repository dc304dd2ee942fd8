//! A receiver at the far end of a wire: an XDP program and an AF_XDP socket, as a wire has that ends in another switch.
//!
//! Where the far end has XDP, a veth pair hands frames over that no packet was made of, and makes pages of those that were packets. Driven by
//! [`super::traffic`] on its thread, which only gives the buffers back: frames are counted by the device.

use std::os::fd::AsFd;

use avio_proto::ring::ChainArena;
use avio_tests::wire::Wire;
use avio_tests::{Failure, Result};
use avio_vswitch::port::wire::Intake;
use avio_vswitch::port::xdp::{AttachMode, Attached, Wanted, open_xsk};

use super::generator::{LEN_MAX, inside};

/// Batches that are given back at once, at most: the sender has its turn as well.
const BATCHES: usize = 4;
/// Frames of a batch.
const BATCH: usize = 64;

/// See the module.
pub struct Receiver {
    intake: Box<dyn Intake>,
    arena: ChainArena,
    // Kept: its end takes it from the device.
    _program: Attached,
}

impl Receiver {
    /// On the far device of `wire`.
    ///
    /// # Errors
    /// When the kernel refuses the program or the socket.
    pub fn new(wire: &Wire) -> Result<Self> {
        let told = |error: &dyn ToString| Failure::new(error.to_string());
        let (intake, program) = inside(wire, move |index| {
            let program = Attached::new(index, AttachMode::Native, false).map_err(|e| told(&e))?;
            let wanted = Wanted { copy: true, frame_len_max: LEN_MAX, ..Wanted::default() };
            let (intake, .., watch) = open_xsk(index, 0, wanted).map_err(|e| told(&e))?;
            program.add(0, watch.as_fd())?;
            Ok((intake, program))
        })?;
        Ok(Self { intake, arena: ChainArena::new(), _program: program })
    }

    /// Gives the buffers of what has come back to the kernel.
    ///
    /// # Errors
    /// When the socket is broken.
    pub fn drain(&mut self) -> Result {
        for _ in 0..BATCHES {
            if self.intake.is_empty() {
                break;
            }
            let _batch = self.intake.take(&mut self.arena, BATCH)?;
            self.intake.done();
        }
        Ok(())
    }
}
