//! `--check`: what is wrong, or what there is and when a change of each key takes effect.

use std::fmt::Write as _;
use std::path::Path;

use avio_proto::config::{ConfigErrors, GUEST_SECTIONS, Section, Surroundings, VSWITCHES_SECTIONS};

/// Checks `dir` and returns the text for standard output.
///
/// # Errors
/// Everything that is wrong, a line each, for standard error; the exit status is then 1.
pub fn check(dir: &Path, surroundings: &Surroundings) -> Result<String, ConfigErrors> {
    let config = super::load(dir, surroundings)?;
    let mut text = String::new();
    for warning in &config.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    let _ = writeln!(
        text,
        "{}: right; {} vswitches (localnet included), {} guests with {} network interfaces\n",
        dir.display(),
        config.vswitches.len(),
        config.guests.len(),
        config.networks().count(),
    );
    text.push_str(&key_table());
    Ok(text)
}

/// Every key and when a change of it takes effect.
#[must_use]
pub fn key_table() -> String {
    let mut text = String::from("When a changed key takes effect after a reload:\n");
    sections(&mut text, super::VSWITCHES_FILE, VSWITCHES_SECTIONS);
    sections(&mut text, "guests/NAME.toml", GUEST_SECTIONS);
    text
}

fn sections(text: &mut String, file: &str, sections: &[Section]) {
    for section in sections {
        let title =
            if section.path.is_empty() { file.to_owned() } else { format!("{file} [{}]", section.path) };
        let _ = writeln!(text, "{title}");
        for key in section.keys {
            let line = match key.note {
                "" => format!("  {:<14} {}", key.name, key.effect),
                note => format!("  {:<14} {:<18} {note}", key.name, key.effect),
            };
            let _ = writeln!(text, "{line}");
        }
    }
}
