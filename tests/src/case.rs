//! What a system test is and how it runs: a named function with a time limit, in a process of its own, so that a hang, a
//! panic or a child left behind costs that case only.
//!
//! Each file in `tests/tests` with `harness = false` calls [`main`] with its cases. The command line is that of Rust's own
//! test programs as far as anyone uses it: words filter by name, `--exact`, `--list`; `--data-path` keeps the cases that
//! move frames through the switch.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions};

use crate::{Result, scratch};

/// Names the case that this process is to run.
const VARIABLE: &str = "AVIO_TEST_CASE";

/// How much of each transcript a failure shows, in lines.
const TAIL_LINES: usize = 25;

/// One system test.
pub struct Case {
    name: &'static str,
    seconds: u64,
    data_path: bool,
    run: fn() -> Result,
}

impl Case {
    /// The case `name`, which fails when `run` fails, panics, or takes longer than `seconds`.
    pub const fn new(name: &'static str, seconds: u64, run: fn() -> Result) -> Case {
        Case { name, seconds, data_path: false, run }
    }

    /// Marks a case that moves frames: it runs once more with every newer kernel facility switched off.
    #[must_use]
    pub const fn data_path(self) -> Case {
        Case { data_path: true, ..self }
    }
}

/// Runs the cases of one test program as its command line says; prints a line for each and a closing line of the usual form.
pub fn main(cases: &[Case]) -> ExitCode {
    if let Ok(name) = std::env::var(VARIABLE) {
        return run_here(cases, &name);
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|a| a == flag);
    let words: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-') && *a != "terse").collect();
    let chosen = cases.iter().filter(|case| {
        let named = words.is_empty()
            || words.iter().any(|word| {
                if has("--exact") { case.name == *word } else { case.name.contains(word.as_str()) }
            });
        named && (!has("--data-path") || case.data_path)
    });
    // Whoever asks for ignored tests alone gets none: a case that cannot run here fails or stands in allowed-skips.
    let chosen: Vec<&Case> = if has("--ignored") { Vec::new() } else { chosen.collect() };
    if has("--list") {
        for case in chosen {
            println!("{}: test", case.name);
        }
        return ExitCode::SUCCESS;
    }
    run_all(&chosen, cases.len())
}

fn run_here(cases: &[Case], name: &str) -> ExitCode {
    let Some(case) = cases.iter().find(|case| case.name == name) else {
        eprintln!("no case is called {name}");
        return ExitCode::from(2);
    };
    // Should the runner be killed, so is the case, and with it all that it started.
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        eprintln!("cannot ask to end with the runner: {error}");
    }
    match (case.run)() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn run_all(chosen: &[&Case], known: usize) -> ExitCode {
    let program = std::env::current_exe().expect("this program has a path");
    let skips = allowed_skips();
    // Processes that a case leaves behind become children of this one, and can be ended by pid.
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        eprintln!("cannot adopt what cases leave behind: {error}");
    }
    let (mut passed, mut failed, mut ignored) = (0, 0, 0);
    let start = Instant::now();
    for (number, case) in chosen.iter().enumerate() {
        if let Some(reason) = skips.get(case.name) {
            println!("test {} ... ignored, {reason}", case.name);
            ignored += 1;
            continue;
        }
        let folder = scratch::fresh_path(number);
        let begin = Instant::now();
        let outcome = run_apart(&program, case, &folder);
        let took_s = begin.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                println!("test {} ... ok ({took_s:.1} s of {})", case.name, case.seconds);
                passed += 1;
            }
            Err(reason) => {
                println!("test {} ... FAILED ({took_s:.1} s of {}): {reason}", case.name, case.seconds);
                show_transcripts(&folder);
                failed += 1;
            }
        }
        if std::env::var_os("AVIO_TEST_KEEP").is_none() {
            drop(fs::remove_dir_all(&folder));
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    let filtered = known - chosen.len();
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; {filtered} filtered out; \
         finished in {:.2}s\n",
        start.elapsed().as_secs_f64()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

/// Runs one case in a process and process group of its own, and ends whatever it leaves behind.
fn run_apart(program: &Path, case: &Case, folder: &Path) -> std::result::Result<(), String> {
    use std::os::unix::process::CommandExt;
    fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let log = File::create(folder.join("case.log")).map_err(|e| e.to_string())?;
    let log_too = log.try_clone().map_err(|e| e.to_string())?;
    let mut child = Command::new(program)
        .env(VARIABLE, case.name)
        .env(scratch::VARIABLE, folder)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(log_too)
        .process_group(0)
        .spawn()
        .map_err(|e| e.to_string())?;
    let deadline = Instant::now() + Duration::from_secs(case.seconds);
    let outcome = loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => break Ok(()),
            Ok(Some(status)) => break Err(format!("{status}")),
            Err(error) => break Err(error.to_string()),
            Ok(None) if Instant::now() >= deadline => {
                break Err(format!("not done after {} s", case.seconds));
            }
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    drop(child.kill());
    drop(child.wait());
    end_orphans();
    outcome
}

/// Kills and reaps every child that this process has: those of the case that has just ended.
fn end_orphans() {
    loop {
        let mut any = false;
        for pid in children() {
            any = true;
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
        }
        // The children of those just reaped are ours only now.
        if !any {
            return;
        }
    }
}

fn children() -> Vec<Pid> {
    let own = rustix::process::getpid().as_raw_nonzero().get().to_string();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            // After the name in parentheses come state and parent.
            let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.to_owned();
            (parent == own).then(|| Pid::from_raw(pid)).flatten()
        })
        .collect()
}

fn show_transcripts(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut paths: Vec<_> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "log")).collect();
    paths.sort();
    for path in paths {
        let text = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        println!(
            "  -- {} (last {TAIL_LINES} of {} lines)",
            path.file_name().unwrap_or_default().display(),
            lines.len()
        );
        for line in lines.iter().skip(lines.len().saturating_sub(TAIL_LINES)) {
            println!("  | {}", line.trim_end());
        }
    }
}

/// The cases that may be left out, each with its reason: lines `name: reason` in `tests/allowed-skips`.
pub fn allowed_skips() -> BTreeMap<String, String> {
    let text = include_str!("../allowed-skips");
    let lines = text.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty());
    lines
        .map(|line| {
            let (name, reason) = line.split_once(": ").expect("a line of allowed-skips is `name: reason`");
            (name.to_owned(), reason.to_owned())
        })
        .collect()
}
