//! `avio-instructions check | update | run PATH`: instructions per frame and request against the committed baseline; see
//! [`avio_benches::instructions`].

use std::process::{Command, ExitCode};

use avio_benches::instructions::{Baseline, PATHS, compare, count_all, run, to_toml, unit};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["check"] => check(),
        ["update"] => update(),
        ["run", path] => match PATHS.iter().find(|case| case.name == *path) {
            Some(case) => {
                println!("{} {}s", run(case), unit(path));
                Ok(())
            }
            None => Err(format!("there is no path '{path}'")),
        },
        _ => {
            eprintln!("usage: avio-instructions check | update | run PATH");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(lines) => {
            eprintln!("avio-instructions: ERROR: {lines}");
            ExitCode::from(1)
        }
    }
}

fn check() -> Result<(), String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let (baseline, now) = (Baseline::read()?, count_all(&program)?);
    for (name, count) in &now {
        println!(
            "{name:<24} {count:8.1} instructions per {:<7}, baseline {:8.1}",
            unit(name),
            baseline.instructions.get(name).unwrap_or(&0.0)
        );
    }
    let lines = compare(&baseline, &now);
    if lines.is_empty() {
        return Ok(());
    }
    let version = rustc();
    Err(format!(
        "{}\nthis build: {version}. If the rise is meant: 'make instructions-update', and commit the file with the reason",
        lines.join("\n")
    ))
}

fn update() -> Result<(), String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let text = to_toml(&rustc(), &count_all(&program)?);
    print!("{text}");
    let path = Baseline::path();
    std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))
}

/// The compiler in use, as it calls itself.
fn rustc() -> String {
    let output = Command::new("rustc").arg("--version").output();
    output.map_or_else(|_| "unknown rustc".into(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}
