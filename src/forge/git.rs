//! Git by its command line: a full bare mirror of the branch and all tags per project, and a clean clone of it per run.
//!
//! Every name and URL comes from people or from the repository and is hostile: they are checked here, given to git as single
//! arguments behind `--` or on its standard input, and only as full refs, so that a branch called like a commit hash stays a branch.
//!
//! Git processes per call (helpers of git's own not counted): `head` 1; `resolve` 2 for the branch's head, 3 for another commit,
//! 4 for another branch's name; `checkout` 2; `is_ancestor`, `changed` 1; `tidy` 0, or 1 once there are more than twenty packs. The first call for a project makes its mirror: 1 more.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::{OnceCell, OwnedMutexGuard};

use crate::{
    model::{
        cause::Cause,
        doors::tagged,
        event::Wanted,
        ids::{ProjectName, Sha},
        pipeline::Source,
        release::Commit,
    },
    ports::{
        forge::{Forge, Resolved},
        hands::Hands,
        secrets::Secrets,
    },
    time::Clock,
};

mod access;
mod command;
mod fault;
mod look;
mod refs;
mod tree;

pub use fault::{OLDEST_GIT, git_is_new_enough};
pub use look::Looked;

use access::Access;
use command::{Command, Ended};

/// Of one git process that talks to a remote or writes a checkout.
const LIMIT: Duration = Duration::from_secs(600);
/// Of one that only asks the remote for a ref.
const ASK_LIMIT: Duration = Duration::from_secs(60);

/// More packs in a mirror than that, or loose objects, are put together: each fetch leaves a pack, and each checkout copies them all.
const PACKS: usize = 20;
const LOOSE: usize = 1000;

/// The projects' mirrors and checkouts under one directory, which is this value's alone.
pub struct Git {
    work_dir: PathBuf,
    secrets: Arc<dyn Secrets>,
    clock: Arc<dyn Clock>,
    projects: Mutex<BTreeMap<ProjectName, Arc<tokio::sync::Mutex<Mirror>>>>,
    usable: OnceCell<()>,
}

/// What is known of a project's mirror; its lock is the project's.
#[derive(Debug, Default)]
struct Mirror {
    /// No git was killed in it since it was last swept.
    clean: bool,
}

/// An output that was asked for, or the cause of its absence.
type Answer<T> = Result<T, Cause>;

fn disk(what: &str, path: &Path, error: &std::io::Error) -> Cause {
    Cause::new("git_failed", format!("cannot {what} {}: {error}", path.display()))
}

impl Git {
    /// Keeps everything under `work_dir`. Nothing is touched before the first call.
    #[must_use]
    pub fn new(work_dir: PathBuf, secrets: Arc<dyn Secrets>, clock: Arc<dyn Clock>) -> Self {
        Git { work_dir, secrets, clock, projects: Mutex::default(), usable: OnceCell::new() }
    }

    fn mirror_dir(&self, project: &ProjectName) -> PathBuf {
        self.work_dir.join(project.as_str()).join("mirror.git")
    }

    /// The dot keeps it apart from every project's name.
    fn keys_dir(&self) -> PathBuf {
        self.work_dir.join(".keys")
    }

    fn command(&self) -> Command {
        Command::new(&self.work_dir.join(".home"))
    }

    fn in_mirror(&self, project: &ProjectName) -> Command {
        let mirror = self.mirror_dir(project);
        let owned = mirror.to_string_lossy().into_owned();
        self.command().env("GIT_DIR", &mirror).config("safe.directory", owned)
    }

    fn state(&self, project: &ProjectName) -> Arc<tokio::sync::Mutex<Mirror>> {
        self.projects.lock().unwrap_or_else(PoisonError::into_inner).entry(project.clone()).or_default().clone()
    }

    async fn lock(&self, project: &ProjectName) -> OwnedMutexGuard<Mirror> {
        self.state(project).lock_owned().await
    }

    /// Git is here and new enough; asked once, and again only after a no.
    async fn usable(&self) -> Answer<()> {
        self.usable
            .get_or_try_init(|| async {
                // Keys a killed daemon left behind.
                if let Err(error) = tree::remove(&self.keys_dir()) {
                    return Err(disk("remove", &self.keys_dir(), &error));
                }
                fault::version(self.command().arg("--version").run(&*self.clock, ASK_LIMIT).await)
            })
            .await
            .copied()
    }

    /// Runs a command that talks to the remote and gives its output.
    async fn remote(&self, what: &str, access: &Access, command: Command, limit: Duration) -> Answer<Vec<u8>> {
        let ended = access.equip(command).run(&*self.clock, limit).await;
        fault::output(what, Some(access), limit, ended)
    }

    async fn local(&self, what: &str, command: Command) -> Answer<Vec<u8>> {
        fault::output(what, None, LIMIT, command.run(&*self.clock, LIMIT).await)
    }

    /// Makes the mirror if there is none, for `branch`, with hashes of `format`.
    async fn make_mirror(&self, project: &ProjectName, reference: &str, format: &str) -> Answer<()> {
        let dir = self.work_dir.join(project.as_str());
        tree::project_dir(&dir).map_err(|error| disk("make", &dir, &error))?;
        let (mirror, new) = (self.mirror_dir(project), dir.join("mirror.new"));
        // Made aside and renamed: a mirror that is there is a whole one.
        tree::fresh(&new).map_err(|error| disk("make", &new, &error))?;
        let init = self.command().args(["init", "--quiet", "--bare", "--template="]);
        self.local("init", init.arg(format!("--object-format={format}")).arg("--").arg(&new)).await?;
        let head = new.join("HEAD");
        std::fs::write(&head, format!("ref: {reference}\n")).map_err(|error| disk("write", &head, &error))?;
        tree::remove(&mirror).map_err(|error| disk("remove", &mirror, &error))?;
        std::fs::rename(&new, &mirror).map_err(|error| disk("make", &mirror, &error))
    }

    /// Brings the mirror up to date with the remote.
    async fn update(&self, project: &ProjectName, access: &Access, source: &Source, state: &mut Mirror) -> Answer<()> {
        let reference = refs::branch(&source.branch)?;
        let mirror = self.mirror_dir(project);
        let wanted = format!("ref: {reference}\n");
        // Another branch or none: begin anew rather than let old and new branches get into each other's way (`a` and `a/b`).
        if std::fs::read_to_string(mirror.join("HEAD")).ok().as_deref() != Some(&wanted) {
            self.make_mirror(project, &reference, "sha1").await?;
        } else if !state.clean {
            tree::unlock(&mirror);
        }
        state.clean = false;
        let fetched = match self.fetch(project, access, &reference).await {
            Err(cause) if cause.message.contains("mismatched algorithms") => {
                let other = if is_sha256(&mirror) { "sha1" } else { "sha256" };
                self.make_mirror(project, &reference, other).await?;
                self.fetch(project, access, &reference).await
            }
            fetched => fetched,
        };
        state.clean = fetched.is_ok();
        fetched.map(|_nothing| ())
    }

    async fn fetch(&self, project: &ProjectName, access: &Access, reference: &str) -> Answer<Vec<u8>> {
        let command = self
            .in_mirror(project)
            .args([
                "fetch",
                "--quiet",
                "--force",
                "--prune",
                "--no-tags",
                "--no-write-fetch-head",
                "--no-recurse-submodules",
            ])
            .args(["--end-of-options"])
            .arg(access.url.text.as_str())
            .arg(format!("+{reference}:{reference}"))
            .arg("+refs/tags/*:refs/tags/*");
        self.remote("fetch", access, command, LIMIT).await
    }

    /// The commits of full names and hashes, in order; a name that is none gives `None`. One process.
    async fn commits(&self, project: &ProjectName, names: &[String]) -> Answer<Vec<Option<Commit>>> {
        let asked: String = names.iter().map(|name| format!("{name}^{{commit}}\n")).collect();
        let out = self.local("cat-file", self.in_mirror(project).args(["cat-file", "--batch"]).stdin(asked)).await?;
        refs::batch(&out)
            .filter(|answers| answers.len() == names.len())
            .ok_or_else(|| Cause::new("git_failed", "git cat-file answered with something that is no commit"))
    }

    async fn ancestor(&self, project: &ProjectName, ancestor: &Sha, descendant: &Sha) -> Answer<bool> {
        if ancestor == descendant {
            return Ok(true);
        }
        let command =
            self.in_mirror(project).args(["merge-base", "--is-ancestor", ancestor.as_str(), descendant.as_str()]);
        match command.run(&*self.clock, LIMIT).await {
            Ended::Exit { code: 0, .. } => Ok(true),
            Ended::Exit { code: 1, .. } => Ok(false),
            ended => fault::output("merge-base", None, LIMIT, ended).map(|_nothing| false),
        }
    }

    /// The commit a person's `text` names, and the tag it was named by.
    async fn named(
        &self,
        project: &ProjectName,
        access: &Access,
        source: &Source,
        text: &str,
    ) -> Answer<(Commit, Commit, Option<String>)> {
        let head = refs::branch(&source.branch)?;
        // What the project itself calls its branch is that branch, even if it is called "refs/heads/x".
        let ours = text == source.branch;
        let branch = if ours { text } else { text.strip_prefix("refs/heads/").unwrap_or(text) };
        let tag = if ours { None } else { text.strip_prefix("refs/tags/") };
        // A whole hash is a commit, whatever else somebody has given that name, unless it is the branch that the project says.
        let hash = refs::as_hash(text).filter(|_| branch != source.branch);
        if hash.is_none() && !refs::is_ref_name(tag.unwrap_or(branch)) {
            return Err(refs::invalid(text));
        }
        let mut names = vec![head.clone()];
        names.push(match &hash {
            Some(hash) => hash.to_string(),
            None if branch == source.branch && tag.is_none() => head,
            None => format!("refs/tags/{}", tag.unwrap_or(branch)),
        });
        if hash.is_none() && refs::is_short_hash(text) {
            names.push(text.to_ascii_lowercase());
        }
        let is_tag =
            names.get(1).is_some_and(|name| name.starts_with("refs/tags/")) && !text.starts_with("refs/heads/");
        let mut found = self.commits(project, &names).await?.into_iter();
        let Some(head) = found.next().flatten() else {
            return Err(Cause::new("git_failed", format!("the mirror of {} has lost its branch", access.url.text)));
        };
        if text.starts_with("refs/heads/") && branch != source.branch {
            return self.other_branch(project, access, source, text, branch, head).await;
        }
        match (found.next().flatten(), found.next().flatten()) {
            (Some(commit), _) => {
                let tag = is_tag.then(|| tag.unwrap_or(text).to_owned());
                Ok((head, commit, tag))
            }
            (None, Some(commit)) => Ok((head, commit, None)),
            (None, None) if hash.is_some() || tag.is_some() => Err(fault::unknown(text, &access.url.text)),
            (None, None) => self.other_branch(project, access, source, text, branch, head).await,
        }
    }

    /// Another branch: its head counts if the project's branch contains it.
    async fn other_branch(
        &self,
        project: &ProjectName,
        access: &Access,
        source: &Source,
        text: &str,
        branch: &str,
        head: Commit,
    ) -> Answer<(Commit, Commit, Option<String>)> {
        let Some(sha) = self.ask(access, &refs::branch(branch)?).await? else {
            return Err(fault::unknown(text, &access.url.text));
        };
        match self.commits(project, &[sha.to_string()]).await?.pop().flatten() {
            Some(commit) => Ok((head, commit, None)),
            None => Err(fault::not_allowed(text, &sha, source)),
        }
    }

    async fn ask(&self, access: &Access, reference: &str) -> Answer<Option<Sha>> {
        let command = self
            .command()
            .args(["ls-remote", "--quiet", "--end-of-options"])
            .arg(access.url.text.as_str())
            .arg(reference);
        let out = self.remote("ls-remote", access, command, ASK_LIMIT).await?;
        Ok(refs::listed(&out, reference))
    }

    fn access(&self, source: &Source) -> Answer<Access> {
        Access::new(source, &*self.secrets, &self.keys_dir())
    }
}

fn is_sha256(mirror: &Path) -> bool {
    std::fs::read_to_string(mirror.join("config")).is_ok_and(|text| text.to_ascii_lowercase().contains("sha256"))
}

#[async_trait]
impl Forge for Git {
    async fn head(&self, _project: &ProjectName, source: &Source) -> Result<Sha, Cause> {
        self.usable().await?;
        let reference = refs::branch(&source.branch)?;
        let access = self.access(source)?;
        self.ask(&access, &reference).await?.ok_or_else(|| fault::no_branch(&source.branch, &access.url.text))
    }

    async fn tags(&self, _project: &ProjectName, source: &Source) -> Result<Vec<(String, Sha)>, Cause> {
        self.usable().await?;
        let access = self.access(source)?;
        let command = self
            .command()
            .args(["ls-remote", "--quiet", "--refs", "--sort=version:refname", "--end-of-options"])
            .arg(access.url.text.as_str())
            .arg("refs/tags/*");
        let out = self.remote("ls-remote", &access, command, ASK_LIMIT).await?;
        let mut tags = refs::tags(&out);
        tags.retain(|(name, _)| tagged(&source.tags, name));
        Ok(tags)
    }

    async fn resolve(&self, project: &ProjectName, source: &Source, wanted: &Wanted) -> Result<Resolved, Cause> {
        self.usable().await?;
        refs::branch(&source.branch)?;
        let access = self.access(source)?;
        let mut state = self.lock(project).await;
        match self.update(project, &access, source, &mut state).await {
            // What is asked for by its hash and known here needs nobody else: a release goes back, or out again, while the forge is down.
            Err(cause) if fault::is_away(&cause) => {
                let known = self.known(project, source, wanted).await;
                return known.ok_or(cause);
            }
            updated => updated?,
        }
        let (head, commit, tag) = match wanted {
            Wanted::Named(text) => self.named(project, &access, source, text).await?,
            Wanted::Head | Wanted::Pushed(_) => {
                let mut names = vec![refs::branch(&source.branch)?];
                if let Wanted::Pushed(sha) = wanted {
                    names.push(sha.to_string());
                }
                let mut found = self.commits(project, &names).await?.into_iter();
                let Some(head) = found.next().flatten() else {
                    return Err(fault::no_branch(&source.branch, &access.url.text));
                };
                let commit = match wanted {
                    Wanted::Pushed(sha) => {
                        found.next().flatten().ok_or_else(|| fault::unknown(sha.as_str(), &access.url.text))?
                    }
                    _ => head.clone(),
                };
                (head, commit, None)
            }
        };
        let by_tag = tag.as_ref().is_some_and(|tag| tagged(&source.tags, tag));
        if !by_tag && !self.ancestor(project, &commit.sha, &head.sha).await? {
            return Err(match wanted {
                Wanted::Pushed(sha) => fault::not_on_branch(sha, &source.branch),
                Wanted::Named(text) => fault::not_allowed(text, &commit.sha, source),
                Wanted::Head => fault::no_branch(&source.branch, &access.url.text),
            });
        }
        let public = self.mirror_dir(project).join("phased-origin");
        std::fs::write(&public, &access.url.text).map_err(|error| disk("write", &public, &error))?;
        Ok(Resolved { is_head: commit.sha == head.sha, commit, tag })
    }

    async fn checkout(&self, project: &ProjectName, sha: &Sha, dir: &Path, hands: &dyn Hands) -> Result<(), Cause> {
        self.usable().await?;
        if !dir.starts_with(self.work_dir(project))
            || dir.components().any(|part| part.as_os_str() == "..")
            || dir == self.work_dir(project)
        {
            let message = format!(
                "{} is no place for a checkout: it is not below {}",
                dir.display(),
                self.work_dir(project).display()
            );
            return Err(Cause::new("git_failed", message));
        }
        let _state = self.lock(project).await;
        let mirror = self.mirror_dir(project);
        if !mirror.join("HEAD").exists() {
            return Err(fault::unknown(sha.as_str(), &mirror.display().to_string()));
        }
        // A git that a killed daemon left behind may still be at work on this very checkout: each has a place of its own, and what is
        // whole is put in its place at once.
        let aside = dir.with_extension(self.clock.now().wall_ms.to_string());
        let made = async {
            hands.remove(project, &aside).await?;
            self.clone_at(&mirror, sha, &aside).await?;
            hands.give(project, &aside).await?;
            hands.remove(project, dir).await?;
            tokio::fs::rename(&aside, dir).await.map_err(|error| disk("make", dir, &error))
        };
        let made = made.await;
        if made.is_err() {
            let _left_over = hands.remove(project, dir).await;
        }
        // What unfinished checkouts have left beside it.
        for left in tree::beside(dir) {
            let _somebody_may_still_write_there = hands.remove(project, &left).await;
        }
        made
    }

    async fn is_ancestor(&self, project: &ProjectName, ancestor: &Sha, descendant: &Sha) -> Result<bool, Cause> {
        self.usable().await?;
        self.ancestor(project, ancestor, descendant).await
    }

    async fn changed(&self, project: &ProjectName, from: &Sha, to: &Sha) -> Result<Vec<String>, Cause> {
        self.usable().await?;
        let command =
            self.in_mirror(project).args(["diff-tree", "-r", "-z", "--name-only", "--no-renames", "--end-of-options"]);
        let out = self.local("diff-tree", command.args([from.as_str(), to.as_str()])).await?;
        let paths = out.split(|b| *b == 0).filter(|path| !path.is_empty());
        Ok(paths.map(|path| String::from_utf8_lossy(path).into_owned()).collect())
    }

    async fn tidy(&self, project: &ProjectName) -> Result<(), Cause> {
        let objects = self.mirror_dir(project).join("objects");
        if !on_disk("read", &objects.clone(), move || tree::scattered(&objects, PACKS, LOOSE)).await? {
            return Ok(());
        }
        self.usable().await?;
        // Whoever has it now may have it for long, where a remote hangs: the next time will do.
        let Ok(mut state) = self.state(project).try_lock_owned() else { return Ok(()) };
        let clean = std::mem::replace(&mut state.clean, false);
        // Small packs become a larger one, and a large one is written again only when they have half as many objects: projects that are
        // at work all day have no hour for more. What no branch has any more stays, a release may have come of it that is gone back to.
        let repack = self.in_mirror(project).args(["repack", "--geometric=2", "-d", "--quiet"]);
        // Others are at work on this machine.
        let modest =
            [("pack.threads", "1"), ("pack.windowMemory", "128m"), ("repack.writeBitmaps", "false")].into_iter();
        self.local("repack", modest.fold(repack, |repack, (key, value)| repack.config(key, value))).await?;
        state.clean = clean;
        Ok(())
    }

    fn work_dir(&self, project: &ProjectName) -> PathBuf {
        self.work_dir.join(project.as_str())
    }
}

impl Git {
    /// The commit of a whole hash, where the mirror has it on the branch as that was last seen.
    async fn known(&self, project: &ProjectName, source: &Source, wanted: &Wanted) -> Option<Resolved> {
        let Wanted::Named(text) = wanted else { return None };
        let sha = refs::as_hash(text)?;
        let names = [refs::branch(&source.branch).ok()?, sha.to_string()];
        let mut found = self.commits(project, &names).await.ok()?.into_iter();
        let (head, commit) = (found.next().flatten()?, found.next().flatten()?);
        let on_branch = self.ancestor(project, &commit.sha, &head.sha).await.ok()?;
        // Whether it is the head nobody can tell.
        on_branch.then_some(Resolved { commit, tag: None, is_head: false })
    }

    async fn clone_at(&self, mirror: &Path, sha: &Sha, dir: &Path) -> Answer<()> {
        let target = dir.to_owned();
        on_disk("make", dir, move || tree::fresh(&target)).await?;
        let own = |command: Command| {
            command.plain_modes().env("GIT_ALLOW_PROTOCOL", "file").config("protocol.file.allow", "always")
        };
        let clone = self
            .command()
            .args(["clone", "--quiet", "--no-hardlinks", "--no-checkout", "--template=", "--no-recurse-submodules"])
            .arg("--end-of-options")
            .arg(mirror)
            .arg(dir);
        self.local("clone", own(clone)).await?;
        let checkout =
            self.command().arg("-C").arg(dir).args(["checkout", "--quiet", "--force", "--detach", sha.as_str(), "--"]);
        self.local("checkout", own(checkout)).await.map_err(|cause| {
            if cause.message.contains("reference is not a tree") || cause.message.contains("unable to read tree") {
                return fault::unknown(sha.as_str(), &mirror.display().to_string());
            }
            cause
        })?;
        // The URL people know, in place of the mirror's path.
        let origin = std::fs::read_to_string(mirror.join("phased-origin")).unwrap_or_default();
        let target = dir.to_owned();
        on_disk("make", dir, move || point_origin(&target.join(".git/config"), &origin)).await
    }
}

fn point_origin(config: &Path, url: &str) -> std::io::Result<()> {
    let quoted = url.replace('\\', "\\\\").replace('"', "\\\"");
    let lines = std::fs::read_to_string(config)?;
    let lines: Vec<String> = lines
        .lines()
        .map(|line| if line.starts_with("\turl = ") { format!("\turl = \"{quoted}\"") } else { line.to_owned() })
        .collect();
    std::fs::write(config, lines.join("\n") + "\n")
}

/// Work on many files, off the runtime's threads.
async fn on_disk<T: Send + 'static>(
    what: &str,
    path: &Path,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Answer<T> {
    let done = tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    done.map_err(|error| disk(what, path, &error))
}

#[cfg(test)]
mod tests;
