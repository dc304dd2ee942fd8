//! The books of registered memory, with a kernel that does as it is told.

#![expect(unsafe_code, reason = "mappings that are only ever named (DESIGN section 6: uring)")]

use super::*;
use avio_proto::mem::Region;

/// Addresses that nothing is ever done with.
struct Nowhere(usize, usize);

// SAFETY: never read or written by these tests, which see addresses only.
unsafe impl Mapping for Nowhere {
    fn base(&self) -> *mut u8 {
        self.0 as *mut u8
    }

    fn len(&self) -> usize {
        self.1
    }
}

const GIB: usize = 1 << 30;

fn region(guest: usize, base: usize, len: usize) -> Region {
    let (guest_base, user_base) = (guest as u64, guest as u64);
    let mapping: Arc<dyn Mapping> = Arc::new(Nowhere(base, len));
    Region { guest_base, user_base, len: len as u64, mapping, mapping_offset: 0 }
}

fn table(regions: &[Region]) -> MemoryTable {
    MemoryTable::new(regions.to_vec(), None).unwrap()
}

fn fine(_: u16, _: usize, _: usize) -> io::Result<()> {
    Ok(())
}

#[test]
fn a_region_is_split_where_the_kernel_takes_no_more() {
    let memory = table(&[region(0, 100 * GIB, 2 * GIB + 4096), region(8 * GIB, GIB, 4096)]);
    let (mut fixed, mut calls) = (FixedTable::default(), Vec::new());
    let pinned = fixed.pin(&memory, |index, start, len| {
        calls.push((index, start, len));
        Ok(())
    });
    let big = 100 * GIB;
    let expected = [(0, big, GIB), (1, big + GIB, GIB), (2, big + 2 * GIB, 4096), (3, GIB, 4096)];
    assert_eq!(calls, expected);
    assert_eq!((pinned.regions, pinned.bytes), (4, 2 * GIB as u64 + 8192));
    assert!(pinned.error.is_none());
    assert_eq!(fixed.find(big, 4096), Some(0));
    assert_eq!(fixed.find(big + GIB - 4096, 4096), Some(0));
    assert_eq!(fixed.find(big + GIB - 4096, 4097), None, "across two");
    assert_eq!(fixed.find(big + 2 * GIB, 4096), Some(2));
    assert_eq!(fixed.find(big + 2 * GIB + 1, 4096), None, "behind the end");
    assert_eq!(fixed.find(big + 2 * GIB + 4096, 1), None);
    assert_eq!(fixed.find(GIB - 1, 1), None, "in front of everything");
    assert_eq!(fixed.find(GIB, usize::MAX), None);
    assert_eq!(fixed.unpin(pinned.pin, |_| Ok(())), Unpinned { regions: 4, used: 3 });
}

#[test]
fn rings_share_what_they_both_have_and_the_last_lets_go() {
    let (one, two) = (region(0, GIB, 4096), region(GIB, 3 * GIB, 4096));
    let (before, after) = (table(std::slice::from_ref(&one)), table(&[one, two]));
    let mut fixed = FixedTable::default();
    let first = fixed.pin(&before, fine);
    let second = fixed.pin(&after, fine);
    assert_eq!((first.regions, second.regions), (1, 1), "one is shared");
    let mut gone = Vec::new();
    let mut empty = |index| {
        gone.push(index);
        Ok(())
    };
    assert_eq!(fixed.unpin(first.pin, &mut empty).regions, 0);
    assert_eq!(fixed.find(GIB, 1), Some(0));
    assert_eq!(fixed.unpin(second.pin, &mut empty), Unpinned { regions: 2, used: 1 });
    assert_eq!(gone, [0, 1]);
    assert_eq!((fixed.find(GIB, 1), fixed.find(3 * GIB, 1)), (None, None));
    // Places are used again, however often.
    for _ in 0..3 * SLOTS {
        let again = fixed.pin(&after, fine);
        assert_eq!(again.pin.0, [0, 1]);
        let _ = fixed.unpin(again.pin, |_| Ok(()));
    }
}

#[test]
fn what_is_refused_is_not_found_and_the_rest_is() {
    let memory = table(&[region(0, GIB, 4096), region(GIB, 3 * GIB, 4096)]);
    let mut fixed = FixedTable::default();
    let refuse = |errno| {
        move |_: u16, start, _: usize| match start {
            GIB => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        }
    };
    let some = fixed.pin(&memory, refuse(libc::EOPNOTSUPP));
    assert!(matches!(some.error, Some(PinError::Refused(_))));
    assert_eq!((some.regions, fixed.find(GIB, 1), fixed.find(3 * GIB, 1)), (1, None, Some(0)));
    let _ = fixed.unpin(some.pin, |_| Ok(()));
    let none = fixed.pin(&memory, refuse(libc::ENOMEM));
    assert!(none.error.unwrap().to_string().contains("LimitMEMLOCK=infinity"));
    assert_eq!((none.regions, fixed.find(3 * GIB, 1)), (0, None), "a limit is a limit");
    let many: Vec<Region> = (0..500).map(|i| region(4 * i * GIB, (i + 1) * 4 * GIB, 3 * GIB)).collect();
    let full = fixed.pin(&table(&many[..400]), fine);
    assert!(matches!(full.error, Some(PinError::Full)));
    assert_eq!(full.regions, SLOTS);
    assert_eq!(fixed.unpin(full.pin, |_| Ok(())).regions, SLOTS);
}

#[test]
fn a_place_that_the_kernel_keeps_is_not_used_again_until_it_lets_go() {
    let memory = table(&[region(0, GIB, 4096)]);
    let mut fixed = FixedTable::default();
    let kept = fixed.pin(&memory, fine).pin;
    let refused = |_| Err(io::Error::from_raw_os_error(libc::ENOMEM));
    assert_eq!(fixed.unpin(kept, refused).regions, 1);
    assert_eq!(fixed.find(GIB, 1), None);
    let other = fixed.pin(&memory, fine).pin;
    assert_eq!(other.0, [1]);
    let mut gone = Vec::new();
    let _ = fixed.unpin(other, |index| {
        gone.push(index);
        Ok(())
    });
    assert_eq!(gone, [0, 1]);
}
