//! `phased init`: a configuration and an example project to start from. Nothing that exists is overwritten.

use std::{fs, io::Write as _, path::Path};

use anyhow::Context as _;

const CONFIG: &str = include_str!("../../packaging/phased.toml");
const PROJECT: &str = include_str!("../../packaging/examples/shop.lua");
const EDITOR: &str = r#"{
  "runtime.version": "Lua 5.4",
  "workspace.library": ["types"],
  "diagnostics.globals": ["phased"],
  "workspace.checkThirdParty": false
}
"#;

/// Writes into `dir` and returns what was written and what was there already.
///
/// # Errors
/// The disk's, with the file's name.
pub fn run(dir: &Path) -> anyhow::Result<Vec<(String, bool)>> {
    let types = crate::lua::types::meta();
    let here = fs::canonicalize(dir).or_else(|_| fs::create_dir_all(dir).and_then(|()| fs::canonicalize(dir)));
    let here = here.with_context(|| format!("failed to use the directory `{}`", dir.display()))?;
    let config = CONFIG.replace("/etc/phased/", &format!("{}/", here.display()));
    let files = [
        ("phased.toml", config.as_str()),
        // Beside, not in, projects/: it names repositories and hosts that are not yours.
        ("plugins/projects/shop.lua.example", PROJECT),
        ("plugins/types/phased.d.lua", &types),
        ("plugins/.luarc.json", EDITOR),
    ];
    fs::create_dir_all(here.join("secrets"))?;
    fs::set_permissions(here.join("secrets"), std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    files.into_iter().map(|(name, text)| write(&here, name, text).map(|new| (name.to_owned(), new))).collect()
}

fn write(dir: &Path, name: &str, text: &str) -> anyhow::Result<bool> {
    let path = dir.join(name);
    let failed = || format!("failed to write `{}`", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(failed)?;
    }
    match fs::OpenOptions::new().write(true).create_new(true).open(&path) {
        Ok(mut file) => file.write_all(text.as_bytes()).map(|()| true).with_context(failed),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error).with_context(failed),
    }
}
