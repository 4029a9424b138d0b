//! `/v1/events`: what happens, as it happens.

use std::{collections::VecDeque, sync::Arc};

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Uri},
    response::Response,
};
use serde_json::Value;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::{App, status, streaming};
use crate::{
    api::{
        accept::Form,
        auth::Caller,
        fields::Fields,
        problem::Problem,
        text::{one_line, plain_json},
    },
    engine::view::EventView,
};

/// Events, from now on or after `Last-Event-ID`.
///
/// When that id is not known any more, or this client fell too far behind, the event `reset` with the whole status as its data comes
/// first. Resumable within one life of the daemon.
#[utoipa::path(get, path = "/v1/events", tag = "daemon",
    params(
        ("project" = Option<String>, Query, description = "Only this project's."),
        ("run" = Option<String>, Query, description = "Only this run's."),
        ("Last-Event-ID" = Option<String>, Header, description = "The last event's id that was seen.")),
    responses((status = 200, description = "By `Accept`: SSE (default), NDJSON with `{}` as a sign of life, or text.",
        content((String = "text/event-stream"), (EventView = "application/x-ndjson"), (String = "text/plain")))))]
pub(super) async fn events(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut fields = Fields::of_query(uri.query())?;
    let (project, run) = (fields.text("project"), fields.text("run"));
    fields.finish()?;
    if let Some(project) = &project {
        caller.project(project)?;
    }
    let form = Form::wanted(&headers, &[Form::Events, Form::Lines, Form::Text]);
    let after = headers.get("last-event-id").and_then(|v| v.to_str().ok()).filter(|id| !id.is_empty());
    let stream = app.engine.events(after);
    let mut feed = Feed { app, caller, project, run, form, ready: VecDeque::new(), live: stream.live };
    if form == Form::Events {
        feed.ready.push_back("retry: 2000\n\n".to_owned());
    }
    if stream.reset {
        feed.reset().await?;
    }
    for event in &stream.backlog {
        feed.add(event);
    }
    // Something at once, so that headers are on their way and the client knows that it listens.
    if feed.ready.is_empty() && form == Form::Lines {
        feed.ready.push_back("{}\n".to_owned());
    }
    let body = futures_util::stream::unfold(feed, |mut feed| async move {
        let piece = feed.piece().await?;
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(piece)), feed))
    });
    Ok(streaming(form, Body::from_stream(body)))
}

struct Feed {
    app: App,
    caller: Caller,
    project: Option<String>,
    run: Option<String>,
    form: Form,
    ready: VecDeque<String>,
    live: Receiver<Arc<EventView>>,
}

impl Feed {
    /// The next piece of the body; `None` = the daemon goes down.
    async fn piece(&mut self) -> Option<String> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Some(piece);
            }
            let event = tokio::select! {
                biased;
                () = self.app.stopping.cancelled() => return None,
                event = self.live.recv() => event,
                () = self.app.clock.sleep(self.app.heartbeat), if self.form != Form::Text => {
                    return Some(if self.form == Form::Events { ": keep-alive\n\n" } else { "{}\n" }.to_owned());
                }
            };
            match event {
                Ok(event) => self.add(&event),
                // This client was too slow for the ring: what was lost is in the whole state. Subscribing comes first, so that nothing
                // falls between the two.
                Err(RecvError::Lagged(_)) => {
                    self.live = self.app.engine.events(None).live;
                    self.reset().await.ok()?;
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }

    async fn reset(&mut self) -> Result<(), Problem> {
        let status = status::seen(&self.app, &self.caller).await?;
        let json = plain_json(&serde_json::to_string(&status).unwrap_or_default());
        self.ready.push_back(match self.form {
            Form::Events => format!("event: reset\ndata: {json}\n\n"),
            Form::Lines => format!("{{\"event\":\"reset\",\"data\":{json}}}\n"),
            _ => "reset: some events were missed; `phased status` shows what is now\n".to_owned(),
        });
        Ok(())
    }

    fn add(&mut self, event: &EventView) {
        let wanted = self.caller.sees(&event.project)
            && self.project.as_ref().is_none_or(|p| *p == event.project)
            && self.run.as_ref().is_none_or(|r| *r == event.run);
        if !wanted {
            return;
        }
        self.ready.push_back(match self.form {
            Form::Text => text(event),
            form => {
                let json = plain_json(&serde_json::to_string(event).unwrap_or_default());
                if form == Form::Events {
                    format!("id: {}\nevent: {}\ndata: {json}\n\n", one_line(&event.id, 80), one_line(&event.event, 80))
                } else {
                    format!("{json}\n")
                }
            }
        });
    }
}

/// `2026-01-02T03:04:05.678Z  shop  01k...  host.failed  web-2: the unit is not active (unhealthy)`.
fn text(event: &EventView) -> String {
    let data: Value = serde_json::from_str(event.data.get()).unwrap_or_default();
    let of = |name: &str| data.get(name).and_then(Value::as_str).unwrap_or_default();
    let subject = [of("name"), of("environment")].into_iter().find(|t| !t.is_empty()).unwrap_or_default();
    let cause = data.pointer("/cause/message").and_then(Value::as_str).unwrap_or_default();
    let about = [subject, cause].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join(": ");
    let line = format!("{}  {}  {}  {}  {about}", event.at, event.project, event.run, event.event);
    format!("{}\n", one_line(&line, 400).trim_end())
}
