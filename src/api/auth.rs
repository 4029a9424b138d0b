//! Who asks, and what they may do.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use axum::http::{HeaderMap, Method, StatusCode, header};
use subtle::ConstantTimeEq as _;

use super::problem::Problem;
use crate::engine::{handle::Engine, view::TokenView};

/// Who is let in besides the holders of tokens.
#[derive(Debug, Clone, Default)]
pub struct AuthConfig {
    /// Uids that code under test runs as: they may not use the socket at all. Everybody else whom the socket's mode (0660, group
    /// `phased`) lets in may do everything.
    pub job_uids: Vec<RangeInclusive<u32>>,
    /// A token with every right, for the demo. No file holds it.
    pub fixed_token: Option<String>,
    /// Names besides `localhost` and the address itself under which the TCP listener may be asked (`Host`), for a reverse proxy.
    pub host_names: Vec<String>,
}

/// The other end of a connection.
#[derive(Debug, Clone)]
pub(super) enum Peer {
    /// The Unix socket; `None` when the kernel did not say who, who then may do nothing.
    Socket { uid: Option<u32> },
    /// TCP: where it was asked, and from where, which may be a proxy's.
    Tcp { local: SocketAddr, remote: IpAddr },
}

/// Who asks. Handlers get it as an extension; a public route may have none.
#[derive(Debug, Clone)]
pub(super) enum Caller {
    /// Somebody the socket's mode let in: every right.
    Uid(u32),
    /// The demo's token: every right.
    Fixed,
    /// A bearer token.
    Token(TokenView),
}

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    Read,
    Deploy,
    Admin,
}

impl Scope {
    fn name(self) -> &'static str {
        match self {
            Scope::Read => "read",
            Scope::Deploy => "deploy",
            Scope::Admin => "admin",
        }
    }
}

/// What a request needs: everything that is not known to need less is for `admin`.
pub(super) fn needed(method: &Method, path: &str) -> Scope {
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let reads = matches!(*method, Method::GET | Method::HEAD);
    match segments.as_slice() {
        ["v1", "tokens" | "backup", ..] => Scope::Admin,
        _ if reads => Scope::Read,
        ["v1", "projects" | "runs", _, "stop"] | ["v1", "projects", _, "start"] if *method == Method::POST => {
            Scope::Deploy
        }
        // It logs in and does nothing.
        ["v1", "hosts", "check"] if *method == Method::POST => Scope::Deploy,
        ["v1", "projects", _, "environments", _, "freeze" | "lease"]
            if matches!(*method, Method::PUT | Method::DELETE) =>
        {
            Scope::Deploy
        }
        ["v1", "projects", _, "environments", _, change]
            if *method == Method::POST && !matches!(*change, "freeze" | "lease" | "forget_key") =>
        {
            Scope::Deploy
        }
        _ => Scope::Admin,
    }
}

/// Routes that mind a token's projects themselves; a token for some projects gets nowhere else.
fn minds_projects(path: &str) -> bool {
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    matches!(
        segments.as_slice(),
        ["v1", "projects" | "runs", ..] | ["v1", "status" | "events" | "alarms" | "hosts" | "inventory"]
    )
}

impl Caller {
    /// The caller of a request, or why there is none.
    pub(super) fn identify(
        engine: &dyn Engine,
        config: &AuthConfig,
        peer: &Peer,
        headers: &HeaderMap,
    ) -> Result<Caller, Problem> {
        match peer {
            Peer::Socket { uid: Some(uid) } if !config.job_uids.iter().any(|range| range.contains(uid)) => {
                Ok(Caller::Uid(*uid))
            }
            Peer::Socket { .. } => Err(Problem::new(
                StatusCode::FORBIDDEN,
                "peer_not_allowed",
                "this user runs jobs and may not use the socket",
            )),
            Peer::Tcp { .. } => Caller::bearer(engine, config, headers),
        }
    }

    fn bearer(engine: &dyn Engine, config: &AuthConfig, headers: &HeaderMap) -> Result<Caller, Problem> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let Some(value) = values.next() else {
            let detail = "this needs a token: send Authorization: Bearer phd_..., made by `phased token create`";
            return Err(Problem::new(StatusCode::UNAUTHORIZED, "token_missing", detail)
                .with_header(header::WWW_AUTHENTICATE, "Bearer realm=\"phased\""));
        };
        let invalid = || {
            let detail = "the token is unknown, revoked or expired; make another with `phased token create`";
            Problem::new(StatusCode::UNAUTHORIZED, "token_invalid", detail)
                .with_header(header::WWW_AUTHENTICATE, "Bearer realm=\"phased\", error=\"invalid_token\"")
        };
        let text = value.to_str().map_err(|_| invalid())?;
        let (scheme, token) = text.split_once(' ').ok_or_else(invalid)?;
        let token = token.trim();
        if values.next().is_some() || !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() || token.len() > 512 {
            return Err(invalid());
        }
        if let Some(fixed) = config.fixed_token.as_deref().filter(|fixed| !fixed.is_empty())
            && bool::from(fixed.as_bytes().ct_eq(token.as_bytes()))
        {
            return Ok(Caller::Fixed);
        }
        engine.authenticate(token).map(Caller::Token).ok_or_else(invalid)
    }

    /// Whether this caller may do what the request needs.
    pub(super) fn may(&self, scope: Scope, path: &str) -> Result<(), Problem> {
        let Caller::Token(token) = self else { return Ok(()) };
        let has = |scope: Scope| token.scopes.iter().any(|s| s == scope.name());
        let enough = match scope {
            Scope::Read => has(Scope::Read) || has(Scope::Deploy) || has(Scope::Admin),
            Scope::Deploy => has(Scope::Deploy) || has(Scope::Admin),
            Scope::Admin => has(Scope::Admin),
        };
        if !enough {
            let detail = format!("this needs a token with the scope `{}`", scope.name());
            let challenge =
                format!("Bearer realm=\"phased\", error=\"insufficient_scope\", scope=\"{}\"", scope.name());
            return Err(Problem::new(StatusCode::FORBIDDEN, "insufficient_scope", detail)
                .with_header(header::WWW_AUTHENTICATE, &challenge));
        }
        if !token.projects.is_empty() && !minds_projects(path) {
            return Err(project_not_allowed("this is not about one project, and the token is for some projects only"));
        }
        Ok(())
    }

    /// Whether a project's runs, logs and events are for this caller.
    pub(super) fn sees(&self, project: &str) -> bool {
        match self {
            Caller::Token(token) => token.projects.is_empty() || token.projects.iter().any(|p| p == project),
            Caller::Uid(_) | Caller::Fixed => true,
        }
    }

    /// The same as an answer.
    pub(super) fn project(&self, project: &str) -> Result<(), Problem> {
        if self.sees(project) {
            return Ok(());
        }
        Err(project_not_allowed(&format!("the token is not for project {project:?}")))
    }

    /// Who, as runs and the audit name them.
    pub(super) fn actor(&self) -> String {
        match self {
            Caller::Uid(uid) => format!("uid {uid}"),
            Caller::Fixed => "demo token".to_owned(),
            Caller::Token(token) => format!("token {} ({})", token.name, token.id),
        }
    }

    /// Whose idempotency keys these are; names can be used twice, ids cannot.
    pub(super) fn key_scope(&self) -> String {
        match self {
            Caller::Uid(uid) => format!("uid:{uid}"),
            Caller::Fixed => "fixed".to_owned(),
            Caller::Token(token) => format!("token:{}", token.id),
        }
    }
}

fn project_not_allowed(detail: &str) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "project_not_allowed", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_to_need_less_is_for_admin() {
        for (method, path, scope) in [
            (Method::GET, "/v1/status", Scope::Read),
            (Method::HEAD, "/v1/runs", Scope::Read),
            (Method::GET, "/v1/tokens", Scope::Admin),
            (Method::GET, "/v1/tokens/x", Scope::Admin),
            (Method::GET, "/v1/backup", Scope::Admin),
            (Method::GET, "/v1/export", Scope::Read),
            (Method::POST, "/v1/projects/shop/start", Scope::Deploy),
            (Method::POST, "/v1/projects/shop/stop", Scope::Deploy),
            (Method::POST, "/v1/runs/x/stop", Scope::Deploy),
            (Method::PUT, "/v1/projects/shop/environments/production/freeze", Scope::Deploy),
            (Method::DELETE, "/v1/projects/shop/environments/production/lease", Scope::Deploy),
            (Method::GET, "/v1/projects/shop/environments/production/lease", Scope::Read),
            (Method::POST, "/v1/projects/shop/environments/production/lease", Scope::Admin),
            (Method::DELETE, "/v1/projects/shop/environments/production", Scope::Admin),
            (Method::DELETE, "/v1/projects/shop/start", Scope::Admin),
            (Method::POST, "/v1/projects/shop/st%61rt", Scope::Admin),
            (Method::POST, "/v1/projects/shop/start/", Scope::Admin),
            (Method::POST, "/v1/hosts/check", Scope::Deploy),
            (Method::POST, "/v1/reload", Scope::Admin),
            (Method::GET, "/v1/maintenance", Scope::Read),
            (Method::GET, "/v1/signals", Scope::Read),
            (Method::PUT, "/v1/signals", Scope::Admin),
            (Method::POST, "/v1/maintenance", Scope::Admin),
            (Method::POST, "/anything", Scope::Admin),
        ] {
            assert_eq!(needed(&method, path), scope, "{method} {path}");
        }
    }
}
