//! `backing = "..."`: where the data of a LUN are (INTERFACE, "Files").
//!
//! Text to value and back; whether the thing exists is for the storage daemon to find out. One line says what is wrong and
//! what would be right.

use std::fmt;
use std::path::{Path, PathBuf};

/// Most that a size may be, in bytes: what a 64-bit file offset holds.
const SIZE_MAX: u64 = i64::MAX as u64;

/// Where the data of a LUN are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackingSpec {
    /// `disk:PATH`: a whole block device.
    Disk(PathBuf),
    /// `lv:PATH`: a logical volume.
    Lv(PathBuf),
    /// `file:PATH`: a raw image or an ISO file.
    File(PathBuf),
    /// `null:SIZE`: no data: reads leave the buffer as it is, writes are forgotten. Size in bytes.
    Null(u64),
    /// `memory:SIZE`: memory of the daemon, gone with it. Size in bytes.
    Memory(u64),
    /// `fault:RULES:BACKING`: another backing with delays and errors, for tests.
    Fault(FaultRules, Box<BackingSpec>),
    /// `none`: a DVD drive without a medium.
    Empty,
}

/// What a `fault:` backing does to each access before it passes it on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultRules {
    /// Reads are begun so much later, ms.
    pub read_delay_ms: u32,
    /// Writes, discards and zeroings are begun so much later, ms.
    pub write_delay_ms: u32,
    /// Flushes are begun so much later, ms.
    pub flush_delay_ms: u32,
    /// Every nth read fails with an I/O error; 0: none.
    pub read_error_every: u32,
    /// Every nth write fails with an I/O error; 0: none.
    pub write_error_every: u32,
    /// Accesses to the byte at this offset fail with an I/O error.
    pub bad_byte: Option<u64>,
}

/// What is wrong with a backing's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BackingError(String);

fn wrong<T>(text: String) -> Result<T, BackingError> {
    Err(BackingError(text))
}

/// A size such as `64M`: digits and one of K, M, G, T (powers of 1024), in bytes. `None` if it is no such thing or too large.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        b'T' | b't' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift).filter(|&size| size <= SIZE_MAX)
}

impl BackingSpec {
    /// Reads the text of a definition.
    ///
    /// # Errors
    /// One line: what is wrong and what would be right.
    pub fn parse(text: &str) -> Result<Self, BackingError> {
        if text == "none" {
            return Ok(Self::Empty);
        }
        let Some((kind, rest)) = text.split_once(':') else {
            return wrong(format!(
                "`{text}` names no backing; give disk:PATH, lv:PATH, file:PATH, null:SIZE or memory:SIZE"
            ));
        };
        let path = || {
            if rest.starts_with('/') {
                Ok(PathBuf::from(rest))
            } else {
                wrong(format!("`{text}`: give an absolute path, such as {kind}:/srv/images/disk.img"))
            }
        };
        let size = || match parse_size(rest) {
            Some(size) if size > 0 => Ok(size),
            _ => wrong(format!("`{text}`: give a size in bytes, or with K, M, G or T, such as {kind}:64M")),
        };
        match kind {
            "disk" => Ok(Self::Disk(path()?)),
            "lv" => Ok(Self::Lv(path()?)),
            "file" => Ok(Self::File(path()?)),
            "null" => Ok(Self::Null(size()?)),
            "memory" => Ok(Self::Memory(size()?)),
            "fault" => Self::parse_fault(text, rest),
            "partition" | "tape" | "changer" | "burner" | "attach" | "npiv" => wrong(format!(
                "`{text}`: {kind} is not supported; a whole disk (disk:), a logical volume (lv:) or an image (file:) is"
            )),
            _ => wrong(format!(
                "`{text}`: unknown kind `{kind}`; give disk:PATH, lv:PATH, file:PATH, null:SIZE or memory:SIZE"
            )),
        }
    }

    /// `RULE=N,RULE=N:BACKING`; no rule at all is allowed.
    fn parse_fault(text: &str, rest: &str) -> Result<Self, BackingError> {
        let mut rules = FaultRules::default();
        let Some((list, inner)) = rest.split_once(':') else {
            return wrong(format!(
                "`{text}`: a backing must follow, such as fault:write_delay_ms=100:null:1G"
            ));
        };
        for rule in list.split(',').filter(|rule| !rule.is_empty()) {
            let (name, value) = rule.split_once('=').unwrap_or((rule, ""));
            let number = || match value.parse::<u32>() {
                Ok(number) => Ok(number),
                Err(_) => wrong(format!("`{text}`: `{rule}` needs a number, such as {name}=100")),
            };
            match name {
                "read_delay_ms" => rules.read_delay_ms = number()?,
                "write_delay_ms" => rules.write_delay_ms = number()?,
                "flush_delay_ms" => rules.flush_delay_ms = number()?,
                "read_error_every" => rules.read_error_every = number()?,
                "write_error_every" => rules.write_error_every = number()?,
                "bad_byte" => match parse_size(value) {
                    Some(offset) => rules.bad_byte = Some(offset),
                    None => return wrong(format!("`{text}`: `{rule}` needs an offset, such as bad_byte=1M")),
                },
                _ => {
                    return wrong(format!(
                        "`{text}`: unknown rule `{name}`; there are read_delay_ms, write_delay_ms, flush_delay_ms, \
                         read_error_every, write_error_every and bad_byte"
                    ));
                }
            }
        }
        match Self::parse(inner)? {
            Self::Fault(..) => wrong(format!("`{text}`: one fault: is enough")),
            inner => Ok(Self::Fault(rules, Box::new(inner))),
        }
    }

    /// The file or device that it names.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Disk(path) | Self::Lv(path) | Self::File(path) => Some(path),
            Self::Fault(_, inner) => inner.path(),
            Self::Null(_) | Self::Memory(_) | Self::Empty => None,
        }
    }

    /// Whether a write is durable before it succeeds, unless the definition says (INTERFACE, `cache`).
    #[must_use]
    pub fn writes_through(&self) -> bool {
        match self {
            Self::File(_) => true,
            Self::Fault(_, inner) => inner.writes_through(),
            _ => false,
        }
    }
}

impl fmt::Display for BackingSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(path) => write!(f, "disk:{}", path.display()),
            Self::Lv(path) => write!(f, "lv:{}", path.display()),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Null(size) => write!(f, "null:{size}"),
            Self::Memory(size) => write!(f, "memory:{size}"),
            Self::Fault(_, inner) => write!(f, "fault:{inner}"),
            Self::Empty => write!(f, "none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512"), Some(512));
        assert_eq!(parse_size("64M"), Some(64 << 20));
        assert_eq!(parse_size("8T"), Some(8 << 40));
        for bad in ["", "M", "-1", "1X", "1.5G", "9223372036854775808", "99999999T"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }

    #[test]
    fn kinds() {
        assert_eq!(BackingSpec::parse("disk:/dev/vdb"), Ok(BackingSpec::Disk("/dev/vdb".into())));
        assert_eq!(BackingSpec::parse("null:1G"), Ok(BackingSpec::Null(1 << 30)));
        assert_eq!(BackingSpec::parse("none"), Ok(BackingSpec::Empty));
        let fault = BackingSpec::parse("fault:write_delay_ms=300,bad_byte=4K:file:/a:b").unwrap();
        let rules = FaultRules { write_delay_ms: 300, bad_byte: Some(4096), ..FaultRules::default() };
        assert_eq!(fault, BackingSpec::Fault(rules, Box::new(BackingSpec::File("/a:b".into()))));
        assert!(fault.writes_through() && !BackingSpec::Null(1).writes_through());
    }

    #[test]
    fn what_is_wrong_and_what_would_be_right_is_said() {
        for (text, said) in [
            ("/dev/sda", "give disk:PATH"),
            ("file:relative", "absolute path"),
            ("null:many", "give a size"),
            ("null:0", "give a size"),
            ("tape:/dev/st0", "tape is not supported"),
            ("floppy:/dev/fd0", "unknown kind `floppy`"),
            ("fault:null:1G", "unknown rule `null`"),
            ("fault:read_delay_ms=x:null:1G", "needs a number"),
            ("fault::fault::null:1G", "one fault: is enough"),
        ] {
            let error = BackingSpec::parse(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
