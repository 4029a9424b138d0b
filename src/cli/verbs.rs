//! What each verb asks and prints.

use std::sync::Arc;

use http_body_util::BodyExt as _;
use serde_json::json;

use super::{
    AlertCommand, ChangeArgs, ClientArgs, ClientCommand, FreezeArgs, MaintenanceCommand, StartArgs, StopArgs,
    TokenCommand,
    client::{Address, Client, encoded, read, with_query},
    exit::{Code, Failure},
    output::{complain, data, say},
    progress::Progress,
    wait::{Waited, parked, wait},
};
use crate::{
    api::{
        render,
        routes::{alerts::ChannelView, projects::AlreadyLive, status::Reloaded, tokens::CreatedToken},
        text::{one_line, plain_json, printable, word},
    },
    engine::view::{FreezeView, Page, RunView, dry_run::DryRun, hosts::FleetView},
    model::{ids::RunId, run::RunState},
    time::{Span, SystemClock},
};

const TEXT: &str = "text/plain";
const JSON: &str = "application/json";

/// Does the verb and says how it went.
pub(super) async fn run(command: &ClientCommand, args: &ClientArgs) -> Code {
    let token = std::env::var("PHASED_TOKEN").ok();
    let done = match args.addr.parse::<Address>() {
        Ok(address) => {
            let client = Client::new(address, token, Arc::new(SystemClock::new())).trusting(args.ca_file.clone());
            done(&Asking { client, json: args.json }, command).await
        }
        Err(failure) => Err(failure),
    };
    match done {
        Ok(code) => code,
        Err(failure) => {
            explain(&failure, args.json);
            Code::of_failure(&failure)
        }
    }
}

fn explain(failure: &Failure, as_json: bool) {
    match failure {
        Failure::OutputClosed => {}
        Failure::Problem(problem) if as_json => {
            say(&format!("{}\n", plain_json(&serde_json::to_string(problem).unwrap_or_default())))
        }
        failure if as_json => {
            let code = if matches!(failure, Failure::Unreachable(_)) { "unreachable" } else { "error" };
            say(&format!("{}\n", plain_json(&json!({"code": code, "detail": failure.to_string()}).to_string())));
        }
        Failure::Problem(problem) => {
            complain(&problem.detail);
            if problem.errors.len() > 1 {
                for error in &problem.errors {
                    say(&format!("  {}: {}\n", printable(&error.pointer), printable(&error.detail)));
                }
            }
            if problem.status == 401 {
                say("  PHASED_TOKEN holds the token; on the daemon's machine the socket needs none\n");
            }
            if problem.code == "internal" {
                say(&format!("  request {}\n", printable(&problem.request_id)));
            }
        }
        failure => complain(&failure.to_string()),
    }
}

pub(super) struct Asking {
    pub(super) client: Client,
    pub(super) json: bool,
}

async fn done(asking: &Asking, command: &ClientCommand) -> Result<Code, Failure> {
    match command {
        ClientCommand::Start(args) => return asking.start(args).await,
        ClientCommand::Stop(args) => asking.stop(args).await?,
        ClientCommand::Status { project: None } => asking.show("/v1/status").await?,
        ClientCommand::Status { project: Some(project) } => {
            asking.show(&format!("/v1/projects/{}/status", encoded(project))).await?;
        }
        ClientCommand::Log(args) => asking.log(args).await?,
        ClientCommand::Plan { project, environment } => {
            let path = format!("/v1/projects/{}/plan", encoded(project));
            asking.show(&with_query(&path, &[("environment", environment.clone())])).await?;
        }
        ClientCommand::Hosts { project, environment: Some(environment), accept: true, .. } => {
            asking.changed_hosts(project, environment, "accept", &json!({})).await?;
        }
        ClientCommand::Hosts { project, environment: Some(environment), forget_key: Some(id), .. } => {
            asking.changed_hosts(project, environment, "forget_key", &json!({ "host": id })).await?;
        }
        ClientCommand::Hosts { project, environment, refresh, .. } => {
            let refresh = refresh.then(|| "true".to_owned());
            let pairs =
                [("project", Some(project.clone())), ("environment", environment.clone()), ("refresh", refresh)];
            asking.show(&with_query("/v1/hosts", &pairs)).await?;
        }
        ClientCommand::Runs { project, state, limit } => {
            let pairs = [("project", project.clone()), ("state", state.clone()), ("limit", Some(limit.to_string()))];
            asking.show(&with_query("/v1/runs", &pairs)).await?;
        }
        ClientCommand::Rollback { change, to } => return asking.change("rollback", change, to.as_deref()).await,
        ClientCommand::Pause(args) => return asking.change("pause", args, None).await,
        ClientCommand::Resume(args) => return asking.change("resume", args, None).await,
        ClientCommand::Promote(args) => return asking.change("promote", args, None).await,
        ClientCommand::Converge(args) => return asking.change("converge", args, None).await,
        ClientCommand::Adopt(args) => return asking.change("adopt", args, None).await,
        ClientCommand::Freeze(args) => asking.freeze(args).await?,
        ClientCommand::Unfreeze { project, environment, reason } => {
            asking.unfreeze(project, environment, reason.clone()).await?;
        }
        ClientCommand::Token(command) => asking.token(command).await?,
        ClientCommand::Reload => asking.reload().await?,
        ClientCommand::Signals => asking.show("/v1/signals").await?,
        ClientCommand::Maintenance { switch: None } => asking.show("/v1/maintenance").await?,
        ClientCommand::Maintenance { switch: Some(switch) } => return asking.maintenance(switch).await,
        ClientCommand::Alert(AlertCommand::Test { project }) => return asking.test_alerts(project.as_deref()).await,
        ClientCommand::Backup(args) => asking.backup(args).await?,
        ClientCommand::Export { project, after } => asking.export(project.as_deref(), after.as_deref()).await?,
        ClientCommand::Events { project } => {
            let path = with_query("/v1/events", &[("project", project.clone())]);
            let _any = asking.stream(&path).await?;
        }
    }
    Ok(Code::Ok)
}

impl Asking {
    /// What the API says, as it says it.
    async fn show(&self, path: &str) -> Result<(), Failure> {
        if self.json {
            return self.raw(&self.client.get(path, JSON).await?);
        }
        data(&printable(&self.client.get(path, TEXT).await?))
    }

    pub(super) fn raw(&self, body: &str) -> Result<(), Failure> {
        data(&format!("{}\n", plain_json(body.trim_end())))
    }

    /// A body that goes on and on, line by line: nothing from outside reaches the terminal unfiltered, wherever packets were cut. Whether there
    /// was anything.
    pub(super) async fn stream(&self, path: &str) -> Result<bool, Failure> {
        let accept = if self.json { "application/x-ndjson" } else { TEXT };
        let mut body = self.client.open(path, accept).await?.into_body();
        let mut rest: Vec<u8> = Vec::new();
        let mut any = false;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| Failure::Broken(format!("the daemon ended the stream: {e}")))?;
            let Ok(bytes) = frame.into_data() else { continue };
            rest.extend_from_slice(&bytes);
            let Some(end) = rest.iter().rposition(|b| *b == b'\n') else {
                if rest.len() > 1 << 20 {
                    any |= self.lines(&std::mem::take(&mut rest))?;
                }
                continue;
            };
            let after = rest.split_off(end + 1);
            any |= self.lines(&std::mem::replace(&mut rest, after))?;
        }
        Ok(any | self.lines(&rest)?)
    }

    /// Whether there was anything to print.
    fn lines(&self, bytes: &[u8]) -> Result<bool, Failure> {
        let text = String::from_utf8_lossy(bytes);
        // `{}` is only a sign of life.
        let kept = |text: &str| text.split_inclusive('\n').filter(|line| line.trim() != "{}").collect::<String>();
        let shown = if self.json { plain_json(&kept(&text)) } else { printable(&text) };
        if !shown.is_empty() {
            data(&shown)?;
        }
        Ok(!shown.is_empty())
    }

    async fn start(&self, args: &StartArgs) -> Result<Code, Failure> {
        let environment = args.environment.as_ref().or(args.no_further.as_ref());
        let body = json!({
            "ref": args.reference, "environment": environment, "reason": args.reason,
            "redeploy": args.redeploy, "retest": args.retest, "retry_bad": args.retry_bad,
            "dry_run": args.dry_run,
        });
        let answer = self.client.post(&format!("/v1/projects/{}/start", encoded(&args.project)), &body).await?;
        if let Ok(live) = serde_json::from_str::<AlreadyLive>(&answer)
            && live.code == "already_live"
        {
            if self.json {
                self.raw(&answer)?;
            } else {
                let now_ms = self.client.clock.now().wall_ms;
                let project = one_line(&args.project, 64);
                say(&format!("{project}: nothing to do, it is live already; --redeploy deploys it again\n"));
                data(&render::project(&live.status, now_ms))?;
            }
            return Ok(Code::Ok);
        }
        if args.dry_run {
            let view: DryRun = read(&answer)?;
            if self.json {
                self.raw(&answer)?
            } else {
                data(&render::dry_run(&view))?
            }
            let well = view.errors == 0 && view.state == RunState::Succeeded;
            return Ok(if well { Code::Ok } else { Code::Error });
        }
        self.goes_on(&answer, "", args.wait, args.timeout).await
    }

    /// The end of a verb that a run goes on from: it is waited for, or shown. `done` goes before the run, as in `pause, `.
    async fn goes_on(&self, answer: &str, done: &str, wait: bool, limit: Option<Span>) -> Result<Code, Failure> {
        let run: RunView = read(answer)?;
        let id = one_line(&run.id, 40);
        if wait {
            return self.wait(&id, limit.map(|limit| limit.0)).await;
        }
        if self.json {
            self.raw(answer)?;
        } else {
            data(&format!("{}: {done}run {id} is {}\n", one_line(&run.project, 64), word(&run.state)))?;
            say(&format!("follow it with `phased log -f {id}`, stop it with `phased stop {id}`\n"));
        }
        Ok(Code::Ok)
    }

    async fn wait(&self, id: &str, limit: Option<std::time::Duration>) -> Result<Code, Failure> {
        let mut progress = Progress::new();
        progress.remark(&format!("run {id}"));
        let goes_on = format!("run {id} goes on: follow it with `phased log -f {id}`, stop it with `phased stop {id}`");
        match wait(&self.client, id, limit, &mut progress).await {
            Ok(Waited::Ended(run)) => {
                if self.json {
                    data(&format!("{}\n", plain_json(&serde_json::to_string(&run).unwrap_or_default())))?;
                } else {
                    data(&outcome(&run, self.client.clock.now().wall_ms))?;
                }
                if !run.state.is_end() {
                    say("it is paused and goes on only when told to\n");
                } else if run.state != RunState::Succeeded {
                    say(&format!("look further with `phased log {id}`\n"));
                }
                Ok(Code::of_run(&run))
            }
            Ok(Waited::TimedOut) => {
                complain(&format!("the time to wait is up; {goes_on}"));
                Ok(Code::TimedOut)
            }
            Ok(Waited::Interrupted) => {
                say(&format!("\n{goes_on}\n"));
                Ok(Code::Interrupted)
            }
            Err(failure) => {
                say(&format!("{goes_on}\n"));
                Err(failure)
            }
        }
    }

    async fn stop(&self, args: &StopArgs) -> Result<(), Failure> {
        let body = json!({"now": args.now, "reason": args.reason});
        let one_run = args.target.parse::<RunId>().is_ok();
        let kind = if one_run { "runs" } else { "projects" };
        let answer = self.client.post(&format!("/v1/{kind}/{}/stop", encoded(&args.target)), &body).await?;
        if self.json {
            return self.raw(&answer);
        }
        let runs = if one_run { vec![read::<RunView>(&answer)?] } else { read::<Page<RunView>>(&answer)?.items };
        for run in runs {
            data(&format!("{}: run {} was asked to stop\n", one_line(&run.project, 64), one_line(&run.id, 40)))?;
        }
        Ok(())
    }

    async fn change(&self, verb: &str, args: &ChangeArgs, to: Option<&str>) -> Result<Code, Failure> {
        let (project, environment) = (encoded(&args.project), encoded(&args.environment));
        let path = format!("/v1/projects/{project}/environments/{environment}/{verb}");
        let answer = self.client.post(&path, &json!({ "to": to, "reason": args.reason })).await?;
        self.goes_on(&answer, &format!("{verb}, "), args.wait, args.timeout).await
    }

    async fn changed_hosts(
        &self,
        project: &str,
        environment: &str,
        verb: &str,
        body: &serde_json::Value,
    ) -> Result<(), Failure> {
        let path = format!("/v1/projects/{}/environments/{}/{verb}", encoded(project), encoded(environment));
        let answer = self.client.post(&path, body).await?;
        if self.json {
            return self.raw(&answer);
        }
        let fleet: FleetView = read(&answer)?;
        data(&render::hosts::fleets(&[fleet], self.client.clock.now().wall_ms))
    }

    async fn freeze(&self, args: &FreezeArgs) -> Result<(), Failure> {
        let path =
            format!("/v1/projects/{}/environments/{}/freeze", encoded(&args.project), encoded(&args.environment));
        let span = args.span.map(|span| span.to_string());
        let body = json!({ "for": span, "until": args.until, "reason": args.reason });
        self.frozen(&self.client.put(&path, &body).await?)
    }

    async fn unfreeze(&self, project: &str, environment: &str, reason: Option<String>) -> Result<(), Failure> {
        let path = format!("/v1/projects/{}/environments/{}/freeze", encoded(project), encoded(environment));
        self.frozen(&self.client.delete(&with_query(&path, &[("reason", reason)])).await?)
    }

    fn frozen(&self, answer: &str) -> Result<(), Failure> {
        if self.json {
            return self.raw(answer);
        }
        let view: FreezeView = read(answer)?;
        data(&render::freeze(&view))?;
        if view.frozen {
            let (project, environment) = (one_line(&view.project, 64), one_line(&view.environment, 64));
            say(&format!("what runs goes on, and rollbacks go; `phased unfreeze {project} {environment}` lifts it\n"));
        }
        Ok(())
    }

    async fn token(&self, command: &TokenCommand) -> Result<(), Failure> {
        match command {
            TokenCommand::List => self.show("/v1/tokens").await,
            TokenCommand::Revoke { id } => {
                // Whoever has the whole text need not take it apart; and it is not sent anywhere.
                let id = id.strip_prefix("phd_").and_then(|rest| rest.split('_').next()).unwrap_or(id);
                self.client.delete(&format!("/v1/tokens/{}", encoded(id))).await?;
                if !self.json {
                    say(&format!("token {} is of no use any more\n", one_line(id, 80)));
                }
                Ok(())
            }
            TokenCommand::Create { name, scope, project, ttl } => {
                let ttl = ttl.map(|ttl| ttl.to_string());
                let body = json!({"name": name, "scopes": scope, "projects": project, "ttl": ttl});
                let answer = self.client.post("/v1/tokens", &body).await?;
                if self.json {
                    return self.raw(&answer);
                }
                let created: CreatedToken = read(&answer)?;
                // The text alone on stdout: `PHASED_TOKEN=$(phased token create ...)`.
                match created.text {
                    Some(text) => data(&format!("{}\n", printable(&text)))?,
                    None => {
                        let id = one_line(&created.token.id, 80);
                        return Err(Failure::Broken(format!(
                            "the token was made, but its text got lost on the way; revoke it with `phased token revoke {id}` and make another"
                        )));
                    }
                }
                let expires =
                    created.token.expires_at.as_deref().map_or_else(|| "never".to_owned(), |t| one_line(t, 40));
                let id = one_line(&created.token.id, 80);
                say(&format!(
                    "token {id}: scopes {}, expires {expires}; its text is not shown again\n",
                    created.token.scopes.join(", ")
                ));
                Ok(())
            }
        }
    }

    async fn reload(&self) -> Result<(), Failure> {
        let answer = self.client.post("/v1/reload", &json!({})).await?;
        if self.json {
            return self.raw(&answer);
        }
        let reloaded: Reloaded = read(&answer)?;
        let names: Vec<String> = reloaded.projects.iter().map(|p| one_line(p, 64)).collect();
        let list = if names.is_empty() { "no projects".to_owned() } else { names.join(", ") };
        data(&format!("loaded: {list}\n"))
    }

    async fn maintenance(&self, switch: &MaintenanceCommand) -> Result<Code, Failure> {
        let body = match switch {
            MaintenanceCommand::On { reason, .. } => json!({"on": true, "reason": reason}),
            MaintenanceCommand::Off => json!({"on": false}),
        };
        let answer = self.client.post("/v1/maintenance", &body).await?;
        let MaintenanceCommand::On { wait: true, timeout, .. } = switch else {
            match self.json {
                true => self.raw(&answer)?,
                false => data(&render::maintenance(&read(&answer)?))?,
            }
            return Ok(Code::Ok);
        };
        let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
        let limit = timeout.map(|t| t.0);
        let parked = tokio::select! {
            biased;
            _ = &mut interrupted => {
                say("\nmaintenance stays on; `phased maintenance` shows what still works, `phased maintenance off` goes on\n");
                return Ok(Code::Interrupted);
            }
            parked = parked(&self.client, read(&answer)?, limit) => parked?,
        };
        match self.json {
            true => data(&format!("{}\n", plain_json(&serde_json::to_string(&parked).unwrap_or_default())))?,
            false => data(&render::maintenance(&parked))?,
        }
        if !parked.on {
            complain("somebody turned maintenance off while this waited; what was parked goes on");
            return Ok(Code::Conflict);
        }
        if parked.runs.iter().any(|run| !run.doing.is_empty()) {
            complain(
                "the time to wait is up and not everything is parked; maintenance stays on: wait on, or `phased maintenance off`",
            );
            return Ok(Code::TimedOut);
        }
        Ok(Code::Ok)
    }

    async fn test_alerts(&self, project: Option<&str>) -> Result<Code, Failure> {
        let answer = self.client.post("/v1/alerts/test", &json!({"project": project})).await?;
        let page: Page<ChannelView> = read(&answer)?;
        if self.json {
            self.raw(&answer)?;
        } else if page.items.is_empty() {
            data("there are no channels\n")?;
        } else {
            for outcome in &page.items {
                let text = outcome
                    .cause
                    .as_ref()
                    .map_or_else(|| "sent".to_owned(), |c| format!("FAILED: {}", render::cause(c)));
                data(&format!("{}: {text}\n", one_line(&outcome.channel, 80)))?;
            }
        }
        Ok(if page.items.iter().all(|o| o.cause.is_none()) { Code::Ok } else { Code::Error })
    }
}

/// A run that was waited for: one line when all is well, everything when not.
pub(super) fn outcome(run: &RunView, now_ms: i64) -> String {
    let text = render::run(run, now_ms);
    match text.lines().next() {
        Some(first) if run.state == RunState::Succeeded => {
            let further = run.closed.as_ref().map(|closed| format!("  {}\n", render::closed(closed)));
            format!("{first}\n{}", further.unwrap_or_default())
        }
        _ => text,
    }
}
