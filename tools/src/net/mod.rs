//! `avio net`, also installed as `hpvmnet`: shows and changes virtual switches (SEMANTICS 1.2, 1.3).
//!
//! Showing asks the daemon. Changing edits the files, which are the truth, and tells the daemon to reload.

mod edit;
mod machine;
mod options;
mod show;
mod table;

pub use options::NetArgs;

use crate::cli::{Failure, Global};

/// Does what `args` ask; `program` is how the user called us, for prompts.
///
/// # Errors
/// [`Failure`]: one line for the user and the exit status.
pub fn run(program: &str, global: &Global, args: NetArgs) -> Result<(), Failure> {
    let action = args.create
        || args.delete
        || args.boot
        || args.halt
        || args.restart
        || args.reload
        || args.change
        || args.set_port.is_some();
    if args.uplink.is_some() && !(args.create || args.change) {
        return Err(Failure::Usage("-n goes with -c or -C".into()));
    }
    if action { edit::run(program, global, &args) } else { show::run(global, &args) }
}

#[cfg(test)]
mod tests;
