use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{lifecycle::Tasks, time::SystemClock};

/// Answers each connection with `answer`, then closes; `None` never answers. Gives what it was asked.
async fn server(tasks: &Tasks, answer: Option<Vec<u8>>) -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, seen) = tokio::sync::mpsc::unbounded_channel();
    tasks.spawn("server", async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            let mut buffer = [0; 4096];
            // The end of a head, or the first record of a TLS handshake.
            while !head.windows(4).any(|w| w == b"\r\n\r\n") && head.first() != Some(&22) {
                match stream.read(&mut buffer).await {
                    Ok(n) if n > 0 => head.extend_from_slice(&buffer[..n]),
                    _ => break,
                }
            }
            let _ = asked.send(String::from_utf8_lossy(&head).into_owned());
            match &answer {
                Some(answer) => {
                    let _ = stream.write_all(answer).await;
                }
                None => open.push(stream),
            }
        }
    });
    (port, seen)
}

fn client() -> Client {
    Client::new(Arc::new(SystemClock::new()))
}

fn get(url: String) -> Request {
    Request {
        method: "GET".into(),
        url,
        headers: Vec::new(),
        body: Vec::new(),
        timeout: Duration::from_secs(10),
        max_body: 1 << 20,
    }
}

/// The same question both ways.
async fn both(port: u16, request: Request) -> [Result<Response, Cause>; 2] {
    let client = client();
    let asked = client.request(request.clone()).await;
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    [asked, client.request_over(Box::new(stream), request).await]
}

#[tokio::test]
async fn an_answer_comes_back_as_it_is_and_redirects_are_not_followed() {
    let tasks = Tasks::new();
    let (port, mut asked) = server(
        &tasks,
        Some(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nX-A: 1\r\nContent-Length: 2\r\n\r\nhi".to_vec()),
    )
    .await;
    let mut request = get(format!("http://127.0.0.1:{port}/p/a?q=1"));
    request.headers.push(("X-B".into(), "2".into()));
    for answer in both(port, request).await {
        let answer = answer.unwrap();
        assert_eq!((answer.status, &answer.body[..], answer.truncated), (302, &b"hi"[..], false));
        assert!(answer.headers.contains(&("x-a".into(), "1".into())));
        let head = asked.recv().await.unwrap().to_ascii_lowercase();
        assert!(head.starts_with("get /p/a?q=1 http/1.1\r\n") && head.contains("x-b: 2\r\n"), "{head}");
        assert!(head.contains(&format!("host: 127.0.0.1:{port}\r\n")), "{head}");
    }
}

#[tokio::test]
async fn a_body_is_cut_at_its_bound() {
    let tasks = Tasks::new();
    let mut answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec();
    answer.extend(vec![b'x'; 300_000]);
    let (port, _asked) = server(&tasks, Some(answer)).await;
    for (max, truncated) in [(1000, true), (300_000, false), (0, true)] {
        let mut request = get(format!("http://127.0.0.1:{port}/"));
        request.max_body = max;
        for answer in both(port, request).await {
            let answer = answer.unwrap();
            assert_eq!((answer.body.len(), answer.truncated), (max, truncated));
        }
    }
}

#[tokio::test]
async fn silence_ends_at_the_time_out_and_names_no_secret() {
    let tasks = Tasks::new();
    let (port, _asked) = server(&tasks, None).await;
    let mut request = get(format!("http://user:hunter22@127.0.0.1:{port}/path?token=hunter23#x"));
    request.timeout = Duration::from_millis(80);
    for answer in both(port, request).await {
        let cause = answer.unwrap_err();
        assert_eq!(cause.code, "timeout");
        assert!(
            cause.message.contains(&format!("http://127.0.0.1:{port}/path")) && !cause.message.contains("hunter"),
            "{cause}"
        );
    }
}

#[tokio::test]
async fn what_is_no_http_is_said_to_be_none() {
    let tasks = Tasks::new();
    for nonsense in
        [&b"SSH-2.0-OpenSSH\r\n"[..], b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhi", b"HTTP/9 x\r\n\r\n"]
    {
        let (port, _asked) = server(&tasks, Some(nonsense.to_vec())).await;
        for answer in both(port, get(format!("http://127.0.0.1:{port}/?t=hunter22"))).await {
            let cause = answer.unwrap_err();
            assert_eq!(cause.code, "http_protocol", "{cause}");
            assert!(!cause.message.contains("hunter"), "{cause}");
        }
    }
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused_before_anybody_is() {
    let tasks = Tasks::new();
    let (port, _asked) = server(&tasks, Some(Vec::new())).await;
    let good = format!("http://127.0.0.1:{port}/");
    let header = |name: &str, value: &str| Request { headers: vec![(name.into(), value.into())], ..get(good.clone()) };
    for request in [
        get("".into()),
        get("/path".into()),
        get("ftp://x/".into()),
        get("http://".into()),
        get("javascript:x".into()),
        Request { method: "G T".into(), ..get(good.clone()) },
        header("a b", "x"),
        header("a", "x\r\nb: y"),
    ] {
        for answer in both(port, request.clone()).await {
            assert_eq!(answer.unwrap_err().code, "http_url", "{request:?}");
        }
    }
}

#[tokio::test]
async fn nobody_there_and_no_tls_there_are_told_apart() {
    let tasks = Tasks::new();
    let (port, _asked) = server(&tasks, Some(b"plainly no TLS, and long enough to be read as a record".to_vec())).await;
    let cause = client().request(get(format!("https://127.0.0.1:{port}/"))).await.unwrap_err();
    assert_eq!(cause.code, "http_tls", "{cause}");
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let cause = client().request(get(format!("http://127.0.0.1:{free}/"))).await.unwrap_err();
    assert_eq!(cause.code, "http_connect", "{cause}");
}
