//! Signals as text for people.

use super::{labelled, line, moment};
use crate::{api::text::one_line, engine::view::signals::SignalsView};

/// To whom the daemon listens, what came, and what of it was refused.
#[must_use]
pub fn signals(signals: &SignalsView) -> String {
    let mut out = String::new();
    let text = |text: &str| one_line(text, 300);
    match &signals.key {
        _ if !signals.listens => {
            line(&mut out, "this daemon listens to no signals: [signals] of its phased.toml names no key")
        }
        Some(key) => line(&mut out, &format!("listens as {}, and answers with {}", text(&signals.host), text(key))),
        None => line(&mut out, &format!("listens as {}, and its key cannot be used", text(&signals.host))),
    }
    for accepted in &signals.accept {
        labelled(&mut out, "accepts", &format!("{} for {}", text(&accepted.key), text(&accepted.projects.join(", "))));
    }
    let counted = |counts: &std::collections::BTreeMap<String, u64>| {
        counts.iter().map(|(word, n)| format!("{n} {}", one_line(word, 40))).collect::<Vec<_>>().join(", ")
    };
    let since = moment(&signals.since);
    let none = |text: String| if text.is_empty() { "none".to_owned() } else { text };
    labelled(&mut out, "taken", &format!("{} since {since}", none(counted(&signals.taken))));
    labelled(&mut out, "refused", &none(counted(&signals.refused)));
    for refused in &signals.recent {
        let of = match (&refused.project, &refused.environment) {
            (Some(project), Some(environment)) => {
                format!(" {}/{}", one_line(project, 64), one_line(environment, 64))
            }
            _ => String::new(),
        };
        line(
            &mut out,
            &format!("  {}{of} {}: {}", moment(&refused.at), one_line(&refused.code, 40), text(&refused.message)),
        );
    }
    out
}
