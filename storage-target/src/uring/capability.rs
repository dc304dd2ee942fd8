//! What this kernel's io_uring can do, found out once at start-up.

use avio_host::facility::Facilities;
use io_uring::IoUring;

/// Kernel facilities that the storage daemon uses when they are there; `AVIO_DISABLE` switches them off.
pub const FACILITIES: &[&str] = &["uring_defer_taskrun", "uring_registered_files", "uring_fixed_buffers"];

/// Entries of the ring that is made to look.
const PROBE_ENTRIES: u32 = 4;

/// What rings are made with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Completions are finished in the worker's own calls, not by interrupting it (Linux 6.1).
    pub defer_taskrun: bool,
    /// Files are looked up once, not for each operation.
    pub registered_files: bool,
    /// Guests' memory can be registered once, not looked up and pinned for each operation.
    pub fixed_buffers: bool,
}

impl Capabilities {
    /// Looks, and logs what is used. Control thread, once.
    ///
    /// # Errors
    /// When there is no io_uring at all: a line for the operator.
    pub fn probe(facilities: &mut Facilities) -> Result<Self, String> {
        let plain = IoUring::new(PROBE_ENTRIES).map_err(|e| {
            format!(
                "io_uring is not available: {e}; allow it (sysctl kernel.io_uring_disabled=0, or the container's \
                 system call filter)"
            )
        })?;
        let registered_files = facilities.probe("uring_registered_files", || {
            let sparse = plain.submitter().register_files_sparse(1);
            sparse.map(|()| "sparse table".to_owned()).map_err(|e| e.to_string())
        });
        let defer_taskrun = facilities.probe("uring_defer_taskrun", || {
            let ring: std::io::Result<IoUring> =
                IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(PROBE_ENTRIES);
            ring.map(|_| "single issuer, deferred task work".to_owned()).map_err(|e| e.to_string())
        });
        let fixed_buffers = facilities.probe("uring_fixed_buffers", || {
            let sparse = plain.submitter().register_buffers_sparse(1);
            sparse.map(|()| "sparse table, for guests with pin_memory".to_owned()).map_err(|e| e.to_string())
        });
        Ok(Self { defer_taskrun, registered_files, fixed_buffers })
    }
}
