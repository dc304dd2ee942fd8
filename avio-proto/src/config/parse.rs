//! One file into its serde type, with errors that an operator can act on.

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

use super::source::{Positions, last_key};
use super::{ConfigError, FORMAT_VERSION, Section, SourceFile, nearest, section};

/// Parses `source`, whose keys are those of `sections`, and returns where its keys stand.
///
/// # Errors
/// Every unknown key; else the first thing that does not fit.
pub(super) fn parse<T: DeserializeOwned>(
    source: &SourceFile,
    sections: &'static [Section],
) -> Result<(T, Positions), Vec<ConfigError>> {
    let table = match DeTable::parse(&source.text) {
        Ok(table) => table.into_inner(),
        Err(error) => {
            let line = error.span().map(|span| source.line_of(span.start));
            return Err(vec![source.error(line, "", format!("is not TOML: {}", one_line(error.message())))]);
        }
    };
    let positions = Positions::of(source, &table);
    let mut errors = Vec::new();
    // A file of another version may have other keys: complain about the version only.
    if let Some(version) = table.get("version") {
        let supported = version.get_ref().as_integer().and_then(|text| text.as_str().parse().ok());
        if supported.is_some_and(|version: u32| version != FORMAT_VERSION) {
            let message = format!("is not supported; this release reads version {FORMAT_VERSION}");
            return Err(vec![source.error(positions.line("version"), "version", message)]);
        }
    }
    unknown_keys(source, &table, "", "", sections, &positions, &mut errors);
    if !errors.is_empty() {
        errors.sort_by_key(|error| error.line);
        return Err(errors);
    }
    match toml::from_str(&source.text) {
        Ok(parsed) => Ok((parsed, positions)),
        Err(error) => Err(vec![explain(source, &positions, &error)]),
    }
}

/// Collects keys that no section has. `path` is dotted without indexes, `place` with them.
fn unknown_keys(
    source: &SourceFile,
    table: &DeTable<'_>,
    path: &str,
    place: &str,
    sections: &'static [Section],
    positions: &Positions,
    errors: &mut Vec<ConfigError>,
) {
    let Some(known) = section(sections, path) else { return };
    let join =
        |prefix: &str, key: &str| if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
    for (key, value) in table {
        let key: &str = key.get_ref();
        let place = join(place, key);
        if !known.keys.iter().any(|candidate| candidate.name == key) {
            let names = || known.keys.iter().map(|candidate| candidate.name);
            let right = match nearest(key, names()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the keys are {}", names().collect::<Vec<_>>().join(", ")),
            };
            let section = if path.is_empty() { "here".to_owned() } else { format!("in [{path}]") };
            let printable: String = key.chars().take(60).collect();
            let message = format!("there is no such key {section}; {right}");
            errors.push(source.error(
                positions.line(&place),
                printable.escape_debug().to_string().as_str(),
                message,
            ));
            continue;
        }
        let path = join(path, key);
        match value.get_ref() {
            DeValue::Table(inner) => unknown_keys(source, inner, &path, &place, sections, positions, errors),
            DeValue::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    if let DeValue::Table(inner) = item.get_ref() {
                        let place = format!("{place}[{index}]");
                        unknown_keys(source, inner, &path, &place, sections, positions, errors);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Serde's error as a line that names file, line, key, and what would be right.
fn explain(source: &SourceFile, positions: &Positions, error: &toml::de::Error) -> ConfigError {
    let offset = error.span().map(|span| span.start);
    let line = offset.map(|offset| source.line_of(offset));
    let message = one_line(error.message());
    if let Some(key) = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
        return source.error(line, key, "is missing; this section needs it".into());
    }
    let path = offset.and_then(|offset| positions.path_at(offset)).unwrap_or("");
    source.error(line, last_key(path), in_plain_words(&message))
}

/// Replaces the names of Rust's types by what an operator would write, and names the nearest variant.
fn in_plain_words(message: &str) -> String {
    const WORDS: [(&str, &str); 8] = [
        ("expected u8", "expected a whole number from 0 to 255"),
        ("expected u16", "expected a whole number from 0 to 65535"),
        ("expected u32", "expected a whole number from 0 to 4294967295"),
        ("expected u64", "expected a whole number, 0 or more"),
        ("expected i64", "expected a whole number"),
        ("expected a boolean", "expected true or false"),
        ("expected a string", "expected a text in quotes"),
        ("expected a sequence", "expected a list in [ ]"),
    ];
    let mut words = message.to_owned();
    for (from, to) in WORDS {
        if let Some(head) = words.strip_suffix(from) {
            words = format!("{head}{to}");
        }
    }
    let mut quoted = words.split('`').skip(1).step_by(2);
    if words.starts_with("unknown variant")
        && let Some(given) = quoted.next()
        && let Some(near) = nearest(given, quoted)
    {
        words = format!("{words}; did you mean `{near}`?");
    }
    words
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
