//! A dry run as text.

use super::{cause, count, line, one_line, printable, release};
use crate::{
    api::text::word,
    engine::view::dry_run::{DryCall, DryPart, DryRun, DryStep},
    model::run::RunState,
};

/// Hosts that are named; of more the number is said.
const NAMED: usize = 8;

/// The commands that a start would run.
#[must_use]
pub fn dry_run(view: &DryRun) -> String {
    let mut out = String::new();
    line(
        &mut out,
        &format!("dry run of {}: {}; nothing was done", one_line(&view.project, 64), release(&view.release)),
    );
    for note in &view.notes {
        line(&mut out, &format!("note: {}", one_line(note, 400)));
    }
    for part in &view.parts {
        line(&mut out, "");
        shown(&mut out, part);
    }
    line(&mut out, "");
    let errors = match view.errors {
        0 => String::new(),
        n => format!("; {} of the Lua code, see above", count(n, "error")),
    };
    let why = view.cause.as_ref().map_or_else(String::new, |why| format!(": {}", cause(why)));
    let end = match (&view.cause, view.state) {
        (Some(cut), _) if cut.code == "dry_run_cut" => format!("CUT{why}"),
        (_, RunState::Succeeded) => "it would end succeeded".to_owned(),
        (_, state) => format!("it would end {}{why}", word(&state)),
    };
    line(&mut out, &format!("{end}{errors}"));
    out
}

fn shown(out: &mut String, part: &DryPart) {
    let mut title = match (&part.stage, &part.environment) {
        (Some(stage), _) => format!("test {}", one_line(stage, 64)),
        (None, Some(environment)) => format!("{}: {}", one_line(environment, 64), part.phase.replace('_', " ")),
        (None, None) => part.phase.clone(),
    };
    if let Some(wave) = part.wave {
        title.push_str(&if part.phase == "wave" { format!(" {wave}") } else { format!(" (wave {wave})") });
    }
    if !part.hosts.is_empty() {
        title.push_str(&format!(", {}", hosts(&part.hosts)));
    }
    if let Some(note) = &part.note {
        title.push_str(&format!(", {}", one_line(note, 400)));
    }
    line(out, &title);
    for call in &part.calls {
        called(out, call);
    }
}

fn hosts(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(NAMED).map(|name| one_line(name, 64)).collect();
    match names.len() {
        1 => shown.concat(),
        n if n > NAMED => format!("{} and {} more ({n} hosts)", shown.join(" "), n - NAMED),
        n => format!("{} ({n} hosts)", shown.join(" ")),
    }
}

fn called(out: &mut String, call: &DryCall) {
    line(out, &format!("  {}", one_line(&call.function, 64)));
    if call.steps.is_empty() && call.error.is_none() {
        line(out, "    nothing");
    }
    for step in &call.steps {
        stepped(out, step);
    }
    if let Some(error) = &call.error {
        let at = error.facts.get("at").and_then(serde_json::Value::as_str).unwrap_or_default();
        line(out, &format!("    ERROR {} {}", one_line(at, 200), cause(error)));
        line(out, "          it comes of the code, or of an assumed answer; the rest is shown as if it had returned");
    }
}

fn stepped(out: &mut String, step: &DryStep) {
    let on = step.on.as_ref().map_or_else(String::new, |on| format!("on {}: ", one_line(on, 64)));
    let branch = step.branch.as_ref().map_or_else(String::new, |branch| format!("[{}] ", one_line(branch, 64)));
    let verb = if step.verb == "sh" || step.verb == "exec" || step.verb == "service" {
        String::new()
    } else {
        format!("{} ", step.verb)
    };
    let text = printable(step.text.trim());
    let mut lines = text.lines();
    line(out, &format!("    {branch}{on}{verb}{}", lines.next().unwrap_or_default()));
    for more in lines {
        line(out, &format!("      {more}"));
    }
    let mut beside: Vec<String> = step.options.iter().map(|option| one_line(option, 300)).collect();
    if !step.at.is_empty() {
        beside.push(format!("at {}", one_line(&step.at, 200)));
    }
    if !beside.is_empty() {
        line(out, &format!("        {}", beside.join(", ")));
    }
}
