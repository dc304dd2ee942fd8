//! What vswitches, guests and aggregates may be called.
//!
//! A guest's name becomes a directory under the run directory and part of a socket path, so it must be safe there.

/// Longest name, in bytes: with the default run directory a guest's socket path then stays below the kernel's 108.
pub const NAME_LEN_MAX: usize = 64;

/// Why a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a usable name; take 1 to 64 letters, digits, `_`, `-` or `.`, beginning with a letter, digit or `_`"
)]
pub struct NameError(String);

/// Accepts `name` if it is 1 to [`NAME_LEN_MAX`] ASCII letters, digits, `_`, `-`, `.` and starts with a letter, digit or
/// `_`: never a path, never an option, never hidden.
pub fn check_name(name: &str) -> Result<(), NameError> {
    let first_ok = name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric() || first == b'_');
    let rest_ok = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    if first_ok && rest_ok && name.len() <= NAME_LEN_MAX {
        Ok(())
    } else {
        Err(NameError(name.chars().take(80).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["vs_site", "guest1", "web-01.example", "_x", "9"] {
            assert_eq!(check_name(good), Ok(()));
        }
        for bad in ["", ".", "..", "a/b", "-x", "ä", "a b", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
