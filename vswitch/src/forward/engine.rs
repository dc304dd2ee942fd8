//! The forwarding engine of one worker: its transmit rings, the table it uses, and what the worker loop asks of it.
//!
//! What happens to the frames of a batch is in `batch`; this file takes commands, finds the ring, and deals with rings that
//! break.

use std::sync::Arc;

use avio_host::wait::{Sources, Token};
use avio_host::worker::{self, ControlWaker, Polled};
use avio_proto::config::MacAddr;
use crossbeam_channel::Sender;

use super::{Event, Events, Forwarder};
use crate::port::guest::{TxQueue, TxStopped};
use crate::table::{PortIndex, Table};

/// What control asks of an engine.
#[derive(Debug)]
pub enum Command {
    /// Use this table from now on. Sent to every worker.
    Publish(Arc<Table>),
    /// Serve this transmit ring. Its port must be in a table published before.
    StartTx(Box<TxQueue>),
    /// Broadcast in the name of a port that this address is there ([`Forwarder::announce`]).
    Announce {
        /// The port.
        port: PortIndex,
        /// The address of the guest behind it.
        mac: MacAddr,
    },
    /// Stop serving a transmit ring and drop it. The answer is sent, then control is woken.
    StopTx {
        /// Its port.
        port: PortIndex,
        /// Its pair number.
        pair: u16,
        /// Needs room for the answer: it is dropped rather than waited for.
        answer: Sender<TxStopped>,
    },
}

/// Forwards what the transmit rings of one worker bring.
pub struct Engine {
    control: ControlWaker,
    forwarder: Forwarder,
    /// By token.
    queues: Vec<Option<(Token, Box<TxQueue>)>>,
}

impl Engine {
    /// The engine of worker number `worker` (its cell in every port's numbers), with an empty table and no rings.
    #[must_use]
    pub fn new(worker: usize, events: Events, control: ControlWaker) -> Self {
        Self { control, forwarder: Forwarder::new(worker, events), queues: Vec::new() }
    }

    fn start(&mut self, sources: &mut Sources, mut queue: Box<TxQueue>) {
        let (port, pair) = (queue.port, queue.pair);
        match sources.add(queue.kick.take()) {
            Ok(token) => {
                if self.queues.len() <= token.index() {
                    self.queues.resize_with(token.index() + 1, || None);
                }
                self.queues[token.index()] = Some((token, queue));
            }
            Err(error) => {
                tracing::error!("transmit ring {pair} of port index {} not started: {error}", port.0);
                self.forwarder.events().send(Event::TxBroken { port, pair, error: None });
            }
        }
    }

    fn stop(&mut self, sources: &mut Sources, port: PortIndex, pair: u16) -> TxStopped {
        let mut base = None;
        for place in &mut self.queues {
            if let Some((token, queue)) = place.take_if(|(_, queue)| queue.port == port && queue.pair == pair)
            {
                sources.remove(token);
                base = Some(queue.ring.base());
            }
        }
        TxStopped { port, pair, base }
    }

    fn queue(&mut self, token: Token) -> Option<&mut TxQueue> {
        match self.queues.get_mut(token.index())? {
            Some((of, queue)) if *of == token => Some(queue),
            _ => None,
        }
    }
}

impl worker::Engine for Engine {
    type Command = Command;

    fn started(&mut self, sources: &mut Sources) {
        self.forwarder.set_stats(Arc::clone(sources.stats()));
    }

    fn command(&mut self, sources: &mut Sources, command: Command) {
        match command {
            Command::Publish(table) => {
                self.forwarder.publish(table);
            }
            Command::StartTx(queue) => self.start(sources, queue),
            Command::Announce { port, mac } => self.forwarder.announce(port, mac),
            Command::StopTx { port, pair, answer } => {
                let stopped = self.stop(sources, port, pair);
                let _ = answer.try_send(stopped);
                self.control.wake();
            }
        }
    }

    fn poll(&mut self, token: Token, budget: usize) -> Polled {
        let Some(Some((of, queue))) = self.queues.get_mut(token.index()) else { return Polled::Idle };
        if *of != token || queue.broken {
            return Polled::Broken;
        }
        match self.forwarder.forward(queue, budget) {
            Ok((0, _)) => Polled::Idle,
            Ok((items, more)) => Polled::Worked { items, more },
            Err(error) => {
                queue.broken = true;
                let (port, pair) = (queue.port, queue.pair);
                self.forwarder.events().send(Event::TxBroken { port, pair, error: Some(error) });
                Polled::Broken
            }
        }
    }

    fn arm(&mut self, token: Token) -> bool {
        self.queue(token).is_some_and(|queue| queue.ring.enable_notifications())
    }

    fn disarm(&mut self, token: Token) {
        if let Some(queue) = self.queue(token) {
            queue.ring.disable_notifications();
        }
    }

    fn source_panicked(&mut self, token: Token) {
        if let Some(queue) = self.queue(token) {
            queue.broken = true;
            let (port, pair) = (queue.port, queue.pair);
            self.forwarder.events().send(Event::TxBroken { port, pair, error: None });
        }
    }
}
