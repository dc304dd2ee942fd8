//! What a device's driver tells of it, by the ioctl of ethtool. Decides nothing; what changes frames on their way is in `features`.

use std::io;

use super::sys::{ethtool, put};

/// What ethtool says about the driver of an interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DriverInfo {
    /// The driver's name.
    pub driver: String,
    /// Receive queues in use now (combined or receive channels); 0: not told.
    pub queues: u32,
}

/// Asks for the driver and the number of queues.
///
/// # Errors
/// There is no such interface.
pub fn driver_info(name: &str) -> io::Result<DriverInfo> {
    const GDRVINFO: u32 = 3;
    const GCHANNELS: u32 = 0x3c;
    // `struct ethtool_drvinfo`: command, then the driver in 32 bytes.
    let mut command = [0u8; 256];
    put(&mut command, 0, GDRVINFO.to_ne_bytes());
    ethtool(name, &mut command)?;
    let driver = &command[4..36];
    let end = driver.iter().position(|&b| b == 0).unwrap_or(driver.len());
    let driver = String::from_utf8_lossy(&driver[..end]).into_owned();
    // `struct ethtool_channels`: command, four maxima, then receive, transmit, other, combined.
    let mut channels = [0u8; 64];
    put(&mut channels, 0, GCHANNELS.to_ne_bytes());
    let queues = match ethtool(name, &mut channels) {
        Ok(()) => {
            let word = |at: usize| {
                u32::from_ne_bytes([channels[at], channels[at + 1], channels[at + 2], channels[at + 3]])
            };
            word(20) + word(32)
        }
        Err(_) => 0,
    };
    Ok(DriverInfo { driver, queues })
}

/// Speed of the link in Mbit/s (`ETHTOOL_GLINKSETTINGS`); `None`: not told (a link that is down, or a device without a speed).
#[must_use]
pub fn interface_speed_mbps(name: &str) -> Option<u32> {
    const GLINKSETTINGS: u32 = 0x4c;
    /// `link_mode_masks_nwords`; below zero in an answer that only says how many.
    const MASK_WORDS: usize = 15;
    // `struct ethtool_link_settings`, 48 bytes, then three masks; the first call asks how long those are.
    let mut command = [0u8; 48 + 3 * 4 * 127];
    put(&mut command, 0, GLINKSETTINGS.to_ne_bytes());
    ethtool(name, &mut command).ok()?;
    let words = (command[MASK_WORDS] as i8).checked_neg().filter(|&words| words > 0)?;
    command[..].fill(0);
    put(&mut command, 0, GLINKSETTINGS.to_ne_bytes());
    command[MASK_WORDS] = words as u8;
    ethtool(name, &mut command).ok()?;
    let speed = u32::from_ne_bytes([command[4], command[5], command[6], command[7]]);
    (speed != 0 && speed != u32::MAX).then_some(speed)
}
