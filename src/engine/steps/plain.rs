//! `phased.exec` of plugins: a program on this machine as the project's job user, not journaled.

use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::values::{self, Resolved};
use crate::{
    engine::{
        command::{CommandSpec, Fleeting, OutputSink, Session, ToLocal, Verdict, What},
        world::World,
    },
    model::{cause::Cause, ids::ProjectName},
    ports::outputs::Stream,
};

/// The most of each stream that Lua gets.
const LARGEST: usize = 16 * 1024 * 1024;

#[derive(Default)]
struct Kept {
    out: Vec<u8>,
    err: Vec<u8>,
    truncated: bool,
}

#[async_trait::async_trait]
impl OutputSink for Kept {
    async fn output(&mut self, stream: Stream, _offset: u64, bytes: &[u8]) {
        let kept = if stream == Stream::Out { &mut self.out } else { &mut self.err };
        let room = LARGEST.saturating_sub(kept.len()).min(bytes.len());
        kept.extend_from_slice(&bytes[..room]);
        self.truncated |= room < bytes.len();
    }
}

pub(in crate::engine) async fn exec(world: &World, project: &ProjectName, args: &Resolved) -> Result<Value, Cause> {
    let timeout = args.span("timeout").unwrap_or(Duration::from_secs(60));
    let argv = args.list("argv");
    let program = argv.first().map(|p| String::from_utf8_lossy(p).into_owned()).unwrap_or_default();
    let mut spec = CommandSpec::passing(world.random_u128(), What::Exec { argv }, timeout);
    spec.env = args.map("env");
    spec.path = Some(world.limits.path.clone());
    spec.stdin = args.bytes("stdin");
    let connect = std::sync::Arc::new(ToLocal { links: std::sync::Arc::clone(&world.links), project: project.clone() });
    let session = Session::new(connect, std::sync::Arc::clone(&world.clock), std::sync::Arc::new(Fleeting));
    let mut kept = Kept::default();
    let verdict = session.run(&spec, &mut kept, &CancellationToken::new()).await;
    session.close().await;
    let code = if let Verdict::Exited { code, .. } = verdict { Some(code) } else { None };
    let check = args.flag("check").unwrap_or(true);
    if let (Some(cause), true) = (verdict.cause("the integration server", timeout), check || code.is_none()) {
        let said: String = String::from_utf8_lossy(&kept.err).trim().chars().take(600).collect();
        return Err(Cause { message: format!("{program}: {}: {said}", cause.message), ..cause });
    }
    Ok(json!({
        "stdout": values::lua_bytes(&kept.out), "stderr": values::lua_bytes(&kept.err), "code": code,
        "truncated": kept.truncated,
    }))
}
