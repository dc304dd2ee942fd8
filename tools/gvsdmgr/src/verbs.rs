//! What each verb does: which logical units, which commands, in which order.

use std::io::{self, BufRead, Write};

use avio_proto::scsi::vendor::{LOG_PAGE_ADAPTER, LOG_PAGE_LUN, NONCE_NONE, ReplacementState, Scope};

use crate::Failure;
use crate::arguments::{Arguments, Qualifier, Verb};
use crate::device::Device;
use crate::output;
use crate::sg::Reset;
use crate::tree::{Host, Lun, Tree};

/// Does what the command line asks.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let tree = Tree::default();
    let host = tree.host(&arguments.adapter)?;
    let all = tree.luns(host.number);
    let Some(first) = all.first() else {
        return Err(Failure::Refused(format!(
            "-D {}: host{} is no AVIO adapter, or has no logical units",
            arguments.adapter, host.number
        )));
    };
    let chosen = tree.select(&all, &arguments.qualifiers)?;
    let whole = arguments.qualifiers.is_empty() || arguments.qualifiers.contains(&Qualifier::All);
    let session = Session { host, first: first.clone(), chosen, whole };
    match arguments.verb {
        Verb::GetInfo => session.get_info(),
        Verb::GetStat => session.get_stat(&arguments.adapter),
        Verb::ClearStat => session.clear_stat(),
        Verb::ReplaceDsk => session.replace_dsk(arguments.force),
        Verb::LunReset => session.reset("lun_reset", Reset::Lun),
        Verb::TgtReset => session.reset("tgt_reset", Reset::Target),
    }
}

/// The adapter and what was chosen of it.
struct Session {
    host: Host,
    /// Any logical unit answers for its adapter.
    first: Lun,
    chosen: Vec<Lun>,
    /// The adapter itself is meant, too.
    whole: bool,
}

impl Session {
    fn get_info(&self) -> Result<(), Failure> {
        if self.whole {
            print(&output::adapter(&self.host, &Device::open(&self.first)?.adapter()?))?;
        }
        for lun in &self.chosen {
            self.show(&Device::open(lun)?)?;
        }
        Ok(())
    }

    fn show(&self, device: &Device) -> Result<(), Failure> {
        let block = output::lun(&self.host, device.lun(), &device.replacement()?);
        print(&format!("{}\n{block}", output::now()))
    }

    fn get_stat(&self, name: &str) -> Result<(), Failure> {
        if self.whole {
            let found = Device::open(&self.first)?.statistics(LOG_PAGE_ADAPTER)?;
            print(&format!("{}\n{}", output::now(), output::statistics("HBA", name, &found)))?;
        }
        for lun in &self.chosen {
            let found = Device::open(lun)?.statistics(LOG_PAGE_LUN)?;
            let block = output::statistics("Lun DSF", &lun.dsf().display().to_string(), &found);
            print(&format!("{}\n{block}", output::now()))?;
        }
        Ok(())
    }

    fn clear_stat(&self) -> Result<(), Failure> {
        if self.whole {
            return Device::open(&self.first)?.clear(Scope::Adapter);
        }
        self.chosen.iter().try_for_each(|lun| Device::open(lun)?.clear(Scope::Lun))
    }

    fn reset(&self, verb: &str, what: Reset) -> Result<(), Failure> {
        if self.chosen.is_empty() {
            return Err(needs_qualifier(verb));
        }
        self.chosen.iter().try_for_each(|lun| Device::open(lun)?.reset(what))
    }

    /// Whoever names all means those whose store was replaced.
    fn replace_dsk(&self, force: bool) -> Result<(), Failure> {
        if self.chosen.is_empty() {
            return Err(needs_qualifier("replace_dsk"));
        }
        let mut waiting = Vec::new();
        for lun in &self.chosen {
            let device = Device::open(lun)?;
            let state = device.replacement()?;
            if state.nonce != NONCE_NONE {
                waiting.push((device, state));
            }
        }
        if waiting.is_empty() {
            let names: Vec<String> = self.chosen.iter().map(|lun| lun.dsf().display().to_string()).collect();
            let names = names.join(", ");
            return Err(Failure::Refused(format!(
                "{names}: no store was replaced; there is nothing to approve"
            )));
        }
        for (device, state) in waiting {
            if !force && !confirmed(&device, &state)? {
                return Err(Failure::Refused(format!("{}: not approved", device.lun().dsf().display())));
            }
            // Before the approval: what of the old store's content is still to be written must fail, not reach the new one.
            device.drop_buffers()?;
            device.approve(&state)?;
            device.rescan()?;
            self.show(&device)?;
        }
        Ok(())
    }
}

fn needs_qualifier(verb: &str) -> Failure {
    Failure::Usage(format!("{verb} needs -q: which logical units (lun=DEVICE, tgt=N, lun=all)"))
}

/// Asks the administrator; whatever is not yes is no.
fn confirmed(device: &Device, state: &ReplacementState) -> Result<bool, Failure> {
    let dsf = device.lun().dsf().display().to_string();
    let warning = if device.is_in_use() {
        format!(
            "WARNING: {dsf} is in use; a file system that is mounted from it would carry on with the old store's content\n"
        )
    } else {
        String::new()
    };
    print(&format!(
        "{warning}{dsf}: the host has replaced\n  {}\nby\n  {}\nApprove it? [n]: ",
        output::store(&state.old),
        output::store(&state.new)
    ))?;
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.map_err(|e| Failure::Refused(format!("no answer: {e}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Failure::Refused(format!("cannot print: {e}")))
}
