//! A 16-bit ring index as this process keeps it.
//!
//! Rings count over 16 bits; the processor reads an aligned 16-bit field as 32 bits when it may. A field that was just stored as
//! 16 bits then has to leave the store buffer first, once per chain and in the way of everything that follows. Kept
//! as 32 bits, it does not.

/// An index that runs freely over 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Index(u32);

impl Index {
    #[inline(always)]
    pub fn new(value: u16) -> Self {
        Self(u32::from(value))
    }

    #[inline(always)]
    pub fn get(self) -> u16 {
        self.0 as u16
    }

    #[inline(always)]
    pub fn set(&mut self, value: u16) {
        self.0 = u32::from(value);
    }

    /// Goes `count` on, around the end if need be.
    #[inline(always)]
    pub fn advance(&mut self, count: u16) {
        self.set(self.get().wrapping_add(count));
    }

    /// Steps from `earlier` to here.
    #[inline(always)]
    pub fn since(self, earlier: Self) -> u16 {
        self.get().wrapping_sub(earlier.get())
    }
}
