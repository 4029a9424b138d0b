//! The single description of everything a project or plugin can write. Validation, the types file and the reference come from it.

mod plugins;
mod project;
mod steps;

use std::sync::{Arc, LazyLock};

use super::shape::{Receiver, Shape};

/// A method of `run` or `host`.
#[derive(Debug)]
pub struct Step {
    /// The word: `sh`.
    pub name: &'static str,
    /// Where it is a method.
    pub on: &'static [Receiver],
    /// Its arguments; the doc sentence is the shape's.
    pub shape: Arc<Shape>,
    /// What it returns, in LuaLS words; empty for nothing.
    pub returns: &'static str,
    /// An example, one line.
    pub example: &'static str,
}

/// A function of `phased` for discovery, probes and alerts.
#[derive(Debug)]
pub struct PluginFunction {
    /// The word: `http`; `json.decode` for one in a table.
    pub name: &'static str,
    /// Its arguments.
    pub shape: Arc<Shape>,
    /// What it returns, in LuaLS words; empty for nothing.
    pub returns: &'static str,
    /// An example, one line.
    pub example: &'static str,
}

/// A plain value that pipeline functions get: fields, not functions.
#[derive(Debug)]
pub struct Object {
    /// `run`.
    pub name: &'static str,
    /// One sentence.
    pub doc: &'static str,
    /// Name, type in LuaLS words, one sentence.
    pub fields: &'static [(&'static str, &'static str, &'static str)],
}

/// All of it.
#[derive(Debug)]
pub struct Registry {
    /// `phased.project{}`.
    pub project: Arc<Shape>,
    /// `phased.discovery{}`, `phased.alert{}`, `phased.probe{}`.
    pub discovery: Arc<Shape>,
    /// What every discovery takes beside its own options.
    pub source: Arc<Shape>,
    /// See `discovery`.
    pub alert: Arc<Shape>,
    /// See `discovery`.
    pub probe: Arc<Shape>,
    /// How a plugin declares one of its options.
    pub option: Arc<Shape>,
    /// A host as a project writes it and a discovery returns it.
    pub host: Arc<Shape>,
    /// Methods of `run` and `host`.
    pub steps: Vec<Step>,
    /// Methods of the contract that this version does not do yet: receiver and name.
    pub later_steps: &'static [(Receiver, &'static str)],
    /// Functions of `phased` for plugins.
    pub functions: Vec<PluginFunction>,
    /// What pipeline functions get.
    pub objects: &'static [Object],
}

static REGISTRY: LazyLock<Registry> = LazyLock::new(|| Registry {
    project: Arc::new(project::project()),
    discovery: Arc::new(plugins::definition(super::shape::Definition::Discovery)),
    source: Arc::new(plugins::source()),
    alert: Arc::new(plugins::definition(super::shape::Definition::Alert)),
    probe: Arc::new(plugins::definition(super::shape::Definition::Probe)),
    option: Arc::new(plugins::option()),
    host: Arc::new(project::host()),
    steps: steps::steps(),
    later_steps: steps::LATER,
    functions: plugins::functions(),
    objects: project::OBJECTS,
});

/// The registry.
#[must_use]
pub fn registry() -> &'static Registry {
    &REGISTRY
}

/// The step called `name` (`sh`, `fail`, `parallel`), whichever object has it.
#[must_use]
pub fn step(name: &str) -> Option<&'static Step> {
    registry().steps.iter().find(|step| step.name == name)
}

/// The plugin function called `name` (`http`, `json.decode`).
#[must_use]
pub fn function(name: &str) -> Option<&'static PluginFunction> {
    registry().functions.iter().find(|function| function.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lua::shape::Kind;

    /// Every table reachable from `shape`, once.
    fn walk(shape: &Arc<Shape>, seen: &mut Vec<Arc<Shape>>) {
        fn kind(of: &Kind, seen: &mut Vec<Arc<Shape>>) {
            match of {
                Kind::Table(shape) => walk(shape, seen),
                Kind::List(item, _) | Kind::Map(_, item) => kind(item, seen),
                Kind::Union(kinds) => kinds.iter().for_each(|one| kind(one, seen)),
                _ => {}
            }
        }
        seen.push(Arc::clone(shape));
        shape.fields().for_each(|field| kind(&field.kind, seen));
    }

    #[test]
    fn everything_is_described_in_a_sentence_and_named_once() {
        let all = registry();
        let mut shapes = Vec::new();
        for shape in [&all.project, &all.discovery, &all.source, &all.alert, &all.probe, &all.option, &all.host] {
            walk(shape, &mut shapes);
        }
        all.steps.iter().for_each(|step| walk(&step.shape, &mut shapes));
        all.functions.iter().for_each(|function| walk(&function.shape, &mut shapes));
        for shape in shapes {
            assert!(shape.doc.ends_with('.'), "{}: {:?}", shape.name, shape.doc);
            let mut names: Vec<&str> =
                shape.fields().map(|field| field.name.as_ref()).chain(shape.later.iter().copied()).collect();
            for field in shape.fields() {
                assert!(
                    field.doc.ends_with('.') && field.doc.len() > 5,
                    "{}.{}: {:?}",
                    shape.name,
                    field.name,
                    field.doc
                );
            }
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "{} has a name twice", shape.name);
            for group in &shape.one_of {
                assert!(group.iter().all(|name| shape.fields().any(|field| field.name == *name)), "{}", shape.name);
            }
        }
    }

    #[test]
    fn every_verb_has_its_step() {
        for verb in
            ["sh", "exec", "upload", "download", "write", "http", "wait", "sleep", "now", "service", "signal", "log"]
        {
            assert!(verb.parse::<crate::model::step::Verb>().is_ok() && step(verb).is_some(), "{verb}");
        }
    }
}
