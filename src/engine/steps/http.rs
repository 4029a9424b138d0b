//! `http` and `wait`.

use std::time::Duration;

use serde_json::Value;

use super::{
    Job,
    values::{self, Resolved},
};
use crate::{
    engine::plugin::{http_request, http_value},
    model::{cause::Cause, pipeline::Check, step::Outcome},
    ports::{http::Response, link::Link},
};

/// One look of a `wait`.
const LOOK: Duration = Duration::from_secs(10);
/// However little of its time is left: a shorter look sees nothing but that.
const LEAST: Duration = Duration::from_millis(250);

/// `":8080/path"` is the machine's own loopback, through its session; everything else is asked from here.
async fn ask(job: &Job, args: &Resolved, timeout: Duration) -> Result<Response, Cause> {
    let mut request = http_request(args, timeout);
    let Some(port) = own_port(&request.url) else { return job.world.http.request(request).await };
    let link = job.session().link().await.map_err(|e| e.cause)?;
    let stream = link.dial("127.0.0.1", port).await.map_err(|e| e.cause)?;
    request.url = format!("http://127.0.0.1{}", request.url);
    job.world.http.request_over(stream, request).await
}

fn own_port(url: &str) -> Option<u16> {
    url.strip_prefix(':')?.split(['/', '?']).next()?.parse().ok()
}

pub(super) async fn request(job: &Job, args: &Resolved) -> Outcome {
    let timeout = job.timeout(args, Duration::from_secs(30));
    let method = args.text("method").unwrap_or_else(|| "GET".to_owned());
    let url = values::without_query(&args.text("url").unwrap_or_default());
    let again = args.flag("idempotent").unwrap_or(!matches!(method.as_str(), "POST" | "PATCH"));
    if job.resumed.is_some() && !again {
        let message = format!(
            "the daemon was stopped while {method} {url} was under way: nobody can tell whether it arrived, and sent again it might \
             arrive twice. Say idempotent = true where that does no harm"
        );
        return Outcome::Unknown { cause: job.placed(Cause::new("lost", message)) };
    }
    let asked = crate::time::within(&*job.world.clock, timeout, ask(job, args, timeout)).await;
    let late =
        || Err(Cause::new("timeout", format!("{method} {url} was not answered within {}", crate::time::Span(timeout))));
    match asked.unwrap_or_else(late) {
        Err(cause) => Outcome::failed(job.placed(on(job, cause))),
        Ok(response) => {
            let mut value = http_value(&response);
            // Headers and body may carry what the request carried.
            value["headers"] = job.sessions.redactor().value(&value["headers"]);
            let body = job.sessions.redact_bytes(&response.body);
            value["body"] = values::lua_bytes(&body);
            if good(args, response.status) {
                return Outcome::Ok(value);
            }
            let said: String = String::from_utf8_lossy(&body).chars().take(300).collect();
            let message = format!("{method} {url} answered {}: {said}", response.status);
            let cause = Cause::new("http_status", message).with("status", response.status);
            Outcome::Failed { cause: job.placed(on(job, cause)), value }
        }
    }
}

fn on(job: &Job, cause: Cause) -> Cause {
    Cause { message: format!("on {}: {}", job.place.name(), cause.message), ..cause }
}

fn good(args: &Resolved, status: u16) -> bool {
    let wanted = args.numbers("status");
    if wanted.is_empty() { (200..300).contains(&status) } else { wanted.contains(&u64::from(status)) }
}

/// Looks until it is good or the time is up; single looks are not journaled.
pub(super) async fn wait(job: &Job, args: &Resolved) -> Outcome {
    let timeout = job.timeout(args, Duration::from_secs(300));
    let interval = args.span("interval").unwrap_or(Duration::from_secs(1));
    let clock = &job.world.clock;
    let began = job.resumed.clone().unwrap_or_else(|| clock.now());
    loop {
        let left = timeout.saturating_sub(clock.now().since(&began));
        let seen = match look(job, args, left.clamp(LEAST, LOOK)).await {
            Ok(()) => return Outcome::Ok(Value::Null),
            Err(seen) => seen,
        };
        let elapsed = clock.now().since(&began);
        if elapsed + interval >= timeout {
            let message =
                format!("on {}: not good within {}; last seen: {seen}", job.place.name(), crate::time::Span(timeout));
            return Outcome::failed(job.placed(Cause::new("timeout", message).with("last_seen", seen)));
        }
        clock.sleep(interval).await;
    }
}

async fn look(job: &Job, args: &Resolved, limit: Duration) -> Result<(), String> {
    if let Some(url) = args.text("http") {
        let request = args.with("url", Value::String(url));
        let asked = crate::time::within(&*job.world.clock, limit, ask(job, &request, limit)).await;
        return match asked {
            None => Err("no answer in time".to_owned()),
            Some(Err(cause)) => Err(cause.message),
            Some(Ok(response)) if good(args, response.status) => Ok(()),
            Some(Ok(response)) => Err(format!("status {}", response.status)),
        };
    }
    let check = match (args.text("tcp"), args.text("command")) {
        (Some(address), _) => Check::Tcp(address),
        (None, Some(command)) => Check::Command(command),
        (None, None) => return Err("nothing to look at".to_owned()),
    };
    let link = job.session().link().await.map_err(|e| e.cause.message)?;
    let link: &dyn Link = &*link;
    let sight = job.world.probe.look(link, &check, limit).await;
    if sight.good { Ok(()) } else { Err(sight.seen) }
}
