//! Showing: asks the daemon and prints tables, the statistics of the seed's Figure 3, JSON or colon-separated fields.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use avio_proto::control::{ClearStatisticsParams, ShowParams, ShowReply, Vswitch, method};
use serde_json::json;

use super::options::{NetArgs, PortChoice};
use super::{machine, table};
use crate::cli::{Failure, Global};
use crate::client::Client;

/// Shows what `args` ask for, once or until interrupted.
pub fn run(global: &Global, args: &NetArgs) -> Result<(), Failure> {
    let mut client = Client::vswitchd(&global.run_dir)?;
    let mut out = io::stdout().lock();
    loop {
        let vswitches = ask(&mut client, args)?;
        let text = if args.clear && !args.statistics {
            String::new()
        } else {
            render(&vswitches, global.json, args)?
        };
        if args.watch.is_some() && out.is_terminal() && !global.json {
            // Home and erase: the next picture takes this one's place.
            let _ = out.write_all(b"\x1b[H\x1b[2J");
        }
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            // Whoever read this has seen enough (`avio net --watch | head`).
            return Ok(());
        }
        if args.clear {
            let vswitch = match (&args.name, args.number) {
                (None, None) => None,
                _ => vswitches.first().map(|vswitch| vswitch.name.clone()),
            };
            let _: serde_json::Value =
                client.call(method::CLEAR_STATISTICS, &ClearStatisticsParams { vswitch })?;
        }
        match args.watch {
            None => return Ok(()),
            Some(seconds) => std::thread::sleep(Duration::from_secs(u64::from(seconds))),
        }
    }
}

/// The vswitches that `args` name, with only the ports that `-p` leaves.
pub fn ask(client: &mut Client, args: &NetArgs) -> Result<Vec<Vswitch>, Failure> {
    let params = ShowParams { vswitch: args.name.clone(), number: args.number };
    let ShowReply { mut vswitches } = client.call(method::SHOW, &params)?;
    if let Some(PortChoice::One(number)) = args.port {
        let one = params.vswitch.is_some() || params.number.is_some();
        if !one {
            return Err(Failure::Usage("-p N needs the vswitch: -S NAME or -s NUMBER".into()));
        }
        for vswitch in &mut vswitches {
            let known: Vec<String> = vswitch.ports.iter().map(|port| port.number.to_string()).collect();
            vswitch.ports.retain(|port| port.number == number);
            if vswitch.ports.is_empty() {
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(Failure::Refused(format!(
                    "-p {number}: no guest reserves this port of {}; reserved are: {known}",
                    vswitch.name
                )));
            }
        }
    }
    Ok(vswitches)
}

/// The text for `vswitches`.
pub fn render(vswitches: &[Vswitch], json: bool, args: &NetArgs) -> Result<String, Failure> {
    let one = args.name.is_some() || args.number.is_some();
    if json {
        let value = match vswitches {
            [vswitch] if one => serde_json::to_value(vswitch),
            all => Ok(json!({ "vswitches": all })),
        };
        let value = value.map_err(|error| Failure::Refused(format!("cannot print JSON: {error}")))?;
        return Ok(format!("{value}\n"));
    }
    if args.machine {
        return Ok(machine::render(
            vswitches,
            one || args.statistics || args.port.is_some(),
            args.statistics,
        ));
    }
    if args.statistics || args.verbose && (one || args.port.is_some()) {
        return Ok(table::details(vswitches, args.statistics, args.verbose));
    }
    let mut text = table::summary(vswitches);
    if one || args.port.is_some() {
        for vswitch in vswitches {
            text.push('\n');
            if !one {
                text.push_str(&format!("{}\n", vswitch.name));
            }
            text.push_str(&table::ports(vswitch));
        }
    }
    Ok(text)
}
