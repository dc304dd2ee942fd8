//! Changing: edits the files with their comments kept, and has the daemon reload them.
//!
//! Each action is a function from texts to texts, so that what it writes can be tested without a daemon.

use std::io::{self, BufRead, Write};

use avio_proto::config::{Config, LOCALNET, VlanId, check_name};
use avio_proto::control::{ReloadReply, RestartParams, method};
use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, Value, value};

use super::options::{NetArgs, PortVlan};
use crate::cli::{Failure, Global};
use crate::client::{Client, ClientError};
use crate::staged::Staged;

fn refused(message: impl Into<String>) -> Failure {
    Failure::Refused(message.into())
}

/// Does the action of `args`; `program` stands in prompts.
pub fn run(program: &str, global: &Global, args: &NetArgs) -> Result<(), Failure> {
    if args.restart {
        return restart(global, args);
    }
    if args.reload {
        return reload(global);
    }
    let mut staged = Staged::open(&global.config)?;
    let config = staged.check()?;
    if args.create {
        create(&mut staged, &config, args.name.as_deref().unwrap_or_default(), args.uplink.as_deref())?;
    } else {
        let name = resolve(&config, args)?;
        if args.delete {
            delete_allowed(&config, &name)?;
            confirm(program, args, &format!("Delete the vswitch '{name}'"))?;
            delete(&mut staged, &name)?;
        } else if args.halt {
            confirm(program, args, &format!("Halt the vswitch '{name}'"))?;
            enable(&mut staged, &name, false)?;
        } else if args.boot {
            enable(&mut staged, &name, true)?;
        } else if args.change {
            change(&mut staged, &config, &name, args.new_name.as_deref(), args.uplink.as_deref())?;
        } else if let Some(setting) = &args.set_port {
            set_port(&mut staged, &config, &name, setting)?;
        }
    }
    apply(global, &staged)
}

/// The name behind `-S` or `-s`.
fn resolve(config: &Config, args: &NetArgs) -> Result<String, Failure> {
    let found = match (&args.name, args.number) {
        (Some(name), _) => config.vswitch(name),
        (None, Some(number)) => config.vswitches.iter().find(|vswitch| vswitch.number == number),
        (None, None) => None,
    };
    match found {
        Some(vswitch) => Ok(vswitch.settings.name.clone()),
        None => {
            let asked = args
                .name
                .clone()
                .or_else(|| args.number.map(|number| number.to_string()))
                .unwrap_or_default();
            let known: Vec<&str> =
                config.vswitches.iter().map(|vswitch| vswitch.settings.name.as_str()).collect();
            Err(refused(format!("there is no vswitch `{asked}`; there are {}", known.join(", "))))
        }
    }
}

/// Asks, unless `-Q`; the answer is no unless it begins with y.
fn confirm(program: &str, args: &NetArgs, question: &str) -> Result<(), Failure> {
    if args.quiet {
        return Ok(());
    }
    eprint!("{program}: {question}? [n]: ");
    let _ = io::stderr().flush();
    let mut answer = String::new();
    let answered = io::stdin().lock().read_line(&mut answer).is_ok();
    if answered && answer.trim_start().starts_with(['y', 'Y']) {
        Ok(())
    } else {
        Err(refused("not confirmed, nothing was changed; answer y, or use -Q"))
    }
}

/// Replaces the files and has them reloaded; puts them back if the daemon refuses.
fn apply(global: &Global, staged: &Staged) -> Result<(), Failure> {
    staged.commit()?;
    let mut client = match Client::vswitchd(&global.run_dir) {
        Ok(client) => client,
        Err(ClientError::Connect { path, .. }) => {
            eprintln!(
                "note: the files are changed; avio-vswitchd is not running ({}) and will read them when it starts",
                path.display()
            );
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    match client.call::<ReloadReply>(method::RELOAD, &serde_json::json!({})) {
        Ok(reply) => {
            for warning in &reply.warnings {
                eprintln!("note: {warning}");
            }
            if global.json {
                println!("{}", serde_json::json!(reply));
            }
            Ok(())
        }
        Err(error @ (ClientError::Refused(_) | ClientError::Other { .. })) => {
            staged.undo()?;
            Err(refused(format!("nothing was changed: {error}")))
        }
        Err(error) => {
            Err(refused(format!("the files are changed, but it is not known whether they apply: {error}")))
        }
    }
}

/// Has the daemon read files that somebody else edited.
fn reload(global: &Global) -> Result<(), Failure> {
    let reply: ReloadReply =
        Client::vswitchd(&global.run_dir)?.call(method::RELOAD, &serde_json::json!({}))?;
    for warning in &reply.warnings {
        eprintln!("note: {warning}");
    }
    if global.json {
        println!("{}", serde_json::json!(reply));
    } else {
        reply.changes.iter().for_each(|change| println!("{change}"));
    }
    Ok(())
}

fn restart(global: &Global, args: &NetArgs) -> Result<(), Failure> {
    let mut client = Client::vswitchd(&global.run_dir)?;
    let shown = super::show::ask(&mut client, &NetArgs { port: None, ..args.clone() })?;
    let Some(vswitch) = shown.into_iter().next() else { return Err(refused("there is no such vswitch")) };
    let _: serde_json::Value = client.call(method::RESTART, &RestartParams { vswitch: vswitch.name })?;
    Ok(())
}

/// Parsing for an edit. The text was checked before, so an error here is ours.
fn document(text: &str) -> Result<DocumentMut, Failure> {
    text.parse().map_err(|error| refused(format!("cannot edit: {error}")))
}

/// The tables of an array, written as `[[name]]` or as `name = [{..}]`.
fn tables<'a>(document: &'a mut DocumentMut, name: &str) -> Vec<&'a mut dyn TableLike> {
    match document.get_mut(name) {
        Some(Item::ArrayOfTables(array)) => {
            array.iter_mut().map(|table| table as &mut dyn TableLike).collect()
        }
        Some(Item::Value(Value::Array(array))) => array
            .iter_mut()
            .filter_map(Value::as_inline_table_mut)
            .map(|table| table as &mut dyn TableLike)
            .collect(),
        _ => Vec::new(),
    }
}

/// Whether `table` has the text `wanted` at `key`.
fn is_named(table: &dyn TableLike, key: &str, wanted: &str) -> bool {
    table.get(key).and_then(Item::as_str) == Some(wanted)
}

/// Appends a `[[vswitch]]`.
fn push_vswitch(document: &mut DocumentMut, name: &str, settings: &[(&str, Item)]) -> Result<(), Failure> {
    let item = document.entry("vswitch").or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
    if let Item::Value(Value::Array(array)) = item {
        let mut table = InlineTable::new();
        table.insert("name", name.into());
        for (key, setting) in settings {
            if let Some(setting) = setting.as_value() {
                table.insert(*key, setting.clone());
            }
        }
        array.push(table);
    } else if let Some(array) = item.as_array_of_tables_mut() {
        let mut table = Table::new();
        table.insert("name", value(name));
        for (key, setting) in settings {
            table.insert(key, setting.clone());
        }
        array.push(table);
    } else {
        return Err(refused("vswitches.toml: vswitch: is not a list of tables"));
    }
    Ok(())
}

fn create(staged: &mut Staged, config: &Config, name: &str, uplink: Option<&str>) -> Result<(), Failure> {
    check_name(name).map_err(|error| refused(format!("-S: {error}")))?;
    if config.vswitch(name).is_some() {
        return Err(refused(format!(
            "the vswitch `{name}` exists already; choose another name, or change it with -C"
        )));
    }
    let mut document = document(staged.vswitches())?;
    let settings: Vec<(&str, Item)> = match uplink {
        None | Some("none") => Vec::new(),
        Some(uplink) => vec![("uplink", value(uplink))],
    };
    push_vswitch(&mut document, name, &settings)?;
    staged.set_vswitches(document.to_string());
    Ok(())
}

/// Refuses what cannot be deleted before anybody is asked about it.
fn delete_allowed(config: &Config, name: &str) -> Result<(), Failure> {
    if name == LOCALNET {
        return Err(refused("localnet always exists and cannot be deleted; -h halts it"));
    }
    let users: Vec<String> = config
        .networks()
        .filter(|(_, network)| network.vswitch == name)
        .map(|(guest, network)| format!("{guest} (port {})", network.port))
        .collect();
    if users.is_empty() {
        return Ok(());
    }
    let users = users.join(", ");
    Err(refused(format!(
        "the vswitch `{name}` is reserved by {users}; remove those [[network]] from guests/*.toml first"
    )))
}

fn delete(staged: &mut Staged, name: &str) -> Result<(), Failure> {
    let mut document = document(staged.vswitches())?;
    match document.get_mut("vswitch") {
        Some(Item::ArrayOfTables(array)) => array.retain(|table| !is_named(table, "name", name)),
        Some(Item::Value(Value::Array(array))) => {
            array.retain(|item| item.as_inline_table().is_none_or(|table| !is_named(table, "name", name)));
        }
        _ => {}
    }
    staged.set_vswitches(document.to_string());
    Ok(())
}

/// Changes the vswitch's table, which `localnet` may not have yet.
fn with_vswitch(
    staged: &mut Staged,
    name: &str,
    change: impl FnOnce(&mut dyn TableLike),
) -> Result<(), Failure> {
    let mut document = document(staged.vswitches())?;
    if !tables(&mut document, "vswitch").iter().any(|table| is_named(*table, "name", name)) {
        push_vswitch(&mut document, name, &[])?;
    }
    if let Some(table) =
        tables(&mut document, "vswitch").into_iter().find(|table| is_named(*table, "name", name))
    {
        change(table);
    }
    staged.set_vswitches(document.to_string());
    Ok(())
}

/// Sets a key, keeping what stands around an old value (a comment behind it).
fn set(table: &mut dyn TableLike, key: &str, new: impl Into<Value>) {
    let mut new: Value = new.into();
    if let Some(old) = table.get(key).and_then(Item::as_value) {
        *new.decor_mut() = old.decor().clone();
    }
    table.insert(key, Item::Value(new));
}

fn enable(staged: &mut Staged, name: &str, enabled: bool) -> Result<(), Failure> {
    with_vswitch(staged, name, |table| set(table, "enabled", enabled))
}

fn change(
    staged: &mut Staged,
    config: &Config,
    name: &str,
    new_name: Option<&str>,
    uplink: Option<&str>,
) -> Result<(), Failure> {
    if new_name.is_none() && uplink.is_none() {
        return Err(Failure::Usage("-C needs what to change: -N NEW_NAME, -n UPLINK".into()));
    }
    match uplink {
        None => {}
        Some("none") => with_vswitch(staged, name, |table| {
            table.remove("uplink");
        })?,
        Some(uplink) => with_vswitch(staged, name, |table| set(table, "uplink", uplink))?,
    }
    let Some(new_name) = new_name else { return Ok(()) };
    check_name(new_name).map_err(|error| refused(format!("-N: {error}")))?;
    if name == LOCALNET || config.vswitch(new_name).is_some() {
        return Err(refused(format!(
            "`{name}` cannot be called `{new_name}`: localnet keeps its name, and names are unique"
        )));
    }
    with_vswitch(staged, name, |table| set(table, "name", new_name))?;
    let guests: Vec<String> = staged.guests().keys().cloned().collect();
    for guest in guests {
        edit_networks(staged, &guest, |table| {
            let concerned = is_named(table, "vswitch", name);
            if concerned {
                set(table, "vswitch", new_name);
            }
            concerned
        })?;
    }
    Ok(())
}

/// Sets the VLANs of a port in every definition that reserves it.
fn set_port(staged: &mut Staged, config: &Config, name: &str, setting: &PortVlan) -> Result<(), Failure> {
    let PortVlan { port, vlans } = setting;
    let reserves = |(guest, network): (&str, &avio_proto::config::NetworkConfig)| {
        (network.vswitch == name && network.port == *port).then(|| guest.to_owned())
    };
    let guests: Vec<String> = config.networks().filter_map(reserves).collect();
    if guests.is_empty() {
        return Err(refused(format!(
            "no guest reserves port {port} of `{name}`; a [[network]] in guests/NAME.toml does that"
        )));
    }
    for guest in guests {
        edit_networks(staged, &guest, |table| {
            let concerned = is_named(table, "vswitch", name)
                && table.get("port").and_then(Item::as_integer) == Some(i64::from(*port));
            if concerned {
                set_vlans(table, vlans);
            }
            concerned
        })?;
    }
    Ok(())
}

/// None: neither; one: untagged; several: a trunk.
fn set_vlans(table: &mut dyn TableLike, vlans: &[VlanId]) {
    match vlans {
        [] => {
            table.remove("vlan");
            table.remove("trunk");
        }
        [vlan] => {
            set(table, "vlan", i64::from(vlan.get()));
            table.remove("trunk");
        }
        several => {
            table.remove("vlan");
            set(table, "trunk", Array::from_iter(several.iter().map(|vlan| i64::from(vlan.get()))));
        }
    }
}

/// Shows every `[[network]]` of a guest to `change`, which says whether it changed it.
fn edit_networks(
    staged: &mut Staged,
    guest: &str,
    mut change: impl FnMut(&mut dyn TableLike) -> bool,
) -> Result<(), Failure> {
    let Some(file) = staged.guests().get(guest) else { return Ok(()) };
    let mut document = document(&file.text)?;
    let mut changed = false;
    for table in tables(&mut document, "network") {
        changed |= change(table);
    }
    if changed {
        staged.set_guest(guest, document.to_string());
    }
    Ok(())
}
