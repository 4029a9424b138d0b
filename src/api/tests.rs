//! The API over real sockets, with an engine that is a script.

use std::{collections::BTreeMap, path::Path, sync::Mutex, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream, UnixStream},
    sync::broadcast,
};

use super::*;
use crate::{
    engine::{
        handle::*,
        view::{
            AlarmView, CauseView, EventView, FreezeView, LeaseView, LogLine, MaintenanceView, MeasuredView, Page, Plan,
            ProjectStatus, RunAtWork, RunView, Status, TokenView,
            hosts::{FleetView, HostCheckView},
            signals::SignalsView,
        },
    },
    model::{
        cause::Cause,
        ids::{EnvironmentName, ProjectName},
        run::RunState,
    },
    time::SystemClock,
};

mod door;

/// A wait of this length ends when it is over.
const QUIET: Duration = Duration::from_secs(3);

pub(crate) const RUN: &str = "01kc0000000000000000000000";

/// An engine that answers from a script and remembers what it was asked.
pub(crate) struct Script {
    pub(crate) asked: Mutex<Vec<String>>,
    pub(crate) run: Mutex<RunView>,
    keys: Mutex<BTreeMap<String, (String, Option<KeptAnswer>)>>,
    pub(crate) events: broadcast::Sender<Arc<EventView>>,
    log: Vec<LogLine>,
    ready: Mutex<Vec<(&'static str, Option<String>)>>,
    pub(crate) maintenance: Mutex<MaintenanceView>,
    trouble: Mutex<BTreeMap<String, Cause>>,
}

impl Script {
    pub(crate) fn new() -> Arc<Script> {
        let line = |step: &str, text: &str| LogLine {
            at: "2026-01-02T03:00:00Z".into(),
            step: step.into(),
            stream: "out".into(),
            host: None,
            text: text.into(),
        };
        Arc::new(Script {
            asked: Mutex::default(),
            run: Mutex::new(render::tests::a_run("testing")),
            keys: Mutex::default(),
            events: broadcast::channel(2).0,
            log: vec![
                line("test/unit/run/-/sh#1", "one \x1b[31mred\x1b[0m"),
                line("test/unit/run/-/sh#1", "two"),
                line("test/e2e/run/-/sh#1", "three\u{202e}"),
            ],
            ready: Mutex::new(vec![("journal", None), ("index", None)]),
            maintenance: Mutex::default(),
            trouble: Mutex::default(),
        })
    }

    fn note(&self, text: String) {
        self.asked.lock().unwrap().push(text);
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn run_now(&self) -> RunView {
        self.run.lock().unwrap().clone()
    }

    fn known(project: &str) -> Result<(), Refusal> {
        match project {
            "shop" | "blog" => Ok(()),
            "panic" => panic!("on purpose"),
            _ => Err(Refusal::ProjectUnknown(project.into())),
        }
    }
}

struct ScriptLog(std::vec::IntoIter<LogLine>, bool);

impl LogStream for ScriptLog {
    fn next(&mut self) -> futures_util::future::BoxFuture<'_, Option<Result<Vec<LogLine>, Refusal>>> {
        Box::pin(async {
            match self.0.next() {
                Some(line) => Some(Ok(vec![line])),
                None if self.1 => std::future::pending().await,
                None => None,
            }
        })
    }
}

#[async_trait::async_trait]
impl Engine for Script {
    async fn start(&self, project: &str, start: Start, by: &str) -> Result<Started, Refusal> {
        self.note(format!("start {project} {start:?} {by}"));
        Script::known(project)?;
        match start.reference.as_deref() {
            Some("live") => Ok(Started::AlreadyLive(Box::new(render::tests::a_project()))),
            Some("unknown") => {
                Err(Refusal::Ref(Cause::new("ref_unknown", "there is no branch, tag or commit unknown")))
            }
            Some("full") => Err(Refusal::QueueFull("64 runs are queued".into())),
            _ => Ok(Started::Run(Box::new(self.run_now()))),
        }
    }
    async fn hook(&self, _: &str, project: &str, headers: &[(String, String)], body: &[u8]) -> Result<Hooked, Refusal> {
        self.note(format!("hook {project} {}", body.len()));
        if !headers.iter().any(|(name, _)| name == "x-hub-signature-256") {
            return Err(Refusal::HookSignature);
        }
        Ok(Hooked::Accepted(RUN.parse().unwrap()))
    }
    async fn signal(&self, document: &[u8], signature: &str, piece: Option<&[u8]>) -> Signalled {
        self.note(format!("signal {} {:?}", document.len(), piece.map(<[u8]>::len)));
        match signature {
            "" => Signalled::Nobody { status: 401, cause: Cause::new("signal_signature", "no") },
            other => Signalled::Answer { status: 202, body: b"{}".to_vec(), signature: other.to_owned() },
        }
    }
    fn signals(&self) -> SignalsView {
        SignalsView {
            listens: false,
            host: "web1".into(),
            key: None,
            accept: Vec::new(),
            since: "2026-01-01T00:00:00Z".into(),
            taken: Default::default(),
            refused: Default::default(),
            recent: Vec::new(),
        }
    }
    async fn stop_project(
        &self,
        project: &str,
        now: bool,
        reason: Option<String>,
        by: &str,
    ) -> Result<Vec<RunView>, Refusal> {
        self.note(format!("stop {project} {now} {reason:?} {by}"));
        Script::known(project)?;
        Err(Refusal::NothingToStop(format!("nothing runs in {project}")))
    }
    async fn stop_run(&self, run: &str, now: bool, reason: Option<String>, by: &str) -> Result<RunView, Refusal> {
        self.note(format!("stop {run} {now} {reason:?} {by}"));
        Ok(self.run_now())
    }
    async fn status(&self) -> Result<Status, Refusal> {
        let blog = ProjectStatus { project: "blog".into(), ..render::tests::a_project() };
        let projects = vec![blog, render::tests::a_project()];
        let (version, since) = ("0.1.0".into(), "2026-01-01T00:00:00Z".into());
        let trouble = self.trouble.lock().unwrap().values().map(CauseView::from).collect();
        Ok(Status { version, since, maintenance: self.maintenance(None).await, trouble, projects })
    }
    async fn project_status(&self, project: &str) -> Result<ProjectStatus, Refusal> {
        Script::known(project)?;
        Ok(render::tests::a_project())
    }
    async fn plan(&self, project: &str, _: Option<EnvironmentName>) -> Result<Plan, Refusal> {
        Script::known(project)?;
        Ok(Plan { project: project.into(), next: None, cause: None, stages: vec!["unit".into()], environments: vec![] })
    }
    async fn change(&self, project: &str, environment: &str, ask: ChangeAsk, _: &str) -> Result<Changed, Refusal> {
        Script::known(project)?;
        match ask.verb.as_str() {
            "pause" => Ok(Changed::UnderWay(Box::new(self.run_now()))),
            "rollback" => Ok(Changed::Run(Box::new(self.run_now()))),
            "promote" => Err(Refusal::Unchangeable(Cause::new("not_held", format!("{environment} is not held")))),
            other => Err(Refusal::Value(format!("it knows no {other}"))),
        }
    }
    async fn freeze(&self, project: &str, environment: &str) -> Result<FreezeView, Refusal> {
        Script::known(project)?;
        Ok(frozen(project, environment, None))
    }
    async fn set_freeze(
        &self,
        project: &str,
        environment: &str,
        ask: FreezeAsk,
        by: &str,
    ) -> Result<FreezeView, Refusal> {
        self.note(format!("freeze {project} {environment} {:?} {:?} {by}", ask.holder, ask.reason));
        Ok(frozen(project, environment, ask.until_ms.map(crate::time::rfc3339)))
    }
    async fn lift_freeze(
        &self,
        project: &str,
        environment: &str,
        reason: Option<String>,
        by: &str,
    ) -> Result<FreezeView, Refusal> {
        self.note(format!("unfreeze {project} {environment} {reason:?} {by}"));
        Ok(FreezeView { frozen: false, holder: None, ..frozen(project, environment, None) })
    }
    async fn lease(&self, project: &str, environment: &str) -> Result<LeaseView, Refusal> {
        Ok(held(project, environment, ""))
    }
    async fn hold_lease(
        &self,
        project: &str,
        environment: &str,
        ask: LeaseAsk,
        by: &str,
    ) -> Result<LeaseView, Refusal> {
        self.note(format!("hold {project} {environment} {:?} {} {by}", ask.holder, ask.force));
        Ok(held(project, environment, &crate::time::rfc3339(ask.until_ms)))
    }
    async fn release_lease(
        &self,
        project: &str,
        environment: &str,
        ask: LeaseAsk,
        by: &str,
    ) -> Result<LeaseView, Refusal> {
        self.note(format!("release {project} {environment} {:?} {} {by}", ask.holder, ask.force));
        match ask.force {
            true => Ok(LeaseView { held: false, holder: None, ..held(project, environment, "") }),
            false => Err(Refusal::LeaseHeld("production of shop is held by ann".into())),
        }
    }
    async fn runs(&self, query: RunsQuery) -> Result<Page<RunView>, Refusal> {
        self.note(format!("runs {query:?}"));
        Ok(Page { items: vec![self.run_now()], next_cursor: None })
    }
    async fn run(&self, run: &str) -> Result<RunView, Refusal> {
        if run == RUN { Ok(self.run_now()) } else { Err(Refusal::RunUnknown(run.into())) }
    }
    async fn wait(&self, run: &str, finished: bool, limit: Duration) -> Result<RunView, Refusal> {
        self.note(format!("wait {run} {finished} {limit:?}"));
        // Otherwise it is over at once.
        if limit == QUIET {
            SystemClock::new().sleep(limit).await;
        }
        self.run(run).await
    }
    async fn log(&self, _: &str, query: LogQuery) -> Result<Box<dyn LogStream>, Refusal> {
        self.note(format!("log {query:?}"));
        Ok(Box::new(ScriptLog(self.log.clone().into_iter(), query.follow)))
    }
    fn events(&self, after: Option<&str>) -> EventStream {
        self.note(format!("events {after:?}"));
        EventStream { backlog: vec![], reset: after == Some("old"), live: self.events.subscribe() }
    }
    async fn reload(&self) -> Result<Vec<ProjectName>, Refusal> {
        Ok(vec!["shop".parse().unwrap()])
    }
    async fn hosts(
        &self,
        project: Option<&str>,
        environment: Option<&str>,
        visible: &(dyn for<'p> Fn(&'p str) -> bool + Sync),
        refresh: bool,
    ) -> Result<Vec<FleetView>, Refusal> {
        if project == Some("nope") {
            return Err(Refusal::ProjectUnknown("nope".to_owned()));
        }
        let one = |project: &str| fleet(project, environment.unwrap_or("production"), refresh);
        Ok(["shop", "blog"]
            .into_iter()
            .filter(|p| visible(p) && project.is_none_or(|only| only == *p))
            .map(one)
            .collect())
    }
    async fn check_hosts(
        &self,
        project: Option<&str>,
        _: Option<&str>,
        visible: &(dyn for<'p> Fn(&'p str) -> bool + Sync),
    ) -> Result<Vec<HostCheckView>, Refusal> {
        let one = |name: &str| HostCheckView {
            project: name.to_owned(),
            environment: "production".to_owned(),
            id: Some("i-1".to_owned()),
            name: Some("web1".to_owned()),
            address: Some("10.0.0.1".to_owned()),
            took_ms: 7,
            cause: Some((&Cause::new("auth_failed", "refused")).into()),
        };
        let names = ["shop", "blog"].into_iter();
        Ok(names.filter(|name| visible(name) && project.is_none_or(|only| only == *name)).map(one).collect())
    }
    async fn accept_hosts(&self, project: &str, environment: &str, _: &str) -> Result<FleetView, Refusal> {
        Ok(fleet(project, environment, true))
    }
    async fn forget_host_key(&self, project: &str, environment: &str, id: &str, _: &str) -> Result<FleetView, Refusal> {
        if id != "i-1" {
            let (environment, id) = (environment.to_owned(), id.to_owned());
            return Err(Refusal::HostKeyNone { project: project.parse().unwrap(), environment, id });
        }
        Ok(fleet(project, environment, false))
    }
    async fn alarms(
        &self,
        _: Option<&str>,
        visible: &(dyn for<'p> Fn(&'p str) -> bool + Sync),
        measure: bool,
    ) -> Result<Vec<AlarmView>, Refusal> {
        let alarm = |project: &str| AlarmView {
            project: project.to_owned(),
            environment: "production".to_owned(),
            name: "error rate".to_owned(),
            cause: "prometheus".to_owned(),
            fires: "above 0.01".to_owned(),
            alert: "slack".to_owned(),
            action: "rollback".to_owned(),
            interval_ms: 30_000,
            now: measure.then(|| MeasuredView { value: Some(0.5), state: "bad".to_owned(), message: None }),
        };
        Ok(["shop", "blog"].into_iter().filter(|project| visible(project)).map(alarm).collect())
    }
    async fn test_alerts(&self, _: Option<&str>) -> Result<Vec<(String, Option<Cause>)>, Refusal> {
        Ok(vec![("slack".into(), None), ("email".into(), Some(Cause::new("smtp", "no answer")))])
    }
    async fn maintenance(&self, wait: Option<Duration>) -> MaintenanceView {
        self.note(format!("maintenance {wait:?}"));
        self.maintenance.lock().unwrap().clone()
    }
    async fn switch_maintenance(&self, on: bool, reason: Option<String>, by: &str) -> Result<MaintenanceView, Refusal> {
        self.note(format!("switch {on} {reason:?} {by}"));
        let mut now = self.maintenance.lock().unwrap();
        now.on = on;
        Ok(now.clone())
    }
    async fn backup(&self, secrets: bool, by: &str) -> Result<Pieces, Refusal> {
        self.note(format!("backup {secrets} {by}"));
        let (sender, pieces) = tokio::sync::mpsc::channel(4);
        // For whoever comes by the socket the disk fails in the middle.
        let whole = !by.starts_with("uid ");
        for piece in [Ok(b"one ".to_vec()), Ok(b"two".to_vec()), Err("the disk".to_owned())] {
            if piece.is_ok() || !whole {
                sender.send(piece).await.unwrap();
            }
        }
        Ok(pieces)
    }
    async fn export(&self, query: ExportQuery) -> Result<Pieces, Refusal> {
        self.note(format!("export {query:?}"));
        let (sender, pieces) = tokio::sync::mpsc::channel(1);
        sender.send(Ok(b"{\"kind\":\"end\"}\n".to_vec())).await.unwrap();
        Ok(pieces)
    }
    fn ready(&self) -> Vec<(&'static str, Option<String>)> {
        self.ready.lock().unwrap().clone()
    }
    fn remark(&self, place: &str, cause: Option<Cause>) {
        let mut trouble = self.trouble.lock().unwrap();
        match cause {
            Some(cause) => trouble.insert(place.to_owned(), cause),
            None => trouble.remove(place),
        };
    }
    async fn create_token(
        &self,
        name: &str,
        scopes: Vec<String>,
        projects: Vec<String>,
        ttl: Option<Duration>,
        by: &str,
    ) -> Result<NewToken, Refusal> {
        self.note(format!("token {name} {scopes:?} {projects:?} {ttl:?} {by}"));
        Ok(NewToken { text: "phd_x_secret".into(), token: token("new", &["read"], &[]) })
    }
    fn tokens(&self) -> Vec<TokenView> {
        vec![token("a", &["admin"], &[])]
    }
    async fn revoke_token(&self, id: &str, _: &str) -> Result<(), Refusal> {
        if id == "a" { Ok(()) } else { Err(Refusal::TokenUnknown(id.into())) }
    }
    fn authenticate(&self, text: &str) -> Option<TokenView> {
        match text {
            "read" | "deploy" | "admin" => Some(token(text, &[text], &[])),
            "blog" => Some(token(text, &["admin"], &["blog"])),
            _ => None,
        }
    }
    fn claim(&self, claim: &Claim) -> Result<Option<KeptAnswer>, Refusal> {
        let Claim { scope, key, body } = claim;
        let mut keys = self.keys.lock().unwrap();
        match keys.get(&format!("{scope} {key}")) {
            None => {
                keys.insert(format!("{scope} {key}"), (body.clone(), None));
                Ok(None)
            }
            Some((with, _)) if with != body => Err(Refusal::KeyReused),
            Some((_, None)) => Err(Refusal::InFlight),
            Some((_, Some(kept))) => Ok(Some(kept.clone())),
        }
    }
    async fn keep(&self, claim: &Claim, answer: Option<KeptAnswer>) -> Result<(), Refusal> {
        let Claim { scope, key, body } = claim;
        let mut keys = self.keys.lock().unwrap();
        match answer {
            None => keys.remove(&format!("{scope} {key}")),
            some => keys.insert(format!("{scope} {key}"), (body.clone(), some)),
        };
        Ok(())
    }
}

fn frozen(project: &str, environment: &str, until: Option<String>) -> FreezeView {
    FreezeView {
        project: project.into(),
        environment: environment.into(),
        frozen: true,
        holder: Some("ann".into()),
        reason: Some("Christmas".into()),
        until,
        by_hand: None,
        lifted: None,
        windows: vec!["fri 16:00 to mon 08:00 Europe/Berlin".into()],
    }
}

fn held(project: &str, environment: &str, until: &str) -> LeaseView {
    serde_json::from_value(json!({
        "project": project, "environment": environment, "held": true, "holder": "ann", "reason": "debugging",
        "since": "2026-01-01T00:00:00Z", "until": until, "epoch": 7,
    }))
    .unwrap()
}

fn token(id: &str, scopes: &[&str], projects: &[&str]) -> TokenView {
    serde_json::from_value(json!({"id": id, "name": format!("{id}-name"), "scopes": scopes, "projects": projects, "created_at": "2026-01-01T00:00:00Z"}))
        .unwrap()
}

pub(crate) struct World {
    pub(crate) engine: Arc<Script>,
    pub(crate) address: std::net::SocketAddr,
    pub(crate) socket: std::path::PathBuf,
    pub(crate) tasks: Tasks,
    /// The TCP listener speaks TLS.
    tls: bool,
    _dir: tempfile::TempDir,
}

/// A certificate and its key out of `tests/tls`.
fn certificates(cert: &str, key: &str) -> Arc<Certificates> {
    Certificates::load(&pem_file(cert), &pem_file(key)).unwrap()
}

/// A file of `tests/tls`. Keys come as copies that nobody else may read: git keeps no such modes.
pub(super) fn pem_file(name: &str) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    static KEYS: std::sync::LazyLock<tempfile::TempDir> = std::sync::LazyLock::new(|| {
        let dir = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls")).unwrap() {
            let file = file.unwrap();
            let copy = dir.path().join(file.file_name());
            std::fs::copy(file.path(), &copy).unwrap();
            std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        dir
    });
    KEYS.path().join(name)
}

/// A certificate's bytes.
pub(super) fn der() -> Vec<u8> {
    use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject as _};
    let pem = include_bytes!("../../tests/tls/signed.pem");
    CertificateDer::from_pem_slice(pem).unwrap().to_vec()
}

async fn world_with(limits: Limits, job_uids: Vec<std::ops::RangeInclusive<u32>>) -> World {
    let auth = AuthConfig { job_uids, ..AuthConfig::default() };
    world_behind(Front { limits, auth, ..Front::default() }).await
}

async fn world_behind(mut front: Front) -> World {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let engine = Script::new();
    front.auth.fixed_token = Some("fixed".into());
    let tls = front.tls.is_some();
    let tasks = Tasks::new();
    let listeners = Listeners { unix: Some(UnixListener::bind(&socket).unwrap()), tcp: Some(tcp) };
    serve(engine.clone(), listeners, front, &tasks, Arc::new(SystemClock::new())).unwrap();
    World { engine, address, socket, tasks, tls, _dir: dir }
}

pub(crate) async fn world() -> World {
    world_with(Limits { refusals: crate::config::Rate::NONE, ..Limits::default() }, vec![]).await
}

/// Either kind of connection over TCP.
trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Duplex for S {}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
    fn code(&self) -> String {
        assert!(self.head.contains("content-type: application/problem+json"), "{self:?}");
        let json = self.json();
        assert_eq!(json["status"], self.status, "{self:?}");
        for member in ["type", "title", "detail", "instance", "request_id"] {
            assert!(json[member].as_str().is_some_and(|t| !t.is_empty()), "{member}: {self:?}");
        }
        json["code"].as_str().unwrap().to_owned()
    }
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// Everything the server says until it closes.
async fn raw(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), sent: &[u8]) -> String {
    // It may close before everything was sent: that is an answer, too.
    let _refused_early = stream.write_all(sent).await;
    let mut out = Vec::new();
    let _reset_after_the_answer = stream.read_to_end(&mut out).await;
    String::from_utf8_lossy(&out).into_owned()
}

fn answer(text: &str) -> Answer {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = if head.contains("transfer-encoding: chunked") { unchunked(body) } else { body.to_owned() };
    Answer { status, head: head.replace("\r\n", "\n"), body }
}

fn unchunked(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        out.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
    out
}

impl World {
    /// A connection from another loopback address.
    async fn connect_from(&self, client: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(std::net::SocketAddr::new(client.parse().unwrap(), 0)).unwrap();
        socket.connect(self.address).await.unwrap()
    }

    /// A connection, after its handshake.
    async fn connect(&self) -> Box<dyn Duplex> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        if self.tls { Box::new(door::handshake(stream).await.unwrap()) } else { Box::new(stream) }
    }

    async fn tcp(&self, request: &str) -> Answer {
        answer(&raw(&mut self.connect().await, request.as_bytes()).await)
    }

    /// `GET /v1/status` with a token and more headers.
    async fn ask(&self, line: &str, token: &str, headers: &str, body: &str) -> Answer {
        let auth = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        self.tcp(&format!(
            "{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{auth}{headers}{length}\r\n{body}"
        ))
        .await
    }

    async fn form(&self, line: &str, token: &str, body: &str) -> Answer {
        self.ask(line, token, "Content-Type: application/x-www-form-urlencoded\r\n", body).await
    }
}

/// Every route of the document with its parameters filled in.
fn every_route() -> Vec<(String, String)> {
    let document = serde_json::to_value(openapi()).unwrap();
    let mut routes = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in
            item.as_object().unwrap().keys().filter(|k| ["get", "post", "delete", "put"].contains(&k.as_str()))
        {
            let path = path
                .replace("{project}", "shop")
                .replace("{provider}", "github")
                .replace("{id}", RUN)
                .replace("{environment}", "production");
            routes.push((method.to_uppercase(), path));
        }
    }
    assert!(routes.len() >= 20, "{routes:?}");
    routes
}

fn public(method: &str, path: &str) -> bool {
    (method == "GET" && ["/healthz", "/readyz", "/openapi.json"].contains(&path))
        || path.starts_with("/hooks/")
        || (method == "POST" && path.starts_with("/v1/signals"))
}

#[tokio::test]
async fn the_document_and_the_router_have_the_same_routes() {
    let world = world().await;
    for (method, path) in every_route() {
        let answer = world
            .ask(&format!("{method} {path}"), "fixed", "Last-Event-ID: old\r\nX-Test: 1\r\n", "")
            .await_head()
            .await;
        assert!(![405].contains(&answer.status), "{method} {path}: {answer:?}");
        assert!(answer.status != 404 || answer.code() != "route_unknown", "{method} {path}: {answer:?}");
    }
    // And nothing is registered beside the document: `routes!` is the only way a handler gets in.
    let source = include_str!("routes.rs");
    assert!(!source.contains(".route(") && !source.contains(".nest("));
    let document = serde_json::to_value(openapi()).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    assert!(document["components"]["securitySchemes"]["token"].is_object());
}

/// For answers that never end: all there is after the head has come.
trait AwaitHead: Future<Output = Answer> + Sized {
    fn await_head(self) -> impl Future<Output = Answer> {
        async {
            crate::time::within(&SystemClock::new(), Duration::from_millis(1500), self).await.unwrap_or(Answer {
                status: 200,
                head: String::new(),
                body: String::new(),
            })
        }
    }
}
impl<F: Future<Output = Answer>> AwaitHead for F {}

#[tokio::test]
async fn nobody_gets_in_by_default() {
    let world = world().await;
    for (method, path) in every_route() {
        if public(&method, &path) {
            continue;
        }
        for (token, status, code) in
            [("", 401, "token_missing"), ("wrong", 401, "token_invalid"), ("phd_x_y", 401, "token_invalid")]
        {
            let answer = world.ask(&format!("{method} {path}"), token, "", "").await;
            assert_eq!((answer.status, answer.code().as_str()), (status, code), "{method} {path} {token}");
            assert!(answer.header("www-authenticate").unwrap().starts_with("Bearer"), "{answer:?}");
        }
    }
    for odd in [
        "Authorization: Basic YTpi\r\n",
        "Authorization: Bearer\r\n",
        "Authorization: Bearer admin\r\nAuthorization: Bearer admin\r\n",
        "Authorization: admin\r\n",
    ] {
        let answer = world.ask("GET /v1/status", "", odd, "").await;
        assert_eq!(answer.status, 401, "{odd}");
    }
    assert_eq!(world.engine.asked(), Vec::<String>::new(), "the engine was never asked");
}

#[tokio::test]
async fn no_way_of_writing_a_path_gets_round_the_gate() {
    let world = world().await;
    let mutations: [fn(&str) -> String; 16] = [
        |p| format!("/{p}"),
        |p| format!("{p}/"),
        |p| format!("{p};.css"),
        |p| format!("/healthz/..{p}"),
        |p| format!("/hooks/..{p}"),
        |p| format!("/hooks/%2e%2e{p}"),
        |p| format!("/healthz;{p}"),
        |p| format!("/healthz?jsp={p}"),
        |p| format!("/./{p}"),
        |p| p.replace("/v1", "/%76%31"),
        |p| p.replace("/v1/", "/v1%2f"),
        |p| p.to_uppercase(),
        |p| format!("{p}%00"),
        |p| format!("{p}\\..\\healthz"),
        |p| format!("{p}?x=/healthz"),
        |p| format!("http://localhost{p}"),
    ];
    for (method, path) in every_route() {
        if public(&method, &path) {
            continue;
        }
        for mutate in &mutations {
            let target = mutate(&path);
            for method in [method.as_str(), "OPTIONS", "TRACE", "PROPFIND"] {
                let answer = world.ask(&format!("{method} {target}"), "", "", "").await;
                let harmless = target.starts_with("/healthz?") && method == "GET";
                // Axum's only view of /healthz?jsp=... is /healthz, which is public and refuses unknown fields.
                assert!(matches!(answer.status, 400 | 401 | 404 | 405) || harmless, "{method} {target}: {answer:?}");
            }
        }
    }
    assert_eq!(world.engine.asked(), Vec::<String>::new(), "the engine was never asked");
}

#[tokio::test]
async fn scopes_say_what_a_token_may() {
    let world = world().await;
    for (method, path) in every_route() {
        let needed = if public(&method, &path) {
            continue;
        } else if path.starts_with("/v1/tokens")
            || path == "/v1/backup"
            || ["/v1/reload", "/v1/alerts/test"].contains(&path.as_str())
            || (method == "POST" && path == "/v1/maintenance")
            || path.ends_with("/forget_key")
        {
            "admin"
        } else if method != "GET" {
            "deploy"
        } else {
            "read"
        };
        for (token, rank) in [("read", 0), ("deploy", 1), ("admin", 2)] {
            let enough = rank >= ["read", "deploy", "admin"].iter().position(|s| *s == needed).unwrap();
            let answer = world.ask(&format!("{method} {path}"), token, "", "").await_head().await;
            if enough {
                assert!(!matches!(answer.status, 401 | 403), "{token} {method} {path}: {answer:?}");
            } else {
                assert_eq!(
                    (answer.status, answer.code().as_str()),
                    (403, "insufficient_scope"),
                    "{token} {method} {path}"
                );
                assert!(answer.header("www-authenticate").unwrap().contains(&format!("scope=\"{needed}\"")));
            }
        }
    }
}

#[tokio::test]
async fn signals_are_let_in_by_their_signature_alone() {
    let world = world().await;
    let sign = "Phased-Signature: SHA256:x AAAA\r\n";
    // Whatever name they ask for, and whoever they say they are: the engine looks at the signature.
    for head in [sign.to_owned(), format!("{sign}Authorization: Bearer wrong\r\n")] {
        let answer = world.ask("POST /v1/signals", "", &head, "{}").await;
        assert_eq!((answer.status, answer.header("phased-signature")), (202, Some("SHA256:x AAAA")), "{answer:?}");
    }
    let answer = world.ask("POST /v1/signals", "", "", "{}").await;
    assert_eq!((answer.status, answer.code().as_str()), (401, "signal_signature"));
    let answer = world.ask("POST /v1/signals/pieces", "", &format!("{sign}Phased-Signal: e30=\r\n"), "piece").await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let answer = world.ask("POST /v1/signals", "", sign, &"x".repeat((64 << 10) + 1)).await;
    assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));
    assert_eq!(
        world.engine.asked(),
        ["signal 2 None", "signal 2 None", "signal 2 None", "signal 2 Some(5)"],
        "and nothing of what was too large"
    );
    for token in ["", "deploy"] {
        for request in ["PUT /v1/signals", "DELETE /v1/signals", "POST /v1/signals/", "POST /v1/signals/other"] {
            assert!(matches!(world.ask(request, token, sign, "").await.status, 401 | 403), "{request}");
        }
    }
}

#[tokio::test]
async fn maintenance_is_switched_by_one_who_says_which_way() {
    let world = world().await;
    for body in ["", "reason=upgrade", "on=perhaps"] {
        let answer = world.form("POST /v1/maintenance", "admin", body).await;
        assert_eq!((answer.status, answer.code().as_str()), (422, "bad_value"), "{body}");
    }
    for (body, on) in [("on=true&reason=upgrade", true), ("on=true", true), ("on=off", false)] {
        let answer = world.form("POST /v1/maintenance", "admin", body).await;
        assert_eq!((answer.status, &answer.json()["on"]), (200, &json!(on)), "{body}");
    }
    let asked = world.engine.asked();
    assert!(asked[0].starts_with(r#"switch true Some("upgrade") token admin"#), "{asked:?}");
    assert_eq!(world.ask("GET /v1/maintenance?wait=over", "read", "", "").await.status, 422);
    let text = world.ask("GET /v1/maintenance?wait=parked", "read", "Accept: text/plain\r\n", "").await;
    assert_eq!(text.body, "maintenance is off\n");
    assert_eq!(world.engine.asked().last().unwrap(), "maintenance Some(300s)");
    // A token for some projects sees what its own do, with the status.
    let work = |project: &str| RunAtWork { run: RUN.into(), project: project.into(), doing: vec![] };
    world.engine.maintenance.lock().unwrap().runs = vec![work("blog"), work("shop")];
    assert_eq!(world.ask("GET /v1/maintenance", "blog", "", "").await.code(), "project_not_allowed");
    let status = world.ask("GET /v1/status", "blog", "", "").await.json();
    assert_eq!(status["maintenance"]["runs"].as_array().unwrap().len(), 1);
}

/// A fleet with something of everything; `asked` = its source was asked now.
fn fleet(project: &str, environment: &str, asked: bool) -> FleetView {
    serde_json::from_value(json!({
        "project": project, "environment": environment, "disagreements": 11,
        "hosts": [{"id": "i-1", "name": "web-1", "address": "10.0.0.1", "port": 22, "user": null, "zone": "a", "labels": {"role": "web"},
            "sources": ["ec2", "the project's list"], "release": "a1b2c3d4e5f6", "state": "healthy", "why": null}],
        "out": [{"id": "i-2", "name": "web-2", "address": "10.0.0.2", "source": "ec2", "code": "terminated",
            "message": "ec2 says it is terminated: \u{1b}[31mUser initiated", "since": "2026-01-02T02:00:00Z"}],
        "sources": [
            {"name": "ec2", "hosts": 1, "asked_at": if asked { "2026-01-02T03:00:00Z" } else { "2026-01-02T02:59:00Z" }, "took_ms": 5,
             "good_at": "2026-01-02T02:50:00Z", "interval": "1m", "error_since": "2026-01-02T02:51:00Z",
             "error": {"code": "ec2_denied", "message": "EC2 DescribeInstances in eu-west-1 was refused"},
             "change": {"at": "2026-01-02T02:00:00Z", "came": 0, "came_ids": [], "went": 4, "went_ids": ["i-2", "i-3", "i-4", "i-5"]}},
            {"name": "dns", "hosts": 0, "asked_at": null, "took_ms": 0, "good_at": null, "interval": "5m", "error": null,
             "error_since": null, "change": null}],
        "conflicts": [{"host": "i-1", "field": "labels.role", "used": "web", "from": "ec2", "other": "db", "other_from": "the project's list"}],
        "host_keys": [{"id": "i-1", "key": "ssh-ed25519 SHA256:2ymZ", "since": "2026-01-02T02:00:00Z", "address": "10.0.0.9"}],
    }))
    .unwrap()
}

#[test]
fn a_fleet_is_shown_with_what_each_source_said_and_why_hosts_are_out() {
    let now = super::text::wall_ms("2026-01-02T03:00:00Z").unwrap();
    let shown = super::render::hosts::fleets(&[fleet("shop", "production", true)], now);
    let expected = "\
shop production: 1 host
  ec2: 1 host, asked 0s ago (every 1m); 1h ago 4 went (i-2, i-3, i-4, ...)
    WRONG for 9m: EC2 DescribeInstances in eu-west-1 was refused (ec2_denied); the list that is used is 10m old
  dns: 0 hosts, not asked yet (every 5m)

  HOST   ID   ADDRESS      ZONE  SOURCE                   HAS           STATE
  web-1  i-1  10.0.0.1:22  a     ec2, the project's list  a1b2c3d4e5f6  healthy

  out:
    web-2 (i-2): ec2 says it is terminated: User initiated, since 2026-01-02 02:00:00 UTC (1h ago)

  host keys learnt:
    i-1: ssh-ed25519 SHA256:2ymZ since 2026-01-02 02:00:00 UTC, met at 10.0.0.9

  sources disagree (11 cases):
    i-1 labels.role: ec2 says \"web\", which is used; the project's list says \"db\"
    ... more with --json
";
    assert_eq!(shown, expected);
    assert_eq!(super::render::hosts::fleets(&[], now), "no environment\n");
}

#[tokio::test]
async fn hosts_are_shown_to_those_who_see_their_project_and_to_prometheus() {
    let world = world().await;
    let all = world.ask("GET /v1/hosts", "read", "", "").await.json();
    assert_eq!((all["items"].as_array().unwrap().len(), &all["items"][0]["hosts"][0]["id"]), (2, &json!("i-1")));
    let own = world.ask("GET /v1/hosts?environment=staging&refresh=true", "blog", "", "").await.json();
    assert_eq!((own["items"].as_array().unwrap().len(), &own["items"][0]["environment"]), (1, &json!("staging")));
    assert_eq!(world.ask("GET /v1/hosts?project=shop", "blog", "", "").await.code(), "project_not_allowed");
    assert_eq!(world.ask("GET /v1/hosts?project=nope", "read", "", "").await.code(), "project_unknown");
    assert_eq!(world.ask("GET /v1/hosts?refesh=true", "read", "", "").await.status, 422);

    let groups = world.ask("GET /v1/inventory?project=shop&port=9113", "read", "", "").await.json();
    assert_eq!(groups.as_array().unwrap().len(), 1);
    assert_eq!(groups[0]["targets"], json!(["10.0.0.1:9113"]));
    assert_eq!(groups[0]["labels"]["__meta_phased_label_role"], "web");
    assert_eq!(world.ask("GET /v1/inventory", "blog", "", "").await.json().as_array().unwrap().len(), 1);
    for port in ["0", "65536", "x"] {
        assert_eq!(world.ask(&format!("GET /v1/inventory?port={port}"), "read", "", "").await.code(), "bad_value");
    }
    let path = "POST /v1/projects/shop/environments/production/accept";
    assert_eq!(world.ask(path, "read", "", "").await.status, 403);
    assert_eq!(world.ask(path, "blog", "", "").await.status, 403);
    assert_eq!(world.ask(path, "deploy", "", "").await.json()["environment"], "production");
}

#[tokio::test]
async fn a_learnt_host_key_is_forgotten_by_admins_only() {
    let world = world().await;
    let path = "POST /v1/projects/shop/environments/production/forget_key";
    for (token, status) in [("read", 403), ("blog", 403), ("deploy", 403)] {
        assert_eq!(world.ask(&format!("{path}?host=i-1"), token, "", "").await.status, status, "{token}");
    }
    assert_eq!(world.ask(&format!("{path}?host=i-1"), "admin", "", "").await.json()["environment"], "production");
    assert_eq!(world.ask(&format!("{path}?host=i-2"), "admin", "", "").await.code(), "host_key_none");
    assert_eq!(world.ask(path, "admin", "", "").await.code(), "bad_value");
}

#[tokio::test]
async fn alarms_are_shown_to_those_who_see_their_project() {
    let world = world().await;
    let all = world.ask("GET /v1/alarms", "read", "", "").await.json();
    assert_eq!((all["items"].as_array().unwrap().len(), &all["items"][0]["now"]), (2, &Value::Null));
    let alarms = world.ask("GET /v1/alarms?measure=true", "blog", "", "").await.json();
    assert_eq!((alarms["items"].as_array().unwrap().len(), &alarms["items"][0]["project"]), (1, &json!("blog")));
    assert_eq!(alarms["items"][0]["now"]["value"], 0.5);
    assert_eq!(world.ask("GET /v1/alarms?project=shop", "blog", "", "").await.code(), "project_not_allowed");
    assert_eq!(world.ask("GET /v1/alarms?mesure=true", "read", "", "").await.status, 422);
}

#[tokio::test]
async fn a_token_for_some_projects_gets_nowhere_else() {
    let world = world().await;
    for (line, status) in [
        ("POST /v1/projects/shop/start", 403),
        ("POST /v1/projects/sho%70/start", 403),
        ("POST /v1/projects/blog/start", 202),
        ("GET /v1/projects/shop/status", 403),
        ("GET /v1/projects/blog/plan", 200),
        ("GET /v1/runs?project=shop", 403),
        ("GET /v1/runs/01kc0000000000000000000000", 404),
        ("GET /v1/runs/01kc0000000000000000000000/log", 404),
        ("POST /v1/runs/01kc0000000000000000000000/stop", 404),
        ("GET /v1/events?project=shop", 403),
        ("GET /v1/tokens", 403),
        ("POST /v1/tokens", 403),
        ("POST /v1/reload", 403),
        ("POST /v1/alerts/test", 403),
    ] {
        assert_eq!(world.ask(line, "blog", "", "").await.status, status, "{line}");
    }
    let status = world.ask("GET /v1/status", "blog", "", "").await.json();
    assert_eq!(status["projects"].as_array().unwrap().len(), 1);
    assert_eq!(world.ask("GET /v1/runs", "blog", "", "").await.json()["items"], json!([]));
}

#[tokio::test]
async fn foreign_names_are_not_answered_to() {
    let world = world().await;
    let port = world.address.port();
    for host in ["evil.example", &format!("evil.example:{port}"), "localhost.evil.example", ""] {
        for path in ["/v1/status", "/healthz", "/openapi.json"] {
            let answer = world
                .tcp(&format!(
                    "GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer admin\r\nConnection: close\r\n\r\n"
                ))
                .await;
            assert_eq!((answer.status, answer.code().as_str()), (400, "bad_host"), "{host}");
        }
    }
    for head in [
        "GET /healthz HTTP/1.1\r\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n",
        "GET http://evil/healthz HTTP/1.1\r\nHost: localhost\r\n",
    ] {
        assert_eq!(world.tcp(&format!("{head}Connection: close\r\n\r\n")).await.status, 400, "{head}");
    }
    assert_eq!(
        world
            .tcp(&format!("GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"))
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn the_socket_needs_no_token_and_keeps_jobs_out() {
    let uid = nix::unistd::getuid().as_raw();
    let open = world().await;
    let request = b"POST /v1/projects/shop/start HTTP/1.1\r\nHost: whatever\r\nConnection: close\r\n\r\n";
    let mut stream = UnixStream::connect(&open.socket).await.unwrap();
    assert_eq!(answer(&raw(&mut stream, request).await).status, 202);
    assert!(open.engine.asked()[0].ends_with(&format!("uid {uid}")), "{:?}", open.engine.asked());

    let closed = world_with(Limits::default(), vec![uid..=uid]).await;
    for line in ["POST /v1/projects/shop/start", "GET /healthz", "POST /hooks/github/shop", "GET /v1/status"] {
        let mut stream = UnixStream::connect(&closed.socket).await.unwrap();
        let request = format!("{line} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer admin\r\nConnection: close\r\n\r\n");
        let answer = answer(&raw(&mut stream, request.as_bytes()).await);
        assert_eq!((answer.status, answer.code().as_str()), (403, "peer_not_allowed"), "{line}");
    }
    assert!(closed.engine.asked().is_empty());
}

#[tokio::test]
async fn starts_take_json_forms_and_queries() {
    let world = world().await;
    for (line, kind, body) in [
        ("POST /v1/projects/shop/start", "application/json", r#"{"ref":"v1.2","redeploy":true}"#),
        ("POST /v1/projects/shop/start", "application/x-www-form-urlencoded", "ref=v1.2&redeploy=true"),
        ("POST /v1/projects/shop/start?ref=v1.2&redeploy", "text/plain", ""),
    ] {
        let answer = world.ask(line, "deploy", &format!("Content-Type: {kind}\r\n"), body).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        assert_eq!(answer.header("location"), Some(&*format!("/v1/runs/{RUN}")));
        assert_eq!(answer.json()["state"], "testing");
    }
    let asked = world.engine.asked();
    assert!(asked.iter().all(|a| *a == asked[0]) && asked[0].contains("Some(\"v1.2\")"), "{asked:?}");
    assert!(asked[0].ends_with("token deploy-name (deploy)"), "{asked:?}");
}

#[tokio::test]
async fn errors_have_their_status_and_code() {
    let world = world().await;
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    for (line, headers, body, status, code) in [
        ("GET /nothing", "", "", 404, "route_unknown"),
        ("GET /v1/runs/nope", "", "", 404, "run_unknown"),
        ("GET /v1/projects/nope/status", "", "", 404, "project_unknown"),
        ("GET /v1/projects/shop/start", "", "", 405, "method_not_allowed"),
        ("DELETE /v1/projects", "", "", 405, "method_not_allowed"),
        ("POST /v1/projects/shop/stop", "", "", 409, "nothing_to_stop"),
        ("POST /v1/projects/shop/start", form, "enviroment=x", 422, "unknown_field"),
        ("POST /v1/projects/shop/start", form, "redeploy=maybe", 422, "bad_value"),
        ("POST /v1/projects/shop/start", form, "ref=unknown", 422, "ref_unknown"),
        ("POST /v1/projects/shop/start", form, "ref=full", 503, "queue_full"),
        ("POST /v1/projects/shop/start", "Content-Type: application/json\r\n", "{", 400, "bad_json"),
        ("POST /v1/projects/shop/start", "Content-Type: text/xml\r\n", "<a/>", 415, "unsupported_media_type"),
        ("GET /v1/runs?state=gone", "", "", 422, "bad_value"),
        ("GET /v1/runs?limit=0", "", "", 422, "bad_value"),
        ("GET /v1/runs?limt=5", "", "", 422, "unknown_field"),
        ("GET /v1/runs/01kc0000000000000000000000?wait=soon", "", "", 422, "bad_value"),
        ("GET /v1/runs/01kc0000000000000000000000?timeout=2h", "", "", 422, "bad_value"),
        ("POST /hooks/gitlab/shop", form, "a=b", 404, "hook_unknown"),
        ("POST /hooks/github/shop", form, "a=b", 401, "hook_signature"),
        ("POST /v1/tokens", form, "name=x&scopes=root", 422, "bad_value"),
        ("POST /v1/tokens", "", "", 422, "bad_value"),
        ("DELETE /v1/tokens/b", "", "", 404, "token_unknown"),
        ("POST /v1/projects/panic/start", "", "", 500, "internal"),
        ("GET /v1/projects/panic/status", "", "", 500, "internal"),
        ("POST /v1/reload", "Idempotency-Key: \r\n", "", 400, "bad_idempotency_key"),
    ] {
        let answer = world.ask(line, "admin", headers, body).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{line} {body}: {answer:?}");
        assert_eq!(answer.header("x-request-id"), answer.json()["request_id"].as_str());
    }
    let answer = world.ask("GET /v1/projects/shop/start", "admin", "", "").await;
    assert_eq!(answer.header("allow"), Some("POST"));
    let answer = world.form("POST /v1/projects/shop/start", "admin", "ref=full").await;
    assert_eq!(answer.header("retry-after"), Some("10"));
    let answer = world.form("POST /v1/projects/shop/start", "admin", "enviroment=x").await;
    assert_eq!(answer.json()["errors"][0]["pointer"], "#/enviroment");
    assert!(answer.json()["errors"][0]["detail"].as_str().unwrap().contains("did you mean \"environment\""));
    let answer = world.ask("HEAD /v1/status", "read", "", "").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
}

#[tokio::test]
async fn what_is_live_already_is_said() {
    let world = world().await;
    let answer = world.form("POST /v1/projects/shop/start", "deploy", "ref=live").await;
    assert_eq!((answer.status, answer.json()["code"].as_str()), (200, Some("already_live")));
    assert_eq!(answer.json()["status"]["project"], "shop");
}

#[tokio::test]
async fn bodies_have_limits() {
    let world = world().await;
    let big = "x".repeat((1 << 20) + 1);
    let answer = world.form("POST /v1/projects/shop/start", "deploy", &big).await;
    assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));
    assert_eq!(answer.header("connection"), Some("close"));
    // A hook may be as large, and larger; chunked as well.
    let answer = world.ask("POST /hooks/github/shop", "", "X-Hub-Signature-256: x\r\n", &big).await;
    assert_eq!((answer.status, answer.json()["code"].as_str()), (202, Some("accepted")));
    let huge = "x".repeat((25 << 20) + 1);
    assert_eq!(world.ask("POST /hooks/github/shop", "", "X-Hub-Signature-256: x\r\n", &huge).await.status, 413);
    let expecting = "POST /hooks/github/shop HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n";
    assert_eq!(world.tcp(expecting).await.status, 413);
    let chunked = format!("{:x}\r\n{big}\r\n0\r\n\r\n", big.len());
    let request = format!(
        "POST /v1/reload HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer admin\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"
    );
    assert_eq!(world.tcp(&request).await.status, 413);
    // Unknown people's bodies are not read at all.
    assert_eq!(world.form("POST /v1/projects/shop/start", "", &big).await.status, 401);
    assert_eq!(world.engine.asked(), [format!("hook shop {}", big.len())]);
}

#[tokio::test]
async fn memory_for_bodies_is_bounded() {
    let world = world_with(Limits { all_bodies_kib: 16, ..Limits::default() }, vec![]).await;
    let answer = world.ask("POST /hooks/github/shop", "", "", &"x".repeat(100_000)).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "busy"));
    let answer = world.ask("POST /hooks/github/shop", "", "X-Hub-Signature-256: x\r\n", "small").await;
    assert_eq!(answer.status, 202, "what was held is given back");
}

#[tokio::test]
async fn slow_clients_are_cut_off() {
    let short = Duration::from_millis(200);
    let limits = Limits { first_byte: short, head: short, body: short, ..Limits::default() };
    let world = world_with(limits, vec![]).await;
    let cut = async |sent: &str| {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        let said = raw(&mut stream, sent.as_bytes());
        let said = crate::time::within(&SystemClock::new(), Duration::from_secs(5), said).await;
        said.unwrap_or_else(|| panic!("still open: {sent}"))
    };
    assert_eq!(cut("").await, "", "nothing sent");
    assert_eq!(cut("GET / HT").await, "", "half a head");
    let kept = cut("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(answer(&kept).status, 200, "an idle connection ends, too");
    let half = cut("POST /hooks/github/shop HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf").await;
    let half = answer(&half);
    assert_eq!((half.status, half.code().as_str()), (408, "body_timeout"));
}

#[tokio::test]
async fn beyond_the_cap_connections_are_closed_at_once() {
    let world = world_with(Limits { connections: 2, reserved: 0, ..Limits::default() }, vec![]).await;
    let request = b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer read\r\n\r\n";
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        stream.read_u8().await.unwrap();
        held.push(stream);
    }
    let mut third = TcpStream::connect(world.address).await.unwrap();
    assert_eq!(raw(&mut third, b"").await, "");
    // The socket has its own cap, and a place that is free again is used again.
    let mut socket = UnixStream::connect(&world.socket).await.unwrap();
    let health = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_eq!(answer(&raw(&mut socket, health).await).status, 200);
    held.clear();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        if raw(&mut stream, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await
            .contains("200 OK")
        {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("no place became free");
}

#[tokio::test]
async fn nothing_is_smuggled() {
    smuggle(&world().await).await;
}

#[tokio::test]
async fn nothing_is_smuggled_through_tls() {
    let tls = Some(certificates("signed.pem", "signed.key.pem"));
    smuggle(&world_behind(Front { tls, ..Front::default() }).await).await;
}

async fn smuggle(world: &World) {
    let second = "GET /v1/status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer admin\r\n\r\n";
    let head = "POST /hooks/github/shop HTTP/1.1\r\nHost: localhost\r\n";
    for bad in [
        format!("{head}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{second}"),
        format!("{head}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{second}"),
        format!("{head}Content-Length: 0\r\nContent-Length: 5\r\n\r\n{second}"),
        format!("{head}Content-Length: 5\r\nContent-Length: 5\r\n\r\naaaaa{second}"),
        format!("{head}Content-Length: 5, 5\r\n\r\naaaaa{second}"),
        format!("{head}Content-Length: +5\r\n\r\naaaaa{second}"),
        format!("{head}Content-Length: 0x5\r\n\r\naaaaa{second}"),
        format!("{head}Content-Length: -1\r\n\r\n{second}"),
        format!("{head}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{second}"),
        format!("{head}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{second}"),
        format!("{head}Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n{second}"),
        format!("{head}X: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{second}"),
        format!("{head}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n{second}"),
        format!("{head}Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n{second}"),
        format!("POST /hooks/github/shop HTTP/1.1\nHost: localhost\nContent-Length: 0\n\n{second}"),
        format!("{head}X: y\nContent-Length: 5\r\n\r\naaaaa{second}"),
        format!("{head}X: y\rContent-Length: 5\r\n\r\naaaaa{second}"),
        format!("POST /hooks/github/shop HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{second}"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n{second}"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n5\naaaaa\n0\n\n{second}"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n1;{}\r\na\r\n0\r\n\r\n{second}", "e".repeat(40_000)),
        format!("{head}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\na\r\n0\r\n\r\n{second}"),
    ] {
        let said = raw(&mut world.connect().await, bad.as_bytes()).await;
        assert!(said.starts_with("HTTP/1.1 400 ") || said.starts_with("HTTP/1.0 400 "), "{bad:.200}\n{said}");
        assert_eq!(said.matches("HTTP/1.").count(), 1, "{bad:.200}\n{said}");
    }
    // A right request with a body: what follows it is not read as a request either.
    let said = raw(&mut world.connect().await, format!("{head}Content-Length: 1\r\n\r\na{second}").as_bytes()).await;
    assert!(said.starts_with("HTTP/1.1 401"), "{said}");
    assert_eq!(said.matches("HTTP/1.").count(), 1, "{said}");
    // While requests without bodies share a connection as ever.
    let two = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let said = raw(&mut world.connect().await, two.as_bytes()).await;
    assert_eq!(said.matches("HTTP/1.1 200 OK").count(), 2, "{said}");
}

#[tokio::test]
async fn a_key_makes_a_post_happen_once() {
    let world = world().await;
    let key = "Content-Type: application/x-www-form-urlencoded\r\nIdempotency-Key: \"k1\"\r\n";
    let first = world.ask("POST /v1/projects/shop/start", "deploy", key, "ref=a").await;
    let bare = key.replace('"', "");
    let again = world.ask("POST /v1/projects/shop/start", "deploy", &bare, "ref=a").await;
    assert_eq!((first.status, &first.body), (again.status, &again.body));
    assert_eq!(again.header("location"), first.header("location"));
    assert_eq!(again.header("content-type"), first.header("content-type"));
    assert_eq!((first.header("idempotent-replayed"), again.header("idempotent-replayed")), (None, Some("true")));
    assert_eq!(world.engine.asked().len(), 1);
    let other = world.ask("POST /v1/projects/shop/start", "deploy", key, "ref=b").await;
    assert_eq!((other.status, other.code().as_str()), (422, "idempotency_mismatch"));
    // Another caller's keys, and another path's, are other keys.
    assert_eq!(world.ask("POST /v1/projects/shop/start", "admin", key, "ref=b").await.status, 202);
    assert_eq!(world.ask("POST /v1/projects/blog/start", "deploy", key, "ref=b").await.status, 202);
    // What failed for reasons of ours is tried again; what was wrong stays wrong.
    let key = |n: u8| format!("Content-Type: application/x-www-form-urlencoded\r\nIdempotency-Key: f{n}\r\n");
    for (n, reference, replayed) in [(1, "full", None), (2, "unknown", Some("true"))] {
        for replayed in [None, replayed] {
            let body = format!("ref={reference}");
            let answer = world.ask("POST /v1/projects/shop/start", "deploy", &key(n), &body).await;
            assert_eq!(answer.header("idempotent-replayed"), replayed, "{answer:?}");
            answer.code();
        }
    }
    for _ in 0..2 {
        assert_eq!(world.ask("POST /v1/projects/panic/start", "deploy", &key(3), "").await.status, 500);
    }
}

#[tokio::test]
async fn a_tokens_secret_is_shown_once() {
    let world = world().await;
    let key = "Content-Type: application/x-www-form-urlencoded\r\nIdempotency-Key: t\r\n";
    let body = "name=ci&scopes=read,deploy&projects=shop&ttl=90d";
    let first = world.ask("POST /v1/tokens", "admin", key, body).await;
    assert_eq!((first.status, first.json()["text"].as_str()), (201, Some("phd_x_secret")));
    let again = world.ask("POST /v1/tokens", "admin", key, body).await;
    assert_eq!((again.status, &again.json()["text"], &again.json()["id"]), (201, &Value::Null, &json!("new")));
    let kept = format!("{:?}", world.engine.keys.lock().unwrap());
    assert!(!kept.contains("secret"), "{kept}");
    assert_eq!(world.ask("DELETE /v1/tokens/a", "admin", "", "").await.status, 204);
}

#[tokio::test]
async fn a_gate_fails_when_the_run_does() {
    let world = world().await;
    let show = format!("GET /v1/runs/{RUN}");
    assert_eq!(world.ask(&show, "read", "", "").await.json()["state"], "testing");
    assert_eq!(world.ask(&format!("{show}?wait=finished&timeout=1s"), "read", "", "").await.status, 200);
    let over = world.ask(&format!("{show}?wait=finished&timeout=1s&fail"), "read", "", "").await;
    assert_eq!((over.status, over.code().as_str(), &over.json()["run"]["id"]), (504, "wait_timed_out", &json!(RUN)));
    assert_eq!(world.ask(&format!("{show}?wait=started&fail"), "read", "", "").await.status, 200);
    world.engine.run.lock().unwrap().state = RunState::RolledBack;
    let bad = world.ask(&format!("{show}?fail"), "read", "", "").await;
    assert_eq!(
        (bad.status, bad.code().as_str(), &bad.json()["run"]["state"]),
        (424, "run_not_succeeded", &json!("rolled_back"))
    );
    assert_eq!(world.ask(&show, "read", "", "").await.status, 200);
    world.engine.run.lock().unwrap().state = RunState::Succeeded;
    assert_eq!(world.ask(&format!("{show}?fail=true"), "read", "", "").await.status, 200);
    let waits: Vec<String> = world.engine.asked().into_iter().filter(|a| a.starts_with("wait")).collect();
    assert_eq!(waits[0], format!("wait {RUN} true 1s"));
    assert_eq!(waits[2], format!("wait {RUN} false 300s"));
}

#[tokio::test]
async fn logs_come_in_three_forms_and_go_on_where_they_stopped() {
    let world = world().await;
    let log = format!("GET /v1/runs/{RUN}/log");
    let text = world.ask(&log, "read", "", "").await;
    assert_eq!(text.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(text.body, "==> test/unit/run/-/sh#1 <==\none red\ntwo\n\n==> test/e2e/run/-/sh#1 <==\nthree\n");
    let lines = world.ask(&log, "read", "Accept: application/x-ndjson\r\n", "").await.body;
    let lines: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((lines.len(), &lines[1]["text"]), (3, &json!("two")));
    let events = world.ask(&log, "read", "Accept: text/event-stream\r\nLast-Event-ID: 2\r\n", "").await;
    assert!(events.body.starts_with("id: 3\ndata: {"), "{events:?}");
    assert!(events.body.ends_with("event: end\ndata: {}\n\n"), "{events:?}");
    assert_eq!((events.header("cache-control"), events.header("x-accel-buffering")), (Some("no-store"), Some("no")));
    world.ask(&format!("{log}?step=test%2Funit&host=i-1&tail=5"), "read", "", "").await;
    assert_eq!(
        world.engine.asked().last().unwrap(),
        r#"log LogQuery { step: Some("test/unit"), host: Some("i-1"), tail: Some(5), follow: false }"#
    );
}

/// Reads until `text` has come.
async fn until(stream: &mut (impl AsyncReadExt + Unpin), seen: &mut String, text: &str) {
    let mut buffer = [0; 4096];
    while !seen.contains(text) {
        let n = stream.read(&mut buffer).await.unwrap();
        assert!(n > 0, "closed before {text:?}: {seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
}

#[tokio::test]
async fn events_flow_beat_and_recover() {
    let world = world_with(Limits { heartbeat: Duration::from_millis(20), ..Limits::default() }, vec![]).await;
    let event = |n: usize, project: &str| {
        let value = json!({"id": format!("7-{n}"), "event": "host.healthy", "at": "2026-01-02T03:00:00Z", "project": project, "run": RUN,
                           "data": {"name": "web-1\u{1b}[2J"}});
        Arc::new(serde_json::from_value::<EventView>(value).unwrap())
    };
    let open = async |headers: &str| {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        let request = format!(
            "GET /v1/events?project=blog HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer read\r\n{headers}\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    };
    let mut seen = String::new();
    let mut sse = open("Last-Event-ID: old\r\n").await;
    until(&mut sse, &mut seen, ": keep-alive").await;
    assert!(seen.contains("retry: 2000\n\n") && seen.contains("event: reset\ndata: {\"version\""), "{seen}");
    world.engine.events.send(event(1, "shop")).unwrap();
    world.engine.events.send(event(2, "blog")).unwrap();
    until(&mut sse, &mut seen, "id: 7-2\nevent: host.healthy\ndata: {").await;
    assert!(!seen.contains("7-1"), "another project's");
    // A client that lags behind the ring is told so, with the whole state.
    let resets = seen.matches("event: reset").count();
    for n in 3..40 {
        world.engine.events.send(event(n, "blog")).unwrap();
    }
    assert_eq!(resets, 1);
    seen.clear();
    until(&mut sse, &mut seen, "event: reset").await;
    assert!(!seen.contains("id: 7-3\n"), "what was lost is not told: {seen}");
    let mut lines = String::new();
    let mut ndjson = open("Accept: application/x-ndjson\r\n").await;
    until(&mut ndjson, &mut lines, "{}\n").await;
    let mut texts = String::new();
    let mut text = open("Accept: text/plain\r\n").await;
    until(&mut text, &mut texts, "text/plain").await;
    world.engine.events.send(event(50, "blog")).unwrap();
    until(&mut text, &mut texts, "host.healthy  web-1\n").await;
    // Going down ends streams, and quickly.
    assert!(world.tasks.shut_down(Duration::from_secs(5)).await.is_empty());
}

#[tokio::test]
async fn going_down_finishes_answers_and_ends_waits() {
    let world = world().await;
    let log =
        format!("GET /v1/runs/{RUN}/log?follow HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer read\r\n\r\n");
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    stream.write_all(log.as_bytes()).await.unwrap();
    let mut seen = String::new();
    until(&mut stream, &mut seen, "three").await;
    assert!(world.tasks.shut_down(Duration::from_secs(5)).await.is_empty());
    assert!(TcpStream::connect(world.address).await.is_err());
}

#[tokio::test]
async fn people_get_text_when_they_ask_for_it() {
    let world = world().await;
    let accept = "Accept: text/plain\r\n";
    for (line, text) in [
        ("GET /v1/status", "phased 0.1.0, up for "),
        ("GET /v1/projects", "PROJECT  BRANCH  ENVIRONMENTS"),
        ("GET /v1/projects/shop/status", "shop  branch main of "),
        ("GET /v1/projects/shop/plan", "shop: tests unit; then 0 environments"),
        ("GET /v1/runs", "RUN  "),
        ("GET /v1/runs/01kc0000000000000000000000", "shop: run 01kc"),
        ("GET /v1/tokens", "ID  NAME"),
    ] {
        let answer = world.ask(line, "admin", accept, "").await;
        assert!(answer.body.starts_with(text), "{line}: {answer:?}");
        assert!(!answer.body.contains('\x1b'), "{answer:?}");
    }
}

#[tokio::test]
async fn readiness_tells_strangers_less() {
    let world = world().await;
    assert_eq!(world.ask("GET /readyz?verbose", "", "", "").await.body, "journal: ok\nindex: ok\nok\n");
    *world.engine.ready.lock().unwrap() = vec![("journal", Some("/var/lib/phased is full".into())), ("index", None)];
    let answer = world.ask("GET /readyz", "", "", "").await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "not_ready"));
    assert_eq!(answer.json()["errors"], json!([{"pointer": "journal", "detail": "failing"}]));
    let answer = world.ask("GET /readyz", "read", "", "").await;
    assert_eq!(answer.json()["errors"][0]["detail"], "/var/lib/phased is full");
}

#[tokio::test]
async fn freezes_and_leases_say_for_how_long_and_by_whom() {
    let world = world().await;
    let at = |method: &str, path: &str| format!("{method} /v1/projects/shop/environments/production/{path}");
    for (method, path, body, says) in [
        ("PUT", "freeze", "for=2h&reason=Christmas", "\"frozen\":true"),
        ("PUT", "freeze", "", "\"until\":null"),
        ("PUT", "freeze", "for=2h&until=2099-01-01T00:00:00Z", "for and until say the same"),
        ("PUT", "freeze", "for=0s", "for must be more than nothing"),
        ("PUT", "freeze", "for=soon", "is not a duration"),
        ("PUT", "freeze", "until=2020-01-01T00:00:00Z", "until is over already"),
        ("PUT", "freeze", "until=tomorrow", "until must be a moment such as"),
        ("PUT", "freeze", "untill=x", "did you mean \\\"until\\\""),
        ("DELETE", "freeze?reason=hotfix", "", "\"frozen\":false"),
        ("PUT", "lease", "", "for is missing: say how long you need the environment"),
        ("PUT", "lease", "for=8d", "a lease is for at most 7d"),
        ("PUT", "lease", "for=2h&holder=ann&force=true", "\"holder\":\"ann\""),
        ("DELETE", "lease", "", "\"code\":\"lease_held\""),
        ("DELETE", "lease?force=true", "", "\"held\":false"),
    ] {
        let answer = world.form(&at(method, path), "deploy", body).await.body;
        assert!(answer.contains(says), "{method} {path} {body}: {answer}");
        let refused = world.form(&at(method, path), "read", body).await;
        assert_eq!((refused.status, refused.code().as_str()), (403, "insufficient_scope"));
    }
    let asked = world.engine.asked();
    let by = "token deploy-name (deploy)";
    assert_eq!(asked[0], format!("freeze shop production None Some(\"Christmas\") {by}"));
    assert_eq!(asked[3], format!("hold shop production Some(\"ann\") true {by}"));
    let text = world.ask(&at("GET", "freeze"), "read", "Accept: text/plain\r\n", "").await.body;
    assert_eq!(
        text,
        "production of shop is frozen until it is lifted by ann (Christmas)\n  windows fri 16:00 to mon 08:00 Europe/Berlin\n"
    );
    let text = world.ask(&at("GET", "lease"), "read", "Accept: text/plain\r\n", "").await.body;
    assert!(text.starts_with("production of shop is held by ann (debugging) since 2026-01-01 00:00:00 UTC"), "{text}");
    assert_eq!(asked.len(), 6, "{asked:?}");
}
