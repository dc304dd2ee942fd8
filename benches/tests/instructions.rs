//! Fails when the data path takes more than five percent more instructions per frame or request than the committed baseline.
//!
//! The baseline is of release binaries, whatever profile this test is built in, so it builds the counting program itself.

use std::process::Command;

#[test]
fn instructions_per_frame_and_request_have_not_risen() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args([
            "run",
            "-q",
            "--release",
            "--locked",
            "-p",
            "avio-benches",
            "--bin",
            "avio-instructions",
            "--",
            "check",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let (said, erred) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{erred}");
}
