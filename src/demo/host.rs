//! A host of the demo: an SSH server, and the deployed app behind HTTP, both on loopback.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use nix::{sys::signal::Signal, unistd::Pid};
use tokio::{io::AsyncReadExt as _, net::TcpListener, process::Command};

use crate::{
    lifecycle::Tasks,
    ssh::server::{self, Account, Key},
    time::{Clock, within},
};

/// The port the app has on its host, as the project file knows it; which real one that is only the host knows.
pub(super) const APP_PORT: u16 = 8080;
/// The longest the app may take to answer.
const APP_LIMIT: Duration = Duration::from_secs(3);
/// The longest a connection is kept.
const CONNECTION_LIMIT: Duration = Duration::from_secs(60);
/// The most of an answer.
const MOST_OUTPUT: u64 = 64 << 10;

/// What is known of a host once it is up.
#[derive(Debug, Clone)]
pub(super) struct Host {
    /// `web-1`.
    pub(super) name: String,
    /// Its own directory, the home of its only user.
    pub(super) home: PathBuf,
    /// Where its SSH server listens.
    pub(super) ssh: SocketAddr,
    /// Where the app is served.
    pub(super) http: SocketAddr,
    /// Its line in known_hosts.
    pub(super) known_hosts: String,
    looks: Arc<AtomicU32>,
}

impl Host {
    /// How often it was asked for its health.
    pub(super) fn looks(&self) -> u32 {
        self.looks.load(Ordering::Relaxed)
    }
}

/// Starts the host `name` in `home`, which is made; `key` logs `user` in.
///
/// # Errors
/// No directory, port or key could be had.
pub(super) async fn start(
    name: &str,
    home: PathBuf,
    user: &str,
    key: &Key,
    path: &str,
    tasks: &Tasks,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Host> {
    std::fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
    let no_port = || format!("{name} gets no port on 127.0.0.1");
    let http = TcpListener::bind("127.0.0.1:0").await.with_context(no_port)?;
    let ssh = TcpListener::bind("127.0.0.1:0").await.with_context(no_port)?;
    let (http_addr, ssh_addr) = (http.local_addr()?, ssh.local_addr()?);
    let host_key = Key::generate()?;
    let known_hosts = format!("[127.0.0.1]:{} {}", ssh_addr.port(), host_key.public_line()?);
    let account = Account {
        user: user.to_owned(),
        key: key.clone(),
        home: home.clone(),
        path: path.to_owned(),
        forwards: BTreeMap::from([(APP_PORT, http_addr)]),
    };
    server::serve(name, ssh, host_key, account, tasks);
    let looks = Arc::new(AtomicU32::new(0));
    let app = App {
        name: name.to_owned(),
        shop: home.join("shop"),
        path: path.to_owned(),
        looks: looks.clone(),
        clock: clock.clone(),
    };
    tasks.spawn(format!("demo/{name}/http"), accept(http, Arc::new(app), tasks.clone()));
    Ok(Host { name: name.to_owned(), home, ssh: ssh_addr, http: http_addr, known_hosts, looks })
}

/// Answers requests until the demo ends.
async fn accept(listener: TcpListener, app: Arc<App>, tasks: Tasks) {
    let stopping = tasks.stopping();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::task::yield_now().await;
            continue;
        };
        let (app, stopping) = (app.clone(), stopping.clone());
        tasks.spawn(format!("demo/{}/http/connection", app.name), async move {
            let clock = app.clock.clone();
            let service = service_fn(move |request| {
                let app = app.clone();
                async move { Ok::<_, Infallible>(app.answer(&request).await) }
            });
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                biased;
                () = stopping.cancelled() => {}
                _whatever_the_client_did = within(&*clock, CONNECTION_LIMIT, connection) => {}
            }
        });
    }
}

/// The app as it is deployed on one host.
struct App {
    name: String,
    /// The checkout.
    shop: PathBuf,
    path: String,
    looks: Arc<AtomicU32>,
    clock: Arc<dyn Clock>,
}

impl App {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() == "/version" {
            return self.version();
        }
        if request.uri().path() == "/healthz" {
            self.looks.fetch_add(1, Ordering::Relaxed);
        }
        match self.run().await {
            // Healthy is whoever can serve.
            Ok(_) if request.uri().path() == "/healthz" => text(StatusCode::OK, "ok\n".into()),
            Ok(said) => text(StatusCode::OK, said),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
        }
    }

    /// The commit that is checked out.
    fn version(&self) -> Response<Full<Bytes>> {
        let head = std::fs::read_to_string(self.shop.join(".git/HEAD")).unwrap_or_default();
        let revision = Some(head.trim()).filter(|head| head.len() >= 40 && head.bytes().all(|b| b.is_ascii_hexdigit()));
        let body = format!("{}\n", serde_json::json!({ "host": self.name, "revision": revision }));
        let mut response = text(StatusCode::OK, body.into());
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        response
    }

    /// What the app printed, or what it complained of.
    async fn run(&self) -> Result<Bytes, Bytes> {
        if !self.shop.join("app.sh").is_file() {
            return Err(format!("nothing is deployed on {} yet\n", self.name).into());
        }
        let mut child = Command::new("sh")
            .arg("./app.sh")
            .current_dir(&self.shop)
            .env_clear()
            .env("PATH", &self.path)
            .env("HOST_NAME", &self.name)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Bytes::from(format!("the app cannot be started: {error}\n")))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let work = async {
            let (out, err) = tokio::join!(read(out), read(err));
            (child.wait().await, out, err)
        };
        match within(&*self.clock, APP_LIMIT, work).await {
            Some((Ok(status), out, _)) if status.success() => Ok(out.into()),
            Some((_, _, err)) => Err(err.into()),
            None => {
                if let Some(group) = group {
                    let _gone_already = nix::sys::signal::killpg(group, Signal::SIGKILL);
                }
                Err(format!("the app took longer than {} s\n", APP_LIMIT.as_secs()).into())
            }
        }
    }
}

async fn read(from: Option<impl tokio::io::AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        let _what_came_is_shown = from.take(MOST_OUTPUT).read_to_end(&mut bytes).await;
    }
    bytes
}

fn text(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
