//! The forwarding engine of one worker.

use std::sync::Arc;

use avio_host::wait::{Sources, Token};
use avio_host::worker::{self, ControlWaker, Polled};
use crossbeam_channel::Sender;

use super::Events;
use crate::port::guest::{TxQueue, TxStopped};
use crate::table::{PortIndex, Table};

/// What control asks of an engine.
#[derive(Debug)]
pub enum Command {
    /// Use this table from now on. Sent to every worker.
    Publish(Arc<Table>),
    /// Serve this transmit ring. Its port must be in a table published before.
    StartTx(Box<TxQueue>),
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
    worker: usize,
    events: Events,
    control: ControlWaker,
    table: Arc<Table>,
}

impl Engine {
    /// The engine of worker number `worker` (its cell in every port's numbers), with an empty table and no rings.
    #[must_use]
    pub fn new(worker: usize, events: Events, control: ControlWaker) -> Self {
        Self { worker, events, control, table: Arc::new(Table::empty()) }
    }
}

impl worker::Engine for Engine {
    type Command = Command;

    fn command(&mut self, _sources: &mut Sources, _command: Command) {
        unimplemented!()
    }

    fn poll(&mut self, _token: Token, _budget: usize) -> Polled {
        unimplemented!()
    }

    fn arm(&mut self, _token: Token) -> bool {
        unimplemented!()
    }

    fn disarm(&mut self, _token: Token) {
        unimplemented!()
    }

    fn source_panicked(&mut self, _token: Token) {
        unimplemented!()
    }
}
