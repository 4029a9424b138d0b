//! One mail to a relay by SMTP (RFC 5321, STARTTLS by RFC 3207), through `lettre`.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use lettre::{
    address::Envelope,
    message::{Mailbox, SinglePart, header::ContentType},
    transport::smtp::{
        authentication::{Credentials, Mechanism},
        client::{AsyncSmtpConnection, TlsParameters},
        extension::ClientId,
    },
};

use crate::{
    model::cause::{Cause, one_line},
    ports::mail::{Mail, Message, Tls},
    time::{Clock, Span, within},
};

/// Sends mail; one connection a mail.
pub struct Smtp {
    clock: Arc<dyn Clock>,
}

/// A subject longer than this is cut: relays refuse long header lines.
const MAX_SUBJECT: usize = 500;

impl Smtp {
    /// Dates mails and limits exchanges by `clock`.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Smtp { clock }
    }

    /// The mail as it goes over the wire.
    fn write(&self, message: &Message) -> Result<(Envelope, Vec<u8>), Cause> {
        let refuse = |what: &str, why: &str| Cause::new("smtp_address", format!("{what} {why}"));
        let mailbox = |what: &str, text: &str| -> Result<Mailbox, Cause> {
            if text.chars().any(char::is_control) {
                return Err(refuse(what, "holds a line break or control character"));
            }
            let shown: String = text.chars().take(100).collect();
            text.trim().parse().map_err(|error| refuse(what, &format!("{shown:?} is no mail address ({error}): write \"name@example.com\" or \"Name <name@example.com>\"")))
        };
        let from = mailbox("from", &message.from)?;
        if message.to.is_empty() {
            return Err(refuse("to", "is empty: name at least one address"));
        }
        let to = message.to.iter().map(|text| mailbox("to", text)).collect::<Result<Vec<_>, _>>()?;
        if message.subject.chars().any(char::is_control) {
            return Err(refuse("subject", "holds a line break or control character: it must be one line"));
        }
        let now = self.clock.now();
        let wall = Duration::from_millis(u64::try_from(now.wall_ms).unwrap_or(0));
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| refuse("message id:", &format!("no random numbers ({error})")))?;
        let id = format!("<{:032x}@{}>", u128::from_be_bytes(random), from.email.domain());
        let subject: String = message.subject.chars().take(MAX_SUBJECT).collect();
        let mut builder = lettre::Message::builder()
            .date(std::time::UNIX_EPOCH + wall)
            .message_id(Some(id))
            .from(from)
            .subject(subject);
        for mailbox in to {
            builder = builder.to(mailbox);
        }
        // Other programs must not answer a machine with a vacation notice (RFC 3834).
        let builder = builder.raw_header(lettre::message::header::HeaderValue::new(
            lettre::message::header::HeaderName::new_from_ascii_str("Auto-Submitted"),
            "auto-generated".to_owned(),
        ));
        let body = SinglePart::builder().header(ContentType::TEXT_PLAIN).body(message.body.clone());
        let mail =
            builder.singlepart(body).map_err(|error| refuse("the mail", &format!("cannot be written: {error}")))?;
        Ok((mail.envelope().clone(), mail.formatted()))
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// What went wrong at which relay.
fn failed(relay: &str, doing: &str, error: &lettre::transport::smtp::Error) -> Cause {
    let mut said = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let text = inner.to_string();
        if !said.contains(&text) {
            said = format!("{said}: {text}");
        }
        source = inner.source();
    }
    let said = one_line(&said, 500);
    if let Some(code) = error.status() {
        let code = u16::from(code);
        let help = if error.is_transient() { "; it may take it later" } else { "" };
        return Cause::new("smtp_refused", format!("the relay {relay} refused {doing} ({said}){help}"))
            .with("reply", code);
    }
    Cause::new("smtp_connect", format!("{doing} at the relay {relay} failed ({said})"))
}

async fn deliver(message: &Message, envelope: &Envelope, mail: &[u8]) -> Result<(), Cause> {
    let relay = format!("{}:{}", message.host, message.port);
    let hello = ClientId::default();
    let at = |doing: &'static str| {
        let relay = relay.clone();
        move |error: lettre::transport::smtp::Error| failed(&relay, doing, &error)
    };
    let tls = match message.tls {
        Tls::None => None,
        Tls::StartTls | Tls::Implicit => {
            Some(TlsParameters::new_rustls(message.host.clone()).map_err(at("setting up TLS"))?)
        }
    };
    let first = if message.tls == Tls::Implicit { tls.clone() } else { None };
    let host = message.host.trim_matches(['[', ']']);
    let mut connection =
        AsyncSmtpConnection::connect_tokio1((host, message.port), Some(message.timeout), &hello, first, None)
            .await
            .map_err(at("connecting"))?;
    if let (Tls::StartTls, Some(tls)) = (message.tls, tls) {
        if !connection.can_starttls() {
            connection.abort().await;
            let message = format!(
                "the relay {relay} offers no STARTTLS: use tls = \"implicit\" where it has that, or \"none\" for a relay on this machine"
            );
            return Err(Cause::new("smtp_connect", message));
        }
        connection.starttls(tls, &hello).await.map_err(at("STARTTLS"))?;
    }
    if let Some((user, secret)) = &message.login {
        let Ok(password) = std::str::from_utf8(secret.expose()) else {
            return Err(Cause::new("smtp_refused", "the password of the mail login is no text"));
        };
        let login = Credentials::new(user.clone(), password.to_owned());
        connection.auth(&[Mechanism::Plain, Mechanism::Login], &login).await.map_err(at("the login"))?;
    }
    connection.send(envelope, mail).await.map_err(at("the mail"))?;
    // It has the mail: whatever becomes of the farewell, sending again would be a second mail.
    let _farewell = connection.quit().await;
    Ok(())
}

#[async_trait]
impl Mail for Smtp {
    async fn send(&self, message: Message) -> Result<(), Cause> {
        if message.host.is_empty() || message.host.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(Cause::new(
                "smtp_connect",
                "the relay's host is empty or holds spaces: write a name such as \"smtp.example.com\"",
            ));
        }
        if message.tls == Tls::None && message.login.is_some() && !is_loopback(&message.host) {
            let text = format!(
                "a password is not sent to {} without TLS: use tls = \"starttls\" or \"implicit\"",
                message.host
            );
            return Err(Cause::new("smtp_connect", text));
        }
        let (envelope, mail) = self.write(&message)?;
        let limit = message.timeout;
        within(&*self.clock, limit, deliver(&message, &envelope, &mail)).await.unwrap_or_else(|| {
            let text =
                format!("the relay {}:{} did not take the mail within {}", message.host, message.port, Span(limit));
            Err(Cause::new("timeout", text))
        })
    }
}

#[cfg(test)]
mod tests;
