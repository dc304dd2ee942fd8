//! SCSI commands, resets and cache flushes through the guest kernel's ioctls: the only place of this program with `unsafe`
//! (docs/decisions/0009). Owns the layout of `sg_io_hdr`; knows no command.

#![expect(unsafe_code, reason = "SG_IO takes pointers, and no ioctl of the SCSI layer has a safe wrapper")]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;
use std::time::Duration;

/// `SG_IO` of `scsi/sg.h`.
const SG_IO: libc::Ioctl = 0x2285;
/// `SG_SCSI_RESET` of `scsi/sg.h`.
const SG_SCSI_RESET: libc::Ioctl = 0x2284;
/// `SG_SCSI_RESET_NO_ESCALATE`: what fails is not tried with a wider reset.
const NO_ESCALATE: libc::c_int = 0x100;
/// `BLKFLSBUF` of `linux/fs.h`.
const BLKFLSBUF: libc::Ioctl = 0x1261;
/// Directions of a transfer.
const DXFER_NONE: i32 = -1;
const DXFER_TO_DEV: i32 = -2;
const DXFER_FROM_DEV: i32 = -3;
/// Longest sense data taken, in bytes: fixed format with all that our target says is 18.
const SENSE_LEN: usize = 64;

/// `sg_io_hdr_t`, version 3.
#[repr(C)]
struct Header {
    interface_id: i32,
    dxfer_direction: i32,
    cmd_len: u8,
    mx_sb_len: u8,
    iovec_count: u16,
    dxfer_len: u32,
    dxferp: *mut libc::c_void,
    cmdp: *const u8,
    sbp: *mut u8,
    timeout_ms: u32,
    flags: u32,
    pack_id: i32,
    usr_ptr: *mut libc::c_void,
    status: u8,
    masked_status: u8,
    msg_status: u8,
    sb_len_wr: u8,
    host_status: u16,
    driver_status: u16,
    resid: i32,
    duration_ms: u32,
    info: u32,
}

const _: () = assert!(size_of::<Header>() == 88, "as on every 64-bit Linux");

/// The data of a command.
pub enum Data<'a> {
    /// None.
    None,
    /// From the device.
    In(&'a mut [u8]),
    /// To the device.
    Out(&'a [u8]),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// GOOD; so many bytes were transferred.
    Good(usize),
    /// CHECK CONDITION: sense key, additional sense code and qualifier.
    Check(u8, u8, u8),
    /// Another status, or none because the host adapter's driver failed: SCSI status and the driver's host status.
    Other(u8, u16),
}

/// Sends one command to the device behind `node` and waits for its end. Needs CAP_SYS_RAWIO for vendor commands.
///
/// # Errors
/// What the kernel says when it does not send it.
pub fn command(node: &impl AsFd, cdb: &[u8], data: Data<'_>, timeout: Duration) -> io::Result<Ended> {
    let mut sense = [0u8; SENSE_LEN];
    let (direction, pointer, len) = match data {
        Data::None => (DXFER_NONE, ptr::null_mut(), 0),
        Data::In(to) => (DXFER_FROM_DEV, to.as_mut_ptr().cast(), to.len()),
        Data::Out(from) => (DXFER_TO_DEV, from.as_ptr().cast_mut().cast(), from.len()),
    };
    let mut header = Header {
        interface_id: i32::from(b'S'),
        dxfer_direction: direction,
        cmd_len: u8::try_from(cdb.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        mx_sb_len: SENSE_LEN as u8,
        iovec_count: 0,
        dxfer_len: u32::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?,
        dxferp: pointer,
        cmdp: cdb.as_ptr(),
        sbp: sense.as_mut_ptr(),
        timeout_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
        flags: 0,
        pack_id: 0,
        usr_ptr: ptr::null_mut(),
        status: 0,
        masked_status: 0,
        msg_status: 0,
        sb_len_wr: 0,
        host_status: 0,
        driver_status: 0,
        resid: 0,
        duration_ms: 0,
        info: 0,
    };
    // SAFETY: the header has the layout of `sg_io_hdr_t` (its size is asserted) and its lengths are those of `cdb`, `sense` and
    // the data, all of which outlive this synchronous call; the kernel writes to the header, to `sense`, and to data that is
    // borrowed mutably (`Data::In`) only.
    let result = unsafe { libc::ioctl(node.as_fd().as_raw_fd(), SG_IO, &raw mut header) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let left = usize::try_from(header.resid).unwrap_or(0);
    Ok(match header.status {
        0 if header.host_status == 0 => Ended::Good(len.saturating_sub(left)),
        2 => {
            let (key, asc, ascq) = codes(&sense);
            Ended::Check(key, asc, ascq)
        }
        status => Ended::Other(status, header.host_status),
    })
}

/// Key, code and qualifier of sense data in fixed or descriptor format (SPC-5 section 4.5).
fn codes(sense: &[u8; SENSE_LEN]) -> (u8, u8, u8) {
    match sense[0] & 0x7f {
        0x72 | 0x73 => (sense[1] & 0xf, sense[2], sense[3]),
        _ => (sense[2] & 0xf, sense[12], sense[13]),
    }
}

/// What is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The logical unit.
    Lun = 1,
    /// Its target.
    Target = 4,
}

/// Has the guest's driver send a task management function for the device behind `node`; nothing wider if that fails.
///
/// # Errors
/// What the kernel says; `EIO` where the driver cannot do it.
pub fn reset(node: &impl AsFd, what: Reset) -> io::Result<()> {
    let operation: libc::c_int = what as libc::c_int | NO_ESCALATE;
    // SAFETY: SG_SCSI_RESET reads one int from the pointer, which is to a live local.
    let result = unsafe { libc::ioctl(node.as_fd().as_raw_fd(), SG_SCSI_RESET, &raw const operation) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Writes back and drops what the guest's kernel has cached of the block device behind `node`.
///
/// # Errors
/// What the kernel says; failed writes do not count, and what they held is dropped as well.
pub fn flush_buffers(node: &impl AsFd) -> io::Result<()> {
    // SAFETY: BLKFLSBUF takes no argument.
    let result = unsafe { libc::ioctl(node.as_fd().as_raw_fd(), BLKFLSBUF, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn sense_is_read_in_both_formats() {
        let mut fixed = [0; SENSE_LEN];
        fixed[..14].copy_from_slice(&[0x70, 0, 2, 0, 0, 0, 0, 10, 0, 0, 0, 0, 4, 3]);
        assert_eq!(codes(&fixed), (2, 4, 3));
        let mut descriptors = [0; SENSE_LEN];
        descriptors[..4].copy_from_slice(&[0x72, 5, 0x26, 0]);
        assert_eq!(codes(&descriptors), (5, 0x26, 0));
    }

    #[test]
    fn what_is_no_scsi_device_is_refused_by_the_kernel() {
        let null = File::open("/dev/null").unwrap();
        let error = command(&null, &[0; 6], Data::None, Duration::from_secs(1)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
        assert!(reset(&null, Reset::Lun).is_err() && flush_buffers(&null).is_err());
    }
}
