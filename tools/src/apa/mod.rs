//! `avio apa`: shows aggregates and their members in the manner of `nwmgr` and `lanadmin` (SEMANTICS 4.6), rebalances and resets them.
//! Asks the daemon; the files are the truth for everything else.

mod options;
mod table;

pub use options::ApaArgs;

use std::io::{self, Write};

use avio_proto::control::{AggregateParams, AggregatesReply, method};
use serde_json::Value;

use crate::cli::{Failure, Global};
use crate::client::Client;
use options::Action;

/// Does what `args` ask.
///
/// # Errors
/// [`Failure`]: one line for the user and the exit status.
pub fn run(global: &Global, args: &ApaArgs) -> Result<(), Failure> {
    let mut client = Client::vswitchd(&global.run_dir)?;
    if let Some(action) = &args.action {
        let (what, aggregate) = match action {
            Action::Rebalance { aggregate } => (method::REBALANCE, aggregate),
            Action::Reset { aggregate } => (method::RESET_AGGREGATE, aggregate),
        };
        let _: Value = client.call(what, &AggregateParams { aggregate: aggregate.clone() })?;
        return Ok(());
    }
    let mut reply: AggregatesReply = client.call(method::AGGREGATES, &serde_json::json!({}))?;
    if let Some(name) = &args.class {
        let known: Vec<String> = reply.aggregates.iter().map(|aggregate| aggregate.name.clone()).collect();
        reply.aggregates.retain(|aggregate| aggregate.name == *name);
        if reply.aggregates.is_empty() {
            let known = if known.is_empty() { "there are none".to_owned() } else { known.join(", ") };
            return Err(Failure::Refused(format!(
                "aggregate {name} is no vswitch's uplink; those that are: {known}"
            )));
        }
    }
    let text = if global.json {
        let text = serde_json::to_string(&reply);
        text.map_err(|e| Failure::Refused(format!("cannot print JSON: {e}")))? + "\n"
    } else if args.sc {
        table::script(&reply)
    } else if args.verbose {
        table::verbose(&reply)
    } else {
        table::brief(&reply)
    };
    // Nobody reads on: nothing to complain about.
    let _ = io::stdout().lock().write_all(text.as_bytes());
    Ok(())
}
