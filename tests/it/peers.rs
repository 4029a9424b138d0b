//! Peers of other protocols: a mail relay, and a git server over smart HTTP.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use crate::fixture::{Project, World, eventually};

/// A relay that takes one mail after the other and keeps them whole.
struct Relay {
    port: u16,
    mails: Arc<Mutex<Vec<String>>>,
}

impl Relay {
    fn start() -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mails = Arc::<Mutex<Vec<String>>>::default();
        let kept = mails.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _client_gone = Relay::serve(stream, &kept);
            }
        });
        Relay { port, mails }
    }

    fn serve(mut stream: TcpStream, kept: &Mutex<Vec<String>>) -> std::io::Result<()> {
        let lines = BufReader::new(stream.try_clone()?).lines();
        stream.write_all(b"220 relay ESMTP\r\n")?;
        let mut mail: Option<String> = None;
        for line in lines {
            let line = line?;
            if let Some(text) = &mut mail {
                if line == "." {
                    kept.lock().unwrap().push(mail.take().unwrap());
                    stream.write_all(b"250 queued\r\n")?;
                } else {
                    text.push_str(&line);
                    text.push('\n');
                }
                continue;
            }
            let answer = match line.split(' ').next().unwrap_or("") {
                "DATA" => {
                    mail = Some(String::new());
                    "354 go\r\n"
                }
                "QUIT" => "221 bye\r\n",
                _ => "250 ok\r\n",
            };
            stream.write_all(answer.as_bytes())?;
        }
        Ok(())
    }
}

#[test]
fn bad_news_comes_by_mail() {
    let relay = Relay::start();
    let email = format!(
        r#"require "alerts.email" {{ host = "127.0.0.1", port = {}, tls = "none", from = "phased@example.com", to = {{ "ops@example.com" }} }}"#,
        relay.port
    );
    let project =
        Project::new("shop").stage("unit", r#"run:sh "echo expected 4 but got 5 >&2; exit 7""#).notify(&email);
    let (world, daemon) = World::with(&project);
    world.repo.push("make five of four");
    let run = daemon.deploy().is("failed");
    let found = || relay.mails.lock().unwrap().iter().find(|mail| mail.contains(&run.id)).cloned();
    let mail = eventually("the mail has come", found).replace("=\n", "");
    for said in
        ["Subject: ", "shop failed in stage unit", "expected 4 but got 5", "Ada Lovelace", "To: ops@example.com"]
    {
        assert!(mail.contains(said), "{said:?} is not in\n{mail}");
    }
}

/// `git http-backend` behind basic authentication, a process a request.
fn smart_http(root: PathBuf, login: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let root = root.clone();
            std::thread::spawn(move || backend(stream, &root, login));
        }
    });
    port
}

fn backend(mut stream: TcpStream, root: &Path, login: &str) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let (method, target) = (line.split(' ').next()?.to_owned(), line.split(' ').nth(1)?.to_owned());
    let (mut length, mut kind, mut protocol, mut authorised) = (0usize, String::new(), String::new(), false);
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().ok()?,
            "content-type" => value.clone_into(&mut kind),
            "git-protocol" => value.clone_into(&mut protocol),
            "authorization" => authorised = value == format!("Basic {login}"),
            _ => {}
        }
    }
    if !authorised {
        let refusal = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"git\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        return stream.write_all(refusal.as_bytes()).ok();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut child = Command::new("git")
        .args(["-c", "safe.directory=*", "http-backend"])
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("REQUEST_METHOD", &method)
        .env("CONTENT_TYPE", &kind)
        .env("CONTENT_LENGTH", length.to_string())
        .env("GIT_PROTOCOL", &protocol)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    let mut stdin = child.stdin.take()?;
    let feeding = std::thread::spawn(move || stdin.write_all(&body));
    let mut answer = Vec::new();
    child.stdout.take()?.read_to_end(&mut answer).ok()?;
    let _closed_early = feeding.join();
    child.wait().ok()?;
    stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n").ok()?;
    stream.write_all(&answer).ok()
}

#[test]
fn a_private_repository_over_smart_http_is_deployed() {
    let world = World::new();
    // "x-access-token:a token of the test", as `source.token` without a user is sent.
    let port = smart_http(world.root().to_owned(), "eC1hY2Nlc3MtdG9rZW46YSB0b2tlbiBvZiB0aGUgdGVzdA==");
    world.secret("git_token", "a token of the test");
    let url = format!("http://127.0.0.1:{port}/repo.git");
    let project = Project::new("shop").git(&url).source(r#"token = phased.secret "git_token""#).hosts(&["h1"]);
    world.project(&project);
    let commit = world.repo.push("over HTTP");
    let daemon = world.start();
    daemon.deploy().is("succeeded");
    assert!(world.hosts_have(&["h1"], &commit));
}
