//! `[signals]`, and `phased keys`.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use super::init::files::Files;
use crate::{
    cli::KeysCommand,
    config::{Config, FileSecrets, Signals, is_secret_name},
    ports::{
        secrets::{Secret, Secrets},
        signals::{Accepted, Listening},
    },
    signal,
};

/// The daemon's own private key, if it is to listen.
///
/// # Errors
/// There is no such secret, or it holds no key.
pub(super) fn own_key(signals: &Signals, secrets: &dyn Secrets) -> anyhow::Result<Option<Secret>> {
    let Some(name) = &signals.key else { return Ok(None) };
    let key = secrets
        .get(name)
        .with_context(|| format!("the key of [signals] cannot be had; `phased keys make {name}` makes one"))?;
    signal::public_half(&key).map_err(|cause| anyhow::anyhow!("the key {name:?} of [signals]: {}", cause.message))?;
    Ok(Some(key))
}

/// To whom the daemon listens.
///
/// # Errors
/// The machine has no name that could stand for it.
pub(super) fn listening(signals: &Signals, key: Option<&Secret>) -> anyhow::Result<Listening> {
    let host = match &signals.host {
        Some(host) => host.clone(),
        None => machine().parse().context("this machine has no name: say who it is with `host` in [signals]")?,
    };
    let accept = signals.accept.iter();
    Ok(Listening {
        host,
        key: key.cloned(),
        max_age: signals.max_age.0,
        accept: accept.map(|a| Accepted { key: a.key.clone(), projects: a.projects.clone() }).collect(),
    })
}

fn machine() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".to_owned() } else { name.trim().to_owned() }
}

/// Makes, lists and shows keys.
///
/// # Errors
/// In words for the terminal.
pub fn keys(command: &KeysCommand) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match command {
        KeysCommand::Make { name, comment, config } => {
            let dir = secrets(config)?;
            let comment = comment.clone().unwrap_or_else(machine);
            if comment.chars().any(char::is_control) {
                bail!("the comment is more than one line");
            }
            let (text, public) = signal::generate(&comment).map_err(|cause| anyhow::anyhow!(cause.message))?;
            let path = file(&dir, name)?;
            if path.exists() {
                bail!(
                    "{} is there already and is not written over: give another name, or move it away",
                    path.display()
                );
            }
            // As the daemon needs it: its own, wherever root makes it.
            Files::new().secret(&dir, name, || Ok(text))?;
            eprintln!("wrote the private half to {} (0600): it stays on this machine", path.display());
            eprintln!("the public half, for the other side:");
            writeln!(out, "{public}")?;
        }
        KeysCommand::Show { name, config } => {
            let dir = secrets(config)?;
            file(&dir, name)?;
            let secret = FileSecrets::new(vec![dir]).get(name)?;
            let public = signal::public_half(&secret).map_err(|cause| anyhow::anyhow!("{name}: {}", cause.message))?;
            writeln!(out, "{public}")?;
        }
        KeysCommand::List { config } => {
            let dir = secrets(config)?;
            let reader = FileSecrets::new(vec![dir.clone()]);
            let mut names = Vec::new();
            if dir.is_dir() {
                names_below(&dir, "", &mut names)?;
            }
            names.sort();
            let mut none = true;
            for name in names {
                if let Some(public) = reader.get(&name).ok().and_then(|secret| signal::public_half(&secret).ok()) {
                    writeln!(out, "{name}  {}  {public}", public.fingerprint())?;
                    none = false;
                }
            }
            if none {
                eprintln!("there is no key for signals in {}; `phased keys make` makes one", dir.display());
            }
        }
    }
    Ok(())
}

/// Where secrets are.
fn secrets(config: &Path) -> anyhow::Result<PathBuf> {
    Ok(Config::load(config)?.secrets.dir)
}

/// The file of a secret, if its name can be one.
fn file(dir: &Path, name: &str) -> anyhow::Result<PathBuf> {
    if !is_secret_name(name) {
        bail!("{name:?} cannot be a secret's name: parts of A-Z a-z 0-9 . _ - joined by /");
    }
    Ok(dir.join(name))
}

fn names_below(dir: &Path, prefix: &str, found: &mut Vec<String>) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    for entry in entries {
        let entry = entry?;
        let Some(name) = entry.file_name().to_str().map(|name| format!("{prefix}{name}")) else { continue };
        if entry.file_type()?.is_dir() {
            names_below(&entry.path(), &format!("{name}/"), found)?;
        } else {
            found.push(name);
        }
    }
    Ok(())
}
