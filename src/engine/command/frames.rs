//! What the program answers: lines, and raw bytes announced by a line.
//!
//! ```text
//! <anything a login shell prints> \n <mark> <number> \n
//! I <host id> <user> <base>          which host this is
//! O <1|2> <offset> <length> \n <length raw bytes>
//! K                                  still there
//! G <offset>                         send the file from here on
//! S <size> <mtime>                   the file that follows
//! X <word> ...                       the verdict; nothing follows
//! Z <word> ... \n <bytes> <mark>. <bytes> <mark>.
//!                                    the verdict, with all of stdout and then all of stderr; a stream of 16 MiB is cut there
//! ```

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

use crate::ports::outputs::Stream;

/// A header line is shorter than this; what is longer is not ours.
const LINE: u64 = 8 * 1024;
/// A login shell that prints more than this before our mark is broken.
const NOISE: usize = 256 * 1024;
/// Of a channel that is kept: enough for headers and short answers, larger pieces are read past it.
const BUFFER: usize = 8 * 1024;
/// Larger pieces of output are handed on in parts of this size.
const PIECE: usize = 64 * 1024;

/// A piece of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// Which host this is.
    Host { id: String, user: String, base: String },
    /// Output; a long frame comes in several.
    Output { stream: Stream, offset: u64, bytes: Vec<u8> },
    /// Nothing, but somebody is there.
    Alive,
    /// Send the file from here on.
    Go { offset: u64 },
    /// The file that follows.
    Size { size: u64, mtime: i64 },
    /// The verdict's words.
    Verdict(Vec<String>),
}

/// Why there is no further frame: the channel ended or said something else.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    /// End of file, before the mark when `started` is false.
    #[error("the channel ended before the answer did")]
    Ended {
        /// Whether the program had begun.
        started: bool,
        /// What was printed instead, shortened.
        noise: String,
    },
    /// There is more than was told: ask again from here on.
    #[error("there is more output than was told at once")]
    More,
    /// Not our format: cut or mixed with something else.
    #[error("the answer is not in the protocol's format: {0:?}")]
    Garbled(String),
    /// The channel's own.
    #[error("the channel cannot be read")]
    Read(#[from] std::io::Error),
}

/// The length at which the program cuts a stream that it does not count.
const UNCOUNTED: u64 = 16 << 20;

struct Tail {
    words: Vec<String>,
    stream: Stream,
    offset: u64,
    /// Read, and not yet known not to be the beginning of the mark.
    held: Vec<u8>,
    cut: bool,
}

/// Reads the answers on one channel, one after the other. Not cancel safe.
pub(super) struct Frames<R> {
    input: BufReader<R>,
    /// Of the answer being read.
    mark: String,
    /// How many answers were asked for.
    number: u64,
    started: bool,
    noise: Vec<u8>,
    /// Of the answer that ends in all output: the verdict, the stream being read, how much of it was.
    tail: Option<Tail>,
    /// Of the output frame being read: stream, offset of the next byte, bytes still to come.
    rest: Option<(Stream, u64, u64)>,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    pub(super) fn new(input: R) -> Self {
        Frames {
            input: BufReader::with_capacity(BUFFER, input),
            mark: String::new(),
            number: 0,
            started: false,
            noise: Vec::new(),
            tail: None,
            rest: None,
        }
    }

    /// The number of the next answer, which begins with `mark` and this.
    pub(super) fn expect(&mut self, mark: &str) -> u64 {
        mark.clone_into(&mut self.mark);
        self.number += 1;
        self.started = false;
        self.noise.clear();
        self.tail = None;
        self.rest = None;
        self.number
    }

    /// The next frame.
    pub(super) async fn next(&mut self) -> Result<Frame, FrameError> {
        loop {
            if self.tail.is_some() {
                match self.tail().await? {
                    Some(frame) => return Ok(frame),
                    None => continue,
                }
            }
            if let Some((stream, offset, left)) = self.rest.take() {
                let length = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE);
                let mut bytes = vec![0; length];
                match self.input.read_exact(&mut bytes).await {
                    Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Err(self.ended()),
                    read => read?,
                };
                let read = length as u64;
                if left > read {
                    self.rest = Some((stream, offset + read, left - read));
                }
                return Ok(Frame::Output { stream, offset, bytes });
            }
            let mut line = Vec::new();
            (&mut self.input).take(LINE).read_until(b'\n', &mut line).await?;
            if line.pop_if(|last| *last == b'\n').is_none() {
                if line.is_empty() || (!self.started && (line.len() as u64) < LINE) {
                    self.noise.extend_from_slice(&line);
                    return Err(self.ended());
                }
                if self.started {
                    return Err(garbled(&line));
                }
            }
            if !self.started {
                self.started = line == format!("{} {}", self.mark, self.number).as_bytes();
                self.noise.extend_from_slice(&line);
                self.noise.push(b'\n');
                if self.noise.len() > NOISE {
                    return Err(garbled(&line));
                }
                continue;
            }
            let frame = parse(&line)?;
            if let Parsed::Output(stream, offset, length) = frame {
                if length > 0 {
                    self.rest = Some((stream, offset, length));
                }
                continue;
            }
            match frame {
                Parsed::Frame(frame) => return Ok(frame),
                Parsed::Tail(words) => {
                    self.tail = Some(Tail { words, stream: Stream::Out, offset: 0, held: Vec::new(), cut: false });
                }
                Parsed::Output(..) => {}
            }
        }
    }

    /// The next piece of the last answer; `None` = read on.
    async fn tail(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(tail) = &mut self.tail else { return Ok(None) };
        let mark = [self.mark.as_bytes(), b"."].concat();
        let found = tail.held.windows(mark.len()).position(|window| window == mark);
        let length = match found {
            Some(at) => at,
            // The mark may have begun in the last bytes.
            None if tail.held.len() >= PIECE => tail.held.len() - mark.len(),
            None => 0,
        };
        if length > 0 {
            let bytes: Vec<u8> = tail.held.drain(..length).collect();
            let offset = tail.offset;
            tail.offset += length as u64;
            return Ok(Some(Frame::Output { stream: tail.stream, offset, bytes }));
        }
        if found.is_none() {
            let read = self.input.fill_buf().await?;
            let n = read.len();
            tail.held.extend_from_slice(read);
            self.input.consume(n);
            return if n == 0 { Err(self.ended()) } else { Ok(None) };
        }
        tail.held.drain(..mark.len());
        tail.cut |= tail.offset >= UNCOUNTED;
        if tail.stream == Stream::Out {
            tail.stream = Stream::Err;
            tail.offset = 0;
            return Ok(None);
        }
        if tail.cut {
            return Err(FrameError::More);
        }
        let words = std::mem::take(&mut tail.words);
        self.tail = None;
        Ok(Some(Frame::Verdict(words)))
    }

    fn ended(&self) -> FrameError {
        let noise = String::from_utf8_lossy(&self.noise);
        FrameError::Ended { started: self.started, noise: noise.trim().chars().take(300).collect() }
    }
}

fn garbled(line: &[u8]) -> FrameError {
    FrameError::Garbled(String::from_utf8_lossy(line).chars().take(120).collect())
}

enum Parsed {
    Frame(Frame),
    Output(Stream, u64, u64),
    Tail(Vec<String>),
}

fn parse(line: &[u8]) -> Result<Parsed, FrameError> {
    let text = String::from_utf8_lossy(line);
    let words: Vec<&str> = text.split(' ').collect();
    let number = |word: &str| word.parse::<u64>().ok().filter(|n| *n < 1 << 62);
    let frame = match words.as_slice() {
        ["O", stream @ ("1" | "2"), offset, length] => match (number(offset), number(length)) {
            (Some(offset), Some(length)) => {
                let stream = if *stream == "1" { Stream::Out } else { Stream::Err };
                return Ok(Parsed::Output(stream, offset, length));
            }
            _ => None,
        },
        ["I", id, user, base @ ..] if !id.is_empty() => {
            Some(Frame::Host { id: (*id).to_owned(), user: (*user).to_owned(), base: base.join(" ") })
        }
        ["K"] => Some(Frame::Alive),
        ["G", offset] => number(offset).map(|offset| Frame::Go { offset }),
        ["S", size, mtime] => match (number(size), mtime.parse()) {
            (Some(size), Ok(mtime)) => Some(Frame::Size { size, mtime }),
            _ => None,
        },
        ["Z", words @ ..] if !words.is_empty() => {
            return Ok(Parsed::Tail(words.iter().map(|word| (*word).to_owned()).collect()));
        }
        ["X", words @ ..] if !words.is_empty() => {
            Some(Frame::Verdict(words.iter().map(|word| (*word).to_owned()).collect()))
        }
        _ => None,
    };
    frame.map(Parsed::Frame).ok_or_else(|| garbled(line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{below, chance, mutated};

    async fn all(input: &[u8]) -> (Vec<Frame>, FrameError) {
        let mut frames = Frames::new(input);
        frames.expect("mark");
        let mut seen = Vec::new();
        loop {
            match frames.next().await {
                Ok(frame) => seen.push(frame),
                Err(e) => return (seen, e),
            }
        }
    }

    #[tokio::test]
    async fn noise_before_the_mark_is_skipped_and_bytes_are_exact() {
        let (seen, end) =
            all(b"Welcome!\nX exit 0 1\n\nmark 1\nI abc deploy /a b\nO 1 5 4\n\0X\n\nO 2 0 0\nK\nX exit 3 12\n").await;
        assert_eq!(
            seen,
            [
                Frame::Host { id: "abc".into(), user: "deploy".into(), base: "/a b".into() },
                Frame::Output { stream: Stream::Out, offset: 5, bytes: b"\0X\n\n".to_vec() },
                Frame::Alive,
                Frame::Verdict(vec!["exit".into(), "3".into(), "12".into()]),
            ]
        );
        assert!(matches!(end, FrameError::Ended { started: true, .. }));
    }

    #[tokio::test]
    async fn a_long_frame_comes_in_parts_with_their_own_offsets() {
        let mut input = b"mark 1\nO 2 7 200000\n".to_vec();
        input.extend(vec![b'x'; 200_000]);
        let (seen, _) = all(&input).await;
        let parts: Vec<(u64, usize)> = seen
            .iter()
            .map(|frame| match frame {
                Frame::Output { offset, bytes, .. } => (*offset, bytes.len()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(parts, [(7, 65536), (65543, 65536), (131_079, 65536), (196_615, 3392)]);
    }

    #[tokio::test]
    async fn what_is_not_the_protocol_is_refused() {
        for bad in ["O 3 0 1", "O 1 x 1", "O 1 0 99999999999999999999", "O 1 0", "Z", "", "X", "I", "G -1", "S 1 x"] {
            let (seen, end) = all(format!("mark 1\n{bad}\n").as_bytes()).await;
            assert!(seen.is_empty() && matches!(end, FrameError::Garbled(_)), "{bad:?}: {seen:?} {end:?}");
        }
        let (_, end) = all(b"This account is currently not available.\n").await;
        let FrameError::Ended { started: false, noise } = end else { panic!("{end:?}") };
        assert_eq!(noise, "This account is currently not available.");
        let (_, end) = all(&b"mark 1\nO 1 0 10\nabc"[..]).await;
        assert!(matches!(end, FrameError::Ended { started: true, .. }));
        let (_, end) = all(&vec![b'x'; 1 << 20]).await;
        assert!(matches!(end, FrameError::Garbled(_)));
        let long = format!("mark 1\n{}\n", "y".repeat(10_000));
        assert!(matches!(all(long.as_bytes()).await.1, FrameError::Garbled(_)));
    }

    /// Whatever a host says, reading it ends, and no more comes out than went in.
    #[tokio::test]
    async fn random_answers_end_and_give_no_more_than_they_have() {
        let whole = "Welcome!\nmark 1\nI abc deploy /a b\nO 1 5 4\nabcd\nK\nG 7\nS 3 -1\nO 2 0 3\nxyz\nZ exit 0 5\nout mark.err mark.";
        const WORDS: [&str; 18] = [
            "O",
            "1",
            "2",
            " ",
            "\n",
            "X",
            "Z",
            "K",
            "G",
            "S",
            "I",
            "mark",
            "mark.",
            "exit",
            "70000",
            "4611686018427387903",
            "-1",
            "\0\u{ff}",
        ];
        let (mut random, cases) = chance("answers of hosts", 30_000, 300_000);
        let (mut kinds, mut all_of_them) = ([0; 3], 0);
        for case in cases {
            all_of_them = case + 1;
            let mut input = b"mark 1\n".to_vec();
            match below(&mut random, 3) {
                0 => input = mutated(&mut random, whole, &WORDS),
                1 => (0..below(&mut random, 40))
                    .for_each(|_| input.extend_from_slice(WORDS[below(&mut random, WORDS.len())].as_bytes())),
                _ => (0..below(&mut random, 200))
                    .for_each(|_| input.push(u8::try_from(below(&mut random, 256)).unwrap())),
            }
            let (seen, end) = all(&input).await;
            let given: usize =
                seen.iter().map(|frame| if let Frame::Output { bytes, .. } = frame { bytes.len() } else { 0 }).sum();
            assert!(given <= input.len(), "{input:?}: {seen:?}");
            match end {
                FrameError::Ended { noise, .. } => kinds[0] += usize::from(noise.chars().count() <= 300),
                FrameError::Garbled(line) => kinds[1] += usize::from(line.chars().count() <= 120),
                FrameError::More | FrameError::Read(_) => panic!("{input:?}: {end}"),
            }
            kinds[2] += seen.len();
        }
        assert!(kinds[0] + kinds[1] == all_of_them && kinds.iter().all(|n| *n > 1000), "all of it is met: {kinds:?}");
    }
}
