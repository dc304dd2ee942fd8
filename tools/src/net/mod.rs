//! `avio net`, also installed as `hpvmnet`: shows and changes virtual switches (SEMANTICS 1.2, 1.3).
//!
//! Showing asks the daemon. Changing edits the files, which are the truth, and tells the daemon to reload.

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
    let _ = program;
    show::run(global, &args)
}
