//! The folder where one test case keeps its sockets, configuration and transcripts. Made by the case runner (or on first
//! use); removed by whoever made it. Paths stay short, since a Unix socket's path has at most 107 bytes.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::{env, fs, process};

/// Environment variable in which the case runner hands the folder to the process that runs the case.
pub const VARIABLE: &str = "AVIO_TEST_SCRATCH";

/// This process's scratch folder, which exists.
pub fn folder() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER
        .get_or_init(|| {
            let folder = env::var_os(VARIABLE).map_or_else(|| fresh_path("x"), PathBuf::from);
            fs::create_dir_all(&folder).expect("scratch folder under the temporary folder");
            folder
        })
        .clone()
}

/// A path for the `tag`th scratch folder of this process. Nothing is created.
pub fn fresh_path(tag: impl std::fmt::Display) -> PathBuf {
    env::temp_dir().join(format!("avio-{}-{tag}", process::id()))
}
