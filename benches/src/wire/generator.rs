//! The generator at the far end of a wire: by an AF_XDP socket, or by runs of a program that give the kernel many frames in one call.
//!
//! A socket leaves and enters the kernel's network stack for each frame, which costs the generator's core more than all that is measured; by the burst it
//! gives about 1.7 times as many (the daemon's own way out, decision 0013). Driven by [`super::traffic`] on its thread.

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsFd;

use avio_tests::wire::Wire;
use avio_tests::{Failure, Result};
use avio_vswitch::port::wire::Outlet;
use avio_vswitch::port::xdp::{Wanted, open_burst, open_xsk};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::rows::Source;

/// Longest frame of a wire.
pub(super) const LEN_MAX: usize = 1518;

/// See the module.
pub struct Generator {
    socket: Box<dyn Outlet>,
    burst: Box<dyn Outlet>,
    namespace: File,
}

impl Generator {
    /// On the far device of `wire`.
    ///
    /// # Errors
    /// When the kernel refuses the socket or the program.
    pub fn new(wire: &Wire) -> Result<Self> {
        let namespace = namespace(wire)?;
        let (socket, burst) = inside(wire, |index| {
            let wanted = Wanted { copy: true, frame_len_max: LEN_MAX, ..Wanted::default() };
            let (_, socket, ..) = open_xsk(index, 0, wanted).map_err(|e| Failure::new(e.to_string()))?;
            let (burst, _) = open_burst(index, 0, 1, LEN_MAX, None)?;
            Ok((socket, burst))
        })?;
        Ok(Self { socket, burst, namespace })
    }

    /// Ready to send, for as long as what this gives lives.
    ///
    /// # Errors
    /// When the wire's namespace is gone.
    pub fn by(&mut self, source: Source) -> Result<Sending<'_>> {
        Ok(match source {
            Source::Socket => Sending { outlet: &mut self.socket, home: None },
            Source::Burst => {
                let home = File::open("/proc/thread-self/ns/net")?;
                enter(&self.namespace)?;
                Sending { outlet: &mut self.burst, home: Some(home) }
            }
        })
    }
}

/// An outlet in use. A program's run finds its devices by the namespace of the thread, which is back where it was when this is dropped.
pub struct Sending<'g> {
    outlet: &'g mut Box<dyn Outlet>,
    home: Option<File>,
}

impl Deref for Sending<'_> {
    type Target = Box<dyn Outlet>;

    fn deref(&self) -> &Self::Target {
        self.outlet
    }
}

impl DerefMut for Sending<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.outlet
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            // It has been there before.
            drop(enter(home));
        }
    }
}

/// Runs `open` with the number of the far device of `wire`, in that one's namespace.
///
/// # Errors
/// As `open`, or when the namespace is gone.
pub(super) fn inside<T: Send>(wire: &Wire, open: impl FnOnce(u32) -> Result<T> + Send) -> Result<T> {
    let text = wire.far_ip(&["-o", "link", "show", &wire.far])?;
    let index: u32 = text.split(':').next().unwrap_or_default().trim().parse()?;
    let namespace = namespace(wire)?;
    let open = move || -> Result<T> {
        enter(&namespace)?;
        open(index)
    };
    // A thread of its own: the namespace is the thread's.
    let opened = std::thread::scope(|scope| scope.spawn(open).join());
    opened.map_err(|_| Failure::new("what opens the far device panicked"))?
}

fn namespace(wire: &Wire) -> io::Result<File> {
    File::open(format!("/run/netns/{}", wire.namespace))
}

fn enter(namespace: &File) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}
