//! The `---@meta` file for editors (LuaLS): completion and type errors while a project is written.

use std::{collections::BTreeSet, fmt::Write as _, sync::Arc};

use super::{
    registry::{PluginFunction, Step, registry},
    shape::{Kind, Receiver, Shape},
};

/// The text of the types file.
#[must_use]
pub fn meta() -> String {
    let all = registry();
    let mut out = String::from(
        "---@meta phased\n-- Types of phased's Lua for LuaLS. Written by `phased init`; changes are lost.\n\n\
         ---The only global; everything else comes by require.\nphased = {}\n\n\
         ---A handle of a secret: resolved when a step uses it, never text.\n---@class phased.Secret\n\n\
         ---A plugin's value called with its options.\n---@class phased.Bound\n\n\
         ---The name of a secret in the secrets directory.\n---@param name string\n---@return phased.Secret\n\
         function phased.secret(name) end\n\n\
         ---This server itself as a host: its commands run as the project's own user.\n\
         ---@type phased.host\nphased.localhost = {}\n\n",
    );
    let mut classes = Classes::default();
    for (shape, returns) in [
        (&all.project, "table"),
        (&all.discovery, "fun(options?: table|string): phased.Bound"),
        (&all.alert, "fun(options?: table|string): phased.Bound"),
        (&all.probe, "fun(options?: table|string): phased.Bound"),
    ] {
        classes.add(shape, &mut out);
        let _infallible = write!(
            out,
            "---{}\n---@param description {}\n---@return {returns}\nfunction phased.{}(description) end\n\n",
            shape.doc,
            class(shape),
            shape.name
        );
    }
    classes.add(&all.host, &mut out);
    for function in &all.functions {
        plugin_function(function, &mut classes, &mut out);
    }
    for object in all.objects {
        let _infallible = write!(out, "---{}\n---@class phased.{}\n", object.doc, object.name);
        for (name, kind, doc) in object.fields {
            let (name, kind) =
                kind.strip_suffix('?').map_or_else(|| ((*name).to_owned(), *kind), |kind| (format!("{name}?"), kind));
            let _infallible = writeln!(out, "---@field {name} {kind} {doc}");
        }
        let receiver = match object.name {
            "Run" => Some(Receiver::Run),
            "Host" => Some(Receiver::Host),
            _ => None,
        };
        let Some(receiver) = receiver else {
            out.push('\n');
            continue;
        };
        let word = object.name;
        let _infallible = write!(out, "local {word} = {{}}\n\n");
        for step in all.steps.iter().filter(|step| step.on.contains(&receiver)) {
            method(word, step, receiver, &mut classes, &mut out);
        }
    }
    out
}

#[derive(Default)]
struct Classes {
    done: BTreeSet<String>,
}

impl Classes {
    /// Writes the class of `shape` and of every table in it, once.
    fn add(&mut self, shape: &Arc<Shape>, out: &mut String) {
        if !self.done.insert(shape.name.to_string()) {
            return;
        }
        let mut text = format!("---{}\n---@class {}\n", shape.doc, class(shape));
        for (i, field) in shape.positional.iter().enumerate() {
            let _infallible = writeln!(text, "---@field [{}] {} {}", i + 1, kind(&field.kind), field.doc);
        }
        if let Some(rest) = &shape.rest
            && let Kind::List(item, _) = &rest.kind
        {
            let _infallible = writeln!(text, "---@field [integer] {} {}", kind(item), rest.doc);
        }
        for field in shape.rest.iter().chain(&shape.keys) {
            let optional =
                if field.required && shape.rest.as_ref().is_none_or(|rest| rest.name != field.name) { "" } else { "?" };
            let default = field.default.as_ref().map_or(String::new(), |default| format!(" Default: {default}."));
            let _infallible =
                writeln!(text, "---@field {}{optional} {} {}{default}", field.name, kind(&field.kind), field.doc);
        }
        for field in shape.fields() {
            self.within(&field.kind, out);
        }
        out.push_str(&text);
        out.push('\n');
    }

    fn within(&mut self, kind: &Kind, out: &mut String) {
        match kind {
            Kind::Table(shape) => self.add(shape, out),
            Kind::List(item, _) | Kind::Map(_, item) => self.within(item, out),
            Kind::Union(kinds) => kinds.iter().for_each(|one| self.within(one, out)),
            _ => {}
        }
    }
}

fn class(shape: &Shape) -> String {
    format!("phased.{}", shape.name)
}

/// The type of what a call takes: the table, or the only value itself.
fn parameter(shape: &Arc<Shape>) -> String {
    let mut types = Vec::new();
    if let [only] = shape.positional.as_slice()
        && !shape.keys.iter().any(|field| field.required)
    {
        types.push(kind(&only.kind));
    }
    if !shape.keys.is_empty() || shape.rest.is_some() {
        types.push(class(shape));
    }
    types.join("|")
}

fn method(object: &str, step: &Step, receiver: Receiver, classes: &mut Classes, out: &mut String) {
    if step.name == "service" {
        let _infallible = write!(
            out,
            "---{}\n---@param unit string\n---@return phased.Service\nfunction {object}:service(unit) end\n\n",
            step.shape.doc
        );
        return;
    }
    if !step.shape.keys.is_empty() {
        classes.add_step(&step.shape, out);
    }
    let optional =
        if step.shape.fields().any(|field| field.required) || !step.shape.one_of.is_empty() { "" } else { "?" };
    let _infallible = write!(
        out,
        "---{}\n---{}\n---@param what{optional} {}\n",
        step.shape.doc,
        step.example,
        parameter(&step_shape(&step.shape))
    );
    if !step.returns.is_empty() {
        let _infallible = writeln!(out, "---@return {}", step.returns);
    }
    let _infallible = write!(out, "function {object}:{}(what) end\n\n", step.name);
    let _both_objects_share_a_class = receiver;
}

/// Steps' classes have names of their own, so that `http` of a host and of `phased` stay apart.
fn step_shape(shape: &Arc<Shape>) -> Arc<Shape> {
    Arc::new(Shape { name: format!("step.{}", shape.name).into(), ..Shape::clone(shape) })
}

impl Classes {
    fn add_step(&mut self, shape: &Arc<Shape>, out: &mut String) {
        self.add(&step_shape(shape), out);
    }
}

fn plugin_function(function: &PluginFunction, classes: &mut Classes, out: &mut String) {
    if !function.shape.keys.is_empty() {
        classes.add(&function.shape, out);
    }
    if let Some((table, _)) = function.name.split_once('.') {
        let line = format!("phased.{table} = {{}}\n\n");
        if !out.contains(&line) {
            out.push_str(&line);
        }
    }
    let _infallible = write!(
        out,
        "---{}\n---{}\n---@param what {}\n",
        function.shape.doc,
        function.example,
        parameter(&function.shape)
    );
    if !function.returns.is_empty() {
        let _infallible = writeln!(out, "---@return {}", function.returns);
    }
    let _infallible = write!(out, "function phased.{}(what) end\n\n", function.name);
}

/// A kind in LuaLS words.
#[must_use]
pub fn kind(of: &Kind) -> String {
    match of {
        Kind::Text(text) => {
            let mut words = vec!["string"];
            if text.number {
                words.push("integer");
            }
            if text.secret {
                words.push("phased.Secret");
            }
            words.join("|")
        }
        Kind::Secret => "phased.Secret".to_owned(),
        Kind::Artifact => "phased.Artifact".to_owned(),
        Kind::Duration | Kind::Limit | Kind::Percentage => "string".to_owned(),
        Kind::Integer(..) => "integer".to_owned(),
        Kind::Number => "number".to_owned(),
        Kind::Boolean => "boolean".to_owned(),
        Kind::Enum(words) => words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join("|"),
        Kind::Function(signature) => signature.to_string(),
        Kind::List(item, _) => {
            let item = kind(item);
            if item.contains(['|', '(']) { format!("({item})[]") } else { format!("{item}[]") }
        }
        Kind::Map(_, item) => format!("table<string, {}>", kind(item)),
        Kind::Table(shape) => class(shape),
        Kind::Bound(_) => "phased.Bound".to_owned(),
        Kind::Union(kinds) => kinds
            .iter()
            .map(kind)
            .map(|one| if one.starts_with("fun(") { format!("({one})") } else { one })
            .collect::<Vec<_>>()
            .join("|"),
        Kind::Data => "any".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_types_file_is_lua_and_names_everything_once() {
        let text = meta();
        mlua::Lua::new().load(&text).into_function().unwrap();
        for line in [
            "---@class phased.project",
            "---@field source phased.source Where commits come from.",
            "---@field [1] string What the stage is called.",
            "---@field queue? \"latest\"|\"all\" What happens",
            "function phased.secret(name) end",
            "function Host:sh(what) end",
            "function Run:sh(what) end",
            "---@class phased.step.sh",
            "function phased.json.decode(what) end",
            "---@param what string|phased.step.sh",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        let mut classes: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("---@class ")).collect();
        let count = classes.len();
        classes.sort_unstable();
        classes.dedup();
        assert_eq!(classes.len(), count);
        // Every class that is named is there.
        for word in text
            .split(|c: char| !(c.is_alphanumeric() || matches!(c, '.' | '_')))
            .filter(|word| word.starts_with("phased."))
        {
            let known = classes.contains(&word.trim_end_matches('.'))
                || text.contains(&format!("function {word}("))
                || text.contains(&format!("{word} = {{}}"));
            let in_an_example = text.lines().any(|line| line.contains(word) && !line.starts_with("---@"));
            assert!(known || in_an_example, "{word}");
        }
    }
}
