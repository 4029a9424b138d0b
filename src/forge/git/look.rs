//! A look at a repository before there is a project: which branch is its own, and what lies in it.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    ASK_LIMIT, Answer, Git, LIMIT,
    access::{Kind, Url},
    disk, fault, refs, tree,
};
use crate::model::{cause::Cause, ids::Sha, pipeline::Source};

/// More of a file than this tells nothing more of what it is.
const MAX_TEXT: usize = 1 << 20;

/// What was seen.
#[derive(Debug, Clone)]
pub struct Looked {
    /// The branch: the one asked for, or the repository's own.
    pub branch: String,
    /// Its head.
    pub head: Sha,
    /// Every file of it, by its path.
    pub files: BTreeSet<String>,
    /// Those that were to be read and are there.
    pub texts: BTreeMap<String, String>,
}

impl Git {
    /// The URL as it is given to git and shown to people: without a user's name where that is no part of the way.
    ///
    /// # Errors
    /// `git_url`: it is none that is fetched from.
    pub fn url(text: &str) -> Answer<String> {
        Url::parse(text).map(|url| url.text)
    }

    /// The server and port that git asks by SSH; `None` = not by SSH.
    #[must_use]
    pub fn ssh_server(text: &str) -> Option<(String, u16)> {
        let url = Url::parse(text).ok().filter(|url| url.kind == Kind::Ssh)?.text;
        let (authority, has_port) = match url.strip_prefix("ssh://") {
            Some(rest) => (rest.split('/').next()?.to_owned(), true),
            // user@host:path
            None => {
                let place = url.split_once('@').map_or(url.as_str(), |(_, place)| place);
                (place.split_once(':')?.0.to_owned(), false)
            }
        };
        let place = authority.rsplit_once('@').map_or(authority.as_str(), |(_, place)| place);
        let (host, port) = match place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, rest)) => (host, rest.strip_prefix(':')),
            None if has_port => place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
            None => (place, None),
        };
        Some((host.to_owned(), port.map_or(Some(22), |port| port.parse().ok())?))
    }

    /// Asks the remote of `source` for its branch (its own, if `source.branch` is empty), fetches that commit alone, and reads the files called
    /// `names`. No file of it is written out.
    ///
    /// # Errors
    /// `git_*`, `ref_*`: which part of the way is barred, and what to do.
    pub async fn look(&self, source: &Source, names: &[&str]) -> Answer<Looked> {
        self.usable().await?;
        let access = self.access(source)?;
        let url = access.url.text.clone();
        let branch = match source.branch.as_str() {
            "" => {
                let command = self.command().args(["ls-remote", "--quiet", "--symref", "--end-of-options"]);
                let out = self.remote("ls-remote", &access, command.arg(url.as_str()).arg("HEAD"), ASK_LIMIT).await?;
                own_branch(&out).ok_or_else(|| {
                    Cause::new(
                        "ref_unknown",
                        format!("{url} has no commit yet, or no branch of its own: push one, or name it"),
                    )
                })?
            }
            branch => branch.to_owned(),
        };
        let reference = refs::branch(&branch)?;
        let head = self.ask(&access, &reference).await?.ok_or_else(|| fault::no_branch(&branch, &url))?;
        let aside = self.work_dir.join("look.git");
        tree::fresh(&aside).map_err(|error| disk("make", &aside, &error))?;
        let format = if head.as_str().len() == 64 { "sha256" } else { "sha1" };
        let init = self.command().args(["init", "--quiet", "--bare", "--template="]);
        self.local("init", init.arg(format!("--object-format={format}")).arg("--").arg(&aside)).await?;
        let here = || self.command().env("GIT_DIR", &aside).config("safe.directory", aside.to_string_lossy());
        let fetch = here()
            .args(["fetch", "--quiet", "--depth=1", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules"])
            .args(["--end-of-options"])
            .arg(url.as_str())
            .arg(format!("+{reference}:refs/heads/looked"));
        self.remote("fetch", &access, fetch, LIMIT).await?;
        let list = here().args(["ls-tree", "-r", "-z", "--name-only", "refs/heads/looked"]);
        let out = self.local("ls-tree", list).await?;
        let paths = out.split(|b| *b == 0).filter(|path| !path.is_empty());
        let files: BTreeSet<String> = paths.map(|path| String::from_utf8_lossy(path).into_owned()).collect();
        let mut texts = BTreeMap::new();
        for name in names.iter().filter(|name| files.contains(**name)) {
            let show = here().args(["cat-file", "blob"]).arg(format!("refs/heads/looked:{name}"));
            // A submodule or a link in its place is nothing to read.
            if let Ok(mut bytes) = self.local("cat-file", show).await {
                bytes.truncate(MAX_TEXT);
                texts.insert((*name).to_owned(), String::from_utf8_lossy(&bytes).into_owned());
            }
        }
        let _gone_with_its_directory = tree::remove(&aside);
        Ok(Looked { branch, head, files, texts })
    }
}

/// The branch that `HEAD` of a listing with `--symref` stands for.
fn own_branch(out: &[u8]) -> Option<String> {
    String::from_utf8_lossy(out).lines().find_map(|line| {
        let reference = line.strip_prefix("ref: ")?.strip_suffix("\tHEAD")?;
        reference.strip_prefix("refs/heads/").map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_of_a_url() {
        for (url, server) in [
            ("git@github.com:acme/shop.git", Some(("github.com", 22))),
            ("ssh://git@example.com:2222/srv/x.git", Some(("example.com", 2222))),
            ("ssh://example.com/x", Some(("example.com", 22))),
            ("ssh://[::1]:2200/x", Some(("::1", 2200))),
            ("https://github.com/acme/shop.git", None),
            ("/srv/x.git", None),
            ("nonsense", None),
        ] {
            assert_eq!(Git::ssh_server(url), server.map(|(host, port)| (host.to_owned(), port)), "{url}");
        }
    }

    #[test]
    fn the_branch_that_head_is() {
        assert_eq!(own_branch(b"ref: refs/heads/trunk\tHEAD\n0123\tHEAD\n").as_deref(), Some("trunk"));
        for none in [&b""[..], b"0123\tHEAD\n", b"ref: refs/tags/x\tHEAD\n"] {
            assert_eq!(own_branch(none), None);
        }
    }
}
