//! What the API asks, answered.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::future::join_all;
use serde_json::json;

use super::{
    alarms, backup, changes,
    conductor::{Ask, Conductor, Requested},
    dry_run, export, freezes,
    handle::{
        ChangeAsk, Changed, Claim, Engine, EventStream, ExportQuery, FreezeAsk, Hooked, KeptAnswer, LeaseAsk, LogQuery,
        LogStream, NewToken, Pieces, Refusal, RunsQuery, Signalled, Start, Started,
    },
    hooks, hosts, idempotency, leases, ledger, log,
    maintenance::switch,
    plans, plugin, reload, signals, tokens,
    view::{
        AlarmView, CauseView, FreezeView, LeaseView, LiveView, MaintenanceView, Page, Plan, ProjectStatus, RunView,
        Status, TokenView,
        hosts::{FleetView, HostCheckView},
        signals::SignalsView,
    },
    views,
};
use crate::{
    lifecycle::locks::locked,
    model::{
        cause::Cause,
        doors,
        event::{Purpose, Wanted},
        host_key::Realm,
        ids::{EnvironmentName, ProjectName, RunId},
        pipeline::Environment,
        run::{RunState, Trigger},
    },
    ports::{index::IndexError, program::Loaded},
    time::rfc3339,
};

/// The longest a request waits for a run.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

fn unreadable(error: &IndexError) -> Refusal {
    Refusal::Unreadable(error.to_string())
}

fn run_id(text: &str) -> Result<RunId, Refusal> {
    text.parse().map_err(|_| Refusal::RunUnknown(text.to_owned()))
}

/// A forge's refusal: the caller's reference, or the remote's state.
fn forge(cause: Cause) -> Refusal {
    if cause.code.starts_with("ref_") { Refusal::Ref(cause) } else { Refusal::Forge(cause) }
}

fn environment<'a>(loaded: &'a Loaded, name: &str) -> Result<&'a Environment, Refusal> {
    let environments = &loaded.pipeline.environments;
    environments.iter().find(|e| e.name.as_str() == name).ok_or_else(|| Refusal::EnvironmentUnknown {
        project: loaded.name.clone(),
        environment: name.to_owned(),
        known: environments.iter().map(|e| e.name.as_str()).collect::<Vec<_>>().join(", "),
    })
}

impl Conductor {
    /// A run as it is on disk at this moment; views may be a little behind.
    pub(super) async fn view_now(&self, id: &RunId) -> Result<RunView, Refusal> {
        let views = self.inner.views.clone();
        let _views_are_gone = self.inner.world.tasks.blocking(move || views.barrier()).await;
        self.view(id)
    }

    pub(super) fn view(&self, id: &RunId) -> Result<RunView, Refusal> {
        if let Some(view) = self.inner.views.run(id).map_err(|e| unreadable(&e))? {
            return Ok(self.shown(view));
        }
        // On disk and not in the index yet.
        let entry = self.inner.world.control.get(&ledger::run_key(id));
        let requested = entry.and_then(|entry| serde_json::from_value::<Requested>(entry.value).ok());
        let requested = requested.ok_or_else(|| Refusal::RunUnknown(id.to_string()))?;
        let holder = self.testing(&requested.project);
        Ok(self.shown(views::queued(id, &requested.project, &requested.request, holder.as_ref())))
    }

    /// How far a run is, without a look at its hosts: who waits asks at every change of any run.
    fn state(&self, id: &RunId) -> Result<RunState, Refusal> {
        match self.inner.views.head(id).map_err(|e| unreadable(&e))? {
            Some(head) => Ok(head.state),
            None => Ok(self.view(id)?.state),
        }
    }

    /// The projects of a question about hosts.
    fn asked_about(
        &self,
        project: Option<&str>,
        only: Option<&str>,
        visible: &(dyn for<'p> Fn(&'p str) -> bool + Sync),
    ) -> Result<Vec<Arc<Loaded>>, Refusal> {
        let mut projects = match project {
            Some(project) => vec![self.project(project)?],
            None => self.all(),
        };
        projects.retain(|loaded| visible(loaded.name.as_str()));
        if let (Some(only), [loaded]) = (only, projects.as_slice()) {
            environment(loaded, only)?;
        }
        Ok(projects)
    }

    fn live(&self, loaded: &Loaded, environment: &Environment) -> LiveView {
        let control = &*self.inner.world.control;
        let live = ledger::live(control, &loaded.name, &environment.name);
        let last = ledger::last(control, &loaded.name, &environment.name);
        LiveView {
            environment: environment.name.to_string(),
            since: live.as_ref().map(|live| rfc3339(live.since_ms)),
            run: live.as_ref().map(|live| live.run.to_string()),
            release: live.as_ref().map(|live| (&live.release).into()),
            lease: self.held(&loaded.name, environment),
            freeze: self.frozen(&loaded.name, environment),
            when: environment.when.to_string(),
            trouble: last.and_then(|last| last.cause.as_ref().map(CauseView::from)),
        }
    }

    fn status_of(&self, loaded: &Loaded) -> Result<ProjectStatus, Refusal> {
        let running = self.active(&loaded.name).iter().map(|id| self.view(id)).collect::<Result<Vec<_>, _>>()?;
        let recent = self.inner.views.runs(Some(&loaded.name), None, 20).map_err(|e| unreadable(&e))?.runs;
        let trouble = locked(&self.inner.trouble).get(&format!("project {}", loaded.name)).map(CauseView::from);
        Ok(ProjectStatus {
            project: loaded.name.to_string(),
            source: loaded.pipeline.source.git.clone(),
            branch: loaded.pipeline.source.branch.clone(),
            last: recent.into_iter().find(|run| run.state.is_end() && run.state != RunState::Superseded),
            running,
            environments: loaded.pipeline.environments.iter().map(|e| self.live(loaded, e)).collect(),
            trouble,
        })
    }

    /// Whether every one of the first `count` environments has this very commit, and nothing is under way that would change that.
    pub(super) fn already_live(&self, loaded: &Loaded, count: usize, sha: &crate::model::ids::Sha) -> bool {
        let environments = &loaded.pipeline.environments;
        let control = &*self.inner.world.control;
        count > 0
            && self.active(&loaded.name).is_empty()
            && environments.iter().take(count).all(|e| {
                let last_was_bad = ledger::last(control, &loaded.name, &e.name)
                    .is_some_and(|last| last.state != crate::model::deployment::DeploymentState::Succeeded);
                !last_was_bad
                    && ledger::live(control, &loaded.name, &e.name).is_some_and(|live| live.release.commit.sha == *sha)
            })
    }
}

#[async_trait]
impl Engine for Conductor {
    async fn start(&self, project: &str, start: Start, by: &str) -> Result<Started, Refusal> {
        if !start.dry_run {
            self.writable()?;
        }
        let loaded = self.project(project)?;
        let last = start.environment.as_deref().map(|name| environment(&loaded, name)).transpose()?;
        let last = last.map(|environment| environment.name.clone());
        let source = &loaded.pipeline.source;
        let remote = &self.inner.world.forge;
        // Asked before the answer: a wrong reference is the caller's to mend, now.
        let wanted = start.reference.clone().map_or(Wanted::Head, Wanted::Named);
        let found = if start.reference.is_some() || start.dry_run {
            Some(remote.resolve(&loaded.name, source, &wanted).await.map_err(forge)?)
        } else {
            None
        };
        let (sha, is_head, tag) = match &found {
            Some(found) => (found.commit.sha.clone(), found.is_head, found.tag.clone()),
            None => (remote.head(&loaded.name, source).await.map_err(forge)?, true, None),
        };
        // It answers, so what an earlier look said is over.
        self.trouble(&format!("project {}", loaded.name), None);
        let reach = doors::reach(&loaded.pipeline, last.as_ref(), tag.as_deref());
        if !start.redeploy && !start.retest && self.already_live(&loaded, reach, &sha) {
            return Ok(Started::AlreadyLive(Box::new(self.status_of(&loaded)?)));
        }
        let under_way = ledger::head(&*self.inner.world.control, &loaded.name).filter(|head| head.sha == sha);
        if let Some(run) = under_way.and_then(|head| head.run)
            && last.is_none()
            && !start.redeploy
            && !start.retest
            && !start.dry_run
            && self.active(&loaded.name).contains(&run)
            && self.reach_of(&loaded, &run).is_some_and(|its| its >= reach)
        {
            // A poll or hook was faster with the very same commit: one press more does not make it two deployments.
            return Ok(Started::Run(Box::new(self.view(&run)?)));
        }
        let ask = Ask {
            wanted,
            tag,
            environment: last,
            reason: start.reason,
            purpose: Purpose::Deploy,
            redeploy: start.redeploy,
            retest: start.retest,
            retry_bad: start.retry_bad,
            head: is_head.then_some(sha),
            once: start.once,
            seen: None,
            signal: None,
        };
        if let Some(found) = found.filter(|_| start.dry_run) {
            let requested = self.asked_for(&loaded.name, Trigger::Api, by, &ask);
            return Ok(Started::Dry(Box::new(dry_run::dry_run(self, &loaded, requested, found).await?)));
        }
        let view = self.request(&loaded.name, Trigger::Api, by.to_owned(), ask, &[], Vec::new()).await?;
        let view = view.ok_or_else(|| Refusal::Degraded("a request without conditions met one".to_owned()))?;
        Ok(Started::Run(Box::new(view)))
    }

    async fn hook(
        &self,
        provider: &str,
        project: &str,
        headers: &[(String, String)],
        body: &[u8],
    ) -> Result<Hooked, Refusal> {
        hooks::take(self, provider, project, headers, body).await
    }

    async fn signal(&self, document: &[u8], signature: &str, piece: Option<&[u8]>) -> Signalled {
        signals::take(self, document, signature, piece).await
    }

    fn signals(&self) -> SignalsView {
        signals::view(self)
    }

    async fn stop_project(
        &self,
        project: &str,
        now: bool,
        reason: Option<String>,
        by: &str,
    ) -> Result<Vec<RunView>, Refusal> {
        self.writable()?;
        let loaded = self.project(project)?;
        let mut stopped = Vec::new();
        for id in self.active(&loaded.name) {
            let view = self.view(&id)?;
            if self.stop(&id, now, reason.clone(), by).await? {
                stopped.push(self.view_now(&id).await.unwrap_or(view));
            }
        }
        if stopped.is_empty() {
            return Err(Refusal::NothingToStop(format!("nothing of project {project} runs or waits")));
        }
        Ok(stopped)
    }

    async fn stop_run(&self, run: &str, now: bool, reason: Option<String>, by: &str) -> Result<RunView, Refusal> {
        let id = run_id(run)?;
        let view = self.view(&id)?;
        if !self.stop(&id, now, reason, by).await? {
            return Err(Refusal::NothingToStop(format!("run {run} of {} has ended", view.project)));
        }
        // The index may be behind: then it is shown as it was.
        self.view_now(&id).await.or(Ok(view))
    }

    async fn status(&self) -> Result<Status, Refusal> {
        let projects = self.all().iter().map(|loaded| self.status_of(loaded)).collect::<Result<Vec<_>, _>>()?;
        let trouble = locked(&self.inner.trouble);
        let own = trouble.iter().filter(|(place, _)| !place.starts_with("project "));
        let refused = self.inner.inbox.trouble(self.inner.world.clock.now().wall_ms);
        Ok(Status {
            version: self.inner.world.version.to_owned(),
            since: self.inner.since.rfc3339(),
            maintenance: self.inner.maintenance.view(),
            trouble: own.map(|(_, cause)| cause).chain(&refused).map(CauseView::from).collect(),
            projects,
        })
    }

    async fn project_status(&self, project: &str) -> Result<ProjectStatus, Refusal> {
        self.status_of(&*self.project(project)?)
    }

    async fn plan(&self, project: &str, only: Option<EnvironmentName>) -> Result<Plan, Refusal> {
        let loaded = self.project(project)?;
        if let Some(only) = &only {
            environment(&loaded, only.as_str())?;
        }
        Ok(plans::plan(self, &loaded, only.as_ref()).await)
    }

    async fn change(&self, project: &str, name: &str, ask: ChangeAsk, by: &str) -> Result<Changed, Refusal> {
        let loaded = self.project(project)?;
        let name = environment(&loaded, name)?.name.clone();
        changes::change(self, &loaded, &name, ask, by).await
    }

    async fn freeze(&self, project: &str, name: &str) -> Result<FreezeView, Refusal> {
        let loaded = self.project(project)?;
        Ok(freezes::view(self, &loaded, environment(&loaded, name)?))
    }

    async fn set_freeze(&self, project: &str, name: &str, ask: FreezeAsk, by: &str) -> Result<FreezeView, Refusal> {
        let loaded = self.project(project)?;
        freezes::freeze(self, &loaded, environment(&loaded, name)?, ask, by).await
    }

    async fn lift_freeze(
        &self,
        project: &str,
        name: &str,
        reason: Option<String>,
        by: &str,
    ) -> Result<FreezeView, Refusal> {
        let loaded = self.project(project)?;
        freezes::unfreeze(self, &loaded, environment(&loaded, name)?, reason, by).await
    }

    async fn lease(&self, project: &str, name: &str) -> Result<LeaseView, Refusal> {
        let loaded = self.project(project)?;
        Ok(leases::view(self, &loaded, environment(&loaded, name)?))
    }

    async fn hold_lease(&self, project: &str, name: &str, ask: LeaseAsk, by: &str) -> Result<LeaseView, Refusal> {
        let loaded = self.project(project)?;
        leases::hold(self, &loaded, environment(&loaded, name)?, ask, by).await
    }

    async fn release_lease(&self, project: &str, name: &str, ask: LeaseAsk, by: &str) -> Result<LeaseView, Refusal> {
        let loaded = self.project(project)?;
        leases::give_back(self, &loaded, environment(&loaded, name)?, ask, by).await
    }

    async fn runs(&self, query: RunsQuery) -> Result<Page<RunView>, Refusal> {
        let limit = query.limit.clamp(1, 500);
        let mut items: Vec<RunView> = Vec::new();
        let mut after = query.cursor;
        // With a state asked for, pages of the index are read until this one is full.
        let next_cursor = loop {
            let found =
                self.inner.views.runs(query.project.as_ref(), after.as_deref(), limit).map_err(|e| unreadable(&e))?;
            let last_page = found.next.is_none();
            after = found.next;
            let mut wanted = found.runs.into_iter().filter(|run| query.state.is_none_or(|state| run.state == state));
            items.extend(wanted.by_ref().take(limit - items.len()));
            let more_here = wanted.next().is_some();
            if items.len() == limit && (more_here || !last_page) {
                break items.last().map(|run| run.id.clone());
            }
            if last_page {
                break None;
            }
        };
        Ok(Page { items: items.into_iter().map(|run| self.shown(run)).collect(), next_cursor })
    }

    async fn run(&self, run: &str) -> Result<RunView, Refusal> {
        self.view(&run_id(run)?)
    }

    async fn wait(&self, run: &str, finished: bool, limit: Duration) -> Result<RunView, Refusal> {
        let id = run_id(run)?;
        let clock = Arc::clone(&self.inner.world.clock);
        let began = clock.now();
        let limit = limit.min(LONGEST_WAIT);
        let mut version = self.inner.views.board.version.subscribe();
        loop {
            version.mark_unchanged();
            let state = self.state(&id)?;
            let there = if finished { state.is_end() } else { state != RunState::Queued };
            let left = limit.saturating_sub(clock.now().since(&began));
            if there || left.is_zero() || !self.changed(&mut version, left).await {
                return self.view(&id);
            }
        }
    }

    async fn log(&self, run: &str, query: LogQuery) -> Result<Box<dyn LogStream>, Refusal> {
        let id = run_id(run)?;
        self.view(&id)?;
        Ok(Box::new(log::Reader::new(self.clone(), id, query)))
    }

    fn events(&self, after: Option<&str>) -> EventStream {
        self.inner.views.board.follow(after)
    }

    async fn reload(&self) -> Result<Vec<ProjectName>, Refusal> {
        reload::reload(self).await
    }

    async fn test_alerts(&self, project: Option<&str>) -> Result<Vec<(String, Option<Cause>)>, Refusal> {
        let projects = match project {
            Some(project) => vec![self.project(project)?],
            None => self.all(),
        };
        let mut answers = Vec::new();
        for loaded in projects {
            let notify = &loaded.pipeline.notify;
            let listed = |kind: &'static str, channels: &[String]| {
                let one = |(i, channel): (usize, &String)| {
                    (format!("notify/{kind}/{}", i + 1), format!("{} {kind}: {channel}", loaded.name))
                };
                channels.iter().enumerate().map(one).collect::<Vec<_>>()
            };
            let mut channels = listed("bad", &notify.bad);
            channels.extend(listed("good", &notify.good));
            for environment in &loaded.pipeline.environments {
                let of = &environment.name;
                channels.extend(environment.alarms.iter().enumerate().map(|(i, alarm)| {
                    let shown = format!("{} {of} alarm {:?}: {}", loaded.name, alarm.name, alarm.alert);
                    (format!("alarms/{of}/{}/alert", i + 1), shown)
                }));
            }
            for (function, shown) in channels {
                let message = json!({
                    "event": "test", "project": loaded.name, "run": "", "state": "test", "output": "",
                    "title": format!("{}: this is a test of phased", loaded.name),
                    "text": "Nothing happened. Had something gone wrong, it would be told here.",
                    "command": format!("phased status {}", loaded.name),
                });
                let input = json!({ "message": message });
                let sent = plugin::run(&self.inner.world, &loaded.name, &loaded.code, &function, input).await;
                answers.push((shown, sent.err()));
            }
        }
        Ok(answers)
    }

    async fn alarms(
        &self,
        project: Option<&str>,
        visible: &(dyn for<'p> Fn(&'p str) -> bool + Sync),
        measure: bool,
    ) -> Result<Vec<AlarmView>, Refusal> {
        let mut projects = match project {
            Some(project) => vec![self.project(project)?],
            None => self.all(),
        };
        projects.retain(|loaded| visible(loaded.name.as_str()));
        let mut views = Vec::new();
        for loaded in projects {
            for environment in &loaded.pipeline.environments {
                views.extend(alarms::views(&self.inner.world, &loaded, environment, measure).await);
            }
        }
        Ok(views)
    }

    async fn hosts(
        &self,
        project: Option<&str>,
        only: Option<&str>,
        visible: &(dyn for<'p> Fn(&'p str) -> bool + Sync),
        refresh: bool,
    ) -> Result<Vec<FleetView>, Refusal> {
        let projects = self.asked_about(project, only, visible)?;
        let mut looks = Vec::new();
        for loaded in &projects {
            for environment in &loaded.pipeline.environments {
                if only.is_none_or(|only| environment.name.as_str() == only) {
                    looks.push(hosts::show::view(&self.inner.world, loaded, environment, refresh));
                }
            }
        }
        Ok(join_all(looks).await)
    }

    async fn check_hosts(
        &self,
        project: Option<&str>,
        only: Option<&str>,
        visible: &(dyn for<'p> Fn(&'p str) -> bool + Sync),
    ) -> Result<Vec<HostCheckView>, Refusal> {
        let mut found = Vec::new();
        let began = self.inner.world.clock.now();
        for loaded in &self.asked_about(project, only, visible)? {
            for environment in &loaded.pipeline.environments {
                if only.is_none_or(|only| environment.name.as_str() == only) {
                    found.extend(hosts::check::check(&self.inner.world, loaded, environment, &began).await);
                }
            }
        }
        Ok(found)
    }

    async fn accept_hosts(&self, project: &str, name: &str, by: &str) -> Result<FleetView, Refusal> {
        self.writable()?;
        let loaded = self.project(project)?;
        let environment = environment(&loaded, name)?;
        let world = &self.inner.world;
        let ticket = hosts::accept(world, &loaded.name, &loaded.code, environment)
            .await
            .map_err(|error| self.refused(&error))?
            .map_err(Refusal::Unchangeable)?;
        self.synced(&ticket).await?;
        tracing::info!(project = %loaded.name, environment = %environment.name, by, "the hosts that are found now are accepted");
        Ok(hosts::show::view(world, &loaded, environment, false).await)
    }

    async fn forget_host_key(&self, project: &str, name: &str, id: &str, by: &str) -> Result<FleetView, Refusal> {
        self.writable()?;
        let loaded = self.project(project)?;
        let environment = environment(&loaded, name)?;
        let world = &self.inner.world;
        let realm = Realm::new(&loaded.name, &environment.name);
        let forgotten = hosts::keys::forget(&*world.control, &realm, id).map_err(|error| self.refused(&error))?;
        let found = hosts::kept::forget_keys(world, &loaded.name, environment, id).await;
        if forgotten.is_none() && !found {
            let (project, environment) = (loaded.name.clone(), environment.name.to_string());
            return Err(Refusal::HostKeyNone { project, environment, id: id.to_owned() });
        }
        if let Some((old, ticket)) = forgotten {
            self.synced(&ticket).await?;
            // A bastion that everybody is still logged in to has not been asked for its key again.
            world.links.let_go(id).await;
            tracing::warn!(project = %loaded.name, environment = %environment.name, host = id, by, key = old.fingerprint,
                "the learnt key of a host is forgotten; the next one it shows is learnt");
        }
        if found {
            tracing::warn!(project = %loaded.name, environment = %environment.name, host = id, by,
                "the keys that a source gave a host are forgotten; the source is asked for them again");
        }
        Ok(hosts::show::view(world, &loaded, environment, false).await)
    }

    async fn maintenance(&self, wait: Option<Duration>) -> MaintenanceView {
        switch::look(self, wait).await
    }

    async fn switch_maintenance(&self, on: bool, reason: Option<String>, by: &str) -> Result<MaintenanceView, Refusal> {
        switch::switch(self, on, reason, by).await
    }

    fn ready(&self) -> Vec<(&'static str, Option<String>)> {
        let trouble = locked(&self.inner.trouble);
        let of = |place: &str| trouble.get(place).map(|cause| cause.message.clone());
        let recovering = (!*self.inner.recovered.borrow()).then(|| "unfinished runs are being taken up".to_owned());
        vec![("disk", of("disk")), ("journal", of("journal")), ("index", of("index")), ("recovery", recovering)]
    }

    fn remark(&self, place: &str, cause: Option<Cause>) {
        self.trouble(place, cause);
    }

    async fn create_token(
        &self,
        name: &str,
        scopes: Vec<String>,
        projects: Vec<String>,
        ttl: Option<Duration>,
        by: &str,
    ) -> Result<NewToken, Refusal> {
        tokens::create(self, name, scopes, projects, ttl, by).await
    }

    async fn backup(&self, secrets: bool, by: &str) -> Result<Pieces, Refusal> {
        backup::begin(self, secrets, by).await
    }

    async fn export(&self, query: ExportQuery) -> Result<Pieces, Refusal> {
        export::begin(self, query)
    }

    fn tokens(&self) -> Vec<TokenView> {
        tokens::list(self)
    }

    async fn revoke_token(&self, id: &str, by: &str) -> Result<(), Refusal> {
        tokens::revoke(self, id, by).await
    }

    fn authenticate(&self, text: &str) -> Option<TokenView> {
        tokens::authenticate(self, text)
    }

    fn claim(&self, claim: &Claim) -> Result<Option<KeptAnswer>, Refusal> {
        idempotency::claim(self, claim)
    }

    async fn keep(&self, claim: &Claim, answer: Option<KeptAnswer>) -> Result<(), Refusal> {
        idempotency::keep(self, claim, answer).await
    }
}
