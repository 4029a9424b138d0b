//! Leases: the exclusive right to deploy to an environment.

use serde::{Deserialize, Serialize};

use crate::model::ids::Epoch;

use super::{control::CommitError, journal::Ticket};

/// Who holds a lease and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// `<run>.<n>` of a deployment, or a person's name.
    pub holder: String,
    /// A sentence.
    pub reason: String,
    /// Wall time of the grant, ms.
    pub since_ms: i64,
    /// Wall time after which it is void, ms; deployments hold theirs until they end.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until_ms: Option<i64>,
    /// The fencing number of the grant.
    pub epoch: Epoch,
}

/// The answer to an acquisition.
#[derive(Debug)]
pub enum Acquired {
    /// Ours, once the ticket is synced. Asking again as the same holder gives the same grant.
    Granted(Epoch, Ticket),
    /// Somebody else's.
    Held(Holder),
}

/// Exclusive rights, by name (`<project>/<environment>` or `group:<name>`).
pub trait Leases: Send + Sync {
    /// Takes the lease unless another holds it.
    ///
    /// # Errors
    /// The control log's.
    fn acquire(&self, lease: &str, holder: &str, reason: &str) -> Result<Acquired, CommitError>;

    /// Takes the lease for a person until `until_ms`, wall time; who has it already gets the new time and reason, and keeps the epoch. With
    /// `force` also from somebody else.
    ///
    /// # Errors
    /// The control log's.
    fn hold(
        &self,
        lease: &str,
        holder: &str,
        reason: &str,
        until_ms: i64,
        force: bool,
    ) -> Result<Acquired, CommitError>;

    /// Gives it back; a lease that is not ours any more is left alone.
    ///
    /// # Errors
    /// The control log's.
    fn release(&self, lease: &str, holder: &str) -> Result<(), CommitError>;

    /// Who holds it now.
    fn holder(&self, lease: &str) -> Option<Holder>;

    /// Changes with every grant and return: waiters ask again.
    fn changed(&self) -> crate::lifecycle::watch::Receiver<u64>;
}
