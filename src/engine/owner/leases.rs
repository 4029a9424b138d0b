//! The leases that a run goes by, and that one of them was taken away.

use std::sync::Arc;

use crate::{
    model::{decide, doors, ids::Epoch, run::Run},
    ports::leases::Leases,
};

/// A lease that a deployment of a run believes to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Believed {
    deployment: u32,
    lease: String,
    holder: String,
    /// Of the environment's own lease; a group's has another.
    epoch: Option<Epoch>,
}

/// Every lease that `run` goes by.
pub(super) fn believed(run: &Run) -> Vec<Believed> {
    // What takes another one back goes by that one's.
    let open = run
        .deployments
        .iter()
        .filter(|d| d.end.is_none() && d.rollback_of.is_none() && !d.lease_lost && run.end.is_none());
    let mut believed = Vec::new();
    for (d, epoch) in open.filter_map(|d| Some((d, d.lease?))) {
        let names = doors::leases_of(run, d.n);
        let last = names.len().saturating_sub(1);
        believed.extend(names.into_iter().enumerate().map(|(i, lease)| Believed {
            deployment: d.n,
            lease,
            holder: decide::holder(run, d.n),
            epoch: (i == last).then_some(epoch),
        }));
    }
    believed
}

/// Returns the deployment whose lease is another's or nobody's, as soon as there is one. Also after a restart, so nobody need be told when it
/// is taken away. Cancel safe.
pub(super) async fn lost(leases: Arc<dyn Leases>, believed: Vec<Believed>) -> u32 {
    if believed.is_empty() {
        return std::future::pending().await;
    }
    let mut changed = leases.changed();
    loop {
        changed.mark_unchanged();
        let ours = |one: &Believed| {
            leases
                .holder(&one.lease)
                .is_some_and(|held| held.holder == one.holder && one.epoch.is_none_or(|epoch| epoch == held.epoch))
        };
        if let Some(gone) = believed.iter().find(|one| !ours(one)) {
            return gone.deployment;
        }
        if changed.changed().await.is_err() {
            // Control is gone, and with it whoever could take anything away.
            return std::future::pending().await;
        }
    }
}
