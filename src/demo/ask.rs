//! Asks over HTTP: the daemon by its socket or with its token, hosts on loopback.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, anyhow};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes, header};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

use crate::time::{Clock, within};

/// Everything is on this machine.
const LIMIT: Duration = Duration::from_secs(15);
const LARGEST: usize = 4 << 20;

/// Where somebody answers.
#[derive(Debug, Clone)]
pub(super) enum Place {
    Tcp(SocketAddr),
    Socket(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Tcp(addr) => write!(f, "http://{addr}"),
            Place::Socket(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// What was answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: String,
}

impl Answer {
    /// The body, if it is JSON of this shape and the status a success.
    ///
    /// # Errors
    /// What was answered instead.
    pub(super) fn json<T: serde::de::DeserializeOwned>(&self) -> anyhow::Result<T> {
        if !self.status.is_success() {
            return Err(anyhow!("{}: {}", self.status, self.body.trim()));
        }
        serde_json::from_str(&self.body).with_context(|| format!("this answer cannot be read: {}", self.body.trim()))
    }
}

/// Sends one request; a form makes it a POST.
///
/// # Errors
/// No answer within 15 s, or none at all.
pub(super) async fn ask(
    clock: &dyn Clock,
    to: &Place,
    path: &str,
    token: Option<&str>,
    form: Option<&str>,
) -> anyhow::Result<Answer> {
    let failed = || format!("{to}{path} gave no answer");
    let host = match to {
        Place::Tcp(addr) => addr.to_string(),
        Place::Socket(_) => "localhost".to_owned(),
    };
    let mut request = Request::builder()
        .method(if form.is_some() { Method::POST } else { Method::GET })
        .uri(path)
        .header(header::HOST, host)
        .header(header::ACCEPT, "application/json")
        .header(header::CONNECTION, "close");
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    if form.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    }
    let request = request.body(Full::new(Bytes::from(form.unwrap_or_default().to_owned())))?;
    let work = async {
        match to {
            Place::Tcp(addr) => exchange(TcpStream::connect(addr).await?, request).await,
            Place::Socket(path) => exchange(UnixStream::connect(path).await?, request).await,
        }
    };
    within(clock, LIMIT, work)
        .await
        .ok_or_else(|| anyhow!("nothing within {} s", LIMIT.as_secs()))?
        .with_context(failed)
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<Answer> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST).collect().await.map_err(|e| anyhow!(e))?;
        anyhow::Ok(Answer { status, body: String::from_utf8_lossy(&body.to_bytes()).into_owned() })
    };
    let mut connection = std::pin::pin!(connection);
    let mut exchange = std::pin::pin!(exchange);
    // The connection moves the bytes; once it is done the answer is complete or will never be.
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        moved = &mut connection => {
            moved?;
            exchange.await
        }
    }
}
