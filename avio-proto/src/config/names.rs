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

/// Longest name of a network device, in bytes (IFNAMSIZ without its NUL).
pub const DEVICE_NAME_LEN_MAX: usize = 15;

/// Why a name is refused for a network device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` cannot name a network device: 1 to {DEVICE_NAME_LEN_MAX} letters, digits, `_`, `-` or `.`")]
pub struct DeviceNameError(String);

/// Accepts `name` if it is a name as [`check_name`] has it and short enough for the kernel.
pub fn check_device_name(name: &str) -> Result<(), DeviceNameError> {
    if check_name(name).is_ok() && name.len() <= DEVICE_NAME_LEN_MAX {
        Ok(())
    } else {
        Err(DeviceNameError(name.chars().take(80).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names() {
        assert_eq!(check_device_name("vs_site"), Ok(()));
        assert_eq!(check_device_name("123456789012345"), Ok(()));
        for bad in ["1234567890123456", "", "a/b", "..", "eth 0"] {
            assert!(check_device_name(bad).is_err(), "{bad}");
        }
    }

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
