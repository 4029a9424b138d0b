use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
    sync::mpsc,
};

use super::*;
use crate::{lifecycle::Tasks, ports::secrets::Secret, time::SystemClock};

/// How the sink behaves.
#[derive(Clone, Copy, PartialEq)]
enum Sink {
    Takes,
    RefusesRecipient,
    OffersTls,
    Silent,
    HangsUpAfterData,
}

/// A relay that writes down what it hears, line by line.
async fn sink(tasks: &Tasks, how: Sink) -> (u16, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (heard, lines) = mpsc::unbounded_channel();
    tasks.spawn("sink", async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        if how == Sink::Silent {
            return std::future::pending().await;
        }
        stream.write_all(b"220 sink ESMTP\r\n").await.unwrap();
        let mut data = false;
        let mut line = String::new();
        while stream.read_line(&mut line).await.is_ok_and(|n| n > 0) {
            let text = std::mem::take(&mut line).trim_end().to_owned();
            let word = text.split(' ').next().unwrap_or("").to_ascii_uppercase();
            let answer: &str = match (data, word.as_str()) {
                (true, ".") => {
                    data = false;
                    "250 queued\r\n"
                }
                (true, _) => "",
                (_, "EHLO") if how == Sink::OffersTls => "250-sink\r\n250 STARTTLS\r\n",
                (_, "EHLO") => "250-sink\r\n250-8BITMIME\r\n250 AUTH PLAIN LOGIN\r\n",
                (_, "STARTTLS") => "220 go ahead\r\n",
                (_, "RCPT") if how == Sink::RefusesRecipient => "550 no such user here\r\n",
                (_, "AUTH") => "235 fine\r\n",
                (_, "DATA") => {
                    data = true;
                    "354 go\r\n"
                }
                (_, "QUIT") if how == Sink::HangsUpAfterData => return,
                _ => "250 ok\r\n",
            };
            let _ = heard.send(text);
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    });
    (port, lines)
}

fn message(port: u16) -> Message {
    Message {
        host: "127.0.0.1".into(),
        port,
        tls: Tls::None,
        login: None,
        from: "phased <phased@example.com>".into(),
        to: vec!["ops@example.com".into(), "Ann Ü <ann@example.com>".into()],
        subject: "shop: failed — héllo".into(),
        body: "line one\n.hidden dot\nünï\n".into(),
        timeout: Duration::from_secs(10),
    }
}

fn smtp() -> Smtp {
    Smtp::new(Arc::new(SystemClock::new()))
}

async fn all(mut lines: mpsc::UnboundedReceiver<String>) -> Vec<String> {
    let mut heard = Vec::new();
    while let Some(line) = lines.recv().await {
        heard.push(line);
    }
    heard
}

#[tokio::test]
async fn a_mail_arrives_whole() {
    let tasks = Tasks::new();
    let (port, lines) = sink(&tasks, Sink::HangsUpAfterData).await;
    let mut mail = message(port);
    mail.login = Some(("bot".into(), Secret::new(b"password1")));
    smtp().send(mail).await.unwrap();
    let heard = all(lines).await;
    let text = heard.join("\n");
    for part in [
        "AUTH PLAIN",
        "MAIL FROM:<phased@example.com>",
        "RCPT TO:<ops@example.com>",
        "RCPT TO:<ann@example.com>",
        "Subject: shop: failed",
        "Auto-Submitted: auto-generated",
        "Date: ",
        "Message-ID: <",
        "@example.com>",
        "Content-Transfer-Encoding: ",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("héllo"), "headers are ASCII");
    assert!(
        heard.iter().filter(|line| line.starts_with('.')).all(|line| line == "." || line.starts_with("..")),
        "{text}"
    );
}

#[tokio::test]
async fn nothing_can_be_slipped_into_headers_or_commands() {
    let evil: [fn(&mut Message); 9] = [
        |m| m.subject = "x\r\nBcc: victim@example.com".into(),
        |m| m.subject = "x\nBcc: victim@example.com".into(),
        |m| m.from = "a@example.com\r\nBcc: v@example.com".into(),
        |m| m.from = "x> RCPT TO:<v@example.com".into(),
        |m| m.to = vec!["a@example.com\nDATA".into()],
        |m| m.to = vec!["a@example.com>\r\nRCPT TO:<b@example.com".into()],
        |m| m.to = vec!["no address".into()],
        |m| m.to = Vec::new(),
        |m| m.subject = "nul\0".into(),
    ];
    let tasks = Tasks::new();
    for (i, change) in evil.iter().enumerate() {
        let (port, mut lines) = sink(&tasks, Sink::Takes).await;
        let mut mail = message(port);
        change(&mut mail);
        assert_eq!(smtp().send(mail).await.unwrap_err().code, "smtp_address", "{i}");
        assert!(lines.try_recv().is_err(), "{i}: nobody was even asked");
    }
}

#[tokio::test]
async fn a_refusal_carries_the_relays_answer() {
    let tasks = Tasks::new();
    let (port, _lines) = sink(&tasks, Sink::RefusesRecipient).await;
    let cause = smtp().send(message(port)).await.unwrap_err();
    assert_eq!(cause.code, "smtp_refused", "{cause}");
    assert!(cause.message.contains("no such user here"), "{cause}");
    assert_eq!(cause.facts["reply"], 550);
}

#[tokio::test]
async fn tls_that_is_asked_for_is_never_left_out() {
    let tasks = Tasks::new();
    for (how, tls) in [(Sink::Takes, Tls::StartTls), (Sink::OffersTls, Tls::StartTls), (Sink::Takes, Tls::Implicit)] {
        let (port, lines) = sink(&tasks, how).await;
        let mut mail = message(port);
        (mail.tls, mail.timeout) = (tls, Duration::from_secs(3));
        mail.login = Some(("bot".into(), Secret::new(b"password1")));
        let cause = smtp().send(mail).await.unwrap_err();
        assert!(matches!(cause.code.as_str(), "smtp_connect" | "timeout"), "{cause}");
        let heard = all(lines).await.join("\n");
        assert!(!heard.contains("AUTH") && !heard.contains("MAIL"), "{heard}");
    }
    let mut mail = message(25);
    (mail.host, mail.login) = ("192.0.2.1".into(), Some(("bot".into(), Secret::new(b"password1"))));
    assert!(smtp().send(mail).await.unwrap_err().message.contains("without TLS"));
}

#[tokio::test]
async fn silence_and_absence_end_in_time() {
    let tasks = Tasks::new();
    let (port, _lines) = sink(&tasks, Sink::Silent).await;
    let mut mail = message(port);
    mail.timeout = Duration::from_millis(100);
    assert_eq!(smtp().send(mail).await.unwrap_err().code, "timeout");
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    assert_eq!(smtp().send(message(free)).await.unwrap_err().code, "smtp_connect");
}
