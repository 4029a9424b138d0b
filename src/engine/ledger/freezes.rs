//! Whether an environment is frozen: by the windows of its file, or by what people said by hand. One key of control for each environment,
//! `freeze/<project>/<environment>`, holds their last word; what is over by the clock counts no more.

use crate::{
    model::{
        freeze::{self, ByHand, Said, Whose, Window},
        ids::{EnvironmentName, ProjectName},
        run::Waiting,
    },
    ports::control::{Control, Revision},
    time::zone,
};

pub(in crate::engine) fn key(project: &ProjectName, environment: &EnvironmentName) -> String {
    format!("freeze/{project}/{environment}")
}

pub(in crate::engine) fn by_hand(
    control: &dyn Control,
    project: &ProjectName,
    environment: &EnvironmentName,
) -> (Revision, ByHand) {
    let key = key(project, environment);
    let Some(entry) = control.get(&key) else { return (Revision::default(), ByHand::default()) };
    let said = serde_json::from_value(entry.value).unwrap_or_else(|error| {
        // Of a later version, perhaps: somebody said something, and that is what can be kept to.
        tracing::error!(key, %error, "what is kept of a freeze is not understood; the environment stays frozen until `phased unfreeze`");
        let said = Said { by: "somebody".to_owned(), reason: None, since_ms: 0, until_ms: None };
        ByHand { frozen: Some(said), lifted: None }
    });
    (entry.revision, said)
}

pub(in crate::engine) fn zones(name: &str) -> jiff::tz::TimeZone {
    // The loader has looked it up; a machine that has lost its zones since then still has the built-in ones.
    zone(name).unwrap_or_else(|| {
        tracing::error!(zone = name, "this time zone is not known any more; its freezes are taken as UTC");
        jiff::tz::TimeZone::UTC
    })
}

/// What keeps new deployments away from an environment with these windows.
pub(in crate::engine) fn waiting(
    control: &dyn Control,
    windows: &[Window],
    project: &ProjectName,
    environment: &EnvironmentName,
    now_ms: i64,
) -> Option<Waiting> {
    let (_, by_hand) = by_hand(control, project, environment);
    let frozen = freeze::frozen(windows, &by_hand, now_ms, &zones)?;
    let (holder, reason) = match frozen.whose {
        Whose::File(window) => (window.to_string(), window.reason().map(str::to_owned)),
        Whose::Hand(said) => (said.by.clone(), said.reason.clone()),
    };
    Some(Waiting { code: "freeze".to_owned(), holder, until_ms: frozen.until_ms, reason })
}
