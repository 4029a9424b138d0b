//! Takes secrets out of everything that is shown or stored, in every form they commonly take on.
//!
//! Output is redacted once, before the log, `Done` and Lua see it, so live and replay see the same bytes. Masking is the net
//! under the real rule (values go in through `env` and nowhere else): a program that encrypts or reverses a secret beats it.

use std::sync::Arc;

use serde_json::Value;

use crate::model::cause::Cause;

mod forms;

/// Secrets to look for. Cheap to clone and, while empty, free to use.
#[derive(Debug, Clone, Default)]
pub struct Redactor {
    set: Arc<Set>,
}

#[derive(Clone, Default)]
struct Set {
    /// Longest first, so that the first that fits is the one to take.
    needles: Vec<Needle>,
    /// Indices into `needles` by first byte; empty or 256 long.
    first: Vec<Vec<u32>>,
    longest: usize,
}

#[derive(Clone, PartialEq, Eq)]
struct Needle {
    bytes: Vec<u8>,
    /// `[secret:name]`.
    shown: Arc<str>,
}

impl std::fmt::Debug for Set {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} needles", self.needles.len())
    }
}

impl Set {
    fn index(&mut self) {
        self.needles.sort_by(|a, b| b.bytes.len().cmp(&a.bytes.len()).then_with(|| a.bytes.cmp(&b.bytes)));
        // Two secrets with one value (or one form): the first in the order of names is shown, whatever order they came in.
        self.needles.dedup_by(|a, b| {
            let same = a.bytes == b.bytes;
            if same && a.shown < b.shown {
                b.shown = a.shown.clone();
            }
            same
        });
        self.longest = self.needles.first().map_or(0, |needle| needle.bytes.len());
        self.first = vec![Vec::new(); 256];
        for (i, needle) in (0u32..).zip(&self.needles) {
            if let Some(list) = needle.bytes.first().and_then(|byte| self.first.get_mut(usize::from(*byte))) {
                list.push(i);
            }
        }
    }

    /// Needles that begin with `byte`, longest first.
    fn starting(&self, byte: u8) -> impl Iterator<Item = &Needle> {
        let list = self.first.get(usize::from(byte)).map_or(&[][..], Vec::as_slice);
        list.iter().filter_map(|i| self.needles.get(*i as usize))
    }

    fn may_start(&self, byte: u8) -> bool {
        self.first.get(usize::from(byte)).is_some_and(|list| !list.is_empty())
    }
}

/// What stands at one position.
enum At<'a> {
    Nothing,
    Secret(&'a Needle),
    /// The bytes end before it is certain.
    MayBe,
}

impl Set {
    fn at(&self, rest: &[u8], last: bool) -> At<'_> {
        let Some(byte) = rest.first() else { return At::Nothing };
        for needle in self.starting(*byte) {
            if rest.starts_with(&needle.bytes) {
                return At::Secret(needle);
            }
            if !last && needle.bytes.len() > rest.len() && needle.bytes.starts_with(rest) {
                return At::MayBe;
            }
        }
        At::Nothing
    }

    /// Redacts `raw` into `out` and returns how many bytes are settled. `cover` bytes at the start belong to a secret already
    /// shown; what of it reaches beyond the settled part is left in it.
    ///
    /// Secrets that overlap are shown as one, so that no tail of the second is left over.
    fn scan(&self, raw: &[u8], last: bool, cover: &mut usize, out: &mut Vec<u8>) -> usize {
        // Where the secret being shown began, and how long the output was then: an unsettled end goes back there.
        let mut region = (*cover > 0).then_some((0, 0));
        let (mut at, mut covered) = (0, *cover);
        while let Some(byte) = raw.get(at) {
            if at >= covered && !self.may_start(*byte) {
                let run = raw[at..].iter().position(|b| self.may_start(*b)).unwrap_or(raw.len() - at);
                out.extend_from_slice(&raw[at..at + run]);
                at += run;
                continue;
            }
            match self.at(&raw[at..], last) {
                At::MayBe => {
                    if at < covered {
                        // Going back keeps the pieces whole. A chain of overlapping secrets without end is let go all the same,
                        // or a program that prints nothing else would grow the buffer for ever.
                        if let Some((start, length)) = region.filter(|(start, _)| at - start <= 4 * self.longest)
                            && *cover == 0
                        {
                            out.truncate(length);
                            return start;
                        }
                        *cover = covered - at;
                        return at;
                    }
                    *cover = 0;
                    return at;
                }
                At::Secret(needle) => {
                    if at >= covered {
                        region = Some((at, out.len()));
                        out.extend_from_slice(needle.shown.as_bytes());
                    }
                    covered = covered.max(at + needle.bytes.len());
                }
                At::Nothing if at >= covered => out.push(*byte),
                At::Nothing => {}
            }
            at += 1;
        }
        *cover = covered.saturating_sub(at);
        at
    }
}

impl Redactor {
    /// Looks for `secret` from now on: as it is, in base64 (wherever in a text it stands), URL-encoded, in hex, in JSON, and
    /// each of its lines of at least 8 bytes. Shown as `[secret:name]`. An empty one is ignored.
    pub fn add(&mut self, name: &str, secret: &[u8]) {
        let shown: Arc<str> = Arc::from(format!("[secret:{name}]"));
        let set = Arc::make_mut(&mut self.set);
        let found = forms::all(secret);
        set.needles.extend(found.into_iter().map(|bytes| Needle { bytes, shown: shown.clone() }));
        set.index();
    }

    /// Looks also for what `other` looks for.
    pub fn merge(&mut self, other: &Redactor) {
        if other.is_empty() {
            return;
        }
        if self.is_empty() {
            *self = other.clone();
            return;
        }
        let set = Arc::make_mut(&mut self.set);
        set.needles.extend(other.set.needles.iter().cloned());
        set.index();
    }

    /// Whether there is nothing to look for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.needles.is_empty()
    }

    /// `bytes` without secrets.
    #[must_use]
    pub fn bytes(&self, bytes: &[u8]) -> Vec<u8> {
        if self.is_empty() {
            return bytes.to_vec();
        }
        let mut out = Vec::with_capacity(bytes.len());
        self.set.scan(bytes, true, &mut 0, &mut out);
        out
    }

    /// `text` without secrets.
    #[must_use]
    pub fn text(&self, text: &str) -> String {
        if self.is_empty() {
            return text.to_owned();
        }
        // A binary secret may end within a character.
        String::from_utf8(self.bytes(text.as_bytes()))
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }

    /// `cause` without secrets in its message and facts; the code is ours and stays.
    #[must_use]
    pub fn cause(&self, cause: &Cause) -> Cause {
        if self.is_empty() {
            return cause.clone();
        }
        Cause {
            code: cause.code.clone(),
            message: self.text(&cause.message),
            facts: cause.facts.iter().map(|(key, value)| (self.text(key), self.value(value))).collect(),
        }
    }

    /// `value` without secrets in any text or key of it.
    #[must_use]
    pub fn value(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text)),
            Value::Array(items) => Value::Array(items.iter().map(|item| self.value(item)).collect()),
            Value::Object(map) => {
                Value::Object(map.iter().map(|(key, value)| (self.text(key), self.value(value))).collect())
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        }
    }

    /// A stream of output to be redacted, from its first byte.
    #[must_use]
    pub fn stream(&self) -> Stream {
        self.stream_at(0)
    }

    /// The same from raw offset `offset` on: the end of the last piece that was kept.
    #[must_use]
    pub fn stream_at(&self, offset: u64) -> Stream {
        Stream { set: self.set.clone(), held: Vec::new(), offset, cover: 0 }
    }
}

/// A settled part of a stream. Pieces follow each other without a gap: the next one's `offset` is `offset + raw_len`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Where it began in the raw stream.
    pub offset: u64,
    /// How many raw bytes it stands for.
    pub raw_len: u64,
    /// Redacted; may be longer, shorter or empty.
    pub bytes: Vec<u8>,
}

/// Output as it comes, in any cut: the pieces together are what [`Redactor::bytes`] makes of the whole.
#[derive(Debug)]
pub struct Stream {
    set: Arc<Set>,
    /// Raw bytes from `offset` on that are not settled.
    held: Vec<u8>,
    offset: u64,
    /// Bytes from `offset` on that belong to a secret already shown.
    cover: usize,
}

impl Stream {
    /// Takes more raw bytes and gives what is settled: none or one piece. Only bytes that may begin a secret are held back: fewer
    /// than the longest form has, and the secret before them where they overlap it.
    pub fn push(&mut self, raw: &[u8]) -> Vec<Piece> {
        if self.held.is_empty() && self.set.needles.is_empty() {
            return self.piece(raw.len(), raw.to_vec());
        }
        self.held.extend_from_slice(raw);
        self.settle(false)
    }

    /// Looks for what `redactor` looks for from here on.
    pub fn learn(&mut self, redactor: &Redactor) {
        if !Arc::ptr_eq(&self.set, &redactor.set) {
            self.set = Arc::clone(&redactor.set);
        }
    }

    /// Raw bytes held back: not yet in any piece, so not to be acknowledged to the sender.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Nothing more comes: settles what is held back.
    pub fn flush(&mut self) -> Vec<Piece> {
        self.settle(true)
    }

    fn settle(&mut self, last: bool) -> Vec<Piece> {
        let mut out = Vec::with_capacity(self.held.len());
        let settled = self.set.scan(&self.held, last, &mut self.cover, &mut out);
        self.held.drain(..settled);
        self.piece(settled, out)
    }

    fn piece(&mut self, raw_len: usize, bytes: Vec<u8>) -> Vec<Piece> {
        if raw_len == 0 {
            return Vec::new();
        }
        let piece = Piece { offset: self.offset, raw_len: raw_len as u64, bytes };
        self.offset += piece.raw_len;
        vec![piece]
    }
}

#[cfg(test)]
mod tests;
