//! The house rules as tests: which crate may import which, module documentation everywhere, `unsafe` only where DESIGN
//! section 6 allows it, no giant file, no name that says nothing, no promise left in the code.
//!
//! Run by `make lint`. Reads source text only; it never builds or runs anything.

use std::fs;
use std::path::{Path, PathBuf};

/// A longer file holds two subjects.
const LINES_MAX: usize = 1_000;

/// Which crates of ours each crate may import (DESIGN section 2). What is not listed may import none.
const IMPORTS: &[(&str, &[&str])] = &[
    ("avio-proto", &[]),
    ("avio-host", &["avio-proto"]),
    ("avio-guest", &["avio-proto"]),
    ("vswitch", &["avio-host", "avio-proto"]),
    ("storage-target", &["avio-host", "avio-proto"]),
    ("tools", &["avio-proto", "avio-guest"]),
    (
        "benches",
        &[
            "avio-proto",
            "avio-host",
            "avio-guest",
            "avio-vswitch",
            "avio-storage",
            "avio-tools",
            "avio-tests",
        ],
    ),
    ("tests", &["avio-proto", "avio-host", "avio-guest", "avio-vswitch", "avio-tools"]),
    ("fuzz", &["avio-proto", "avio-guest"]),
];

/// A workspace of its own: its dependencies cannot come from the table of ours.
const WORKSPACE_OF_ITS_OWN: &str = "fuzz/Cargo.toml";

/// What the tests of a crate may import on top: the other end of its protocol, never a daemon.
const DEV_IMPORTS: &[&str] = &["avio-guest", "avio-host", "avio-proto"];

/// Where `unsafe` may stand, and what for. A folder ends in a slash.
const UNSAFE_PLACES: &[(&str, &str)] = &[
    ("avio-proto/src/mem/", "guest memory"),
    ("avio-proto/src/ring/", "virtqueues in guest memory"),
    ("avio-host/src/mapping", "mmap of guest memory and SIGBUS"),
    ("avio-host/src/sigbus", "a VMM that truncates its memory must not kill the daemon"),
    ("avio-host/src/fd_passing", "SCM_RIGHTS"),
    ("avio-host/src/session/", "descriptors and mappings that a front-end sends"),
    ("avio-host/src/wait", "the waiter: epoll and eventfd"),
    ("vswitch/src/port/xdp/", "AF_XDP rings and programs, packet sockets' rings"),
    ("vswitch/src/port/tap/", "TAPs: ioctl, and memory that the kernel reads and writes"),
    ("storage-target/src/uring/", "memory that the kernel reads and writes"),
    ("avio-guest/src/", "mappings of the guest in a process"),
    ("tools/gvsdmgr/src/sg.rs", "ioctls of the guest's SCSI layer (docs/decisions/0009)"),
];

/// Folder and file names that tell nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["util", "utils", "common", "base", "misc", "stuff"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate is in the workspace").to_owned()
}

/// Every file under version control's eye with one of the endings, as (path relative to the root, text).
fn files(endings: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let root = root();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("readable source folder") {
            let path = entry.expect("readable folder entry").path();
            let name = path.file_name().expect("entries have names").to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target"
                    && name != "proptest-regressions"
                    && (!name.starts_with('.') || name == ".ci")
                {
                    folders.push(path);
                }
            } else if endings.iter().any(|e| name.ends_with(e)) {
                let text = fs::read_to_string(&path).expect("source files are UTF-8");
                let relative =
                    path.strip_prefix(&root).expect("below the root").to_string_lossy().into_owned();
                found.push((relative, text));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no files with {endings:?} under {}", root.display());
    found
}

/// The text with comments, strings and character literals blanked out, line structure kept, so that what is left is code.
fn code_only(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    let starts = |i: usize, what: &str| what.chars().enumerate().all(|(n, c)| chars.get(i + n) == Some(&c));
    // Copies only line ends from `from` to `to`.
    let blank = |out: &mut String, from: usize, to: usize| {
        out.extend(chars[from..to.min(chars.len())].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
    };
    while i < chars.len() {
        let begin = i;
        if starts(i, "//") {
            while i < chars.len() && chars[i] != '\n' {
                i += 1;
            }
        } else if starts(i, "/*") {
            let mut depth = 0;
            while i < chars.len() {
                if starts(i, "/*") {
                    depth += 1;
                    i += 2;
                } else if starts(i, "*/") {
                    depth -= 1;
                    i += 2;
                    if depth == 0 {
                        break;
                    }
                } else {
                    i += 1;
                }
            }
        } else if let Some(hashes) = raw_string_hashes(&chars, i) {
            let close: String = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            i += 2 + hashes;
            while i < chars.len() && !starts(i, &close) {
                i += 1;
            }
            i += close.len();
        } else if chars[i] == '"' {
            i += 1;
            while i < chars.len() && chars[i] != '"' {
                i += if chars[i] == '\\' { 2 } else { 1 };
            }
            i += 1;
        } else if chars[i] == '\'' && (chars.get(i + 1) == Some(&'\\') || chars.get(i + 2) == Some(&'\'')) {
            i += if chars.get(i + 1) == Some(&'\\') { 3 } else { 2 };
            while i < chars.len() && chars[i] != '\'' {
                i += 1;
            }
            i += 1;
        } else {
            out.push(chars[i]);
            i += 1;
            continue;
        }
        blank(&mut out, begin, i);
    }
    out
}

/// How many `#` open the raw string that starts here, if one does.
fn raw_string_hashes(chars: &[char], i: usize) -> Option<usize> {
    if chars.get(i) != Some(&'r')
        || (i > 0 && (chars[i - 1].is_alphanumeric() || chars[i - 1] == '_') && chars[i - 1] != 'b')
    {
        return None;
    }
    let hashes = chars[i + 1..].iter().take_while(|c| **c == '#').count();
    (chars.get(i + 1 + hashes) == Some(&'"')).then_some(hashes)
}

/// Whether `word` stands in `line` as a whole word.
fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == word)
}

/// Fails with every offence, one a line.
fn none(rule: &str, offences: Vec<String>) {
    assert!(offences.is_empty(), "{rule}:\n  {}", offences.join("\n  "));
}

#[test]
fn every_file_says_what_it_owns() {
    let offences = files(&[".rs"])
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(path, _)| format!("{path}:1"))
        .collect();
    none("a Rust file opens with `//!`: what it owns, who calls it, what it never does", offences);
}

#[test]
fn no_file_is_too_long() {
    let offences = files(&[".rs"])
        .into_iter()
        .filter(|(_, text)| text.lines().count() > LINES_MAX)
        .map(|(path, text)| format!("{path}: {} lines", text.lines().count()))
        .collect();
    none(&format!("a file has at most {LINES_MAX} lines; one that is longer holds two subjects"), offences);
}

#[test]
fn names_say_something() {
    let offences = files(&[".rs"])
        .into_iter()
        .map(|(path, _)| path)
        .filter(|path| path.trim_end_matches(".rs").split('/').any(|part| EMPTY_NAMES.contains(&part)))
        .collect();
    none("files and folders are named after their subject", offences);
}

#[test]
fn unsafe_only_where_it_is_allowed_and_explained() {
    let mut offences = Vec::new();
    for (path, text) in files(&[".rs"]) {
        let code = code_only(&text);
        if !code.lines().any(|l| has_word(l, "unsafe")) {
            continue;
        }
        if !UNSAFE_PLACES.iter().any(|(place, _)| path.starts_with(place)) {
            offences.push(format!(
                "{path}: `unsafe` is not allowed here (UNSAFE_PLACES in house_rules.rs lists where)"
            ));
        }
        let packed: String = code.split_whitespace().collect();
        if !packed.contains("#![expect(unsafe_code,reason=") {
            offences.push(format!(
                "{path}: has `unsafe` but no `#![expect(unsafe_code, reason = \"...\")]` at its top"
            ));
        }
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in code.lines().enumerate() {
            if !has_word(line, "unsafe") || line.contains("unsafe_") && !line.contains("unsafe ") {
                continue;
            }
            // What is public states a duty of the caller (`# Safety`); blocks and impls say how it is met. A private
            // `unsafe fn` has both in its body's blocks.
            let duty = ["unsafe fn", "unsafe trait", "unsafe extern"].iter().any(|form| line.contains(form));
            if duty && !line.trim_start().starts_with("pub") {
                continue;
            }
            let mut above = lines[..number].iter().rev().take(40).take_while(|l| {
                let l = l.trim_start();
                // A statement may begin some lines above its block; a blank line ends the search.
                !l.is_empty()
            });
            let explained = line_has(lines[number], duty) || above.any(|l| line_has(l, duty));
            if !explained {
                let wanted =
                    if duty { "`# Safety` in its documentation" } else { "a `// SAFETY:` line above it" };
                offences.push(format!("{path}:{}: needs {wanted}", number + 1));
            }
        }
    }
    none("every `unsafe` is allowed and explained", offences);
}

fn line_has(line: &str, duty: bool) -> bool {
    line.contains("SAFETY:") || duty && line.contains("# Safety")
}

#[test]
fn crates_import_only_downwards() {
    let mut offences = Vec::new();
    for (path, text) in files(&["Cargo.toml"]) {
        let Some((folder, _)) = path.split_once('/') else { continue };
        let allowed =
            IMPORTS.iter().find(|(name, _)| *name == folder).map_or(&[][..], |(_, allowed)| allowed);
        let mut section = "";
        for (number, line) in text.lines().enumerate() {
            if line.starts_with('[') {
                section = line.trim();
                continue;
            }
            let name = line.split(['=', '.', ' ']).next().unwrap_or("");
            let ours = name.starts_with("avio-");
            let fine = match section {
                "[dependencies]" | "[build-dependencies]" => !ours || allowed.contains(&name),
                "[dev-dependencies]" => !ours || allowed.contains(&name) || DEV_IMPORTS.contains(&name),
                _ => true,
            };
            if !fine {
                offences.push(format!("{path}:{}: {folder} may not import {name}", number + 1));
            }
            if section.ends_with("dependencies]")
                && path != WORKSPACE_OF_ITS_OWN
                && !line.trim().is_empty()
                && !line.starts_with('#')
                && !line.contains("workspace")
                && !line.contains("path = ")
            {
                offences.push(format!("{path}:{}: dependencies come from the workspace's table", number + 1));
            }
        }
    }
    none("imports follow DESIGN section 2", offences);
}

#[test]
fn every_dependency_and_lint_has_its_reason() {
    let text = fs::read_to_string(root().join("Cargo.toml")).expect("workspace manifest");
    let mut offences = Vec::new();
    let (mut section, mut commented) = (String::new(), false);
    for (number, line) in text.lines().enumerate() {
        if line.starts_with('[') {
            section = line.to_owned();
        } else if line.starts_with('#') {
            commented = true;
            continue;
        } else if section == "[workspace.dependencies]"
            && !line.is_empty()
            && !line.starts_with("avio-")
            && !commented
        {
            offences.push(format!("Cargo.toml:{}: what is it for? One line above it says so", number + 1));
        } else if section.starts_with("[workspace.lints") && line.contains("\"allow\"") && !commented {
            offences
                .push(format!("Cargo.toml:{}: why is this lint off? One line above it says so", number + 1));
        }
        // Crates of one family may stand under one reason.
        if line.is_empty() || line.starts_with('[') {
            commented = false;
        }
    }
    none("the workspace manifest gives reasons", offences);
}

#[test]
fn no_promise_is_left_in_the_code() {
    // Spelled in halves, so that this file passes its own test.
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let calls = [concat!("todo", "!("), concat!("unimplemented", "!(")];
    let mut offences = Vec::new();
    for (path, text) in files(&[".rs", ".md", ".toml", "Makefile", ".sh"]) {
        for (number, line) in text.lines().enumerate() {
            if marks.iter().any(|m| has_word(line, m)) || calls.iter().any(|c| line.contains(c)) {
                offences.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    none("what is not done goes into an issue, not into the code", offences);
}

#[test]
fn ignored_tests_say_why() {
    let bare = concat!("#[ign", "ore]");
    let mut offences = Vec::new();
    for (path, text) in files(&[".rs"]) {
        for (number, line) in text.lines().enumerate() {
            if line.trim() == bare {
                offences.push(format!("{path}:{}", number + 1));
            }
        }
    }
    none("an ignored test carries its reason and stands in tests/allowed-skips", offences);
}

#[test]
fn the_scanner_tells_code_from_text() {
    let text = "let a = \"unsafe\"; // unsafe\nlet b = r#\"un\"safe\"#; /* unsafe /* x */ unsafe */ let c = 'x';\nunsafe { f::<'a>() }\n";
    let code = code_only(text);
    let words: Vec<bool> = code.lines().map(|l| has_word(l, "unsafe")).collect();
    assert_eq!(words, [false, false, true]);
    assert!(code.contains("let c =") && code.contains("f::<'a>()"), "code itself stays: {code}");
}
