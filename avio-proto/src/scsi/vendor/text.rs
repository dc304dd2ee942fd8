//! Fixed-length text fields in AVIO's parameter data: UTF-8, padded with zero bytes to the end of the field.
//!
//! Used by the structures of [`super`] only.

/// A text that must arrive whole is longer than its field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes of text where {max} fit")]
pub struct TextTooLong {
    /// Bytes of the text.
    pub len: usize,
    /// Bytes of the field.
    pub max: usize,
}

/// Writes `text` into `field`, as much as fits, never half a character.
pub(super) fn put(field: &mut [u8], text: &str) {
    let mut len = text.len().min(field.len());
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    field[..len].copy_from_slice(&text.as_bytes()[..len]);
    field[len..].fill(0);
}

/// Writes `text` into `field` if it fits.
pub(super) fn put_whole(field: &mut [u8], text: &str) -> Result<(), TextTooLong> {
    if text.len() > field.len() {
        return Err(TextTooLong { len: text.len(), max: field.len() });
    }
    put(field, text);
    Ok(())
}

/// The text in `field` up to its first zero byte. Whatever could move a terminal's cursor is shown as U+FFFD: the reader may
/// print it.
pub(super) fn take(field: &[u8]) -> String {
    let len = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    let text = String::from_utf8_lossy(&field[..len]);
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_padded_and_cut_between_characters() {
        let mut field = [0xff; 6];
        put(&mut field, "abc");
        assert_eq!(field, *b"abc\0\0\0");
        put(&mut field, "abcdeä");
        assert_eq!(field, *b"abcde\0", "half of a two-byte character is left out");
        assert_eq!(put_whole(&mut field, "1234567"), Err(TextTooLong { len: 7, max: 6 }));
        assert_eq!(take(&field), "abcde");
        assert_eq!(take(b"123456"), "123456", "a full field has no end mark");
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        assert_eq!(take(b"a\xffb\x1b[2J"), "a\u{fffd}b\u{fffd}[2J");
    }
}
