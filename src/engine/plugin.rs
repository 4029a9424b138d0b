//! Drives plugin calls (discovery, alerts, probes): their requests are done at once and not journaled; only the result is kept.

use std::time::Duration;

use serde_json::{Map, Value, json};

mod lookups;

use super::{
    redact::Redactor,
    steps::values::{self, Resolved},
    world::World,
};
use crate::{
    model::{
        cause::Cause,
        ids::{Digest, ProjectName},
        step::Outcome,
    },
    ports::{
        http,
        mail::{Message, Tls},
        program::{Plugin, PluginRequest, PluginTurn},
    },
    time::Span,
};

/// The longest a plugin call may take as a whole.
const LIMIT: Duration = Duration::from_secs(300);
/// The largest file `phased.read` reads.
const LARGEST_FILE: u64 = 16 * 1024 * 1024;
/// Before a request is made again for the first time; then twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// A Retry-After beyond this is not waited for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The most of an answer's body that Lua gets.
const LARGEST_BODY: usize = 16 * 1024 * 1024;

/// Calls `function` of the pinned `code` with `input` and returns what it returned.
///
/// # Errors
/// The plugin's own cause, `timeout`, or what the loader says of the code.
pub(super) async fn run(
    world: &World,
    project: &ProjectName,
    code: &Digest,
    function: &str,
    input: Value,
) -> Result<Value, Cause> {
    run_within(world, project, code, function, input, LIMIT).await
}

/// The same with a limit of its own.
pub(super) async fn run_within(
    world: &World,
    project: &ProjectName,
    code: &Digest,
    function: &str,
    input: Value,
    limit: Duration,
) -> Result<Value, Cause> {
    let (programs, code, of, name) =
        (std::sync::Arc::clone(&world.programs), code.clone(), project.clone(), function.to_owned());
    let opened = world.tasks.blocking(move || programs.plugin(&code, &of, &name, input)).await;
    let mut plugin = opened.unwrap_or_else(|_| Err(broken()))?;
    let mut redactor = Redactor::default();
    let work = async {
        let mut answer: Option<Outcome> = None;
        loop {
            let (turn, back) = blocking(world, plugin, answer).await?;
            plugin = back;
            match turn {
                PluginTurn::Return(value) => return Ok(value),
                PluginTurn::Raised(cause) => return Err(cause),
                PluginTurn::Request(request) => {
                    answer = Some(perform(world, project, &request, &mut redactor).await);
                }
            }
        }
    };
    let done = crate::time::within(&*world.clock, limit, work).await;
    let done =
        done.unwrap_or_else(|| Err(Cause::new("timeout", format!("{function} took longer than {}", Span(limit)))));
    // What a probe says is shown; what a discovery finds is used as it is.
    let shown = function.starts_with("alarms/");
    done.map(|value| if shown { redactor.value(&value) } else { value }).map_err(|cause| redactor.cause(&cause))
}

/// Lua runs on a blocking thread: a runaway plugin stalls nobody else.
async fn blocking(
    world: &World,
    mut plugin: Box<dyn Plugin>,
    answer: Option<Outcome>,
) -> Result<(PluginTurn, Box<dyn Plugin>), Cause> {
    let turn = world.tasks.blocking(move || {
        let turn = match &answer {
            None => plugin.start(),
            Some(answer) => plugin.resume(answer),
        };
        (turn, plugin)
    });
    turn.await.map_err(|_| broken())
}

fn broken() -> Cause {
    Cause::new("lua_internal", "the plugin's thread ended unexpectedly; this is a bug of phased")
}

async fn perform(world: &World, project: &ProjectName, request: &PluginRequest, redactor: &mut Redactor) -> Outcome {
    let done = match values::resolve(&*world.secrets, &request.args, redactor) {
        Err(cause) => Err(cause),
        Ok(args) => match request.what.as_str() {
            "http" => self::http(world, &args).await,
            "read" => read(&args).await,
            "exec" => super::steps::plain::exec(world, project, &args).await,
            "smtp" => smtp(world, &args).await,
            "dns" => lookups::dns(world, &args).await,
            "ec2_instances" => lookups::ec2_instances(world, &args).await,
            "ec2_host_keys" => lookups::ec2_host_keys(world, &args).await,
            "jwt" => lookups::jwt(world, &args),
            "log" => {
                let text = redactor.text(&args.text("text").unwrap_or_default());
                tracing::info!(%project, "{text}");
                Ok(Value::Null)
            }
            other => Err(Cause::new("lua_error", format!("phased.{other} does not exist"))),
        },
    };
    match done {
        Ok(value) => Outcome::Ok(value),
        Err(cause) => Outcome::failed(redactor.cause(&cause)),
    }
}

/// One request as a plugin or step wrote it.
pub(super) fn http_request(args: &Resolved, timeout: Duration) -> http::Request {
    let mut headers: Vec<(String, String)> = args
        .map("headers")
        .into_iter()
        .map(|(name, value)| (name, String::from_utf8_lossy(&value).into_owned()))
        .collect();
    if let Some(token) = args.text("bearer") {
        headers.push(("authorization".to_owned(), format!("Bearer {token}")));
    }
    let body = match args.raw("json") {
        Some(json) => {
            if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
                headers.push(("content-type".to_owned(), "application/json".to_owned()));
            }
            json.to_string().into_bytes()
        }
        None => match args.map("form") {
            fields if fields.is_empty() => args.bytes("body").unwrap_or_default(),
            fields => {
                if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
                    headers.push(("content-type".to_owned(), "application/x-www-form-urlencoded".to_owned()));
                }
                form(&fields)
            }
        },
    };
    http::Request {
        method: args.text("method").unwrap_or_else(|| "GET".to_owned()),
        url: args.text("url").unwrap_or_default(),
        headers,
        body,
        timeout,
        max_body: LARGEST_BODY,
    }
}

/// Fields of a form on the wire.
fn form(fields: &[(String, Vec<u8>)]) -> Vec<u8> {
    use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
    let encoded = |bytes: &[u8]| percent_encode(bytes, NON_ALPHANUMERIC).to_string();
    let pairs = fields.iter().map(|(name, value)| format!("{}={}", encoded(name.as_bytes()), encoded(value)));
    pairs.collect::<Vec<_>>().join("&").into_bytes()
}

/// An answer as Lua gets it.
pub(super) fn http_value(response: &http::Response) -> Value {
    let headers: Map<String, Value> =
        response.headers.iter().map(|(k, v)| (k.clone(), Value::String(v.clone()))).collect();
    json!({
        "status": response.status, "headers": headers, "body": values::lua_bytes(&response.body),
        "truncated": response.truncated,
    })
}

async fn http(world: &World, args: &Resolved) -> Result<Value, Cause> {
    let timeout = args.span("timeout").unwrap_or(Duration::from_secs(30));
    let request = http_request(args, timeout);
    let (method, url) = (request.method.clone(), request.url.clone());
    let response = patiently(world, request, args.numbers("retries").first().copied().unwrap_or(0)).await?;
    if args.flag("check").unwrap_or(true) && !(200..300).contains(&response.status) {
        let body: String = String::from_utf8_lossy(&response.body).chars().take(300).collect();
        let message = format!("{method} {} answered {}: {body}", values::without_query(&url), response.status);
        return Err(Cause::new("http_status", message).with("status", response.status));
    }
    Ok(http_value(&response))
}

/// Makes a request, and makes it again, at most `retries` times, while the other side cannot do it just now.
async fn patiently(world: &World, request: http::Request, retries: u64) -> Result<http::Response, Cause> {
    let mut pause = FIRST_PAUSE;
    for _ in 0..retries {
        let answer = world.http.request(request.clone()).await;
        let wait = match &answer {
            Ok(response) if matches!(response.status, 429 | 500 | 502 | 503 | 504) => {
                retry_after(response).unwrap_or(pause)
            }
            Err(cause) if matches!(cause.code.as_str(), "http_connect" | "timeout" | "http_protocol") => pause,
            _ => return answer,
        };
        world.clock.sleep(wait.min(LONGEST_PAUSE)).await;
        pause *= 2;
    }
    world.http.request(request).await
}

/// Seconds, as rate limits say them; a date is left to our own pauses.
fn retry_after(response: &http::Response) -> Option<Duration> {
    let (_, value) = response.headers.iter().find(|(name, _)| name == "retry-after")?;
    value.trim().parse().ok().map(Duration::from_secs)
}

async fn read(args: &Resolved) -> Result<Value, Cause> {
    let path = args.text("path").unwrap_or_default();
    let failed = |why: String| Cause::new("read", format!("failed to read {path}: {why}"));
    let meta = tokio::fs::metadata(&path).await.map_err(|e| failed(e.to_string()))?;
    if !meta.is_file() || meta.len() > LARGEST_FILE {
        return Err(failed(format!("it must be a file of at most {} MiB", LARGEST_FILE / 1024 / 1024)));
    }
    let bytes = tokio::fs::read(&path).await.map_err(|e| failed(e.to_string()))?;
    Ok(values::lua_bytes(&bytes))
}

async fn smtp(world: &World, args: &Resolved) -> Result<Value, Cause> {
    let tls = match args.text("tls").as_deref() {
        Some("implicit") => Tls::Implicit,
        Some("none") => Tls::None,
        _ => Tls::StartTls,
    };
    let login = match (args.text("user"), args.bytes("password")) {
        (Some(user), Some(password)) => Some((user, crate::ports::secrets::Secret::new(&password))),
        _ => None,
    };
    let port = args.raw("port").and_then(Value::as_u64).and_then(|p| u16::try_from(p).ok()).unwrap_or(587);
    let message = Message {
        host: args.text("host").unwrap_or_default(),
        port,
        tls,
        login,
        from: args.text("from").unwrap_or_default(),
        to: args.texts("to"),
        subject: args.text("subject").unwrap_or_default(),
        body: args.text("body").unwrap_or_default(),
        timeout: args.span("timeout").unwrap_or(Duration::from_secs(30)),
    };
    world.mail.send(message).await?;
    Ok(Value::Null)
}
