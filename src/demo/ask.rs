//! Asks over HTTP on loopback: the daemon with its token, hosts without.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, anyhow};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::time::{Clock, within};

/// Everything is on this machine.
const LIMIT: Duration = Duration::from_secs(15);
const LARGEST: usize = 4 << 20;

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
    to: SocketAddr,
    path: &str,
    token: Option<&str>,
    form: Option<&str>,
) -> anyhow::Result<Answer> {
    let failed = || format!("http://{to}{path} gave no answer");
    let mut request = Request::builder()
        .method(if form.is_some() { Method::POST } else { Method::GET })
        .uri(path)
        .header(header::HOST, to.to_string())
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
        let stream = TcpStream::connect(to).await?;
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
    };
    within(clock, LIMIT, work)
        .await
        .ok_or_else(|| anyhow!("nothing within {} s", LIMIT.as_secs()))?
        .with_context(failed)
}
