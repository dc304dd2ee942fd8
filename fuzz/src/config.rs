//! Fuzzes the configuration files: whatever text stands in them, checking ends with a configuration or with errors that name
//! a place, and never panics.

#![no_main]

use avio_proto::config::{Config, Files, SourceFile, Surroundings};
use libfuzzer_sys::fuzz_target;

fn file(name: &str, bytes: &[u8]) -> Option<SourceFile> {
    SourceFile::from_bytes(name.into(), bytes.to_vec()).ok()
}

fuzz_target!(|data: &[u8]| {
    // Two zero bytes part the three files, as no text contains one.
    let mut parts = data.splitn(3, |&byte| byte == 0);
    let mut next = |name: &str| parts.next().and_then(|bytes| file(name, bytes));
    let mut files =
        Files { vswitches: next("vswitches.toml"), storage: next("storage.toml"), ..Files::default() };
    if let Some(guest) = next("guests/guest1.toml") {
        files.guests.insert("guest1".to_owned(), guest);
    }
    if let Err(errors) = Config::from_files(&files, &Surroundings::default()) {
        assert!(!errors.to_string().is_empty());
    }
});
