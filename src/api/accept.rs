//! Which of the forms we have the client wants.

use axum::http::{HeaderMap, header};

/// A form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Json,
    Text,
    Lines,
    Events,
}

impl Form {
    pub(super) fn mime(self) -> &'static str {
        match self {
            Form::Json => "application/json",
            Form::Text => "text/plain; charset=utf-8",
            Form::Lines => "application/x-ndjson",
            Form::Events => "text/event-stream",
        }
    }

    /// Which of `have` the `Accept` header prefers; its first when it says nothing, anything, or only what we have not.
    pub(super) fn wanted(headers: &HeaderMap, have: &[Form]) -> Form {
        let default = have.first().copied().unwrap_or(Form::Json);
        let mut best: Option<(u32, Form)> = None;
        let values = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok());
        for item in values.flat_map(|v| v.split(',')).take(32) {
            let mut parts = item.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let quality = parts.find_map(|p| p.strip_prefix("q=")).map_or(1.0, |q| q.parse::<f32>().unwrap_or(0.0));
            let form = match kind.as_str() {
                "*/*" => Some(default),
                "application/json" if have.contains(&Form::Json) => Some(Form::Json),
                "application/json" | "application/x-ndjson" | "application/ndjson" | "application/jsonl" => {
                    Some(Form::Lines)
                }
                "text/plain" => Some(Form::Text),
                "text/*" if have.contains(&Form::Text) => Some(Form::Text),
                "text/event-stream" => Some(Form::Events),
                _ => None,
            };
            let Some(form) = form.filter(|f| have.contains(f)) else { continue };
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped to 0..=1000
            let quality = (quality.clamp(0.0, 1.0) * 1000.0) as u32;
            if quality > best.map_or(0, |(q, _)| q) {
                best = Some((quality, form));
            }
        }
        best.map_or(default, |(_, form)| form)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(accept: &str, have: &[Form]) -> Form {
        Form::wanted(&HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]), have)
    }

    #[test]
    fn the_client_chooses_and_we_have_a_default() {
        let lists = [Form::Json, Form::Text];
        let streams = [Form::Text, Form::Lines, Form::Events];
        for (accept, form) in [
            ("*/*", Form::Json),
            ("text/plain", Form::Text),
            ("text/html, */*;q=0.1", Form::Json),
            ("application/json;q=0.5, text/plain", Form::Text),
            ("text/plain;q=0, */*", Form::Json),
            ("image/png", Form::Json),
            ("text/plain;q=NaN", Form::Json),
            (";;,,", Form::Json),
        ] {
            assert_eq!(wanted(accept, &lists), form, "{accept}");
        }
        assert_eq!(wanted("*/*", &streams), Form::Text);
        assert_eq!(wanted("text/event-stream", &streams), Form::Events);
        assert_eq!(wanted("application/json", &streams), Form::Lines);
    }
}
