//! Request heads read strictly, before hyper's forgiving parser: what two servers could read differently (request smuggling) is
//! never handed on as sent.
//!
//! hyper takes bare line feeds, drops one of `Content-Length` and `Transfer-Encoding`, and takes equal lengths twice. Here the first such
//! byte becomes a NUL, which no parser takes: hyper answers 400 and closes. After a head that announces a body nothing is read as
//! a head any more, because the gate closes such a connection with its answer.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The longest line looked into for framing; names and values that matter are far shorter.
const LONGEST_LINE: usize = 512;

#[derive(Debug, Default)]
struct Head {
    line: Vec<u8>,
    /// The line so far was longer than [`LONGEST_LINE`]; the rest of it is not kept.
    cut: bool,
    carriage_return: bool,
    lines: usize,
    length: Option<bool>,
    chunked: bool,
}

#[derive(Debug)]
enum Reading {
    Head(Box<Head>),
    Body,
    Refused,
}

/// A connection whose request heads are checked while they are read.
#[derive(Debug)]
pub(super) struct Strict<S> {
    stream: S,
    reading: Reading,
}

impl<S> Strict<S> {
    pub(super) fn new(stream: S) -> Self {
        Strict { stream, reading: Reading::Head(Box::default()) }
    }
}

impl Head {
    /// Takes one byte. `Err` = refuse it; `Ok(Some(body))` = the head is whole.
    fn take(&mut self, byte: u8) -> Result<Option<bool>, ()> {
        if self.carriage_return {
            self.carriage_return = false;
            return if byte == b'\n' { self.line_ended() } else { Err(()) };
        }
        match byte {
            b'\r' => self.carriage_return = true,
            b'\n' | 0 => return Err(()),
            _ if self.line.len() < LONGEST_LINE => self.line.push(byte),
            _ => self.cut = true,
        }
        Ok(None)
    }

    fn line_ended(&mut self) -> Result<Option<bool>, ()> {
        let line = std::mem::take(&mut self.line);
        let cut = std::mem::take(&mut self.cut);
        if line.is_empty() {
            // Empty lines before a request line are allowed (RFC 9112 §2.2).
            return Ok((self.lines > 0).then_some(self.chunked || self.length == Some(true)));
        }
        self.lines += 1;
        if self.lines == 1 {
            return Ok(None);
        }
        let Some(colon) = line.iter().position(|b| *b == b':') else { return Err(()) };
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        // Folded lines and blanks around a name have hidden a `Transfer-Encoding` before.
        if name.is_empty() || name.iter().any(|b| b.is_ascii_whitespace() || b.is_ascii_control()) {
            return Err(());
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            let digits = !value.is_empty() && value.len() <= 15 && value.iter().all(u8::is_ascii_digit);
            if cut || !digits || self.length.is_some() || self.chunked {
                return Err(());
            }
            self.length = Some(value.iter().any(|b| *b != b'0'));
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if cut || !value.eq_ignore_ascii_case(b"chunked") || self.length.is_some() || self.chunked {
                return Err(());
            }
            self.chunked = true;
        }
        Ok(None)
    }
}

impl Reading {
    fn check(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            let taken = match self {
                Reading::Head(head) => head.take(*byte),
                Reading::Body => return,
                Reading::Refused => Err(()),
            };
            match taken {
                Ok(None) => {}
                Ok(Some(true)) => *self = Reading::Body,
                Ok(Some(false)) => *self = Reading::Head(Box::default()),
                Err(()) => {
                    *byte = 0;
                    *self = Reading::Refused;
                }
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Strict<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if let Some(new) = buf.filled_mut().get_mut(before..) {
            self.reading.check(new);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Strict<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is handed on, in two cuts, which must not differ for any cut.
    fn handed_on(sent: &[u8]) -> Vec<u8> {
        let whole = {
            let (mut reading, mut bytes) = (Reading::Head(Box::default()), sent.to_vec());
            reading.check(&mut bytes);
            bytes
        };
        for cut in 0..sent.len() {
            let (mut reading, mut bytes) = (Reading::Head(Box::default()), sent.to_vec());
            let (a, b) = bytes.split_at_mut(cut);
            reading.check(a);
            reading.check(b);
            assert_eq!(bytes, whole, "cut at {cut}");
        }
        whole
    }

    #[test]
    fn plain_requests_pass_untouched() {
        for sent in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na\nb",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: Chunked\r\n\r\n1\r\n\n\r\n0\r\n\r\n",
        ] {
            assert_eq!(handed_on(sent.as_bytes()), sent.as_bytes());
        }
        let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(5000));
        assert_eq!(handed_on(long.as_bytes()), long.as_bytes());
    }

    #[test]
    fn what_two_servers_could_read_differently_is_spoilt() {
        for sent in [
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
            "POST / HTTP/1.1\r\nContent-Length: 3, 3\r\n\r\nabc",
            "POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\nabc",
            "POST / HTTP/1.1\r\nContent-Length:\r\n\r\nabc",
            "POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: identity, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding : chunked\r\n\r\n",
            "POST / HTTP/1.1\r\n Transfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nX: y\r\n\tTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding:\x0bchunked\r\n\r\n",
        ] {
            assert!(handed_on(sent.as_bytes()).contains(&0), "{sent:?}");
        }
    }
}
