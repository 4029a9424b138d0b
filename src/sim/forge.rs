//! The repositories: commits of the scenario, one after the other on one branch each.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;

use super::outside::Outside;
use crate::{
    model::{
        cause::Cause,
        event::Wanted,
        ids::{ProjectName, Sha},
        pipeline::Source,
    },
    ports::{
        forge::{Forge, Resolved},
        hands::Hands,
    },
    time::Clock as _,
};

/// The remotes, and the mirrors of them.
pub(super) struct Repository(pub(super) Outside);

impl Repository {
    async fn wait(&self) -> Result<(), Cause> {
        let (micros, answers) = self.0.git();
        self.0.clock().sleep(Duration::from_micros(micros)).await;
        if answers { Ok(()) } else { Err(Cause::new("git_unreachable", "the remote does not answer")) }
    }
}

#[async_trait]
impl Forge for Repository {
    async fn head(&self, project: &ProjectName, _source: &Source) -> Result<Sha, Cause> {
        self.wait().await?;
        self.0
            .commits(project)
            .pop()
            .map(|commit| commit.sha)
            .ok_or_else(|| Cause::new("ref_unknown", "there is no commit"))
    }

    async fn tags(&self, _project: &ProjectName, _source: &Source) -> Result<Vec<(String, Sha)>, Cause> {
        Ok(Vec::new())
    }

    async fn resolve(&self, project: &ProjectName, _source: &Source, wanted: &Wanted) -> Result<Resolved, Cause> {
        self.wait().await?;
        let commits = self.0.commits(project);
        let found = match wanted {
            Wanted::Head => commits.last(),
            Wanted::Pushed(sha) => commits.iter().find(|commit| commit.sha == *sha),
            Wanted::Named(name) => commits.iter().find(|commit| commit.sha.as_str().starts_with(name.as_str())),
        };
        let Some(commit) = found else { return Err(Cause::new("ref_unknown", "there is no such commit")) };
        let is_head = commits.last().is_some_and(|head| head.sha == commit.sha);
        Ok(Resolved { commit: commit.clone(), tag: None, is_head })
    }

    async fn checkout(&self, _project: &ProjectName, _sha: &Sha, _dir: &Path, _hands: &dyn Hands) -> Result<(), Cause> {
        let (micros, _) = self.0.git();
        self.0.clock().sleep(Duration::from_micros(micros)).await;
        Ok(())
    }

    async fn is_ancestor(&self, project: &ProjectName, ancestor: &Sha, descendant: &Sha) -> Result<bool, Cause> {
        let commits = self.0.commits(project);
        let at = |sha: &Sha| commits.iter().position(|commit| commit.sha == *sha);
        Ok(at(ancestor) <= at(descendant))
    }

    async fn changed(&self, _project: &ProjectName, _from: &Sha, _to: &Sha) -> Result<Vec<String>, Cause> {
        Ok(vec!["src/main.rs".to_owned()])
    }

    async fn tidy(&self, _project: &ProjectName) -> Result<(), Cause> {
        Ok(())
    }

    fn work_dir(&self, project: &ProjectName) -> PathBuf {
        Path::new("/simulated/work").join(project.as_str())
    }
}
