//! The reference files under `docs/` are what the code generates. `scripts/docs` writes them anew.

use std::{fs, path::Path};

fn generated() -> Vec<(&'static str, String)> {
    let openapi = phased::api::openapi().to_pretty_json().unwrap() + "\n";
    vec![
        ("docs/lua.md", phased::lua::reference::markdown()),
        ("docs/phased.d.lua", phased::lua::types::meta()),
        ("docs/openapi.json", openapi),
    ]
}

#[test]
fn the_reference_is_what_the_code_says() {
    let update = std::env::var_os("UPDATE").is_some();
    let mut stale = Vec::new();
    for (path, text) in generated() {
        let path = Path::new(path);
        if update {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, &text).unwrap();
        } else if fs::read_to_string(path).unwrap_or_default() != text {
            stale.push(path.display().to_string());
        }
    }
    assert!(stale.is_empty(), "out of date: {}; run scripts/docs and commit what it writes", stale.join(", "));
}

/// Files that a page of the documentation links to are there, and so is every heading.
#[test]
fn links_between_pages_lead_somewhere() {
    let mut broken = Vec::new();
    for page in [
        "README.md",
        "CHANGELOG.md",
        "docs/alarms.md",
        "docs/api.md",
        "docs/how-it-works.md",
        "docs/hosts.md",
        "docs/jobs.md",
        "docs/rollouts.md",
        "docs/service.md",
        "docs/signals.md",
        "docs/how-to/back-up-and-move.md",
        "docs/how-to/host-keys.md",
        "docs/how-to/hosts-from-ansible.md",
        "docs/how-to/hosts-from-azure.md",
        "docs/how-to/hosts-from-dns.md",
        "docs/how-to/hosts-from-ec2.md",
        "docs/how-to/hosts-from-files.md",
        "docs/how-to/hosts-from-google.md",
        "docs/how-to/hosts-from-other-clouds.md",
        "docs/how-to/hosts-from-prometheus.md",
        "docs/how-to/keep-deployments-out.md",
        "docs/how-to/proxy.md",
        "docs/how-to/reach-hosts-through-a-bastion.md",
    ] {
        let text = fs::read_to_string(page).unwrap_or_default();
        let dir = Path::new(page).parent().unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") {
                continue;
            }
            let (file, heading) = link.split_once('#').map_or((link, None), |(file, heading)| (file, Some(heading)));
            let target = if file.is_empty() { Path::new(page).to_owned() } else { dir.join(file) };
            let Ok(found) = fs::metadata(&target) else {
                broken.push(format!("{page}: {link}"));
                continue;
            };
            let there = heading.is_none_or(|heading| {
                found.is_file() && fs::read_to_string(&target).unwrap().lines().any(|line| anchor(line) == heading)
            });
            if !there {
                broken.push(format!("{page}: {link}"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// The name by which a heading is linked to.
fn anchor(line: &str) -> String {
    let Some(title) = line.strip_prefix('#').map(|rest| rest.trim_start_matches('#').trim()) else {
        return String::new();
    };
    let kept = title.to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}
