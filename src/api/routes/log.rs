//! `/v1/runs/{id}/log`: what the steps printed.

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, Uri},
    response::Response,
};

use super::{App, runs, streaming};
use crate::{
    api::{
        accept::Form,
        auth::Caller,
        fields::Fields,
        problem::Problem,
        text::{plain_json, printable},
    },
    engine::{
        handle::{LogQuery, LogStream},
        view::LogLine,
    },
};

/// A run's output.
///
/// Each line's SSE id is its number under this query; `Last-Event-ID` goes on after it. With `tail` there are no ids.
#[utoipa::path(get, path = "/v1/runs/{id}/log", tag = "runs",
    params(
        ("id" = String, Path, description = "The run's id."),
        ("step" = Option<String>, Query, description = "Only steps whose key starts with this: `test/unit`, `production#1`."),
        ("host" = Option<String>, Query, description = "Only this host's, by id."),
        ("tail" = Option<u64>, Query, description = "Only the last so many lines of what is there."),
        ("follow" = Option<bool>, Query, description = "Go on until the run has ended."),
        ("Last-Event-ID" = Option<String>, Header, description = "The last line's id that was seen.")),
    responses(
        (status = 200, description = "Lines, by `Accept`: text (default), NDJSON, or SSE that ends with the event `end`.",
            content((String = "text/plain"), (LogLine = "application/x-ndjson"), (String = "text/event-stream"))),
        (status = 404, description = "`run_unknown`.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn log(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut fields = Fields::of_query(uri.query())?;
    let query = LogQuery {
        step: fields.text("step"),
        host: fields.text("host"),
        tail: fields.number("tail", 0..=1_000_000).and_then(|n| usize::try_from(n).ok()),
        follow: fields.flag("follow"),
    };
    fields.finish()?;
    runs::seen(&app, &caller, &id).await?;
    let form = Form::wanted(&headers, &[Form::Text, Form::Lines, Form::Events]);
    let numbered = query.tail.is_none();
    let seen = headers.get("last-event-id").and_then(|v| v.to_str().ok()?.parse::<u64>().ok()).filter(|_| numbered);
    let follow = query.follow;
    let lines = app.engine.log(&id, query).await?;
    let stream =
        Lines { app, lines, form, follow, numbered, number: 0, skip: seen.unwrap_or(0), last: None, ended: false };
    let body = futures_util::stream::unfold(stream, |mut stream| async move {
        let piece = stream.piece().await?;
        Some((Ok::<_, std::convert::Infallible>(piece), stream))
    });
    Ok(streaming(form, Body::from_stream(body)))
}

struct Lines {
    app: App,
    lines: Box<dyn LogStream>,
    form: Form,
    follow: bool,
    numbered: bool,
    /// Of the last line read.
    number: u64,
    /// Lines up to this number were seen before.
    skip: u64,
    /// The step and host of the last line shown as text.
    last: Option<(String, Option<String>)>,
    ended: bool,
}

impl Lines {
    /// The next piece of the body; `None` = it is over.
    async fn piece(&mut self) -> Option<Bytes> {
        loop {
            if self.ended {
                return None;
            }
            let next = tokio::select! {
                biased;
                next = self.lines.next() => next,
                () = self.app.stopping.cancelled() => return None,
                () = self.app.clock.sleep(self.app.heartbeat), if self.follow && self.form != Form::Text => {
                    return Some(Bytes::from_static(if self.form == Form::Events { b": keep-alive\n\n" } else { b"{}\n" }));
                }
            };
            let out = match next {
                Some(Ok(lines)) => lines.iter().fold(String::new(), |out, line| out + &self.shown(line)),
                Some(Err(refusal)) => {
                    self.ended = true;
                    let problem = Problem::from(refusal);
                    let json = serde_json::to_string(&problem).unwrap_or_default();
                    match self.form {
                        Form::Events => format!("event: error\ndata: {json}\n\n"),
                        Form::Lines => format!("{{\"error\":{json}}}\n"),
                        _ => format!("# the log ends here: {}\n", printable(&problem.detail)),
                    }
                }
                None => {
                    self.ended = true;
                    if self.form == Form::Events { "event: end\ndata: {}\n\n".to_owned() } else { String::new() }
                }
            };
            // Chunked encoding takes an empty piece for the end.
            if !out.is_empty() {
                return Some(Bytes::from(out));
            }
        }
    }

    fn shown(&mut self, line: &LogLine) -> String {
        self.number += 1;
        if self.number <= self.skip {
            return String::new();
        }
        match self.form {
            Form::Text => self.text(line),
            form => {
                let json = plain_json(&serde_json::to_string(line).unwrap_or_default());
                match form {
                    Form::Events if self.numbered => format!("id: {}\ndata: {json}\n\n", self.number),
                    Form::Events => format!("data: {json}\n\n"),
                    _ => format!("{json}\n"),
                }
            }
        }
    }

    /// As `tail -f` shows several files: a heading when the step changes.
    fn text(&mut self, line: &LogLine) -> String {
        let source = (line.step.clone(), line.host.clone());
        let text = printable(&line.text).replace('\n', " ");
        let text = if line.stream == "note" { format!("# {text}\n") } else { format!("{text}\n") };
        if self.last.as_ref() == Some(&source) {
            return text;
        }
        let gap = if self.last.is_some() { "\n" } else { "" };
        let host = line.host.as_ref().map_or_else(String::new, |host| format!(" on {}", printable(host)));
        let heading = format!("{gap}==> {}{host} <==\n", printable(&line.step));
        self.last = Some(source);
        heading + &text
    }
}
