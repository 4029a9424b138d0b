//! One HTTP request, from here or through a host's session.

use async_trait::async_trait;
use std::time::Duration;

use super::link::Duplex;
use crate::model::cause::Cause;

/// What to ask.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET`, `POST`, ...
    pub method: String,
    /// The whole URL; through a session only its path and host header count.
    pub url: String,
    /// As given.
    pub headers: Vec<(String, String)>,
    /// Empty for none.
    pub body: Vec<u8>,
    /// Connecting, sending and the whole answer.
    pub timeout: Duration,
    /// Bytes of the answer's body that are kept; the rest is dropped and `truncated` set.
    pub max_body: usize,
}

/// What came back, whatever its status.
#[derive(Debug, Clone)]
pub struct Response {
    /// 100 to 599.
    pub status: u16,
    /// Lower-case names.
    pub headers: Vec<(String, String)>,
    /// At most `max_body` bytes.
    pub body: Vec<u8>,
    /// More came than was kept.
    pub truncated: bool,
}

/// The client. Redirects are not followed: a probe that is redirected is not healthy, a webhook that is redirected is wrong.
#[async_trait]
pub trait Http: Send + Sync {
    /// Asks from here.
    ///
    /// # Errors
    /// `http_url`, `http_connect`, `http_tls`, `timeout`, `http_protocol`. Cancel safe.
    async fn request(&self, request: Request) -> Result<Response, Cause>;

    /// Asks over a connection already made (a host's own loopback, through its session), as plain HTTP/1.1.
    ///
    /// # Errors
    /// As [`Http::request`].
    async fn request_over(&self, stream: Box<dyn Duplex>, request: Request) -> Result<Response, Cause>;
}
