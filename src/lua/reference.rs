//! The reference page, in Markdown, from the registry.

use std::{collections::BTreeSet, fmt::Write as _, sync::Arc};

use super::{
    registry::registry,
    shape::{Field, Kind, Receiver, Shape},
};

/// The text of the page.
#[must_use]
pub fn markdown() -> String {
    let all = registry();
    let mut out = String::from(
        "# The Lua reference\n\nWritten from the registry that also checks projects. Lua 5.4; the only global is `phased`, everything else comes by \
         `require`. Durations are texts such as `\"5m\"`, percentages such as `\"10%\"`. What is required is given without a \
         key where it says so, the rest in one table.\n\n## A project\n\n",
    );
    let mut done = BTreeSet::new();
    table("phased.project", &all.project, &mut done, &mut out);
    out.push_str("## Steps\n\nMethods of `run` (this server) and `host` (a deploy target). Each is journaled, and returns or raises.\n\n");
    for step in &all.steps {
        let on = step.on.iter().map(|on| on.word()).collect::<Vec<_>>().join(", ");
        let _infallible = write!(out, "### {}\n\n{} On: {on}.", step.name, step.shape.doc);
        if !step.returns.is_empty() {
            let _infallible = write!(out, " Returns `{}`.", step.returns);
        }
        let _infallible = write!(out, "\n\n```lua\n{}\n```\n\n", step.example);
        rows(&step.shape, &mut out);
    }
    out.push_str("## Objects\n\n");
    for object in all.objects {
        let _infallible = write!(out, "### {}\n\n{}\n\n| field | type | |\n|---|---|---|\n", object.name, object.doc);
        for (name, kind, doc) in object.fields {
            let _infallible = writeln!(out, "| `{name}` | `{}` | {doc} |", kind.replace('|', "\\|"));
        }
        out.push('\n');
    }
    out.push_str("## Plugins\n\n");
    for shape in [&all.discovery, &all.alert, &all.probe] {
        table(&format!("phased.{}", shape.name), shape, &mut done, &mut out);
    }
    table("What every discovery takes", &all.source, &mut done, &mut out);
    table("What every discovery takes", &all.source, &mut done, &mut out);
    table("A host", &all.host, &mut done, &mut out);
    out.push_str(
        "## Functions of plugins\n\nFor discovery, probes and alerts only; pipeline functions use the steps.\n\n",
    );
    for function in &all.functions {
        let _infallible = write!(out, "### phased.{}\n\n{}", function.name, function.shape.doc);
        if !function.returns.is_empty() {
            let _infallible = write!(out, " Returns `{}`.", function.returns);
        }
        let _infallible = write!(out, "\n\n```lua\n{}\n```\n\n", function.example);
        rows(&function.shape, &mut out);
    }
    out
}

fn table(title: &str, shape: &Arc<Shape>, done: &mut BTreeSet<String>, out: &mut String) {
    if !done.insert(shape.name.to_string()) {
        return;
    }
    let _infallible = write!(out, "### {title}\n\n{}\n\n", shape.doc);
    rows(shape, out);
    for field in shape.fields() {
        within(&field.kind, done, out);
    }
}

fn within(kind: &Kind, done: &mut BTreeSet<String>, out: &mut String) {
    match kind {
        Kind::Table(shape) => table(&shape.name, shape, done, out),
        Kind::List(item, _) | Kind::Map(_, item) => within(item, done, out),
        Kind::Union(kinds) => kinds.iter().for_each(|one| within(one, done, out)),
        _ => {}
    }
}

fn rows(shape: &Shape, out: &mut String) {
    if shape.fields().next().is_none() {
        return;
    }
    out.push_str("| key | value | default | |\n|---|---|---|---|\n");
    for (i, field) in shape.positional.iter().enumerate() {
        row(&format!("[{}] {}", i + 1, field.name), field, out);
    }
    if let Some(field) = &shape.rest {
        row(&format!("[1...] {}", field.name), field, out);
    }
    for field in &shape.keys {
        row(&field.name, field, out);
    }
    if !shape.later.is_empty() {
        let _infallible = write!(out, "\nNot supported by this version: {}.\n", shape.later.join(", "));
    }
    out.push('\n');
}

fn row(name: &str, field: &Field, out: &mut String) {
    let default = match (&field.default, field.required) {
        (Some(default), _) => format!("`{default}`"),
        (None, true) => "required".to_owned(),
        (None, false) => String::new(),
    };
    let only = match field.only {
        Some(Receiver::Run) => " Only on run.",
        Some(Receiver::Host) => " Only on host.",
        None => "",
    };
    let _infallible = writeln!(
        out,
        "| `{name}` | {} | {default} | {}{only} |",
        field.kind.expected().replace('|', "\\|"),
        field.doc.replace('|', "\\|")
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_everything() {
        let page = markdown();
        for words in [
            "### sh",
            "### health",
            "| `min_healthy_time` | a duration such as \"5m\" | `\"10s\"` |",
            "### phased.smtp",
            "| `transport` | \"ssh\" or \"signal\" | `\"ssh\"` |",
            "Not supported by this version: tasks",
        ] {
            assert!(page.contains(words), "{words}\n{page}");
        }
        for line in page.lines().filter(|line| line.starts_with('|')) {
            let cells = line.replace("\\|", "").matches('|').count();
            assert!(cells == 5 || cells == 4, "{line}");
        }
    }
}
