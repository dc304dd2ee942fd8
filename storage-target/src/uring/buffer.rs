//! Memory of ours that a disk may read and write directly.

/// Alignment that suits every disk: a page, and the largest logical block that AVIO serves.
const ALIGN: usize = 4096;

/// Bytes that begin at a multiple of 4,096. They stay where they are when the value moves.
pub struct AlignedBuf {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// `len` zeroes.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let bytes = vec![0; len + ALIGN];
        let start = bytes.as_ptr().align_offset(ALIGN);
        Self { bytes, start, len }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is not a byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl std::ops::Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_wherever_the_allocator_puts_it() {
        for len in [1, 512, 4096, 1 << 20] {
            let buffer = AlignedBuf::zeroed(len);
            assert_eq!((buffer.as_ptr() as usize % ALIGN, buffer.len()), (0, len));
            let at = buffer.as_ptr();
            let moved = Box::new(buffer);
            assert_eq!(moved.as_ptr(), at);
        }
    }
}
