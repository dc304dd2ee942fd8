//! `socket_owner` and `socket_group`: names or numbers to ids.
//!
//! Owns the reading of `/etc/passwd` and `/etc/group`. Called when a configuration is loaded. Directory services are not
//! asked: the daemon must start without a network, and libvirt's and QEMU's users are local.

use std::fs;

/// An account that does not exist.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("no {kind} {name:?} in {file}; use a name from there, or a number")]
pub struct UnknownAccount {
    kind: &'static str,
    name: String,
    file: &'static str,
}

/// The user id of a name or number.
///
/// # Errors
/// [`UnknownAccount`].
pub fn uid_of(name: &str) -> Result<u32, UnknownAccount> {
    id_of("user", name, "/etc/passwd")
}

/// The group id of a name or number.
///
/// # Errors
/// [`UnknownAccount`].
pub fn gid_of(name: &str) -> Result<u32, UnknownAccount> {
    id_of("group", name, "/etc/group")
}

fn id_of(kind: &'static str, name: &str, file: &'static str) -> Result<u32, UnknownAccount> {
    let number = name.parse().ok();
    number
        .or_else(|| find(&fs::read_to_string(file).unwrap_or_default(), name))
        .ok_or_else(|| UnknownAccount { kind, name: name.to_owned(), file })
}

/// Both files have the name in the first column and the id in the third.
fn find(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut columns = line.split(':');
        (columns.next() == Some(name)).then(|| columns.nth(1))?.and_then(|id| id.parse().ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        assert_eq!(uid_of("root"), Ok(0));
        assert_eq!(gid_of("4711"), Ok(4711));
        assert_eq!(find("libvirt-qemu:x:64055:108::/var:/bin/false", "libvirt-qemu"), Some(64055));
        assert_eq!(find("libvirt-qemu:x:64055:108::/var:/bin/false", "libvirt"), None);
        let error = uid_of("nobody-here").unwrap_err().to_string();
        assert_eq!(error, "no user \"nobody-here\" in /etc/passwd; use a name from there, or a number");
    }
}
