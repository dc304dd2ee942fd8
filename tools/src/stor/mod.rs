//! `avio stor`: shows storage adapters and their LUNs, and operates drives and limits. Asks the daemon; the files are the
//! truth for everything else.

mod options;
mod table;

pub use options::StorArgs;

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use avio_proto::control::{
    EjectParams, InsertParams, LimitsParams, PlaceParams, ReloadReply, ShowStorageParams, StorageReply,
    stord_method as method,
};
use serde_json::Value;

use crate::cli::{Failure, Global};
use crate::client::Client;
use options::Action;

/// Does what `args` ask.
///
/// # Errors
/// [`Failure`]: one line for the user and the exit status.
pub fn run(global: &Global, args: &StorArgs) -> Result<(), Failure> {
    let mut client = Client::stord(&global.run_dir)?;
    if args.reload {
        return reload(&mut client);
    }
    let Some(action) = &args.action else { return show(&mut client, global, args) };
    let _: Value = match action {
        Action::Eject { place, force } => {
            client.call(method::EJECT, &EjectParams { place: place.place(), force: *force })?
        }
        Action::Insert { place, iso } => {
            // The daemon's working directory is not the operator's.
            let path =
                std::path::absolute(iso).map_err(|e| Failure::Usage(format!("{}: {e}", iso.display())))?;
            let path = path.display().to_string();
            client.call(method::INSERT, &InsertParams { place: place.place(), path })?
        }
        Action::Qos { place, iops, mib_per_s } => {
            let (iops_now, bytes_now) = limits(&mut client, place)?;
            let bytes_per_s = mib_per_s.map_or(bytes_now, |mib| mib << 20);
            let params = LimitsParams { place: place.place(), iops: iops.unwrap_or(iops_now), bytes_per_s };
            client.call(method::SET_LIMITS, &params)?
        }
        Action::Replace { place, force_host } => {
            if !force_host {
                return Err(Failure::Refused(
                    "a replaced backing is approved by the guest's administrator (gvsdmgr replace_dsk); \
                     --force-host does it from here"
                        .into(),
                ));
            }
            client.call(method::APPROVE, &PlaceParams { place: place.place() })?
        }
    };
    Ok(())
}

/// A LUN's limits as they are: requests and bytes a second. Of one that is not there none: the daemon refuses what follows.
fn limits(client: &mut Client, place: &options::PlaceArgs) -> Result<(u64, u64), Failure> {
    let params = ShowStorageParams { guest: Some(place.guest.clone()) };
    let reply: StorageReply = client.call(method::SHOW, &params)?;
    let of_adapter = reply.adapters.iter().filter(|a| (a.bus, a.device) == (place.bus, place.device));
    let mut luns = of_adapter.flat_map(|adapter| &adapter.luns);
    let lun = luns.find(|lun| lun.target == place.target);
    Ok(lun.map_or((0, 0), |lun| (lun.iops, lun.bytes_per_s)))
}

fn reload(client: &mut Client) -> Result<(), Failure> {
    let done: ReloadReply = client.call(method::RELOAD, &serde_json::json!({}))?;
    for line in done.changes.iter().chain(&done.warnings) {
        println!("{line}");
    }
    if done.changes.is_empty() {
        println!("nothing has changed");
    }
    Ok(())
}

fn show(client: &mut Client, global: &Global, args: &StorArgs) -> Result<(), Failure> {
    let params = ShowStorageParams { guest: args.guest.clone() };
    let mut out = io::stdout().lock();
    loop {
        let reply: StorageReply = client.call(method::SHOW, &params)?;
        if let Some(guest) = args.guest.as_ref().filter(|_| reply.adapters.is_empty()) {
            return Err(Failure::Refused(format!(
                "guest {guest} has no storage adapter here; `avio stor` lists all"
            )));
        }
        let text = if args.clear {
            String::new()
        } else if global.json {
            let text = serde_json::to_string(&reply);
            text.map_err(|e| Failure::Refused(format!("cannot print JSON: {e}")))? + "\n"
        } else {
            table::render(&reply, args.verbose)
        };
        if args.watch.is_some() && out.is_terminal() && !global.json {
            // Home and erase: the next picture takes this one's place.
            let _ = out.write_all(b"\x1b[H\x1b[2J");
        }
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            return Ok(());
        }
        if args.clear {
            let _: Value = client.call(method::CLEAR_STATISTICS, &params)?;
        }
        match args.watch {
            None => return Ok(()),
            Some(seconds) => std::thread::sleep(Duration::from_secs(seconds.into())),
        }
    }
}
