//! One project's file: evaluated in a box, checked, and every finding brought to its place in the source.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    rc::Rc,
};

use mlua::{Error, Lua};

use super::{Loader, Modules, bare, read, relative};
use crate::{
    lua::{
        bundle::{Bundle, Source},
        check::{self, Checked, Finding, Functions},
        definitions::{self, At, Collected},
        position::{Place, Positions, Target, near},
        prelude, project,
        registry::registry,
        sandbox::Sandbox,
    },
    model::ids::ProjectName,
    ports::program::{Diagnostic, Loaded},
};

/// The error of a `require` whose reason has a diagnostic of its own.
const REPORTED: &str = "phased: this module has errors of its own";

/// Loads one project.
///
/// # Errors
/// Everything that is wrong with it.
pub(super) fn project(loader: &Loader, name: &ProjectName, path: &Path) -> Result<(Loaded, Bundle), Vec<Diagnostic>> {
    let text = read(path).map_err(|diagnostic| vec![*diagnostic])?;
    let work = Rc::new(Work {
        modules: loader.modules.clone(),
        entry: Bundle::entry_of(name.as_str()),
        path: path.to_owned(),
        files: RefCell::default(),
        found: RefCell::default(),
    });
    let mut collected = Collected::default();
    let mut checked = None;
    if work.keep(&work.entry, path, text.clone()) {
        (collected, checked) = work.evaluate(loader, &text);
    }
    work.secrets(loader, &collected);
    work.located(&collected);
    let data = checked.map(|(at, Checked { data, findings, .. })| {
        let further = project::findings(&data, &findings);
        findings.iter().chain(&further).for_each(|finding| work.place(&at, Some("phased.project"), finding));
        data
    });
    let mut found = work.found.take();
    let pipeline = match data {
        Some(data) if found.is_empty() => match project::pipeline(&data) {
            Ok(pipeline) => Some(pipeline),
            Err(why) => {
                found.push(bare(path, "lua_internal", format!("phased cannot read its own description: {why}")));
                None
            }
        },
        _ => None,
    };
    match pipeline {
        Some(pipeline) if found.is_empty() => {
            let files = work.files.take().into_iter().map(|(module, file)| (module, file.source)).collect();
            let bundle = Bundle { entry: work.entry.clone(), prelude: prelude::VERSION.to_owned(), files };
            let secrets: BTreeSet<String> = collected.secrets.into_iter().map(|(name, _)| name).collect();
            let loaded =
                Loaded { name: name.clone(), code: bundle.digest(), pipeline, secrets: secrets.into_iter().collect() };
            Ok((loaded, bundle))
        }
        _ => Err(found),
    }
}

/// A file of the project.
struct File {
    path: PathBuf,
    source: Source,
}

/// One project being loaded: what it read, and what is wrong with it.
struct Work {
    modules: Modules,
    entry: String,
    path: PathBuf,
    /// By module.
    files: RefCell<BTreeMap<String, File>>,
    found: RefCell<Vec<Diagnostic>>,
}

impl Work {
    fn add(&self, diagnostic: Diagnostic) {
        self.found.borrow_mut().push(diagnostic);
    }

    /// Takes a file into the bundle; `false` when Lua cannot compile it, which is then reported.
    fn keep(&self, module: &str, path: &Path, text: String) -> bool {
        let error = syntax_error(&text);
        if let Some((line, message)) = &error {
            let place =
                near(&text, *line, message, |cut| syntax_error(cut).is_some_and(|(_, other)| other == *message));
            self.add(at(path, place, "syntax", message.clone(), None));
        }
        let file = File { path: path.to_owned(), source: Source::new(relative(module), text) };
        self.files.borrow_mut().insert(module.to_owned(), file);
        error.is_none()
    }

    /// What `require` gives while the project is loaded: from the directories, and into the bundle.
    fn require(&self, module: &str) -> Result<Source, String> {
        let (path, text) = self.modules.find(module)?;
        match text {
            Ok(text) if self.keep(module, &path, text.clone()) => Ok(Source::new(relative(module), text)),
            Ok(_) => Err(REPORTED.to_owned()),
            Err(diagnostic) => {
                self.add(*diagnostic);
                Err(REPORTED.to_owned())
            }
        }
    }

    fn evaluate(self: &Rc<Self>, loader: &Loader, text: &str) -> (Collected, Option<(At, Checked)>) {
        let work = Rc::clone(self);
        let opened = Sandbox::for_loading(&loader.limits, Box::new(move |module| work.require(module)));
        let sandbox = match opened {
            Ok(sandbox) => sandbox,
            Err(error) => {
                self.add(bare(&self.path, "lua_internal", error.to_string()));
                return (Collected::default(), None);
            }
        };
        let returned = sandbox.evaluate(&Source::new(relative(&self.entry), text.to_owned()));
        let collected = definitions::collected(sandbox.lua());
        if let Some(cause) = sandbox.tripped(returned.as_ref().err()) {
            self.add(bare(&self.path, "limit", cause.message));
            return (collected, None);
        }
        let project = match returned.map(|value| definitions::project(&value)) {
            Ok(Ok(project)) => project,
            Ok(Err(why)) => {
                let line = text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with("return")).last();
                let line = line.map_or(text.lines().count().max(1), |(i, _)| i + 1);
                let place = near(text, line, "near 'return'", |_| false);
                self.add(at(&self.path, place, "not_a_project", why, Some("return phased.project { ... }".to_owned())));
                return (collected, None);
            }
            Err(error) => {
                self.runtime(&error);
                return (collected, None);
            }
        };
        let shape = &registry().project;
        let checked = check::table("phased.project", shape, &project.table, Functions::Marked);
        (collected, Some((project.at, checked)))
    }

    /// An error that Lua raised, at the place it names or, for one of ours, the place it was called from.
    fn runtime(&self, error: &Error) {
        let whole = error.to_string();
        if whole.contains(REPORTED) {
            return;
        }
        let cause = root(error);
        let message = match cause {
            Error::RuntimeError(message) => message.clone(),
            other => other.to_string(),
        };
        let first = message.lines().next().unwrap_or("").to_owned();
        let (place, message) = match self.leading(&first) {
            Some((file, line, rest)) => (Some((file, line)), rest),
            None => (
                whole.lines().skip(1).find_map(|frame| self.leading(frame.trim())).map(|(file, line, _)| (file, line)),
                first,
            ),
        };
        let code = if message.starts_with("module ") { "module_missing" } else { "runtime" };
        match place {
            Some((module, line)) => {
                let files = self.files.borrow();
                let Some(file) = files.get(&module) else { return };
                let shown = file.source.text.lines().nth(line.saturating_sub(1)).unwrap_or("");
                let length = shown.trim().chars().count().max(1);
                let column = shown.chars().take_while(|c| c.is_whitespace()).count() + 1;
                let place = Place { line, column, length };
                let diagnostic = at(&file.path, place, code, message, None);
                drop(files);
                self.add(diagnostic);
            }
            None => self.add(bare(&self.path, code, message)),
        }
    }

    /// Reads `alerts/slack.lua:3: ...` where the file is one of the project's: its module, the line, and the rest.
    fn leading(&self, text: &str) -> Option<(String, usize, String)> {
        self.files.borrow().iter().find_map(|(module, file)| {
            let rest = text.strip_prefix(file.source.path.as_str())?.strip_prefix(':')?;
            let (line, rest) = rest.split_once(':')?;
            Some((module.clone(), line.parse().ok()?, rest.trim().to_owned()))
        })
    }

    /// Secrets that were named and are not there, each once a place.
    fn secrets(&self, loader: &Loader, collected: &Collected) {
        let mut seen = BTreeSet::new();
        for (name, called) in &collected.secrets {
            if !seen.insert((name, called.chunk.clone(), called.line)) {
                continue;
            }
            let Err(error) = loader.secrets.get(name) else { continue };
            self.placed(called, "secret_missing", error.to_string(), None, |text| {
                let shown = text.lines().nth(called.line.checked_sub(1)?)?;
                let (start, quoted) = [format!("{name:?}"), format!("'{name}'"), format!("[[{name}]]")]
                    .into_iter()
                    .find_map(|quoted| Some((shown.find(&quoted)?, quoted)))?;
                let column = shown[..start].chars().count() + 1;
                Some(Place { line: called.line, column, length: quoted.chars().count() })
            });
        }
    }

    /// What is wrong with the options of plugins and with definitions.
    fn located(&self, collected: &Collected) {
        for located in &collected.located {
            self.place(&located.at, None, &located.finding);
        }
    }

    fn place(&self, called: &At, function: Option<&str>, finding: &Finding) {
        self.placed(called, finding.code, finding.message.clone(), finding.help.clone(), |text| {
            let positions = Positions::of(text)?;
            positions.find(Target { function, line: called.line }, &finding.path, finding.on)
        });
    }

    fn placed(
        &self,
        called: &At,
        code: &'static str,
        message: String,
        help: Option<String>,
        find: impl FnOnce(&str) -> Option<Place>,
    ) {
        let files = self.files.borrow();
        let file = files.values().find(|file| file.source.path == called.chunk).or_else(|| files.get(&self.entry));
        let Some(file) = file else { return };
        let place = find(&file.source.text).unwrap_or(Place { line: called.line, column: 0, length: 1 });
        let diagnostic = at(&file.path, place, code, message, help);
        drop(files);
        self.add(diagnostic);
    }
}

fn at(path: &Path, place: Place, code: &'static str, message: String, help: Option<String>) -> Diagnostic {
    let Place { line, column, length } = place;
    Diagnostic { file: path.to_owned(), line, column, length, code, message, help }
}

/// Line and message, when Lua cannot compile `text`.
fn syntax_error(text: &str) -> Option<(usize, String)> {
    let lua = Lua::new();
    let error = lua.load(text).set_name("=x").set_mode(mlua::chunk::ChunkMode::Text).into_function().err()?;
    let message = match root(&error) {
        Error::SyntaxError { message, .. } => message.clone(),
        other => other.to_string(),
    };
    let rest = message.strip_prefix("x:").unwrap_or(&message);
    let (line, message) = rest.split_once(": ").unwrap_or(("1", rest));
    // Lua notices a missing label where its block ends.
    let jump = message.rsplit_once("<goto> at line ").map(|(_, line)| line);
    Some((jump.unwrap_or(line).parse().unwrap_or(1), message.to_owned()))
}

fn root(error: &Error) -> &Error {
    match error {
        Error::CallbackError { cause, .. } | Error::WithContext { cause, .. } => root(cause),
        other => other,
    }
}
