//! The layers of `src/`: each imports only from those above it and within itself, and what is quarantined stays where it is.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// From the top: a layer may use itself and everything above it. Adapters are one layer each on one level: they never use each other.
const LEVELS: &[&[&str]] = &[
    &["time", "lifecycle", "telemetry", "whole", "dice"],
    &["model"],
    &["ports"],
    &["config"],
    &["journal", "store", "blobs", "exec", "ssh", "http", "lua", "discovery", "forge", "alert", "probe", "signal"],
    &["engine"],
    &["api"],
    &["daemon", "service", "cli", "app", "demo", "sim", "lib", "main"],
];

/// Layers above that a level may not use all the same: the engine sees adapters as ports only.
fn allowed(from: &str, to: &str) -> bool {
    let level = |name: &str| LEVELS.iter().position(|level| level.contains(&name));
    let (Some(from_level), Some(to_level)) = (level(from), level(to)) else { return false };
    let adapters = 4;
    let wiring = LEVELS.len() - 1;
    match () {
        () if from == to || from_level == wiring => true,
        () if from_level == 0 && to_level == 0 => false,
        () if to_level == adapters => false,
        () => to_level < from_level,
    }
}

/// Crates that one place knows.
const QUARANTINE: &[(&str, &[&str])] = &[
    ("sled", &["store"]),
    ("russh", &["ssh"]),
    ("mlua", &["lua"]),
    ("full_moon", &["lua"]),
    ("axum", &["api"]),
    ("tokio_rustls", &["api", "cli", "http"]),
    ("rustls_platform_verifier", &["cli"]),
    ("daemonize", &["daemon"]),
    ("sd_notify", &["service"]),
    ("listenfd", &["service"]),
    ("lettre", &["alert"]),
    ("reqwest", &["http"]),
    ("toml", &["config"]),
    ("clap", &["cli"]),
    ("clap_complete", &["cli"]),
    ("clap_mangen", &["cli"]),
    ("zstd", &["blobs", "journal"]),
    ("tar", &["blobs", "exec", "journal"]),
    ("aws_config", &["discovery"]),
    ("aws_sdk_ec2", &["discovery"]),
    ("aws_sdk_sts", &["discovery"]),
    ("aws_lc_rs", &["discovery", "signal"]),
    ("hickory_resolver", &["discovery"]),
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn layer(path: &Path) -> String {
    let relative = path.strip_prefix("src").unwrap();
    let first = relative.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.strip_suffix(".rs").map_or(first.clone(), str::to_owned)
}

/// The code of a file without comments, and without its tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Every `crate::x` of a text, also those inside `use crate::{x, y::z}`.
fn used(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(list) = rest.strip_prefix('{') {
            let (mut depth, mut name) = (0, String::new());
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => found.push(std::mem::take(&mut name)),
                    c if depth == 0 => name.push(c),
                    _ => {}
                }
            }
            found.push(name);
        } else {
            found.push(rest.to_owned());
        }
    }
    let word = |text: String| text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    found.into_iter().map(word).filter(|name| !name.is_empty()).collect()
}

#[test]
fn each_layer_imports_only_from_those_above_it() {
    let mut files = Vec::new();
    sources(Path::new("src"), &mut files);
    assert!(files.len() > 50, "the sources were not found");
    let mut wrong = BTreeMap::new();
    for path in
        files.iter().filter(|path| !path.ends_with("tests.rs") && !path.components().any(|c| c.as_os_str() == "tests"))
    {
        let from = layer(path);
        assert!(LEVELS.iter().any(|level| level.contains(&from.as_str())), "{} belongs to no layer", path.display());
        for to in used(&code(path)).into_iter().filter(|to| !allowed(&from, to)) {
            wrong.insert(format!("{}: {from} uses {to}", path.display()), ());
        }
    }
    assert!(wrong.is_empty(), "{:#?}", wrong.keys());
}

#[test]
fn what_is_quarantined_stays_where_it_is() {
    let mut files = Vec::new();
    sources(Path::new("src"), &mut files);
    let mut wrong = Vec::new();
    for path in &files {
        let (from, code) = (layer(path), code(path));
        for (name, places) in QUARANTINE {
            let named = code.contains(&format!("{name}::")) || code.contains(&format!("use {name};"));
            let word = code.match_indices(&format!("{name}::")).any(|(at, _)| {
                !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '.')
            });
            if named && word && !places.contains(&from.as_str()) {
                wrong.push(format!("{} names {name}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn only_time_reads_clocks_and_only_lifecycle_spawns() {
    let mut files = Vec::new();
    sources(Path::new("src"), &mut files);
    let banned = ["Instant::now", "SystemTime::now", "tokio::time::", "tokio::spawn("];
    let mut wrong = Vec::new();
    for path in
        files.iter().filter(|path| !path.ends_with("tests.rs") && !path.components().any(|c| c.as_os_str() == "tests"))
    {
        if ["time", "lifecycle"].contains(&layer(path).as_str()) {
            continue;
        }
        let code = code(path);
        wrong.extend(
            banned.iter().filter(|word| code.contains(**word)).map(|word| format!("{}: {word}", path.display())),
        );
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
