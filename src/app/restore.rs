//! `phased restore`: a backup put back where there is nothing yet.
//!
//! What it brings back is a past. Somebody may have gone on from there: the daemon that made the backup, and hosts. So nothing goes on by itself: runs
//! that were under way are ended, with a cause that says so; what waited in the queue is let go of; leases get numbers above those that hosts
//! may have seen; and the daemon begins in maintenance, until a person who knows that the other one is stopped turns that off.

mod past;

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use nix::unistd::{Gid, Uid, User};
use serde::Serialize;

use self::past::Past;
use crate::{
    cli::RestoreArgs,
    config::Config,
    journal::{
        DataLock, Layout,
        backup::{self, Unpacked},
    },
    time::{Clock as _, SystemClock},
};

/// Where it is unpacked before it is known to be right.
const NEW: &str = "restore.new";
/// What a data directory has before anybody has written to it.
const NOTHING: &[&str] = &["LOCK", "VERSION", "lost+found", NEW, MARKER];
/// What a daemon makes when it begins.
const BEGINNING: &[&str] = &["blobs", "code", "jobs", "journal", "reserve", "state", "work"];
/// How what was there is called, where it can only stay within the data directory.
const ASIDE: &str = "before-restore-";
/// There while a restore puts things in their place.
const MARKER: &str = "RESTORING";

/// Whether a data directory is whole: a daemon that began on half of one would know neither of freezes nor of maintenance.
///
/// # Errors
/// A restore was cut off in the middle.
pub(super) fn whole(data: &Path) -> anyhow::Result<()> {
    if data.join(MARKER).exists() {
        bail!(
            "a restore into `{}` was cut off: do it again with --force, which keeps what is there beside it",
            data.display()
        );
    }
    // Cut off while it unpacked. Where there was something before, that is untouched and may go on; a new daemon would begin from nothing.
    if data.join(NEW).exists() && !data.join("journal").exists() {
        bail!(
            "a restore into `{}` was cut off before anything was in its place: do it again, or remove `{}` to begin with nothing",
            data.display(),
            data.join(NEW).display()
        );
    }
    Ok(())
}

/// What was done, as `--json` shows it.
#[derive(Debug, Serialize)]
struct Report {
    data_dir: String,
    /// When the backup was made, and by whom.
    at: String,
    controller: String,
    version: String,
    runs: u64,
    blobs: u64,
    files: u64,
    #[serde(flatten)]
    past: Past,
    /// Where what was there before lies now.
    kept: Option<String>,
    /// That is a daemon's of which nothing had come yet.
    #[serde(skip)]
    unused: bool,
    /// Secrets that were written, and those that were there.
    secrets: Vec<String>,
    secrets_kept: Vec<String>,
    /// Whether the backup has any.
    has_secrets: bool,
}

/// Does it, and says what it did.
///
/// # Errors
/// In words for the terminal. Before everything is unpacked and found to be right nothing that was there is touched.
pub fn run(args: &RestoreArgs, json: bool) -> anyhow::Result<()> {
    let config = Config::load(&args.config)?;
    let clock = SystemClock::new();
    let data = &config.data_dir;
    let mut from =
        File::open(&args.file).with_context(|| format!("cannot read the backup `{}`", args.file.display()))?;
    let owner = owner(data)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(data)
        .with_context(|| format!("failed to make `{}`", data.display()))?;
    let lock = DataLock::take(data, &clock.now())?;
    if let Some((uid, gid)) = owner {
        // Also if nothing comes of this: the daemon must be able to take what was made here.
        for made in [data.clone(), data.join("LOCK"), data.join("VERSION")] {
            std::os::unix::fs::lchown(&made, Some(uid.as_raw()), Some(gid.as_raw()))?;
        }
    }
    let there = entries(data)?;
    let unused = is_unused(data, &there)?;
    if !unused && !args.force {
        bail!(
            "`{}` is not empty, and more than the beginning of a daemon that has done nothing yet: a restore is for a new one. --force puts the \
             backup there all the same and keeps what is there now beside it",
            data.display()
        );
    }
    let new = data.join(NEW);
    let done = unpack(&mut from, &new, args).and_then(|unpacked| {
        let past = past::lay_to_rest(&new, &unpacked.manifest)?;
        if !args.secrets {
            remove(&new.join("secrets"))?;
        }
        Ok((unpacked, past))
    });
    let (unpacked, past) = done.inspect_err(|_| {
        // Nothing else was touched.
        let _left_for_the_next_try = remove(&new);
    })?;
    // From here to the end no daemon may take what is there for all there is.
    let marker = data.join(MARKER);
    File::create(&marker)?.sync_all()?;
    File::open(data)?.sync_all()?;
    let kept = if there.is_empty() { None } else { Some(set_aside(data, &there, clock.now().wall_ms)?) };
    let (secrets, secrets_kept) = place_secrets(&new.join("secrets"), &config.secrets.dir, owner)?;
    remove(&new.join("secrets"))?;
    for name in entries(&new)? {
        fs::rename(new.join(&name), data.join(&name))
            .with_context(|| format!("failed to put {name} into `{}`", data.display()))?;
    }
    remove(&new)?;
    // The modes that the daemon gives them, and the names on disk.
    let layout = Layout::create(data)?;
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::lchown(&layout.root, Some(uid.as_raw()), Some(gid.as_raw()))?;
        // What was set aside within it keeps its owners: some of it is of job users.
        for entry in fs::read_dir(&layout.root)? {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().starts_with(ASIDE) {
                give(&entry.path(), uid, gid)?;
            }
        }
    }
    nix::unistd::syncfs(File::open(data)?)?;
    fs::remove_file(&marker)?;
    File::open(data)?.sync_all()?;
    drop(lock);
    let report = Report {
        data_dir: data.display().to_string(),
        at: unpacked.manifest.at.clone(),
        controller: unpacked.manifest.controller.clone(),
        version: unpacked.manifest.version.clone(),
        runs: unpacked.runs,
        blobs: unpacked.blobs,
        files: unpacked.files,
        past,
        kept: kept.map(|path| path.display().to_string()),
        unused,
        secrets,
        secrets_kept,
        has_secrets: unpacked.manifest.secrets,
    };
    match json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => print!("{}", report.text()),
    }
    Ok(())
}

/// Whose the data directory is to be, where root fills it: whoever has it now, else the packaged daemon's user.
fn owner(data: &Path) -> anyhow::Result<Option<(Uid, Gid)>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    if let Ok(meta) = fs::metadata(data) {
        return Ok(Some((Uid::from_raw(meta.uid()), Gid::from_raw(meta.gid()))));
    }
    Ok(User::from_name("phased")?.map(|user| (user.uid, user.gid)))
}

/// Names in the data directory that are somebody's.
fn entries(dir: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read `{}`", dir.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !NOTHING.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Whether nobody has done anything here: there is nothing, or what a daemon makes when it begins, as the package starts one at once.
fn is_unused(data: &Path, there: &[String]) -> anyhow::Result<bool> {
    let begun = there.iter().all(|name| BEGINNING.contains(&name.as_str()));
    let journal = data.join("journal");
    if !begun || !journal.exists() {
        return Ok(there.is_empty());
    }
    let only_control = entries(&journal)?.iter().all(|name| matches!(name.as_str(), "control" | "runs"));
    let runs = journal.join("runs");
    let no_run = !runs.exists() || entries(&runs)?.is_empty();
    let nothing_said = fs::metadata(journal.join("control")).map_or(true, |control| control.len() == 0);
    Ok(only_control && no_run && nothing_said)
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Everything below `new`, on disk; with secrets only if they are asked for.
fn unpack(from: &mut File, new: &Path, args: &RestoreArgs) -> anyhow::Result<Unpacked> {
    remove(new)?;
    fs::DirBuilder::new().mode(0o700).create(new).with_context(|| format!("failed to make `{}`", new.display()))?;
    let mut place = |path: &Path, bytes: &mut dyn Read| -> io::Result<()> {
        if path.starts_with("secrets") && !args.secrets {
            return io::copy(bytes, &mut io::sink()).map(|_| ());
        }
        let to = new.join(path);
        if let Some(parent) = to.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&to)?;
        io::copy(bytes, &mut file).map(|_| ())
    };
    let unpacked = backup::read(from, &mut place)
        .with_context(|| format!("`{}` cannot be restored, and nothing was changed", args.file.display()))?;
    // All of it at once: what is said to be there outlasts a power loss.
    nix::unistd::syncfs(File::open(new)?)?;
    Ok(unpacked)
}

/// Moves what was there out of the way: beside the data directory, or, where that is a file system of its own, within it.
fn set_aside(data: &Path, there: &[String], now_ms: i64) -> anyhow::Result<PathBuf> {
    let mut beside = data.as_os_str().to_owned();
    beside.push(format!(".before-restore-{now_ms}"));
    let beside = PathBuf::from(beside);
    let within = data.join(format!("{ASIDE}{now_ms}"));
    let movable = |to: &Path| -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(to)?;
        let first = there.first().map(String::as_str).unwrap_or_default();
        fs::rename(data.join(first), to.join(first)).inspect_err(|_| drop(fs::remove_dir(to)))
    };
    let aside = match movable(&beside) {
        Ok(()) => beside,
        Err(_) => movable(&within)
            .map(|()| within)
            .with_context(|| format!("failed to move what is in `{}` aside", data.display()))?,
    };
    for name in there.iter().skip(1) {
        fs::rename(data.join(name), aside.join(name))
            .with_context(|| format!("failed to move {name} to `{}`", aside.display()))?;
    }
    Ok(aside)
}

/// Secrets that are not there yet; those that are stay.
fn place_secrets(from: &Path, to: &Path, daemon: Option<(Uid, Gid)>) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let (mut wrote, mut kept) = (Vec::new(), Vec::new());
    if !from.is_dir() {
        return Ok((wrote, kept));
    }
    let new = !to.exists();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(to)?;
    if let (true, Some((uid, gid))) = (new, daemon) {
        std::os::unix::fs::lchown(to, Some(uid.as_raw()), Some(gid.as_raw()))?;
    }
    let mut open = vec![PathBuf::new()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(from.join(&dir))? {
            let entry = entry?;
            let name = dir.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                let place = to.join(&name);
                if fs::symlink_metadata(&place).is_ok_and(|meta| meta.is_symlink()) {
                    bail!("`{}` is a link, and secrets are not written to where it leads", place.display());
                }
                if !place.exists() {
                    fs::DirBuilder::new().mode(0o700).create(&place)?;
                    if let Some((uid, gid)) = daemon {
                        std::os::unix::fs::lchown(&place, Some(uid.as_raw()), Some(gid.as_raw()))?;
                    }
                }
                open.push(name);
                continue;
            }
            let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to.join(&name));
            match made {
                Ok(mut file) => {
                    io::copy(&mut File::open(entry.path())?, &mut file)?;
                    // Only what was made here: what was there keeps its owner.
                    if let Some((uid, gid)) = daemon {
                        std::os::unix::fs::fchown(&file, Some(uid.as_raw()), Some(gid.as_raw()))?;
                    }
                    file.sync_all()?;
                    wrote.push(name.display().to_string());
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => kept.push(name.display().to_string()),
                Err(error) => {
                    return Err(error).with_context(|| format!("failed to write the secret {}", name.display()));
                }
            }
        }
    }
    wrote.sort();
    kept.sort();
    Ok((wrote, kept))
}

/// Gives a directory and everything below it to its owner; links are not followed.
fn give(path: &Path, uid: Uid, gid: Gid) -> anyhow::Result<()> {
    std::os::unix::fs::lchown(path, Some(uid.as_raw()), Some(gid.as_raw()))
        .with_context(|| format!("failed to give `{}` to the daemon", path.display()))?;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), uid, gid)?;
        }
    }
    Ok(())
}

impl Report {
    fn text(&self) -> String {
        use std::fmt::Write as _;
        let mut out = String::new();
        let _infallible = writeln!(
            out,
            "restored  {} runs and {} blobs into {}, as of {} on {}; every byte was checked",
            self.runs, self.blobs, self.data_dir, self.at, self.controller
        );
        if let Some(kept) = &self.kept {
            let note = if self.unused { "; of that daemon nothing had come yet: it may be removed" } else { "" };
            let _infallible = writeln!(out, "kept      what was there, in {kept}{note}");
        }
        for run in &self.past.ended {
            let _infallible = writeln!(
                out,
                "ended     run {} of {}, which was under way: {}. What became of it afterwards is not in the backup: look at its hosts",
                run.run, run.project, run.state
            );
        }
        for run in &self.past.let_go {
            let _infallible = writeln!(
                out,
                "let go    run {} of {}, which was waiting: press the button if it is still wanted",
                run.run, run.project
            );
        }
        for why in &self.past.damaged {
            let _infallible = writeln!(out, "damaged   {why} (it was so when the backup was made)");
        }
        match (self.has_secrets, self.secrets.is_empty() && self.secrets_kept.is_empty()) {
            (false, _) => out.push_str("secrets   are not in this backup: put them where they were\n"),
            (true, true) => {
                out.push_str("secrets   are in this backup and were left there; --secrets takes them along\n")
            }
            (true, false) => {
                let kept = if self.secrets_kept.is_empty() {
                    String::new()
                } else {
                    format!("; there already: {}", self.secrets_kept.join(", "))
                };
                let wrote = if self.secrets.is_empty() { "none".to_owned() } else { self.secrets.join(", ") };
                let _infallible = writeln!(out, "secrets   written: {wrote}{kept}");
            }
        }
        out.push_str(
            "\nThe daemon will begin in maintenance and start nothing. Make sure that the one which made the backup is stopped for good, start this one, look \
             at it (phased status, phased runs), and then: phased maintenance off\n",
        );
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_whole_is_no_daemons_and_nothing_is_made_in_one_that_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let clock = SystemClock::new();
        let names = || entries(&data).unwrap();
        fs::create_dir(&data).unwrap();
        let held = DataLock::take(&data, &clock.now()).unwrap();
        assert!(crate::app::own(&data, &clock).unwrap_err().to_string().contains("is in use by pid"));
        drop(held);
        for cut in [MARKER, NEW] {
            fs::create_dir(data.join(cut)).unwrap();
            let error = crate::app::own(&data, &clock).unwrap_err().to_string();
            assert!(error.contains("was cut off"), "{error}");
            assert!(names().is_empty(), "{:?}", names());
            fs::remove_dir(data.join(cut)).unwrap();
        }
        drop(crate::app::own(&data, &clock).unwrap());
        assert!(names().contains(&"journal".to_owned()));
        // Unpacking changes nothing of what is there.
        fs::create_dir(data.join(NEW)).unwrap();
        drop(crate::app::own(&data, &clock).unwrap());
    }

    #[test]
    fn what_a_daemon_makes_when_it_begins_is_nothing_and_what_comes_of_it_is_something() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let unused = || is_unused(&data, &entries(&data).unwrap()).unwrap();
        fs::create_dir(&data).unwrap();
        assert!(unused());
        Layout::create(&data).unwrap();
        fs::write(data.join("reserve"), "x").unwrap();
        fs::write(data.join("journal/control"), "").unwrap();
        assert!(unused());
        for (path, is_dir) in [
            ("journal/control", false),
            ("journal/runs/01kc0000000000000000000000", true),
            ("journal/control.new", false),
            ("state.broken", true),
            ("photos", true),
        ] {
            let path = data.join(path);
            if is_dir {
                fs::create_dir(&path).unwrap()
            } else {
                fs::write(&path, "x").unwrap()
            }
            assert!(!unused(), "{}", path.display());
            match (is_dir, path.ends_with("control")) {
                (true, _) => fs::remove_dir(&path).unwrap(),
                (false, true) => fs::write(&path, "").unwrap(),
                (false, false) => fs::remove_file(&path).unwrap(),
            }
            assert!(unused(), "{}", path.display());
        }
    }

    #[test]
    fn what_is_there_is_moved_beside_and_the_lock_stays() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir_all(data.join("journal")).unwrap();
        fs::write(data.join("journal/control"), "x").unwrap();
        fs::write(data.join("LOCK"), "").unwrap();
        fs::write(data.join("reserve"), "").unwrap();
        let there = entries(&data).unwrap();
        assert_eq!(there, ["journal", "reserve"]);
        let aside = set_aside(&data, &there, 7).unwrap();
        assert_eq!(aside, dir.path().join("data.before-restore-7"));
        assert_eq!(fs::read_to_string(aside.join("journal/control")).unwrap(), "x");
        assert!(data.join("LOCK").exists() && entries(&data).unwrap().is_empty());
    }
}
