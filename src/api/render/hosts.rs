//! Fleets as text for people.

use super::{cause, count, line};
use crate::{
    api::text::{age, one_line, table, word},
    engine::view::hosts::{FleetView, OutHost, SourceChange, SourceView},
};

/// More disagreements than this are for JSON.
const SHOWN: usize = 10;

/// One block for each environment.
#[must_use]
pub fn fleets(fleets: &[FleetView], now_ms: i64) -> String {
    let blocks: Vec<String> = fleets.iter().map(|one| fleet(one, now_ms)).collect();
    if blocks.is_empty() { "no environment\n".to_owned() } else { blocks.join("\n") }
}

fn fleet(fleet: &FleetView, now_ms: i64) -> String {
    let mut out = String::new();
    let name = |text: &str| one_line(text, 64);
    line(
        &mut out,
        &format!("{} {}: {}", name(&fleet.project), name(&fleet.environment), count(fleet.hosts.len(), "host")),
    );
    for source in &fleet.sources {
        said(&mut out, source, now_ms);
    }
    let rows: Vec<Vec<String>> = fleet
        .hosts
        .iter()
        .map(|host| {
            let state = host.state.map_or_else(String::new, |state| word(&state));
            vec![
                name(&host.name),
                name(&host.id),
                format!("{}:{}", name(&host.address), host.port),
                host.zone.as_deref().map_or_else(String::new, name),
                name(&host.sources.join(", ")),
                host.release.clone().unwrap_or_else(|| "?".to_owned()),
                state,
            ]
        })
        .collect();
    if !rows.is_empty() {
        line(&mut out, "");
        for row in table(&["HOST", "ID", "ADDRESS", "ZONE", "SOURCE", "HAS", "STATE"], &rows).lines() {
            line(&mut out, &format!("  {row}"));
        }
    }
    if !fleet.out.is_empty() {
        line(&mut out, "");
        line(&mut out, "  out:");
        for host in &fleet.out {
            line(&mut out, &format!("    {}", gone(host, now_ms)));
        }
    }
    if !fleet.host_keys.is_empty() {
        line(&mut out, "");
        line(&mut out, "  host keys learnt:");
        for key in &fleet.host_keys {
            let (since, at) = (super::moment(&key.since), name(&key.address));
            line(
                &mut out,
                &format!("    {}: {} since {since}, met at {at}", one_line(&key.id, 300), one_line(&key.key, 100)),
            );
        }
    }
    if fleet.disagreements > 0 {
        line(&mut out, "");
        line(&mut out, &format!("  sources disagree ({}):", count(fleet.disagreements, "case")));
        for one in fleet.conflicts.iter().take(SHOWN) {
            let text = format!(
                "{} {}: {} says {:?}, which is used; {} says {:?}",
                name(&one.host),
                name(&one.field),
                name(&one.from),
                name(&one.used),
                name(&one.other_from),
                name(&one.other)
            );
            line(&mut out, &format!("    {text}"));
        }
        if fleet.disagreements > SHOWN {
            line(&mut out, "    ... more with --json");
        }
    }
    out
}

fn said(out: &mut String, source: &SourceView, now_ms: i64) {
    let asked =
        source.asked_at.as_ref().map_or("not asked yet".to_owned(), |at| format!("asked {} ago", age(at, now_ms)));
    let mut text = format!(
        "  {}: {}, {asked} (every {})",
        one_line(&source.name, 64),
        count(source.hosts, "host"),
        one_line(&source.interval, 20)
    );
    if let Some(change) = &source.change {
        text.push_str(&changed(change, now_ms));
    }
    line(out, &text);
    if let Some(error) = &source.error {
        let since = source.error_since.as_ref().map_or_else(String::new, |at| format!(" for {}", age(at, now_ms)));
        let list = source.good_at.as_ref().map_or("there is no earlier list".to_owned(), |at| {
            format!("the list that is used is {} old", age(at, now_ms))
        });
        line(out, &format!("    WRONG{since}: {}; {list}", cause(error)));
    }
}

fn changed(change: &SourceChange, now_ms: i64) -> String {
    let some = |n: usize, ids: &[String], what: &str| {
        if n == 0 {
            return None;
        }
        let named: Vec<String> = ids.iter().take(3).map(|id| one_line(id, 64)).collect();
        let more = if n > named.len() { ", ..." } else { "" };
        Some(format!("{n} {what} ({}{more})", named.join(", ")))
    };
    let parts: Vec<String> = [some(change.came, &change.came_ids, "came"), some(change.went, &change.went_ids, "went")]
        .into_iter()
        .flatten()
        .collect();
    let what = if parts.is_empty() { "facts of hosts changed".to_owned() } else { parts.join(", ") };
    format!("; {} ago {what}", age(&change.at, now_ms))
}

fn gone(host: &OutHost, now_ms: i64) -> String {
    let since = host
        .since
        .as_ref()
        .map_or_else(String::new, |at| format!(", since {} ({} ago)", super::moment(at), age(at, now_ms)));
    let (name, id) = (one_line(&host.name, 64), one_line(&host.id, 64));
    let who = if name == id { id } else { format!("{name} ({id})") };
    format!("{who}: {}{since}", one_line(&host.message, 300))
}
