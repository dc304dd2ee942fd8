//! The command line in the original's form: `gvsdmgr [-f] VERB -D HBA [-q QUALIFIER]...`, options before or after the verb.

use clap::{Parser, ValueEnum};

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Verb {
    /// Show the adapter; with qualifiers, logical units
    GetInfo,
    /// Show the statistics of the adapter; with qualifiers, of logical units
    GetStat,
    /// Statistics start over: all of them, or those of the qualifiers
    ClearStat,
    /// Approve the store that the host has put in place of another
    ReplaceDsk,
    /// Reset logical units: what is under way in them is aborted
    LunReset,
    /// Reset targets, with all their logical units
    TgtReset,
}

/// Manages the AVIO storage adapters of this guest.
#[derive(Debug, Parser)]
#[command(name = "gvsdmgr", version, arg_required_else_help = true)]
pub struct Arguments {
    /// What to do
    #[arg(value_enum, value_name = "VERB")]
    pub verb: Verb,
    /// The adapter: /dev/gvsdN, a SCSI host (host2), or a device of one of its logical units (/dev/sg1)
    #[arg(short = 'D', value_name = "HBA")]
    pub adapter: String,
    /// Which logical units: lun=all, lun=DEVICE, lun_dsf=DEVICE, tgt=all, tgt=N, all; may be given more than once
    #[arg(short = 'q', value_name = "QUALIFIER", value_parser = Qualifier::parse)]
    pub qualifiers: Vec<Qualifier>,
    /// Do not ask, do not warn
    #[arg(short = 'f')]
    pub force: bool,
}

/// What `-q` names. Keywords are case-sensitive, as in the original.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Qualifier {
    /// `all`: the adapter and all logical units.
    All,
    /// `lun=all`, `tgt=all`: all logical units.
    Luns,
    /// `lun=DEVICE`, `lun_dsf=DEVICE`: one by its device.
    Device(String),
    /// `tgt=N`: those of a target, decimal or `0x` hexadecimal.
    Target(u32),
}

impl Qualifier {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || "is none of lun=all, lun=DEVICE, lun_dsf=DEVICE, tgt=all, tgt=N, all".to_owned();
        match text.split_once('=') {
            None if text == "all" => Ok(Self::All),
            Some(("lun" | "tgt", "all")) => Ok(Self::Luns),
            Some(("lun" | "lun_dsf", device)) if !device.is_empty() => Ok(Self::Device(device.to_owned())),
            Some(("tgt", number)) => {
                let parsed = match number.strip_prefix("0x") {
                    Some(digits) => u32::from_str_radix(digits, 16),
                    None => number.parse(),
                };
                parsed.map(Self::Target).map_err(|_| format!("`{number}` is no target: a number, or all"))
            }
            _ => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_originals_lines_are_understood() {
        Arguments::command().debug_assert();
        let parse = |line: &str| Arguments::try_parse_from(line.split(' '));
        let replace = parse("gvsdmgr -f replace_dsk -D /dev/gvsd0 -q lun=/dev/sda").unwrap();
        assert!(replace.force && replace.verb == Verb::ReplaceDsk);
        assert_eq!(replace.qualifiers, [Qualifier::Device("/dev/sda".into())]);
        let clear = parse("gvsdmgr clear_stat -D host2 -q lun_dsf=/dev/sdb -q tgt=0x16").unwrap();
        assert_eq!(clear.qualifiers, [Qualifier::Device("/dev/sdb".into()), Qualifier::Target(22)]);
        let stat = parse("gvsdmgr get_stat -q tgt=all -D /dev/sg0").unwrap();
        assert_eq!((stat.verb, stat.qualifiers.as_slice()), (Verb::GetStat, &[Qualifier::Luns][..]));
        assert_eq!(parse("gvsdmgr get_info -D host0 -q all").unwrap().qualifiers, [Qualifier::All]);
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        let parse = |line: &str| Arguments::try_parse_from(line.split(' ')).unwrap_err().exit_code();
        for line in [
            "gvsdmgr get_info",
            "gvsdmgr get_everything -D host0",
            "gvsdmgr get_info -D host0 -q LUN=all",
            "gvsdmgr get_info -D host0 -q lun=",
            "gvsdmgr get_info -D host0 -q tgt=x",
            "gvsdmgr get_info -D host0 -q target=1",
        ] {
            assert_eq!(parse(line), 2, "{line}");
        }
    }
}
