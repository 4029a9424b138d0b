//! The sample repository: a shop in plain sh, its tests, and what Ada Example does to it.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context as _, bail};

/// Who commits.
pub(super) const AUTHOR: (&str, &str) = ("Ada Example", "ada@example.com");

/// A commit that is to be made: its message and the files it changes.
pub(super) struct Change {
    pub(super) message: &'static str,
    pub(super) files: &'static [(&'static str, &'static str)],
}

/// Works, and its tests say so.
pub(super) const GOOD: Change = Change {
    message: "Sell croissants",
    files: &[("app.sh", include_str!("shop/good/app.sh")), ("tests/run.sh", include_str!("shop/good/run.sh"))],
};

/// Prints 2.05 as 2.5, which its tests notice.
pub(super) const FAILS_TESTS: Change = Change {
    message: "Lower the price to 2.05",
    files: &[
        ("app.sh", include_str!("shop/fails_tests/app.sh")),
        ("tests/run.sh", include_str!("shop/fails_tests/run.sh")),
    ],
};

/// Needs a variable that the tests set and no host has: only health can tell.
pub(super) const UNHEALTHY: Change = Change {
    message: "Sell in any currency",
    files: &[
        ("app.sh", include_str!("shop/unhealthy/app.sh")),
        ("tests/run.sh", include_str!("shop/unhealthy/run.sh")),
    ],
};

/// Works as the first one did.
pub(super) const AGAIN: Change = Change {
    message: "Sell in EUR again",
    files: &[("app.sh", include_str!("shop/good/app.sh")), ("tests/run.sh", include_str!("shop/good/run.sh"))],
};

/// Well as long as one host has it: only watching tells.
pub(super) const ILL: Change = Change {
    message: "Share the price list between hosts",
    files: &[("app.sh", include_str!("shop/ill/app.sh")), ("tests/run.sh", include_str!("shop/ill/run.sh"))],
};

/// What mends [`ILL`], typed in the repository by whoever plays with it: `git revert` would bring back [`UNHEALTHY`].
pub(super) const MEND: &str =
    r#"sed -i 's|"$prices"/\*|"$prices/$HOST_NAME"|' app.sh && git commit -qam 'A price list for each host'"#;

/// A git repository with a work tree, on branch `main`.
pub(super) struct Repository {
    dir: PathBuf,
    path: String,
}

impl Repository {
    /// An empty one in `dir`, which is made.
    ///
    /// # Errors
    /// What git said.
    pub(super) fn init(dir: PathBuf, path: &str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let repository = Repository { dir, path: path.to_owned() };
        repository.git(&["init", "--quiet", "--template="])?;
        // Not `init --initial-branch`: git knows that since 2.28 only.
        repository.git(&["symbolic-ref", "HEAD", "refs/heads/main"])?;
        // For whoever plays with it afterwards, whatever their own configuration says.
        repository.git(&["config", "user.name", AUTHOR.0])?;
        repository.git(&["config", "user.email", AUTHOR.1])?;
        repository.git(&["config", "commit.gpgsign", "false"])?;
        Ok(repository)
    }

    /// Its directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Commits `change` on `main`; returns the commit's hash.
    ///
    /// # Errors
    /// A file could not be written, or what git said.
    pub(super) fn commit(&self, change: &Change) -> anyhow::Result<String> {
        for (name, content) in change.files {
            let path = self.dir.join(name);
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        }
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--no-verify", "--message", change.message])?;
        let head = self.git(&["rev-parse", "HEAD"])?;
        Ok(String::from_utf8_lossy(&head.stdout).trim().to_owned())
    }

    /// git with nothing of the user's: no configuration, hooks, prompts or editor.
    fn git(&self, args: &[&str]) -> anyhow::Result<Output> {
        let output = Command::new("git")
            .args(["-c", "core.hooksPath=/dev/null", "-c", "core.autocrlf=false"])
            .args(args)
            .current_dir(&self.dir)
            .env_clear()
            .env("PATH", &self.path)
            .envs([("HOME", "/nonexistent"), ("LANG", "C.UTF-8"), ("GIT_CONFIG_NOSYSTEM", "1")])
            .envs([("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_TERMINAL_PROMPT", "0"), ("GIT_EDITOR", "false")])
            .envs([("GIT_AUTHOR_NAME", AUTHOR.0), ("GIT_COMMITTER_NAME", AUTHOR.0)])
            .envs([("GIT_AUTHOR_EMAIL", AUTHOR.1), ("GIT_COMMITTER_EMAIL", AUTHOR.1)])
            .output()
            .context("git cannot be run; the demo needs it (for example `apt-get install git`)")?;
        if !output.status.success() {
            let first = args.first().copied().unwrap_or_default();
            bail!("git {first} in {}: {}", self.dir.display(), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(output)
    }
}
