//! LOG SENSE pages that carry statistics to the guest: 30h for one logical unit, 31h for the adapter, 00h for the list, in
//! the form of SPC-5 section 7.3: a header, then parameters of code, control byte, length and value.
//!
//! One set of parameter codes serves both pages. A reader ignores codes that it does not know and takes a missing counter for
//! zero, so later versions may add some.

use super::DataError;

/// Supported log pages (SPC-5 section 7.3.20).
pub const LOG_PAGE_SUPPORTED: u8 = 0x00;
/// Statistics of the logical unit that the command went to.
pub const LOG_PAGE_LUN: u8 = 0x30;
/// Statistics of the adapter: sums over its logical units, and its rings.
pub const LOG_PAGE_ADAPTER: u8 = 0x31;
/// The log pages of this module, ascending, as [`supported_log_pages`] wants them.
pub const LOG_PAGES: [u8; 3] = [LOG_PAGE_SUPPORTED, LOG_PAGE_LUN, LOG_PAGE_ADAPTER];

/// Sense keys 0h to Fh (SPC-5 section 4.5.7).
pub const SENSE_KEYS: usize = 16;

/// Bytes of the page header.
const HEADER_LEN: usize = 4;
/// Bytes of a parameter: code, control byte, length, value of eight bytes.
const PARAMETER_LEN: usize = 12;
/// Header byte 0: DS, the page is not saved by LOG SELECT.
const DS: u8 = 0x80;
/// Control byte of a count: TSD (not saved by the target) and "unbounded data counter".
const COUNT: u8 = 0x22;
/// Control byte of a figure that goes up and down: TSD and "binary format list".
const FIGURE: u8 = 0x23;

/// Code of the first of the counters by sense key; the key is the low digit.
const ERRORS: u16 = 0x0100;

/// Latencies of one kind of request, from the ring to the status, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// Half of the requests were faster.
    pub p50_ns: u64,
    /// 99 % of them were.
    pub p99_ns: u64,
    /// 99.9 % of them were.
    pub p999_ns: u64,
}

/// What a logical unit, or all those of an adapter together, have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoStatistics {
    /// Read commands completed.
    pub reads: u64,
    /// Write commands completed.
    pub writes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// SYNCHRONIZE CACHE commands completed.
    pub flushes: u64,
    /// UNMAP commands, and WRITE SAME with UNMAP, completed.
    pub discards: u64,
    /// Commands ended by a task management function.
    pub aborts: u64,
    /// Logical unit, target and I_T nexus resets.
    pub resets: u64,
    /// Commands refused with TASK SET FULL or BUSY.
    pub queue_full: u64,
    /// Commands refused because the store was replaced and not yet approved.
    pub replaced_refusals: u64,
    /// Commands in the target now.
    pub depth: u64,
    /// Most commands in the target at once since the statistics were cleared.
    pub depth_max: u64,
    /// Latency of reads.
    pub read_latency: Latency,
    /// Latency of writes.
    pub write_latency: Latency,
    /// Commands ended with CHECK CONDITION, by sense key.
    pub errors: [u64; SENSE_KEYS],
}

/// What the rings of an adapter have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingStatistics {
    /// Notifications received from the guest.
    pub kicks: u64,
    /// Notifications sent to the guest.
    pub notifications_sent: u64,
    /// Notifications that the guest did not want.
    pub notifications_suppressed: u64,
}

/// The content of page 30h or 31h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Requests.
    pub io: IoStatistics,
    /// Rings; `None` in page 30h of a logical unit that shares its rings with others.
    pub rings: Option<RingStatistics>,
}

/// Where a figure is kept in `T`.
type Field<T> = fn(&mut T) -> &mut u64;

/// The figures of both pages: parameter code, control byte, where the value is. Ascending by code.
const IO_FIELDS: [(u16, u8, Field<IoStatistics>); 18] = [
    (0x0001, COUNT, |s| &mut s.reads),
    (0x0002, COUNT, |s| &mut s.writes),
    (0x0003, COUNT, |s| &mut s.read_bytes),
    (0x0004, COUNT, |s| &mut s.write_bytes),
    (0x0005, COUNT, |s| &mut s.flushes),
    (0x0006, COUNT, |s| &mut s.discards),
    (0x0007, COUNT, |s| &mut s.aborts),
    (0x0008, COUNT, |s| &mut s.resets),
    (0x0009, COUNT, |s| &mut s.queue_full),
    (0x000a, COUNT, |s| &mut s.replaced_refusals),
    (0x0010, FIGURE, |s| &mut s.depth),
    (0x0011, FIGURE, |s| &mut s.depth_max),
    (0x0020, FIGURE, |s| &mut s.read_latency.p50_ns),
    (0x0021, FIGURE, |s| &mut s.read_latency.p99_ns),
    (0x0022, FIGURE, |s| &mut s.read_latency.p999_ns),
    (0x0028, FIGURE, |s| &mut s.write_latency.p50_ns),
    (0x0029, FIGURE, |s| &mut s.write_latency.p99_ns),
    (0x002a, FIGURE, |s| &mut s.write_latency.p999_ns),
];

/// The counters of rings.
const RING_FIELDS: [(u16, Field<RingStatistics>); 3] = [
    (0x0040, |r| &mut r.kicks),
    (0x0041, |r| &mut r.notifications_sent),
    (0x0042, |r| &mut r.notifications_suppressed),
];

impl Statistics {
    /// Longest page in bytes.
    pub const LEN_MAX: usize =
        HEADER_LEN + PARAMETER_LEN * (IO_FIELDS.len() + RING_FIELDS.len() + SENSE_KEYS);

    /// The page `page` ([`LOG_PAGE_LUN`] or [`LOG_PAGE_ADAPTER`]) with the parameters whose code is `from_parameter` (the
    /// CDB's PARAMETER POINTER) or greater; the caller cuts it at the allocation length.
    #[must_use]
    pub fn to_page(&self, page: u8, from_parameter: u16) -> Vec<u8> {
        let mut data = Vec::with_capacity(Self::LEN_MAX);
        data.extend([DS | page, 0, 0, 0]);
        let mut put = |code: u16, control: u8, value: u64| {
            if code >= from_parameter {
                data.extend(code.to_be_bytes());
                data.extend([control, 8]);
                data.extend(value.to_be_bytes());
            }
        };
        let mut io = self.io;
        for (code, control, field) in IO_FIELDS {
            put(code, control, *field(&mut io));
        }
        if let Some(mut rings) = self.rings {
            for (code, field) in RING_FIELDS {
                put(code, COUNT, *field(&mut rings));
            }
        }
        for (code, count) in (ERRORS..).zip(self.io.errors) {
            put(code, COUNT, count);
        }
        finish(data)
    }

    /// Reads page `page`. Unknown codes are passed over; values of up to eight bytes are taken.
    ///
    /// # Errors
    /// When it is another page or ends inside a parameter.
    pub fn from_page(page: u8, data: &[u8]) -> Result<Self, DataError> {
        let mut statistics = Self::default();
        for parameter in Parameters::of(page, data)? {
            let (code, value) = parameter?;
            if let Some((.., field)) = IO_FIELDS.iter().find(|(known, ..)| *known == code) {
                *field(&mut statistics.io) = value;
            } else if let Some((_, field)) = RING_FIELDS.iter().find(|(known, _)| *known == code) {
                *field(statistics.rings.get_or_insert_default()) = value;
            } else if let Some(count) =
                code.checked_sub(ERRORS).and_then(|key| statistics.io.errors.get_mut(usize::from(key)))
            {
                *count = value;
            }
        }
        Ok(statistics)
    }
}

/// The supported log pages page for a logical unit that has `pages`, ascending and with 00h.
#[must_use]
pub fn supported_log_pages(pages: &[u8]) -> Vec<u8> {
    let mut data = vec![LOG_PAGE_SUPPORTED, 0, 0, 0];
    data.extend(pages);
    finish(data)
}

/// A LOG SENSE CDB (SPC-5 section 6.8) for the current cumulative values of `page`, with room for `allocation_length` bytes.
#[must_use]
pub const fn log_sense(page: u8, allocation_length: u16) -> [u8; 10] {
    let [high, low] = allocation_length.to_be_bytes();
    // Byte 2: PC 01b (cumulative) in bits 7 and 6, the page code below.
    [0x4d, 0, 0x40 | (page & 0x3f), 0, 0, 0, 0, high, low, 0]
}

/// Writes the page length: the bytes that follow the header.
fn finish(mut data: Vec<u8>) -> Vec<u8> {
    let len = u16::try_from(data.len() - HEADER_LEN).expect("a page is some hundred bytes");
    data[2..4].copy_from_slice(&len.to_be_bytes());
    data
}

/// The parameters of a page as (code, value).
struct Parameters<'a> {
    left: &'a [u8],
}

impl<'a> Parameters<'a> {
    fn of(page: u8, data: &'a [u8]) -> Result<Self, DataError> {
        let Some((header, rest)) = data.split_first_chunk::<HEADER_LEN>() else {
            return Err(DataError::Short { have: data.len(), need: HEADER_LEN });
        };
        // Bit 7 is DS; SPF (bit 6) would make it a subpage, of which there are none.
        if header[0] & 0x7f != page {
            return Err(DataError::Format { byte: 0 });
        }
        let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let left = rest.get(..len).ok_or(DataError::Short { have: data.len(), need: HEADER_LEN + len })?;
        Ok(Self { left })
    }
}

impl Iterator for Parameters<'_> {
    type Item = Result<(u16, u64), DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left.is_empty() {
            return None;
        }
        let short = DataError::Short { have: self.left.len(), need: HEADER_LEN };
        let Some(([high, low, _control, len], rest)) = self.left.split_first_chunk::<4>() else {
            self.left = &[];
            return Some(Err(short));
        };
        let len = usize::from(*len);
        let Some((value, left)) = rest.split_at_checked(len) else {
            let short = DataError::Short { have: rest.len(), need: len };
            self.left = &[];
            return Some(Err(short));
        };
        self.left = left;
        // A longer value is no number of ours; its low bytes would be a lie.
        let number = if len > 8 { 0 } else { value.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)) };
        Some(Ok((u16::from_be_bytes([*high, *low]), number)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statistics() -> Statistics {
        let mut errors = [0; SENSE_KEYS];
        errors[5] = 3;
        errors[15] = 1;
        Statistics {
            io: IoStatistics {
                reads: 1,
                writes: 0x0102,
                read_bytes: u64::MAX,
                write_latency: Latency { p50_ns: 10, p99_ns: 20, p999_ns: 30 },
                depth_max: 128,
                errors,
                ..IoStatistics::default()
            },
            rings: Some(RingStatistics { kicks: 7, notifications_sent: 8, notifications_suppressed: 9 }),
        }
    }

    #[test]
    fn a_page_is_a_header_and_parameters() {
        let page = statistics().to_page(LOG_PAGE_ADAPTER, 0);
        assert_eq!(page.len(), Statistics::LEN_MAX);
        // DS and page code, no subpage, 444 bytes follow; then code 0001h, TSD + unbounded counter, 8 bytes, 1.
        let wanted = [0xb1, 0, 1, 0xbc, 0, 1, 0x22, 8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0x22, 8];
        assert_eq!(page[..20], wanted);
        assert_eq!(page[20..28], [0, 0, 0, 0, 0, 0, 1, 2]);
        let last = [1, 0x0f, 0x22, 8, 0, 0, 0, 0, 0, 0, 0, 1];
        assert_eq!(page[page.len() - 12..], last, "errors with sense key Fh");
    }

    #[test]
    fn codes_ascend_and_those_below_the_pointer_are_left_out() {
        let codes = |from| -> Vec<u16> {
            let page = statistics().to_page(LOG_PAGE_LUN, from);
            Parameters::of(LOG_PAGE_LUN, &page).unwrap().map(|p| p.unwrap().0).collect()
        };
        let all = codes(0);
        assert!(all.is_sorted() && all.len() == 37, "{all:x?}");
        assert_eq!(codes(0x10c), [0x10c, 0x10d, 0x10e, 0x10f]);
        assert!(codes(0x110).is_empty(), "a page without parameters is a header");
    }

    #[test]
    fn pages_are_read_back_as_written() {
        let with = statistics();
        let page = with.to_page(LOG_PAGE_ADAPTER, 0);
        assert_eq!(Statistics::from_page(LOG_PAGE_ADAPTER, &page), Ok(with));
        let without = Statistics { rings: None, ..with };
        let page = without.to_page(LOG_PAGE_LUN, 0);
        assert_eq!(Statistics::from_page(LOG_PAGE_LUN, &page), Ok(without));
    }

    #[test]
    fn a_reader_takes_what_it_knows() {
        // A counter of two bytes, an unknown code, an unknown code with more than eight bytes.
        let page = [
            0xb0, 0, 0, 25, 0, 1, 2, 2, 1, 0, 0x7f, 0, 0, 1, 9, 0x7f, 1, 0, 10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10,
        ];
        let read = Statistics::from_page(LOG_PAGE_LUN, &page).unwrap();
        assert_eq!((read.io.reads, read.io.writes, read.rings), (256, 0, None));
    }

    #[test]
    fn pages_that_end_early_are_refused_and_none_panics() {
        let page = statistics().to_page(LOG_PAGE_LUN, 0);
        for len in 0..page.len() {
            assert!(Statistics::from_page(LOG_PAGE_LUN, &page[..len]).is_err(), "{len}");
            let mut lying = page[..len].to_vec();
            if let Some(field) = lying.get_mut(2..4) {
                field.copy_from_slice(&u16::try_from(len - 4).unwrap().to_be_bytes());
                let whole = (len - 4) % 12 == 0;
                assert_eq!(Statistics::from_page(LOG_PAGE_LUN, &lying).is_ok(), whole, "{len}");
            }
        }
        assert_eq!(Statistics::from_page(LOG_PAGE_ADAPTER, &page), Err(DataError::Format { byte: 0 }));
    }

    #[test]
    fn the_list_and_the_command_are_those_of_the_standard() {
        assert_eq!(supported_log_pages(&LOG_PAGES), [0, 0, 0, 3, 0, 0x30, 0x31]);
        assert_eq!(log_sense(LOG_PAGE_LUN, 0x1234), [0x4d, 0, 0x70, 0, 0, 0, 0, 0x12, 0x34, 0]);
    }
}
