//! What of the daemon's own machine is not a journal: blobs, the index, output of commands, in memory; and ports that lead nowhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use serde_json::Value;

use super::outside::Outside;
use crate::{
    lifecycle::{locks::locked, watch},
    model::{
        cause::Cause,
        ids::{Digest, ProjectName, RunId},
        signal::Part,
        step::{CallKey, StepKey},
    },
    ports::{
        backup::{Archive, Manifest},
        blobs::{self, Blobs, Form, Hold},
        discovery::{Discovery, DnsQuery, Ec2Query, JwtAsk},
        hands::Hands,
        http::{Http, Request, Response},
        link::Duplex,
        mail::{self, Mail},
        outputs::{Frame, Outputs, Position, Stored, Stream},
        secrets::{Secret, SecretError, Secrets},
        storage::{Condition, Storage},
    },
    time::Clock as _,
};

/// Blobs are on disk when [`Blobs::put`] returns, so no crash takes one away. Artifacts are not simulated.
#[derive(Clone, Default)]
pub(super) struct MemoryBlobs(Arc<Mutex<BTreeMap<Digest, Vec<u8>>>>);

impl Blobs for MemoryBlobs {
    fn part(&self, blob: &Digest) -> io::Result<Part> {
        let have = self.get(blob).map_or(0, |bytes| bytes.len() as u64);
        Ok(Part { blob: blob.clone(), have, whole: have > 0 })
    }

    fn append(&self, _: &Digest, _: u64, _: u64, _: &[u8]) -> io::Result<Part> {
        Err(io::Error::other("nothing comes in pieces here"))
    }

    fn put(&self, bytes: &[u8]) -> io::Result<Digest> {
        let digest = Digest::of(bytes);
        locked(&self.0).insert(digest.clone(), bytes.to_vec());
        Ok(digest)
    }

    fn get(&self, digest: &Digest) -> io::Result<Vec<u8>> {
        locked(&self.0).get(digest).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn store(&self, _form: Form, _from: &mut dyn Read, _most: u64) -> io::Result<blobs::Stored> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn read(&self, _blob: &Digest, _form: Form, _offset: u64) -> io::Result<Box<dyn Read + Send>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn check(&self, blob: &Digest) -> io::Result<()> {
        self.get(blob).map(drop)
    }

    fn forget_parts(&self) -> io::Result<usize> {
        Ok(0)
    }

    fn hold(&self) -> Hold {
        Box::new(())
    }

    fn begin_sweep(&self) -> bool {
        false
    }

    fn end_sweep(&self, _keep: &BTreeSet<Digest>) -> io::Result<usize> {
        Ok(0)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        PathBuf::from("/simulated/blobs").join(digest.as_str())
    }
}

/// The room on the daemon's disk, for one life of it.
pub(super) struct Room {
    outside: Option<Outside>,
    condition: watch::Sender<Condition>,
}

impl Room {
    pub(super) fn of(outside: Option<Outside>) -> Arc<Self> {
        Arc::new(Room { outside, condition: watch::Sender::new(Condition::Well) })
    }

    /// Until when there is none.
    pub(super) fn full(&self) -> Option<Duration> {
        self.outside.as_ref()?.full()
    }
}

impl Storage for Room {
    fn condition(&self) -> watch::Receiver<Condition> {
        self.condition.subscribe()
    }

    fn lacked(&self) {
        self.condition.send_replace(Condition::Full);
    }

    fn look(&self) {
        if self.full().is_none() {
            self.condition.send_replace(Condition::Well);
        }
    }

    fn used(&self) -> io::Result<u64> {
        Ok(0)
    }
}

/// Frames of each call of each run.
type Printed = BTreeMap<(RunId, CallKey), Vec<Frame>>;

/// Output of commands. It is not synced: a power loss takes the end of any of it away.
#[derive(Clone)]
pub(super) struct MemoryOutputs {
    frames: Arc<Mutex<Printed>>,
    changed: watch::Sender<u64>,
}

impl Default for MemoryOutputs {
    fn default() -> Self {
        MemoryOutputs { frames: Arc::default(), changed: watch::Sender::new(0) }
    }
}

impl MemoryOutputs {
    /// What is left of it after a power loss.
    pub(super) fn lose(&self, random: &mut super::random::Random) {
        for frames in locked(&self.frames).values_mut() {
            if random.one_in(2) {
                let left = random.below(frames.len() as u64 + 1);
                frames.truncate(usize::try_from(left).unwrap_or(0));
            }
        }
    }
}

impl Outputs for MemoryOutputs {
    fn append(&self, run: &RunId, frame: Frame) -> io::Result<()> {
        locked(&self.frames).entry((run.clone(), frame.step.call())).or_default().push(frame);
        self.changed.send_modify(|n| *n += 1);
        Ok(())
    }

    fn finish(&self, _run: &RunId, _step: &StepKey, _attempt: u32) -> io::Result<()> {
        Ok(())
    }

    fn stored(&self, run: &RunId, step: &StepKey, attempt: u32, keep: usize) -> io::Result<[Stored; 2]> {
        let frames = locked(&self.frames);
        let mut stored = <[Stored; 2]>::default();
        for frame in frames.get(&(run.clone(), step.call())).into_iter().flatten() {
            let at = match frame.stream {
                _ if frame.step != *step || frame.attempt != attempt => continue,
                Stream::Out => 0,
                Stream::Err => 1,
                Stream::Note => continue,
            };
            let [out, err] = &mut stored;
            let stored = if at == 0 { out } else { err };
            stored.end = frame.offset + frame.raw_len;
            stored.total += frame.bytes.len() as u64;
            stored.last.extend_from_slice(&frame.bytes);
            let excess = stored.last.len().saturating_sub(keep);
            stored.last.drain(..excess);
        }
        Ok(stored)
    }

    fn calls(&self, run: &RunId) -> io::Result<Vec<CallKey>> {
        Ok(locked(&self.frames).keys().filter(|(of, _)| of == run).map(|(_, call)| call.clone()).collect())
    }

    fn read(&self, run: &RunId, call: &CallKey, from: Position, _limit: usize) -> io::Result<(Vec<Frame>, Position)> {
        let frames = locked(&self.frames);
        let all = frames.get(&(run.clone(), call.clone())).map_or(&[][..], Vec::as_slice);
        let from = usize::try_from(from.0).unwrap_or(usize::MAX);
        Ok((all.get(from..).unwrap_or_default().to_vec(), Position(all.len() as u64)))
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// Ports of which nothing simulated makes use.
pub(super) struct Nowhere;

#[async_trait]
impl Http for Nowhere {
    async fn request(&self, _request: Request) -> Result<Response, Cause> {
        Err(Cause::new("http_connect", "requests are not simulated"))
    }

    async fn request_over(&self, _stream: Box<dyn Duplex>, _request: Request) -> Result<Response, Cause> {
        Err(Cause::new("http_connect", "requests are not simulated"))
    }
}

impl Archive for Nowhere {
    fn write(&self, _manifest: &Manifest, _to: &mut dyn std::io::Write) -> std::io::Result<()> {
        Err(std::io::Error::other("backups are not simulated"))
    }
}

#[async_trait]
impl Mail for Nowhere {
    async fn send(&self, _message: mail::Message) -> Result<(), Cause> {
        Err(Cause::new("smtp_connect", "mail is not simulated"))
    }
}

/// Checkouts are not simulated: there are no files to give or remove.
#[async_trait]
impl Hands for Nowhere {
    async fn give(&self, _project: &ProjectName, _tree: &Path) -> Result<(), Cause> {
        Ok(())
    }

    async fn remove(&self, _project: &ProjectName, _tree: &Path) -> Result<(), Cause> {
        Ok(())
    }
}

/// Where hosts are looked up. What it answers is of no interest, only when: mostly soon, now and then not for a long time.
pub(super) struct Lookups(pub(super) Outside);

#[async_trait]
impl Discovery for Lookups {
    async fn dns(&self, _query: DnsQuery) -> Result<Vec<Value>, Cause> {
        let takes = self.0.lookup();
        self.0.clock().sleep(takes).await;
        Ok(Vec::new())
    }

    async fn ec2_instances(&self, _query: Ec2Query) -> Result<Vec<Value>, Cause> {
        Err(Cause::new("ec2_failed", "lookups are not simulated"))
    }

    async fn ec2_host_keys(
        &self,
        _query: Ec2Query,
        _of: BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, Vec<String>>, Cause> {
        Err(Cause::new("ec2_failed", "lookups are not simulated"))
    }

    fn jwt(&self, _ask: JwtAsk) -> Result<String, Cause> {
        Err(Cause::new("jwt_key", "tokens are not simulated"))
    }
}

impl Secrets for Nowhere {
    fn get(&self, name: &str) -> Result<Secret, SecretError> {
        Err(SecretError::Missing { name: name.to_owned(), looked: "a simulation, which has none".to_owned() })
    }
}
