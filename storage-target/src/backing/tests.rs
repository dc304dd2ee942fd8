//! Backings as a worker uses them, on real files, with every newer kernel facility and without any.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use avio_guest::{GUEST_BASE, GuestMemory};
use avio_host::facility::Facilities;
use avio_host::wait::EventFd;
use avio_proto::config::BackingSpec;
use avio_proto::mem::GuestPieces;
use proptest::prelude::*;

use super::*;
use crate::uring::{Capabilities, FACILITIES};

const LONG: Duration = Duration::from_secs(30);

/// A sparse file that goes away.
struct Image(PathBuf);

impl Image {
    fn new(name: &str, len: u64) -> Self {
        // Not /tmp, which may have no direct I/O.
        let path = std::env::current_dir().unwrap().join(format!(".{name}-{}", std::process::id()));
        File::create(&path).unwrap().set_len(len).unwrap();
        Self(path)
    }

    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        File::open(&self.0).unwrap().read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

fn options() -> OpenOptions {
    OpenOptions { readonly: false, block_size: None, writes_through: None, dvd: false }
}

fn open(text: &str) -> Result<Arc<Backing>, String> {
    Backing::open(&BackingSpec::parse(text).unwrap(), &options()).map_err(|e| e.to_string())
}

fn io(disabled: &str) -> Io {
    let mut facilities = Facilities::parse(FACILITIES, disabled).unwrap();
    Io::new(Capabilities::probe(&mut facilities).unwrap())
}

/// Does one access and waits for it.
fn run(
    io: &mut Io,
    backing: &Arc<Backing>,
    access: Access,
    offset: u64,
    len: u64,
    memory: Memory,
) -> (Result<(), IoError>, Memory) {
    run_for(io, backing, access, offset, len, memory, LONG)
}

fn run_for(
    io: &mut Io,
    backing: &Arc<Backing>,
    access: Access,
    offset: u64,
    len: u64,
    memory: Memory,
    timeout: Duration,
) -> (Result<(), IoError>, Memory) {
    match io.start(backing, access, offset, len, memory, 7, timeout) {
        Started::Done(result, memory) => (result, memory),
        Started::Pending => {
            let set = EventFd::new().unwrap();
            let mut done = Vec::new();
            io.flush_submissions();
            while done.is_empty() {
                io.wait(std::os::fd::AsFd::as_fd(&set), Some(Duration::from_millis(100)));
                io.reap(&mut done);
            }
            let Completion { token, result, memory, access: of } = done.pop().unwrap();
            assert_eq!((token, of, done.len()), (7, access, 0));
            (result, memory)
        }
    }
}

fn own(bytes: &[u8]) -> Memory {
    let mut buffer = AlignedBuf::zeroed(bytes.len());
    buffer.copy_from_slice(bytes);
    Memory::Own(buffer)
}

fn bytes_of(memory: Memory) -> Vec<u8> {
    match memory {
        Memory::Own(buffer) => buffer.to_vec(),
        _ => panic!("not ours"),
    }
}

/// fio's `sync=dsync`, not its `sync=sync`: the times of the file need not be durable.
#[test]
fn what_writes_through_is_opened_for_its_data_alone() {
    let file = Image::new("dsync", 8192);
    let flags = |writes_through| {
        let options = OpenOptions { writes_through: Some(writes_through), ..options() };
        let backing = Backing::open(&BackingSpec::File(file.0.clone()), &options).unwrap();
        let Medium::File(medium) = &backing.medium else { panic!("a file") };
        rustix::fs::fcntl_getfl(&medium.fd).unwrap().bits() as i32
    };
    assert_eq!(flags(true) & libc::O_SYNC, libc::O_DSYNC);
    assert_eq!(flags(false) & libc::O_SYNC, 0);
}

const WRITE: Access = Access::Write { durable: false };

#[test]
fn reads_that_threads_do_ask_for_the_core_at_once() {
    // A file that cannot say that it would have to wait, as zram's devices cannot.
    assert!(file::wants_threads(File::open("/proc/self/status").unwrap().as_fd()));
    for by_threads in [false, true] {
        let image = Image::new(&format!("avio-threads-{by_threads}"), 1 << 20);
        let mut backing = open(&format!("file:{}", image.0.display())).unwrap();
        let Some(Backing { medium: Medium::File(medium), .. }) = Arc::get_mut(&mut backing) else {
            panic!("no file, or not ours alone")
        };
        assert!(!medium.by_threads, "a file system's own files need no thread for a read");
        medium.by_threads = by_threads;
        let mut io = io("");
        let started = io.start(&backing, Access::Read, 0, 4096, own(&[0; 4096]), 1, LONG);
        assert!(matches!(started, Started::Pending));
        assert_eq!(io.may_need_core(), by_threads);
        let (set, mut done) = (EventFd::new().unwrap(), Vec::new());
        io.flush_submissions();
        while done.is_empty() {
            io.wait(set.as_fd(), Some(Duration::from_millis(100)));
            io.reap(&mut done);
        }
        assert!(!io.may_need_core(), "nothing is under way");
    }
}

#[test]
fn a_file_holds_what_was_written_with_and_without_newer_facilities() {
    for disabled in ["", "all"] {
        let image = Image::new("avio-file", 1 << 20);
        let backing = open(&format!("file:{}", image.0.display())).unwrap();
        assert_eq!((backing.size_bytes(), backing.limits().volatile_cache), (1 << 20, false));
        let mut io = io(disabled);
        let data: Vec<u8> = (0..8192u32).map(|i| (i * 7) as u8).collect();
        assert_eq!(run(&mut io, &backing, WRITE, 4096, 8192, own(&data)).0, Ok(()));
        assert_eq!(image.read(4096, 8192), data);
        let (result, memory) = run(&mut io, &backing, Access::Read, 8192, 4096, own(&[1; 4096]));
        assert_eq!((result, bytes_of(memory)), (Ok(()), data[4096..].to_vec()));
        assert_eq!(run(&mut io, &backing, Access::Flush, 0, 0, Memory::None).0, Ok(()));
        for access in
            [Access::Discard, Access::WriteZeroes { unmap: false }, Access::WriteZeroes { unmap: true }]
        {
            assert_eq!(run(&mut io, &backing, WRITE, 4096, 8192, own(&data)).0, Ok(()));
            assert_eq!(run(&mut io, &backing, access, 4096, 4096, Memory::None).0, Ok(()), "{access:?}");
            assert_eq!(image.read(4096, 4096), vec![0; 4096], "{access:?}");
            assert_eq!(image.read(8192, 4096), data[4096..], "{access:?}");
        }
        assert_eq!(io.in_flight(), 0);
    }
}

#[test]
fn more_accesses_than_the_queue_has_entries_all_complete() {
    let image = Image::new("avio-many", 1 << 20);
    let backing = open(&format!("file:{}", image.0.display())).unwrap();
    let mut io = io("");
    let count = 700;
    for token in 0..count {
        let started = io.start(&backing, Access::Read, token * 512, 512, own(&[1; 512]), token, LONG);
        assert!(matches!(started, Started::Pending));
    }
    let set = EventFd::new().unwrap();
    let (mut done, mut seen) = (Vec::new(), std::collections::BTreeSet::new());
    while (seen.len() as u64) < count {
        io.wait(std::os::fd::AsFd::as_fd(&set), Some(Duration::from_millis(100)));
        io.reap(&mut done);
        seen.extend(done.drain(..).map(|completion| {
            assert_eq!(completion.result, Ok(()));
            completion.token
        }));
    }
    assert_eq!(io.in_flight(), 0);
}

#[test]
fn an_image_cut_short_fails_and_does_not_hang() {
    let image = Image::new("avio-short", 1 << 20);
    let backing = open(&format!("file:{}", image.0.display())).unwrap();
    let mut io = io("");
    File::options().write(true).open(&image.0).unwrap().set_len(4096).unwrap();
    let (result, _) = run(&mut io, &backing, Access::Read, 0, 8192, own(&[0; 8192]));
    assert_eq!(result, Err(IoError::Gone));
    assert_eq!(backing.refresh_size(), Ok(Some(4096)));
    assert_eq!(backing.refresh_size(), Ok(None));
}

#[test]
fn one_writer_at_a_time_and_the_line_says_so() {
    let image = Image::new("avio-claim", 1 << 20);
    let text = format!("file:{}", image.0.display());
    let first = open(&text).unwrap();
    let error = open(&text).unwrap_err();
    assert!(error.contains("another program has it open") && error.contains(&text), "{error}");
    drop(first);
    open(&text).unwrap();
}

#[test]
fn what_is_wrong_with_a_path_is_said_in_one_line() {
    let image = Image::new("avio-tiny", 100);
    for (text, said) in [
        ("file:/nowhere/disk.img".to_owned(), "no such file"),
        ("file:/tmp".to_owned(), "it is a folder"),
        ("file:/dev/null".to_owned(), "no regular file"),
        ("disk:/dev/null".to_owned(), "tapes and changers are not supported"),
        (format!("disk:{}", image.0.display()), "write file: instead"),
        (format!("file:{}", image.0.display()), "too small"),
    ] {
        let error = open(&text).unwrap_err();
        assert!(error.contains(said) && !error.contains('\n'), "{text}: {error}");
    }
}

#[test]
fn faults_delay_and_fail_as_their_rules_say() {
    let backing = open("fault:write_delay_ms=60,read_error_every=2,bad_byte=64K:memory:1M").unwrap();
    let mut io = io("");
    let begun = Instant::now();
    assert_eq!(run(&mut io, &backing, WRITE, 0, 4096, own(&[9; 4096])).0, Ok(()));
    assert!(begun.elapsed() >= Duration::from_millis(60));
    let (result, memory) = run(&mut io, &backing, Access::Read, 0, 4096, own(&[0; 4096]));
    assert_eq!((result, bytes_of(memory)), (Ok(()), vec![9; 4096]));
    let (result, _) = run(&mut io, &backing, Access::Read, 0, 4096, own(&[0; 4096]));
    assert_eq!(result, Err(IoError::Os(Errno::IO)), "every second read");
    let (result, _) = run(&mut io, &backing, WRITE, 65536 - 512, 1024, own(&[0; 1024]));
    assert_eq!(result, Err(IoError::Os(Errno::IO)), "the bad byte");
}

#[test]
fn late_accesses_are_given_up_and_held_ones_can_be_taken_back() {
    let backing = open("fault:write_delay_ms=60000:memory:1M").unwrap();
    let mut io = io("");
    let (result, memory) =
        run_for(&mut io, &backing, WRITE, 0, 512, own(&[1; 512]), Duration::from_millis(300));
    assert_eq!((result, bytes_of(memory)), (Err(IoError::TimedOut), vec![1; 512]));
    assert!(matches!(io.start(&backing, WRITE, 0, 512, own(&[1; 512]), 3, LONG), Started::Pending));
    io.cancel(3);
    let mut done = Vec::new();
    io.reap(&mut done);
    assert_eq!((done.len(), done[0].token, io.in_flight()), (1, 3, 0));
    assert!(done[0].result.is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Random accesses to a file and to memory leave what they leave in a plain array.
    #[test]
    fn a_backing_is_an_array_of_bytes(
        steps in prop::collection::vec((0u8..4, 0u64..63, 1u64..32, any::<u8>()), 1..40),
        file in any::<bool>(),
        disabled in prop::sample::select(vec!["", "all"]),
    ) {
        let image = Image::new("avio-model", 64 * 512);
        let text = if file { format!("file:{}", image.0.display()) } else { "memory:32K".to_owned() };
        let backing = open(&text).unwrap();
        let mut io = io(disabled);
        let mut model = vec![0u8; 64 * 512];
        for (kind, block, count, seed) in steps {
            let (offset, len) = (block * 512, count.min(64 - block) * 512);
            let place = offset as usize..(offset + len) as usize;
            match kind {
                0 => {
                    let data: Vec<u8> = (0..len).map(|i| seed.wrapping_add(i as u8)).collect();
                    prop_assert_eq!(run(&mut io, &backing, WRITE, offset, len, own(&data)).0, Ok(()));
                    model[place].copy_from_slice(&data);
                }
                1 => {
                    let access = Access::WriteZeroes { unmap: seed & 1 == 0 };
                    prop_assert_eq!(run(&mut io, &backing, access, offset, len, Memory::None).0, Ok(()));
                    model[place].fill(0);
                }
                _ => {
                    let (result, memory) = run(&mut io, &backing, Access::Read, offset, len, own(&vec![seed; len as usize]));
                    prop_assert_eq!(result, Ok(()));
                    prop_assert_eq!(bytes_of(memory), model[place].to_vec());
                }
            }
        }
    }
}

/// Writes and reads by way of the guest's memory: the whole of it, from `GUEST_BASE` on.
fn through(io: &mut Io, backing: &Arc<Backing>, guest: &GuestMemory, image: &Image, with: u8) {
    let pieces = || GuestPieces::of_table(guest.table(), GUEST_BASE, 8192);
    pieces().copy_from(&[with; 8192]);
    assert_eq!(run(io, backing, WRITE, 4096, 8192, Memory::Guest(pieces())).0, Ok(()));
    assert_eq!(image.read(4096, 8192), [with; 8192]);
    pieces().copy_from(&[0; 8192]);
    assert_eq!(run(io, backing, Access::Read, 4096, 8192, Memory::Guest(pieces())).0, Ok(()));
    let mut got = [0; 8192];
    pieces().copy_to(&mut got);
    assert_eq!(got, [with; 8192]);
}

#[test]
fn registered_memory_is_used_until_it_is_given_back_and_is_never_missed() {
    let image = Image::new("avio-pinned", 1 << 20);
    let backing = open(&format!("file:{}", image.0.display())).unwrap();
    let (guest, other) = (GuestMemory::new("a", 1 << 20).unwrap(), GuestMemory::new("b", 1 << 20).unwrap());
    let mut io = io("");
    through(&mut io, &backing, &guest, &image, 1);
    let first = io.pin(guest.table());
    assert!(first.error.is_none() && (first.regions, first.bytes) == (1, 1 << 20));
    let second = io.pin(guest.table());
    assert_eq!(second.regions, 0);
    through(&mut io, &backing, &guest, &image, 2);
    // A guest that has not promised anything, on the same worker.
    through(&mut io, &backing, &other, &image, 3);
    assert_eq!(io.unpin(first.pin), Unpinned::default());
    through(&mut io, &backing, &guest, &image, 4);
    assert_eq!(io.unpin(second.pin), Unpinned { regions: 1, used: 4 });
    through(&mut io, &backing, &guest, &image, 5);
    // The kernel does not find a buffer that we think is there: requests are done all the same.
    let third = io.pin(guest.table());
    io.forget_buffers();
    through(&mut io, &backing, &guest, &image, 6);
    assert_eq!(io.unpin(third.pin), Unpinned { regions: 1, used: 2 });
    // Often.
    for _ in 0..2000 {
        let pinned = io.pin(guest.table());
        assert!(pinned.error.is_none() && pinned.regions == 1);
        let _ = io.unpin(pinned.pin);
    }
    assert_eq!(io.in_flight(), 0);
}

#[test]
fn without_the_facility_nothing_is_registered() {
    let image = Image::new("avio-unpinned", 1 << 20);
    let backing = open(&format!("file:{}", image.0.display())).unwrap();
    let guest = GuestMemory::new("a", 1 << 20).unwrap();
    let mut io = io("uring_fixed_buffers");
    let pinned = io.pin(guest.table());
    assert!(pinned.error.unwrap().to_string().contains("AVIO_DISABLE"));
    through(&mut io, &backing, &guest, &image, 1);
    assert_eq!(io.unpin(pinned.pin), Unpinned::default());
}
