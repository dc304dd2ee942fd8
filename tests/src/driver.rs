//! A guest in this process that sends and receives single frames: what it sends is what leaves, and what it got is what was delivered, byte
//! for byte. For load there is `avio-pktgen`, for a real stack [`crate::linux_guest`].

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use avio_guest::Endpoint;
use avio_guest::net::{NetGuest, NetOptions, NetQueue, Offloads};
use avio_proto::virtio::net::NetHeader;

use crate::failure::ensure;
use crate::{Failure, Result};

/// Longest frame that it sends or gets.
const FRAME_LEN_MAX: usize = 65_550;

/// See the module.
pub struct Driver {
    _guest: NetGuest,
    queue: NetQueue,
}

fn told(error: impl ToString) -> Failure {
    Failure::new(error.to_string())
}

impl Driver {
    /// Connects to a port's socket, with these offloads both ways.
    ///
    /// # Errors
    /// When the daemon does not take it.
    pub fn connect(socket: &Path, offloads: Offloads) -> Result<Driver> {
        Self::connect_with(socket, offloads, FRAME_LEN_MAX)
    }

    /// The same with frames of so many bytes at most: shorter ones leave room for more of them at once.
    ///
    /// # Errors
    /// As [`Driver::connect`].
    pub fn connect_with(socket: &Path, offloads: Offloads, frame_len_max: usize) -> Result<Driver> {
        let options = NetOptions { offloads, frame_len_max, ..NetOptions::default() };
        let endpoint = Endpoint::Connect(socket.to_owned());
        let (guest, mut queues) = NetGuest::connect(endpoint, &options).map_err(told)?;
        Ok(Driver { _guest: guest, queue: queues.remove(0) })
    }

    /// Sends a complete frame, and waits until the switch has taken it.
    ///
    /// # Errors
    /// When it is not taken within ten seconds.
    pub fn send(&mut self, frame: &[u8]) -> Result {
        self.send_with(&NetHeader::default(), frame)
    }

    /// The same with a header: a checksum to be filled in, segments to be cut.
    ///
    /// # Errors
    /// As [`Driver::send`].
    pub fn send_with(&mut self, header: &NetHeader, frame: &[u8]) -> Result {
        self.send_all(header, &[frame])
    }

    /// Sends several frames at once, fewer than its ring has entries, and waits until the switch has taken them.
    ///
    /// # Errors
    /// When there is no room for one, or they are not taken within ten seconds.
    pub fn send_all(&mut self, header: &NetHeader, frames: &[impl AsRef<[u8]>]) -> Result {
        let done = self.queue.tx.completed() + frames.len() as u64;
        for frame in frames {
            ensure(self.queue.tx.push(header, frame.as_ref()), || "no room to send".to_owned())?;
        }
        self.queue.tx.flush();
        let end = Instant::now() + Duration::from_secs(10);
        while self.queue.tx.completed() < done {
            self.queue.tx.reclaim().map_err(told)?;
            ensure(Instant::now() < end, || "the switch does not take the frames".to_owned())?;
            sleep(Duration::from_micros(20));
        }
        Ok(())
    }

    /// What was delivered since the last call.
    ///
    /// # Errors
    /// When the switch broke the ring.
    pub fn received(&mut self) -> Result<Vec<Vec<u8>>> {
        Ok(self.received_with()?.into_iter().map(|(_, frame)| frame).collect())
    }

    /// The same with the header of each frame: what is left to the guest's stack.
    ///
    /// # Errors
    /// When the switch broke the ring.
    pub fn received_with(&mut self) -> Result<Vec<(NetHeader, Vec<u8>)>> {
        let mut frames = Vec::new();
        loop {
            let look = |frame: &avio_guest::net::RxFrame<'_>| {
                let mut bytes = Vec::new();
                frame.copy_to(&mut bytes);
                frames.push((frame.header(), bytes));
            };
            if self.queue.rx.poll(64, look).map_err(told)? == 0 {
                return Ok(frames);
            }
        }
    }

    /// All frames until `last` has come, which is one of them.
    ///
    /// # Errors
    /// When it has not come after five seconds.
    pub fn received_until(&mut self, last: &[u8]) -> Result<Vec<Vec<u8>>> {
        let end = Instant::now() + Duration::from_secs(5);
        let mut frames = Vec::new();
        while !frames.iter().any(|frame| frame == last) {
            frames.extend(self.received()?);
            ensure(Instant::now() < end, || {
                format!("the last frame has not come; {}", crate::capture::hex(&frames))
            })?;
            sleep(Duration::from_millis(1));
        }
        Ok(frames)
    }
}
