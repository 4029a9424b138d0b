//! Output frames as bytes. Pure functions.
//!
//! A log is a row of frames, the first of them its header:
//!
//! ```text
//! frame    length u32 LE | crc32c of the payload, u32 LE | payload
//! header   0 u8 | JSON {"format":1,"call":"test/unit/run"}; without `call` in the log that all calls share
//! output   1 or 2 u8 | stream u8 (0 out, 1 err, 2 note) | attempt u32 | offset u64 | raw_len u64 | wall_ms i64 |
//!          step length u16 | step | bytes                                                    all numbers LE
//! ```
//!
//! `step` is the step's key; of a 1, in a call's own log, without the call's and its slash: the header has that.

use std::{io, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    model::step::{CallKey, StepKey},
    ports::outputs::{Frame, Stream},
};

/// The longest payload a reader believes in: a frame's bytes are at most [`MAX_BYTES`], a step's key at most 64 KiB.
pub(super) const MAX_PAYLOAD: usize = MAX_BYTES + 128 * 1024;

/// The most output one frame carries; longer ones are split.
pub(super) const MAX_BYTES: usize = 256 * 1024;

/// Length and checksum.
pub(super) const PREFIX: usize = 8;

/// What a log is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    pub format: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<CallKey>,
}

/// What begins at a place in a log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<'a> {
    /// A payload, and how many bytes the whole frame takes.
    Payload(&'a [u8], usize),
    /// Nothing, or the beginning of a frame that is still being written or was cut off by a crash.
    Open,
    /// Bytes that are no frame.
    Bad,
}

/// Appends a frame of `payload` to `out`.
fn put(out: &mut Vec<u8>, payload: &[u8]) {
    // Payloads are bounded by MAX_PAYLOAD, so the length always fits.
    out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    out.extend_from_slice(payload);
}

pub(super) fn put_header(out: &mut Vec<u8>, header: &Header) -> serde_json::Result<()> {
    let payload = [&[0][..], &serde_json::to_vec(header)?].concat();
    put(out, &payload);
    Ok(())
}

/// Appends a frame of output: for the own log of `call`, or for the one that all share.
pub(super) fn put_frame(out: &mut Vec<u8>, call: Option<&CallKey>, frame: &Frame) {
    let key = frame.step.as_str();
    let (kind, step) = match call {
        Some(call) => (1, key.strip_prefix(call.as_str()).and_then(|rest| rest.strip_prefix('/')).unwrap_or(key)),
        None => (2, key),
    };
    let step = step.get(..step.len().min(usize::from(u16::MAX))).unwrap_or("");
    let stream = match frame.stream {
        Stream::Out => 0,
        Stream::Err => 1,
        Stream::Note => 2,
    };
    let mut payload = Vec::with_capacity(32 + step.len() + frame.bytes.len());
    payload.extend_from_slice(&[kind, stream]);
    payload.extend_from_slice(&frame.attempt.to_le_bytes());
    payload.extend_from_slice(&frame.offset.to_le_bytes());
    payload.extend_from_slice(&frame.raw_len.to_le_bytes());
    payload.extend_from_slice(&frame.wall_ms.to_le_bytes());
    payload.extend_from_slice(&u16::try_from(step.len()).unwrap_or(0).to_le_bytes());
    payload.extend_from_slice(step.as_bytes());
    payload.extend_from_slice(&frame.bytes);
    put(out, &payload);
}

/// What begins `bytes`.
pub(super) fn next(bytes: &[u8]) -> Next<'_> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return Next::Open };
    let Some((crc, rest)) = rest.split_first_chunk::<4>() else { return Next::Open };
    let length = u32::from_le_bytes(*length) as usize;
    // Zeroes are what a power loss leaves of a file that was made longer and not written; no payload is empty.
    if length == 0 && rest.iter().all(|byte| *byte == 0) {
        return Next::Open;
    }
    if length == 0 || length > MAX_PAYLOAD {
        return Next::Bad;
    }
    match rest.get(..length) {
        None => Next::Open,
        Some(payload) if crc32c::crc32c(payload) != u32::from_le_bytes(*crc) => Next::Bad,
        Some(payload) => Next::Payload(payload, PREFIX + length),
    }
}

/// A log's header.
pub(super) fn header(payload: &[u8]) -> Option<Header> {
    let header: Header = serde_json::from_slice(payload.strip_prefix(&[0])?).ok()?;
    (header.format == 1).then_some(header)
}

/// A frame of output, of the own log of `call` or of the shared one; `None` for a header, and for kinds of frames that a newer daemon may
/// write.
pub(super) fn output(call: Option<&CallKey>, payload: &[u8]) -> Option<Frame> {
    let (kind, rest) = payload.split_first()?;
    let (stream, rest) = rest.split_first()?;
    let stream = match stream {
        0 => Stream::Out,
        1 => Stream::Err,
        2 => Stream::Note,
        _ => return None,
    };
    let (attempt, rest) = rest.split_first_chunk::<4>()?;
    let (offset, rest) = rest.split_first_chunk::<8>()?;
    let (raw_len, rest) = rest.split_first_chunk::<8>()?;
    let (wall_ms, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let (step, bytes) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    let step = std::str::from_utf8(step).ok()?;
    let step = match (kind, call) {
        (1, Some(call)) => format!("{call}/{step}"),
        (2, None) => step.to_owned(),
        _ => return None,
    };
    let step: StepKey = serde_json::from_value(Value::String(step)).ok()?;
    Some(Frame {
        step,
        attempt: u32::from_le_bytes(*attempt),
        stream,
        offset: u64::from_le_bytes(*offset),
        raw_len: u64::from_le_bytes(*raw_len),
        wall_ms: i64::from_le_bytes(*wall_ms),
        bytes: bytes.to_vec(),
    })
}

/// Frames of at most [`MAX_BYTES`] that say the same as `frame`.
pub(super) fn split(frame: Frame) -> Vec<Frame> {
    if frame.bytes.len() <= MAX_BYTES {
        return vec![frame];
    }
    // Where nothing was redacted a byte stands for a byte; else the first part stands for all of it, so that a reader who goes on by
    // offsets never goes on within a redacted secret.
    let exact = frame.raw_len == frame.bytes.len() as u64;
    let end = frame.offset.saturating_add(frame.raw_len);
    let mut offset = frame.offset;
    let mut parts = Vec::new();
    for bytes in frame.bytes.chunks(MAX_BYTES) {
        let raw_len = if exact { bytes.len() as u64 } else { end.saturating_sub(offset) };
        parts.push(Frame { offset, raw_len, bytes: bytes.to_vec(), ..frame.clone_head() });
        offset = offset.saturating_add(raw_len);
    }
    parts
}

impl Frame {
    /// Everything but the bytes.
    pub(super) fn clone_head(&self) -> Frame {
        Frame { step: self.step.clone(), bytes: Vec::new(), ..*self }
    }
}

/// A log has something else where a frame is to be.
pub(super) fn damaged(log: &Path, at: u64) -> io::Error {
    let why = format!("the output log `{}` is damaged at byte {at}", log.display());
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// The name of a call's own log.
pub(super) fn log_name(call: &CallKey) -> String {
    format!("{}.log", file_name(call))
}

/// The name of a call's files, without an ending: the key percent-encoded outside `[A-Za-z0-9._-]`, so that it can be read back;
/// a longer one than file systems take is cut and told apart by a hash (`~` occurs in no encoded key), and its header has the key.
fn file_name(call: &CallKey) -> String {
    let name = crate::model::step::encode(call.as_str());
    if name.len() <= 200 {
        return name;
    }
    let hash = crate::model::ids::Digest::of(call.as_str().as_bytes());
    let (cut, hash) = (name.get(..150).unwrap_or(""), hash.as_str().get(..32).unwrap_or(""));
    format!("{cut}~{hash}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::step::Branch;

    fn call() -> CallKey {
        CallKey::host("production", 1, "i-0ab/é", "deploy")
    }

    fn frame(bytes: &[u8]) -> Frame {
        let step = StepKey::new(&call(), &Branch::top().child("a b"), "sh", 2);
        let raw_len = bytes.len() as u64;
        Frame { step, attempt: 3, stream: Stream::Err, offset: 7, raw_len, wall_ms: -5, bytes: bytes.to_vec() }
    }

    #[test]
    fn frames_read_back_and_no_altered_byte_is_believed() {
        let mut bytes = Vec::new();
        put_frame(&mut bytes, Some(&call()), &frame(b"hello\n\xff"));
        let Next::Payload(payload, length) = next(&bytes) else { panic!() };
        assert_eq!((length, output(Some(&call()), payload)), (bytes.len(), Some(frame(b"hello\n\xff"))));
        for cut in 0..bytes.len() {
            assert_eq!(next(&bytes[..cut]), Next::Open);
        }
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x55;
            assert!(!matches!(next(&bad), Next::Payload(..)), "byte {at}");
        }
        assert_eq!(next(&[0; 100]), Next::Open);
        assert_eq!(next(&[0xff; 100]), Next::Bad);
        for length in 0..40 {
            assert_eq!(output(Some(&call()), &vec![1; length]), None, "a payload of ones, {length} long");
        }
    }

    #[test]
    fn frames_are_golden() {
        let frame = Frame {
            step: StepKey::new(&CallKey::stage("unit", "run"), &Branch::top(), "sh", 1),
            attempt: 1,
            stream: Stream::Out,
            offset: 2,
            raw_len: 3,
            wall_ms: 4,
            bytes: b"abc".to_vec(),
        };
        let rest = b"\x00\x01\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0";
        let own = [&[1], &rest[..], b"\x06\0-/sh#1abc"].concat();
        let shared = [&[2], &rest[..], b"\x14\0test/unit/run/-/sh#1abc"].concat();
        for (call, payload) in [(Some(&CallKey::stage("unit", "run")), own), (None, shared)] {
            let mut bytes = Vec::new();
            put_frame(&mut bytes, call, &frame);
            assert_eq!(bytes[..4], u32::try_from(payload.len()).unwrap().to_le_bytes());
            assert_eq!(bytes[8..], payload);
            assert_eq!(output(call, &payload).as_ref(), Some(&frame));
            // Of another kind of log.
            let other = if call.is_some() { None } else { Some(CallKey::stage("unit", "run")) };
            assert_eq!(output(other.as_ref(), &payload), None);
        }
    }

    #[test]
    fn long_frames_are_split_and_lose_nothing() {
        let long: Vec<u8> = (0..MAX_BYTES * 2 + 5).map(|n| (n % 251) as u8).collect();
        let parts = split(frame(&long));
        assert_eq!(parts.iter().map(|p| p.bytes.len()).collect::<Vec<_>>(), [MAX_BYTES, MAX_BYTES, 5]);
        assert_eq!(parts.iter().flat_map(|p| p.bytes.clone()).collect::<Vec<_>>(), long);
        assert_eq!(parts[2].offset, 7 + 2 * MAX_BYTES as u64);
        let redacted = split(Frame { raw_len: 9, ..frame(&long) });
        assert_eq!(redacted.iter().map(|p| (p.offset, p.raw_len)).collect::<Vec<_>>(), [(7, 9), (16, 0), (16, 0)]);
    }

    #[test]
    fn names_of_files_are_safe_and_different() {
        assert_eq!(file_name(&CallKey::stage("unit", "run")), "test%2Funit%2Frun");
        assert_eq!(file_name(&call()), "production%231%2Fi-0ab%252F%25C3%25A9%2Fdeploy");
        let long = |end: &str| file_name(&CallKey::host("p", 1, &format!("{}{end}", "é".repeat(120)), "deploy"));
        assert!(long("a").len() <= 200 && long("a") != long("b"));
    }
}
