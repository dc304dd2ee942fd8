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

/// Link modes of 10 Mbit/s (`enum ethtool_link_mode_bit_indices`).
const MODES_10: [usize; 6] = [0, 1, 92, 99, 100, 101];
/// Link modes of 100 Mbit/s.
const MODES_100: [usize; 5] = [2, 3, 67, 90, 91];
/// Bits of a set of link modes that are no speed: negotiation, ports, pauses, backplane, error correction.
const MODES_OTHER: [usize; 13] = [6, 7, 8, 9, 10, 11, 13, 14, 16, 49, 50, 51, 74];

/// Speed of the link in Mbit/s; `None`: not told (a link that is down, or a device without a speed).
#[must_use]
pub fn interface_speed_mbps(name: &str) -> Option<u32> {
    let (speed, _) = link_settings(name)?;
    (speed != 0 && speed != u32::MAX).then_some(speed)
}

/// Speed in Mbit/s of the fastest link that the device is capable of, if that is below 1000; `None`: it is faster, or does not tell.
#[must_use]
pub fn interface_capable_of_less_mbps(name: &str) -> Option<u32> {
    slow_mode(&link_settings(name)?.1)
}

/// Speed in Mbit/s as the kernel has it, and the set of link modes that the device supports (`ETHTOOL_GLINKSETTINGS`).
fn link_settings(name: &str) -> Option<(u32, Vec<u32>)> {
    const GLINKSETTINGS: u32 = 0x4c;
    /// `link_mode_masks_nwords`; below zero in an answer that only says how many.
    const MASK_WORDS: usize = 15;
    // `struct ethtool_link_settings`, 48 bytes, then three masks (supported, advertised, partner's); the first call asks how long those are.
    let mut command = [0u8; 48 + 3 * 4 * 127];
    put(&mut command, 0, GLINKSETTINGS.to_ne_bytes());
    ethtool(name, &mut command).ok()?;
    let words = (command[MASK_WORDS] as i8).checked_neg().filter(|&words| words > 0)?;
    command[..].fill(0);
    put(&mut command, 0, GLINKSETTINGS.to_ne_bytes());
    command[MASK_WORDS] = words as u8;
    ethtool(name, &mut command).ok()?;
    let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|n| command[at + n]));
    Some((word(4), (0..words as usize).map(|n| word(48 + 4 * n)).collect()))
}

/// The speed of the fastest of these link modes, if all are of less than 1 Gbit/s.
fn slow_mode(supported: &[u32]) -> Option<u32> {
    let is_set = |bit: &usize| supported.get(bit / 32).is_some_and(|word| word & 1 << (bit % 32) != 0);
    let slow = |bit: &usize| [&MODES_10[..], &MODES_100, &MODES_OTHER].concat().contains(bit);
    if (0..supported.len() * 32).filter(is_set).any(|bit| !slow(&bit)) {
        return None;
    }
    let of = |modes: &[usize], speed| modes.iter().any(&is_set).then_some(speed);
    of(&MODES_100, 100).or_else(|| of(&MODES_10, 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_with_slow_modes_alone_is_slow() {
        // 10 and 100 Mbit/s on twisted pair with negotiation and pauses; the same with 1000BASE-T (bit 5); 2500BASE-T (bit 47) alone; nothing told.
        assert_eq!(slow_mode(&[0x20cf, 0, 0]), Some(100));
        assert_eq!(slow_mode(&[0x20ef, 0, 0]), None);
        assert_eq!(slow_mode(&[0, 1 << 15, 0]), None);
        assert_eq!(slow_mode(&[0x1048, 0, 0]), None, "10GBASE-T (bit 12)");
        assert_eq!(slow_mode(&[0x43, 0, 0]), Some(10));
        assert_eq!(slow_mode(&[0, 0, 1 << (67 - 64)]), Some(100), "100BASE-T1");
        assert_eq!(slow_mode(&[0x40, 0, 0]), None);
        assert_eq!(slow_mode(&[]), None);
    }
}
