//! One mail by SMTP.

use async_trait::async_trait;
use std::time::Duration;

use super::secrets::Secret;
use crate::model::cause::Cause;

/// How the connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// `STARTTLS`, required.
    StartTls,
    /// From the first byte.
    Implicit,
    /// None: only for a relay on this machine.
    None,
}

/// What to send, and by whom.
#[derive(Debug, Clone)]
pub struct Message {
    /// The relay.
    pub host: String,
    /// 587, 465 or 25 as a rule.
    pub port: u16,
    /// How the connection is protected.
    pub tls: Tls,
    /// User and password.
    pub login: Option<(String, Secret)>,
    /// `Name <address>`.
    pub from: String,
    /// At least one.
    pub to: Vec<String>,
    /// One line; control characters are refused.
    pub subject: String,
    /// Plain text.
    pub body: String,
    /// The whole exchange.
    pub timeout: Duration,
}

/// Sends mail.
#[async_trait]
pub trait Mail: Send + Sync {
    /// Hands the mail to the relay.
    ///
    /// # Errors
    /// `smtp_address`, `smtp_connect`, `smtp_refused` (with the relay's answer), `timeout`.
    async fn send(&self, message: Message) -> Result<(), Cause>;
}
