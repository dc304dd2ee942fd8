//! Fuzzes a vhost-user back-end session with whatever a front-end could write on the socket.
//!
//! The input is the byte stream; each message comes with as many descriptors as its header's unused bits say. Memory is
//! mapped as long as it is short, files are refused, rings that stop answer with what the input says. Nothing may panic, and
//! closing always ends the session.

#![no_main]

use avio_guest::MemfdMapping;
use avio_proto::mem::Mapping;
use avio_proto::vhost_user::backend::{Action, Backend, DeviceSpec, Event};
use avio_proto::vhost_user::FrameReader;
use libfuzzer_sys::fuzz_target;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, LazyLock};

/// Longest memory that is mapped, in bytes.
const MAPPED_MAX: u64 = 1 << 16;

/// What every descriptor refers to: nothing reads or writes it here.
static NULL: LazyLock<File> = LazyLock::new(|| File::open("/dev/null").expect("/dev/null is there"));

fn descriptors(count: u8) -> Vec<OwnedFd> {
    (0..count).map(|_| NULL.try_clone().expect("a descriptor").into()).collect()
}

fn map(len: u64) -> Result<Arc<dyn Mapping>, String> {
    if len > MAPPED_MAX {
        return Err("too long to be mapped here".to_owned());
    }
    let mapping = MemfdMapping::new("fuzz", len as usize).map_err(|error| error.to_string())?;
    Ok(Arc::new(mapping))
}

/// Does what the session asks for until it asks for nothing more.
fn serve(session: &mut Backend, base: u32) {
    while let Some(action) = session.next_action() {
        let outcome = match action {
            Action::Map(request) => session.mapped(request.ticket, map(request.len)),
            Action::Create { ticket, .. } => session.created(ticket, Err("no files here".to_owned())),
            Action::Event(Event::RingStop { index, .. }) => session.ring_stopped(index, base),
            _ => Ok(()),
        };
        if outcome.is_err() {
            session.close();
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, mut stream)) = data.split_first() else { return };
    let mut session = Backend::new(DeviceSpec {
        features: u64::MAX,
        features_tolerated: u64::from(*choice),
        protocol_features: u64::MAX,
        queue_max: u16::from(*choice) % 9,
        config: vec![0; 60],
        mtu_max: 9000,
    });
    let mut reader = FrameReader::new();
    serve(&mut session, 0);
    while !stream.is_empty() && session.wants_message() {
        let (now, later) = stream.split_at(reader.wanted().min(stream.len()));
        stream = later;
        // Flags are bytes 4..8 of a header, of which only the low five bits mean anything.
        let fds = if reader.at_border() { now.get(5).map_or(0, |byte| byte % 5) } else { 0 };
        match reader.push(now, descriptors(fds)) {
            Ok(Some(message)) => {
                if session.receive(message).is_err() {
                    session.close();
                }
                serve(&mut session, u32::from(*choice));
            }
            Ok(None) => {}
            Err(_) => session.close(),
        }
    }
    session.close();
    serve(&mut session, 0);
    assert!(session.is_closed(), "a session must end when it is closed");
});
