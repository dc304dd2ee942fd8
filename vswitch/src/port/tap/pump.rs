//! The thread that moves frames between TAPs and AVIO rings.
//!
//! One thread for all TAP ports of the daemon, started with the first. It sleeps in the one system call that also submits what it
//! has staged; workers wake it through an eventfd only while it sleeps. Control adds and takes away ducts by message and hears of
//! what was lost or let go by [`PumpEvent`]s.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use avio_host::wait::EventFd;
use avio_host::worker::ControlWaker;
use crossbeam_channel::{Receiver, Sender, unbounded};

use super::queue::Duct;
use super::uring::{Done, Uring};
use crate::table::PortIndex;

/// Token of the wait for `wake`; no duct has this number.
const WAKE: u64 = u64::MAX;

/// Something for control.
#[derive(Debug)]
pub enum PumpEvent {
    /// The network device is gone, or a ring broke; said once. The duct moves nothing any more.
    Lost(PortIndex, String),
    /// After [`Pump::remove`]: the kernel holds nothing of the port, its descriptor is closed.
    Removed(PortIndex),
}

enum Command {
    Add(PortIndex, Box<Duct>),
    Remove(PortIndex),
    End,
}

/// Control's hold on the thread, which ends with it.
pub struct Pump {
    commands: Sender<Command>,
    events: Receiver<PumpEvent>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Pump {
    /// Starts the thread. `control` is woken after each event.
    ///
    /// # Errors
    /// No io_uring (an administrator may have switched it off), thread or descriptor.
    pub fn start(control: ControlWaker) -> io::Result<Self> {
        let wake = Arc::new(EventFd::new()?);
        let uring = Uring::new()?;
        let (commands, inbox) = unbounded();
        let (outbox, events) = unbounded();
        let run = Run {
            wake_file: Arc::new(wake.try_clone()?),
            wake: wake.clone(),
            uring,
            inbox,
            outbox,
            control,
            ducts: BTreeMap::new(),
            numbers: BTreeMap::new(),
            next_number: 0,
            done: Vec::new(),
            watching: false,
            armed: false,
        };
        let thread = Builder::new().name("taps".to_owned()).spawn(move || run.run())?;
        Ok(Self { commands, events, wake, thread: Some(thread) })
    }

    /// What workers signal: for [`super::make_rings`].
    #[must_use]
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Runs a duct from now on.
    pub fn add(&self, index: PortIndex, duct: Duct) {
        self.send(Command::Add(index, Box::new(duct)));
    }

    /// Lets go of a duct; answered by [`PumpEvent::Removed`].
    pub fn remove(&self, index: PortIndex) {
        self.send(Command::Remove(index));
    }

    fn send(&self, command: Command) {
        let _ = self.commands.send(command);
        self.wake.signal();
    }

    /// The next event. Control thread, after it was woken.
    pub fn event(&self) -> Option<PumpEvent> {
        self.events.try_recv().ok()
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.send(Command::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread.
struct Run {
    wake_file: Arc<OwnedFd>,
    wake: Arc<EventFd>,
    uring: Uring,
    inbox: Receiver<Command>,
    outbox: Sender<PumpEvent>,
    control: ControlWaker,
    /// By number. A number is never given twice: a late completion finds nobody.
    ducts: BTreeMap<usize, Place>,
    numbers: BTreeMap<PortIndex, usize>,
    next_number: usize,
    done: Vec<Done>,
    /// The kernel waits for `wake`.
    watching: bool,
    /// Workers have been asked for wake-ups.
    armed: bool,
}

struct Place {
    index: PortIndex,
    duct: Box<Duct>,
    leaving: bool,
}

impl Run {
    fn run(mut self) {
        // What comes after the look at the commands has signalled `wake`, which the sleep sees.
        while self.take_commands() {
            for (number, place) in &mut self.ducts {
                place.duct.stage(*number, &mut self.uring);
            }
            let gone = self.ducts.values().any(|place| place.leaving && place.duct.is_idle());
            let wait = !gone && !self.uring.has_staged() && !self.arm();
            self.uring.enter(usize::from(wait));
            self.complete();
            for place in self.ducts.values_mut() {
                place.duct.publish();
            }
        }
    }

    /// Asks for every wake-up there is; returns whether one has come already.
    fn arm(&mut self) -> bool {
        let mut at_once = false;
        for place in self.ducts.values_mut() {
            at_once |= place.duct.arm();
        }
        self.armed = true;
        if !self.watching {
            self.watching = true;
            self.uring.poll(&self.wake_file, WAKE);
        }
        at_once
    }

    /// Hands completions to their ducts.
    fn complete(&mut self) {
        if std::mem::take(&mut self.armed) {
            self.ducts.values_mut().for_each(|place| place.duct.disarm());
        }
        self.uring.take_done(&mut self.done);
        for Done { token, result } in self.done.drain(..) {
            if token == WAKE {
                self.watching = false;
                self.wake.drain();
            } else if let Some(place) = self.ducts.get_mut(&Duct::number_of(token)) {
                place.duct.complete(token, result);
            }
        }
        let mut told = false;
        for place in self.ducts.values_mut() {
            if let Some(why) = place.duct.take_lost() {
                told |= self.outbox.send(PumpEvent::Lost(place.index, why)).is_ok();
            }
        }
        let gone: Vec<usize> = self
            .ducts
            .iter()
            .filter(|(_, place)| place.leaving && place.duct.is_idle())
            .map(|(number, _)| *number)
            .collect();
        for number in gone {
            if let Some(Place { index, duct, .. }) = self.ducts.remove(&number) {
                drop(duct);
                told |= self.outbox.send(PumpEvent::Removed(index)).is_ok();
            }
        }
        if told {
            self.control.wake();
        }
        // The next read of its chain waits now.
        for place in self.ducts.values_mut().filter(|place| place.leaving) {
            place.duct.leave(&mut self.uring);
        }
    }

    /// Whether the thread is to go on.
    fn take_commands(&mut self) -> bool {
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                Command::Add(index, duct) => {
                    self.numbers.insert(index, self.next_number);
                    self.ducts.insert(self.next_number, Place { index, duct, leaving: false });
                    self.next_number += 1;
                }
                Command::Remove(index) => {
                    let number = self.numbers.remove(&index);
                    match number.and_then(|number| self.ducts.get_mut(&number)) {
                        Some(place) => {
                            place.leaving = true;
                            place.duct.leave(&mut self.uring);
                        }
                        None => {
                            let _ = self.outbox.send(PumpEvent::Removed(index));
                            self.control.wake();
                        }
                    }
                }
                Command::End => return false,
            }
        }
        true
    }
}
