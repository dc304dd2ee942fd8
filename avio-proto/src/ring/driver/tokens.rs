//! Numbers that are free, handed out in the order in which they came back.
//!
//! First in, first out, so that a ring used in order hands its entries out in ring order: IN_ORDER asks for that, and
//! the available ring then keeps its contents from one round to the next.

/// A queue of the numbers below a ring size.
pub(super) struct Tokens {
    slots: Box<[u16]>,
    first: usize,
    count: usize,
}

impl Tokens {
    /// All numbers `0..size` are free.
    pub fn new(size: u16) -> Self {
        Self { slots: (0..size).collect(), first: 0, count: usize::from(size) }
    }

    #[inline]
    pub fn count(&self) -> usize {
        self.count
    }

    #[inline]
    pub fn take(&mut self) -> Option<u16> {
        if self.count == 0 {
            return None;
        }
        let token = self.slots[self.first];
        self.first += 1;
        if self.first == self.slots.len() {
            self.first = 0;
        }
        self.count -= 1;
        Some(token)
    }

    #[inline]
    pub fn give(&mut self, token: u16) {
        debug_assert!(self.count < self.slots.len());
        let mut at = self.first + self.count;
        if at >= self.slots.len() {
            at -= self.slots.len();
        }
        self.slots[at] = token;
        self.count += 1;
    }
}
