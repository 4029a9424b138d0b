//! `phased generate DIRECTORY`: what packages ship beside the binary, written by the binary.
//!
//! ```text
//! man/man8/phased.8, phased-VERB.8      from the grammar of the command line
//! man/man5/phased.toml.5                from the commented file that is installed
//! man/man5/phased-lua.5                 from the registry that also checks projects
//! completions/{phased.bash,_phased,phased.fish}
//! lua/phased.d.lua                      types for the Lua language server
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;

use super::Cli;
use crate::lua;

mod roff;

const CONFIG: &str = include_str!("../../packaging/phased.toml");

/// Writes all of it below `directory`, over what is there.
///
/// # Errors
/// The disk's, with the file's name.
pub fn run(directory: &Path) -> anyhow::Result<()> {
    for (name, text) in files()? {
        let path = directory.join(name);
        let failed = || format!("failed to write `{}`", path.display());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(failed)?;
        }
        fs::write(&path, text).with_context(failed)?;
    }
    Ok(())
}

fn files() -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut files = Vec::new();
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    pages(&command, &mut files)?;
    let toml = roff::page("phased.toml", "the configuration of the phased daemon", &roff::toml(CONFIG));
    files.push(("man/man5/phased.toml.5".into(), toml.into_bytes()));
    let lua_page =
        roff::page("phased-lua", "projects and plugins of phased", &roff::markdown(&lua::reference::markdown()));
    files.push(("man/man5/phased-lua.5".into(), lua_page.into_bytes()));
    for (shell, name) in [(Shell::Bash, "phased.bash"), (Shell::Zsh, "_phased"), (Shell::Fish, "phased.fish")] {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "phased", &mut text);
        files.push((Path::new("completions").join(name), text));
    }
    files.push(("lua/phased.d.lua".into(), lua::types::meta().into_bytes()));
    Ok(files)
}

/// A page for this command, and one for each below it.
fn pages(command: &clap::Command, files: &mut Vec<(PathBuf, Vec<u8>)>) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        pages(below, files)?;
    }
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let man = Man::new(command.clone()).section("8").manual("phased").source(VERSION);
    let mut text = Vec::new();
    man.render(&mut text)?;
    files.push((format!("man/man8/{name}.8").into(), text));
    Ok(())
}

const VERSION: &str = concat!("phased ", env!("CARGO_PKG_VERSION"));

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: &str) -> String {
        let found = files().unwrap().into_iter().find(|(path, _)| path == Path::new(name));
        String::from_utf8(found.unwrap_or_else(|| panic!("there is no {name}")).1).unwrap()
    }

    #[test]
    fn every_verb_has_a_page_and_hidden_ones_have_none() {
        let names: Vec<PathBuf> = files().unwrap().into_iter().map(|(name, _)| name).collect();
        let mut command = Cli::command();
        command.build();
        for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
            let page = PathBuf::from(format!("man/man8/phased-{}.8", verb.get_name()));
            assert_eq!(names.contains(&page), !verb.is_hide_set(), "{}", page.display());
        }
        assert!(names.contains(&"man/man8/phased-token-create.8".into()));
        assert!(
            text("man/man8/phased-start.8").contains("--redeploy")
                || text("man/man8/phased-start.8").contains("\\-\\-redeploy")
        );
    }

    #[test]
    fn each_shell_completes_the_verbs() {
        for name in ["completions/phased.bash", "completions/_phased", "completions/phased.fish"] {
            let text = text(name);
            assert!(text.contains("rollback") && text.contains("maintenance"), "{name}");
        }
    }

    #[test]
    fn the_pages_of_files_hold_what_their_sources_hold() {
        let toml = text("man/man5/phased.toml.5");
        assert!(toml.starts_with(".TH phased.toml 5 "), "{toml}");
        for key in ["data_dir = ", "listen = ", "max_artifact = ", "quota = "] {
            assert!(toml.contains(key), "{key} is not in {toml}");
        }
        let lua = text("man/man5/phased-lua.5");
        for word in ["min_healthy_time", "run:artifact", "phased.jwt"] {
            assert!(lua.replace("\\-", "-").contains(word), "{word}");
        }
        assert!(!lua.contains("|---|") && !lua.contains("```"));
    }

    #[test]
    fn all_of_it_lands_below_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path()).unwrap();
        run(dir.path()).unwrap();
        for (name, text) in files().unwrap() {
            assert_eq!(fs::read(dir.path().join(&name)).unwrap(), text, "{}", name.display());
        }
        fs::write(dir.path().join("file"), b"").unwrap();
        assert!(run(&dir.path().join("file")).unwrap_err().to_string().contains("/file/man/man8/"));
    }
}
