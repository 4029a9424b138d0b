//! Over smart HTTP: `git http-backend` behind a small server with basic authentication.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::lifecycle::Tasks;

/// Serves `root`; every request's head is told, and 401 is the answer without `authorization`.
async fn serve(tasks: &Tasks, root: PathBuf, authorization: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let more = tasks.clone();
    tasks.spawn("http", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let root = root.clone();
            more.spawn("request", async move { answer(stream, &root, authorization).await });
        }
    });
    port
}

async fn answer(mut stream: TcpStream, root: &Path, authorization: &str) -> Option<()> {
    let mut bytes = Vec::new();
    let split = loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..split]).into_owned();
    let header = |name: &str| {
        head.lines()
            .find_map(|line| {
                line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.to_owned())
            })
            .unwrap_or_default()
    };
    let length: usize = header("content-length").parse().unwrap_or(0);
    while bytes.len() < split + 4 + length {
        stream.read_buf(&mut bytes).await.ok()?;
    }
    let mut words = head.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let reply = if path.starts_with("/moved") {
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/elsewhere\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_vec()
    } else if header("authorization") != authorization {
        b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_vec()
    } else {
        let mut child = tokio::process::Command::new("git")
            .arg("http-backend")
            .envs([
                ("REQUEST_METHOD", method),
                ("PATH_INFO", path),
                ("QUERY_STRING", query),
                ("GIT_HTTP_EXPORT_ALL", "1"),
                ("REMOTE_USER", "x"),
            ])
            .env("GIT_PROJECT_ROOT", root)
            .env("CONTENT_TYPE", header("content-type"))
            .env("CONTENT_LENGTH", length.to_string())
            .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
            .env("GIT_PROTOCOL", header("git-protocol"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        child.stdin.take()?.write_all(&bytes[split + 4..]).await.ok()?;
        let out = child.wait_with_output().await.ok()?.stdout;
        let text = String::from_utf8_lossy(&out);
        let status = text.lines().next().and_then(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK").to_owned();
        [format!("HTTP/1.1 {status}\r\nConnection: close\r\n").as_bytes(), &out].concat()
    };
    stream.write_all(&reply).await.ok()?;
    stream.shutdown().await.ok()
}

#[tokio::test]
async fn a_repository_over_http_with_a_token_that_shows_nowhere() {
    let secrets = Known(BTreeMap::from([
        ("token".into(), b"ghp_verysecrettoken\n".to_vec()),
        ("wrong".into(), b"ghp_anothersecret".to_vec()),
        ("lines".into(), b"ghp_line1\r\nX-Evil: 1".to_vec()),
    ]));
    let fixture = Fixture::with(secrets);
    let sha = fixture.push("main", "a");
    let tasks = Tasks::new();
    // x-access-token:ghp_verysecrettoken
    let port =
        serve(&tasks, fixture.dir.path().to_owned(), "Basic eC1hY2Nlc3MtdG9rZW46Z2hwX3ZlcnlzZWNyZXR0b2tlbg==").await;
    let mut source = fixture.source_at(&format!("http://127.0.0.1:{port}/repo.git"));
    let token = |name: &str| Some(SecretRef { name: name.into() });
    source.token = token("token");
    assert_eq!(fixture.git.head(&fixture.project, &source).await.unwrap(), sha);
    assert!(fixture.git.resolve(&fixture.project, &source, &Wanted::Head).await.unwrap().is_head);
    fixture.git.checkout(&fixture.project, &sha, &fixture.run_dir("r"), &Giver(None)).await.unwrap();
    assert_eq!(fixture.sh(&format!("git -C '{}' remote get-url origin", fixture.run_dir("r").display())), source.git);
    let found = fixture.sh("grep -raE 'verysecrettoken|eC1hY2Nlc3M' work | wc -l");
    assert_eq!(found, "0", "neither in the mirror nor in the checkout");

    for (name, part) in [
        (token("wrong"), "source.token"),
        (None, "source.token"),
        (token("lines"), "one line"),
        (token("gone"), "does not exist"),
    ] {
        source.token = name.clone();
        let cause = fixture.git.head(&fixture.project, &source).await.unwrap_err();
        assert!(cause.code == "git_auth" && cause.message.contains(part), "{name:?}: {cause}");
        assert!(!cause.message.contains("ghp_"), "{cause}");
    }
    source.token = token("token");
    source.git = format!("http://127.0.0.1:{port}/nothing.git");
    assert_eq!(fixture.git.head(&fixture.project, &source).await.unwrap_err().code, "git_unreachable");
    source.git = format!("http://127.0.0.1:{port}/moved/repo.git");
    let cause = fixture.git.head(&fixture.project, &source).await.unwrap_err();
    assert_eq!(cause.code, "git_unreachable", "the token does not travel on: {cause}");
}
