//! What the prelude asks of the owner of its VM, and of the registry.

use std::rc::Rc;

use mlua::{Error, Lua, MultiValue, Table, Value};

use super::{Asked, Owner, errors::place};
use crate::{
    lua::{check, definitions, registry, shape::nearest},
    model::step::{Branch, Verb},
};

pub(super) fn install(lua: &Lua, native: &Table, owner: Rc<dyn Owner>) -> mlua::Result<()> {
    let asked = Rc::clone(&owner);
    let begin = move |lua: &Lua, mut args: MultiValue| {
        let mut text = || match args.pop_front() {
            Some(Value::String(text)) => text.to_string_lossy().to_string(),
            _ => String::new(),
        };
        let (branch, receiver, id, verb) = (text(), text(), text(), text());
        let at = place(lua).unwrap_or_default();
        let id = (receiver == "host").then_some(id);
        let request = Asked { branch: &branch, receiver: &receiver, id, verb: &verb, args: &args, at };
        asked.begin(request).map_err(Error::runtime)
    };
    native.raw_set("begin", lua.create_function(begin)?)?;
    let asked = Rc::clone(&owner);
    native.raw_set("undo", lua.create_function(move |_, (): ()| asked.undo().map_err(Error::runtime))?)?;
    let asked = Rc::clone(&owner);
    let ask = move |_: &Lua, mut args: MultiValue| {
        let _branch = args.pop_front();
        let what = match args.pop_front() {
            Some(Value::String(what)) => what.to_string_lossy().to_string(),
            _ => String::new(),
        };
        let args = check::plugin_args(&what, &args).map_err(Error::runtime)?;
        asked.ask(&what, args).map_err(Error::runtime)
    };
    native.raw_set("ask", lua.create_function(ask)?)?;
    native.raw_set("in_plugin", lua.create_function(move |_, (): ()| Ok(owner.is_plugin()))?)?;
    let checked = |lua: &Lua, mut args: MultiValue| {
        let mut text = || match args.pop_front() {
            Some(Value::String(text)) => text.to_string_lossy().to_string(),
            _ => String::new(),
        };
        let (receiver, name) = (text(), text());
        let data = check::named_step_args(&name, &receiver, &args).map_err(Error::runtime)?;
        definitions::to_lua(lua, &data)
    };
    native.raw_set("check", lua.create_function(checked)?)?;
    let branch = |_: &Lua, (parent, name): (String, String)| {
        let parent: Branch = serde_json::from_value(serde_json::Value::String(parent)).map_err(Error::external)?;
        Ok(parent.child(&name).as_str().to_owned())
    };
    native.raw_set("branch", lua.create_function(branch)?)?;
    let is_verb = |_: &Lua, (receiver, name): (String, mlua::LuaString)| {
        let of = |step: &registry::Step| name == step.name && step.on.iter().any(|on| on.word() == receiver);
        let step = registry::registry().steps.iter().find(|step| of(step));
        Ok(step.is_some_and(|step| step.name != "service" && step.name.parse::<Verb>().is_ok()))
    };
    native.raw_set("is_verb", lua.create_function(is_verb)?)?;
    let unknown = |_: &Lua, (receiver, key): (String, Value)| {
        let name = check::show(&key);
        let all = registry::registry();
        if let Value::String(text) = &key {
            let text = text.to_string_lossy();
            if all.later_steps.iter().any(|(on, later)| on.word() == receiver && *later == text) {
                return Ok(format!("{receiver}:{text} is not supported by this version of phased"));
            }
            let steps =
                all.steps.iter().filter(|step| step.on.iter().any(|on| on.word() == receiver)).map(|step| step.name);
            let fields = all
                .objects
                .iter()
                .filter(|o| o.name.eq_ignore_ascii_case(&receiver))
                .flat_map(|o| o.fields.iter().map(|(name, ..)| *name));
            let own = (receiver == "release").then_some("changed");
            let known: Vec<&str> = steps.chain(fields).chain(own).collect();
            if let Some(near) = nearest(&text, known) {
                return Ok(format!("{receiver} has no {name}; did you mean {near:?}?"));
            }
        }
        Ok(format!("{receiver} has no {name}"))
    };
    native.raw_set("unknown", lua.create_function(unknown)?)?;
    let functions = |lua: &Lua, (): ()| {
        let waits = registry::registry().functions.iter().filter(|function| !function.name.contains('.'));
        lua.create_sequence_from(waits.map(|function| function.name))
    };
    native.raw_set("functions", lua.create_function(functions)?)?;
    let not_here = |_: &Lua, name: String| {
        let step = match name.as_str() {
            "http" => "run:http or host:http",
            "exec" => "run:exec or host:exec",
            "read" => "run:sh \"cat FILE\" or host:sh",
            "log" => "run:log",
            _ => "notify",
        };
        Ok(format!(
            "phased.{name} is for discovery, probes and alerts; in a pipeline's function use {step}, which is journaled"
        ))
    };
    native.raw_set("not_here", lua.create_function(not_here)?)?;
    let changed = |_: &Lua, (paths, glob): (Value, mlua::LuaString)| {
        let glob = glob.to_string_lossy().to_string();
        let matcher = globset::GlobBuilder::new(&glob)
            .literal_separator(true)
            .build()
            .map_err(|e| Error::runtime(format!("release:changed: {glob:?} is no glob: {e}")))?
            .compile_matcher();
        match paths {
            Value::Table(paths) => {
                for path in paths.sequence_values::<String>() {
                    if matcher.is_match(path?) {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            // Nothing is live to compare with, or it cannot be told: everything is new.
            _ => Ok(true),
        }
    };
    native.raw_set("changed", lua.create_function(changed)?)
}
