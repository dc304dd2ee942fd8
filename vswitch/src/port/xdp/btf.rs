//! Where the kernel's own functions are that an XDP program may call: their numbers in the kernel's type information (BTF,
//! Documentation/bpf/btf.rst).
//!
//! Read from `/sys/kernel/btf/vmlinux` when a program first wants one, on a helper thread. The file is the kernel's; what it has in it is checked all the same, and a
//! file that is cut or of another make has no function.

use std::sync::OnceLock;

const KERNEL: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
/// `struct btf_header` without what may follow.
const HEADER_LEN: usize = 24;
/// `struct btf_type`.
const TYPE_LEN: usize = 12;

const KIND_FUNCTION: u32 = 12;

/// The number of `bpf_xdp_metadata_rx_vlan_tag` (Linux 6.8), which tells of a tag that was taken out of a frame; `None`: this kernel has none.
pub(super) fn rx_vlan_tag() -> Option<i32> {
    static FOUND: OnceLock<Option<i32>> = OnceLock::new();
    *FOUND.get_or_init(|| function(&std::fs::read(KERNEL).ok()?, "bpf_xdp_metadata_rx_vlan_tag"))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|four| u32::from_ne_bytes(*four))
}

/// The number of the type that is the function `name`.
fn function(btf: &[u8], name: &str) -> Option<i32> {
    // Magic, version, flags; length of the header; where types and names begin behind it, and how long they are.
    if word(btf, 0)? as u16 != MAGIC {
        return None;
    }
    let header_len = word(btf, 4)? as usize;
    if header_len < HEADER_LEN {
        return None;
    }
    let part = |at: usize| {
        let (offset, len) = (word(btf, at)? as usize, word(btf, at + 4)? as usize);
        btf.get(header_len.checked_add(offset)?..)?.get(..len)
    };
    let (types, names) = (part(8)?, part(16)?);
    let is_name = |at: u32| names.get(at as usize..).is_some_and(|rest| is_first(rest, name));
    let mut at = 0;
    // Number 0 is `void`, which is not in the table.
    for number in 1..i32::MAX {
        let info = word(types, at + 4)?;
        let kind = info >> 24 & 0x1f;
        if kind == KIND_FUNCTION && is_name(word(types, at)?) {
            return Some(number);
        }
        at += TYPE_LEN + extra_len(kind, info as usize & 0xffff)?;
    }
    None
}

/// Whether the text at the beginning of `bytes`, up to its zero, is `name`.
fn is_first(bytes: &[u8], name: &str) -> bool {
    bytes.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
}

/// Bytes behind the entry of a type of this kind with `count` parts; `None`: a kind that came later than this was written.
fn extra_len(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        // Pointer, forward, typedef, volatile, const, restrict, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Array.
        3 => 12,
        // Structure, union; variables of a section; enumeration of 64 bits.
        4 | 5 | 15 | 19 => 12 * count,
        // Enumeration, parameters of a function.
        6 | 13 => 8 * count,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Type information of an integer, a function type with a parameter, a function; as bpf/btf.rst lays it out.
    fn sample() -> Vec<u8> {
        let names = b"\0int\0other\0wanted\0";
        let mut types = Vec::new();
        let mut entry = |words: &[u32]| types.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        entry(&[1, 1 << 24, 4, 32]);
        entry(&[0, 13 << 24 | 1, 1, 0, 1]);
        entry(&[5, 12 << 24, 2]);
        entry(&[11, 12 << 24 | 1, 2]);
        let mut bytes = Vec::new();
        for word in [0x1_eb9f, 24, 0, types.len() as u32, types.len() as u32, names.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(types);
        bytes.extend(names);
        bytes
    }

    #[test]
    fn a_function_is_found_by_its_whole_name() {
        let bytes = sample();
        assert_eq!((function(&bytes, "other"), function(&bytes, "wanted")), (Some(3), Some(4)));
        assert_eq!((function(&bytes, "want"), function(&bytes, "int")), (None, None));
    }

    #[test]
    fn what_is_cut_has_no_function() {
        let bytes = sample();
        for cut in 0..bytes.len() {
            assert_eq!(function(&bytes[..cut], "wanted"), None);
        }
        let mut strange = bytes;
        strange[24 + 7] = 31;
        assert_eq!(function(&strange, "wanted"), None, "a kind that nobody knows");
    }

    #[test]
    fn the_kernel_s_own_is_read() {
        // Any kernel with BTF has this one; where there is no BTF there is nothing to read.
        if let Ok(bytes) = std::fs::read(KERNEL) {
            assert!(function(&bytes, "xsk_generic_rcv").or(function(&bytes, "schedule")).is_some());
        }
    }
}
