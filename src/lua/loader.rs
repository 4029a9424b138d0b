//! Loads the projects of the plugin directories, all errors at once, pins their code and opens it for runs.
//!
//! Modules are looked for in the user's directories first, in the order given, then among the shipped plugins inside the binary.

mod evaluate;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::Value as Json;

use super::{bundle::Bundle, check, driver, plugin, prelude, rules, sandbox::Limits, shape::nearest};
use crate::{
    lifecycle::stall::Stall,
    model::{
        cause::Cause,
        ids::{Digest, ProjectName},
        step::Outcome,
    },
    ports::{
        program::{Diagnostic, Loaded, Plugin, PluginTurn, Program, Programs, Sink},
        secrets::Secrets,
    },
};

/// A file of Lua that is larger was meant to be something else.
const MAX_FILE: u64 = 1 << 20;

/// The plugins inside the binary: module name and text.
pub const SHIPPED: &[(&str, &str)] = &[
    ("alerts.command", include_str!("../../plugins/alerts/command.lua")),
    ("alerts.email", include_str!("../../plugins/alerts/email.lua")),
    ("alerts.log", include_str!("../../plugins/alerts/log.lua")),
    ("alerts.slack", include_str!("../../plugins/alerts/slack.lua")),
    ("alerts.webhook", include_str!("../../plugins/alerts/webhook.lua")),
    ("deploy.releases", include_str!("../../plugins/deploy/releases.lua")),
    ("discovery.ansible", include_str!("../../plugins/discovery/ansible.lua")),
    ("discovery.azure", include_str!("../../plugins/discovery/azure.lua")),
    ("discovery.dns", include_str!("../../plugins/discovery/dns.lua")),
    ("discovery.ec2", include_str!("../../plugins/discovery/ec2.lua")),
    ("discovery.file", include_str!("../../plugins/discovery/file.lua")),
    ("discovery.gce", include_str!("../../plugins/discovery/gce.lua")),
    ("discovery.prometheus", include_str!("../../plugins/discovery/prometheus.lua")),
    ("probes.http", include_str!("../../plugins/probes/http.lua")),
    ("probes.prometheus", include_str!("../../plugins/probes/prometheus.lua")),
];

/// Loads projects from plugin directories and opens their pinned code.
pub struct Loader {
    modules: Modules,
    code: PathBuf,
    secrets: Arc<dyn Secrets>,
    limits: Limits,
    stall: Stall,
    /// What was loaded and may be pinned. Never shrinks: a reload must not take away what a run is about to name, and each is a
    /// few kilobytes.
    bundles: Mutex<BTreeMap<Digest, Bundle>>,
}

impl Loader {
    /// `dirs` in the order of search, the user's first; `shipped` is searched last (usually [`SHIPPED`]). Pinned code is kept in
    /// `data_dir/code`.
    #[must_use]
    pub fn new(
        dirs: Vec<PathBuf>,
        shipped: &'static [(&'static str, &'static str)],
        data_dir: &Path,
        secrets: Arc<dyn Secrets>,
        limits: Limits,
    ) -> Self {
        Loader {
            modules: Modules { dirs, shipped },
            code: data_dir.join("code"),
            secrets,
            limits,
            stall: Stall::default(),
            bundles: Mutex::default(),
        }
    }

    /// The same, standing still where a test says so.
    #[must_use]
    pub fn stalling(self, stall: Stall) -> Self {
        Loader { stall, ..self }
    }

    /// Every project's file, by name; of two of one name the first directory's.
    fn projects(&self, found: &mut Vec<Diagnostic>) -> BTreeMap<String, PathBuf> {
        let mut projects = BTreeMap::new();
        for dir in &self.modules.dirs {
            if let Err(error) = std::fs::read_dir(dir) {
                found.push(bare(dir, "unreadable", format!("the plugin directory cannot be read: {error}")));
                continue;
            }
            let folder = dir.join("projects");
            let entries = match std::fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    found.push(bare(&folder, "unreadable", format!("the directory cannot be read: {error}")));
                    continue;
                }
            };
            for entry in entries.flatten() {
                let path = entry.path();
                if path.extension().is_none_or(|extension| extension != "lua") || path.is_dir() {
                    continue;
                }
                let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
                match name.parse::<ProjectName>() {
                    Ok(_) => {
                        projects.entry(name).or_insert(path);
                    }
                    Err(error) => {
                        let help = "rename the file: its name is the project's name".to_owned();
                        found.push(Diagnostic { help: Some(help), ..bare(&path, "bad_value", error.to_string()) });
                    }
                }
            }
        }
        projects
    }
}

/// What can be required.
#[derive(Clone)]
struct Modules {
    dirs: Vec<PathBuf>,
    shipped: &'static [(&'static str, &'static str)],
}

/// A module's file, and its text or what is wrong with the file.
type Found = (PathBuf, Result<String, Box<Diagnostic>>);

impl Modules {
    /// Where `module` is and what it holds.
    fn find(&self, module: &str) -> Result<Found, String> {
        rules::module(module).map_err(|why| format!("{} {why}", check::quote(module)))?;
        if module.starts_with("projects.") {
            return Err(format!("{module:?} is a project: no file can require it"));
        }
        let relative = relative(module);
        for dir in &self.dirs {
            let path = dir.join(&relative);
            if path.is_file() {
                let text = read(&path);
                return Ok((path, text));
            }
        }
        if let Some((_, text)) = self.shipped.iter().find(|(name, _)| *name == module) {
            return Ok((Path::new("(shipped)").join(&relative), Ok((*text).to_owned())));
        }
        let looked =
            self.dirs.iter().map(|dir| dir.join(&relative).display().to_string()).collect::<Vec<_>>().join(", ");
        let known = self.all();
        let hint = nearest(module, known.iter().map(String::as_str))
            .map_or(String::new(), |near| format!("; did you mean {near:?}?"));
        Err(format!("module {module:?} is not found: there is no {looked} and it is not a shipped plugin{hint}"))
    }

    /// The names of all modules that can be required.
    fn all(&self) -> BTreeSet<String> {
        fn walk(folder: &Path, prefix: &str, depth: usize, found: &mut BTreeSet<String>) {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if let Some(stem) = name.strip_suffix(".lua") {
                    found.insert(format!("{prefix}{stem}"));
                } else if depth < 3 && name != "projects" && entry.path().is_dir() {
                    walk(&entry.path(), &format!("{prefix}{name}."), depth + 1, found);
                }
            }
        }
        let mut found: BTreeSet<String> = self.shipped.iter().map(|(name, _)| (*name).to_owned()).collect();
        self.dirs.iter().for_each(|dir| walk(dir, "", 0, &mut found));
        found
    }
}

impl Programs for Loader {
    fn load(&self) -> Result<Vec<Loaded>, Vec<Diagnostic>> {
        let mut found = Vec::new();
        let mut loaded = Vec::new();
        for (name, path) in self.projects(&mut found) {
            let Ok(name) = name.parse::<ProjectName>() else { continue };
            match evaluate::project(self, &name, &path) {
                Ok(one) => loaded.push(one),
                Err(diagnostics) => found.extend(diagnostics),
            }
        }
        if found.is_empty() {
            let mut bundles = self.bundles.lock().unwrap_or_else(PoisonError::into_inner);
            return Ok(loaded
                .into_iter()
                .map(|(loaded, bundle)| {
                    bundles.insert(loaded.code.clone(), bundle);
                    loaded
                })
                .collect());
        }
        found.sort_by(|a, b| (&a.file, a.line, a.column, &a.message).cmp(&(&b.file, b.line, b.column, &b.message)));
        // Two projects that require one broken module find the same.
        found.dedup();
        Err(found)
    }

    fn pin(&self, loaded: &Loaded) -> io::Result<()> {
        let bundle = self.bundles.lock().unwrap_or_else(PoisonError::into_inner).get(&loaded.code).cloned();
        match bundle {
            Some(bundle) => bundle.store(&self.code).map(drop),
            None if Bundle::load(&self.code, &loaded.code).is_ok() => Ok(()),
            None => Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("the code {} of project {} was not loaded by this process", loaded.code, loaded.name),
            )),
        }
    }

    fn sweep(&self, keep: &BTreeSet<Digest>) -> io::Result<usize> {
        // Held to the end: what is pinned meanwhile was loaded by this process.
        let bundles = self.bundles.lock().unwrap_or_else(PoisonError::into_inner);
        let mut removed = 0;
        for entry in std::fs::read_dir(&self.code)? {
            let entry = entry?;
            let digest = entry.file_name().to_str().and_then(|name| name.parse::<Digest>().ok());
            if digest.is_some_and(|digest| !keep.contains(&digest) && !bundles.contains_key(&digest)) {
                std::fs::remove_dir_all(entry.path())?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn open(&self, code: &Digest, _project: &ProjectName, seed: u64, sink: Sink) -> Result<Box<dyn Program>, Cause> {
        let bundle = Bundle::load(&self.code, code)?;
        if bundle.prelude != prelude::VERSION {
            let message = format!(
                "the run began under version {} of Lua's box, this daemon has version {}: what its code would do now nobody can tell",
                bundle.prelude,
                prelude::VERSION
            );
            return Err(Cause::new("code_version", message));
        }
        driver::open(Arc::new(bundle), seed, self.limits.clone(), sink, self.stall.clone())
    }

    fn plugin(
        &self,
        code: &Digest,
        _project: &ProjectName,
        function: &str,
        input: Json,
    ) -> Result<Box<dyn Plugin>, Cause> {
        let bundle = Arc::new(Bundle::load(&self.code, code)?);
        let opened = plugin::open(bundle, function.to_owned(), input, self.limits.clone())?;
        Ok(if function.starts_with("discovery/") { Box::new(Discovery(opened)) } else { opened })
    }
}

/// A discovery's call: what it returns is checked and given on as hosts, `model::host::Host` with their own `ssh` values only.
struct Discovery(Box<dyn Plugin>);

impl Discovery {
    fn checked(turn: PluginTurn) -> PluginTurn {
        match turn {
            PluginTurn::Return(value) => match super::project::discovered(&value) {
                Ok(hosts) => serde_json::to_value(hosts).map_or_else(
                    |error| PluginTurn::Raised(Cause::new("discovery_invalid", error.to_string())),
                    PluginTurn::Return,
                ),
                Err(why) => PluginTurn::Raised(Cause::new(
                    "discovery_invalid",
                    format!("the discovery did not return a list of hosts: {why}"),
                )),
            },
            other => other,
        }
    }
}

impl Plugin for Discovery {
    fn start(&mut self) -> PluginTurn {
        Self::checked(self.0.start())
    }

    fn resume(&mut self, outcome: &Outcome) -> PluginTurn {
        Self::checked(self.0.resume(outcome))
    }
}

/// `alerts.slack` is `alerts/slack.lua`.
fn relative(module: &str) -> String {
    format!("{}.lua", module.replace('.', "/"))
}

fn bare(file: &Path, code: &'static str, message: String) -> Diagnostic {
    Diagnostic { file: file.to_owned(), line: 0, column: 0, length: 1, code, message, help: None }
}

fn read(path: &Path) -> Result<String, Box<Diagnostic>> {
    let refuse = |code, message: String| Err(Box::new(bare(path, code, message)));
    // A fifo or device would be read for ever.
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() => return refuse("unreadable", "it is not a file".to_owned()),
        Ok(meta) if meta.len() > MAX_FILE => {
            return refuse("unreadable", format!("it has {} bytes; a file of Lua has at most {MAX_FILE}", meta.len()));
        }
        Err(error) => return refuse("unreadable", format!("it cannot be read: {error}")),
        Ok(_) => {}
    }
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => return refuse("unreadable", format!("it cannot be read: {error}")),
    };
    if bytes.first() == Some(&0x1b) {
        return refuse("syntax", "it is compiled Lua: only text is loaded".to_owned());
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let line = error.as_bytes()[..valid].iter().filter(|byte| **byte == b'\n').count() + 1;
            Err(Box::new(Diagnostic { line, ..bare(path, "not_utf8", "it is not UTF-8".to_owned()) }))
        }
    }
}
