//! What discovery plugins need beside HTTP, files and commands: DNS, EC2 and signed tokens.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use async_trait::async_trait;
use serde_json::Value;

use super::secrets::Secret;
use crate::model::cause::Cause;

/// A record type that is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Records {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Services: a name and a port each.
    Srv,
}

/// What to look up.
#[derive(Debug, Clone)]
pub struct DnsQuery {
    /// The name.
    pub name: String,
    /// Which records.
    pub records: Records,
    /// Whom to ask; the machine's resolvers when absent.
    pub server: Option<SocketAddr>,
    /// Of the whole lookup.
    pub timeout: Duration,
}

/// Access keys of AWS, where they are not found as its tools find them.
#[derive(Debug, Clone)]
pub struct AwsKeys {
    /// `AKIA...`.
    pub id: String,
    /// The secret access key.
    pub secret: Secret,
    /// Of temporary keys.
    pub session: Option<Secret>,
}

/// Which instances of EC2.
#[derive(Debug, Clone, Default)]
pub struct Ec2Query {
    /// All of them are asked, side by side.
    pub regions: Vec<String>,
    /// As `DescribeInstances` takes them.
    pub filters: Vec<(String, Vec<String>)>,
    /// Keys; else the environment, the shared files, web identity, the container or the instance profile, in Amazon's order.
    pub keys: Option<AwsKeys>,
    /// A profile of the shared files.
    pub profile: Option<String>,
    /// A role to assume with these.
    pub role: Option<String>,
    /// What the role's owner asks for.
    pub external_id: Option<String>,
    /// Reservations in one answer, 5 to 1000; 1000 when absent.
    pub page_size: Option<i32>,
    /// Another endpoint than Amazon's.
    pub endpoint: Option<String>,
    /// Of the whole asking.
    pub timeout: Duration,
}

/// A JSON Web Token to be signed with RS256.
#[derive(Debug, Clone)]
pub struct JwtAsk {
    /// A private RSA key in PEM, or JSON with one as its `private_key`, as Google's key files are.
    pub key: Secret,
    /// The claims.
    pub claims: serde_json::Map<String, Value>,
    /// Claims that are taken from the same JSON: claim to field.
    pub from_key: Vec<(String, String)>,
    /// Further header fields; `kid` is taken from the JSON's `private_key_id` when absent.
    pub header: serde_json::Map<String, Value>,
    /// How long it is good.
    pub lifetime: Duration,
}

/// The lookups.
#[async_trait]
pub trait Discovery: Send + Sync {
    /// `{"address"}` for each A or AAAA record, `{"target", "port", "priority", "weight"}` for each SRV record. A name without such
    /// records gives none. Cancel safe.
    ///
    /// # Errors
    /// `dns_name`, `dns_unknown` (there is no such name), `dns_failed`, `timeout`.
    async fn dns(&self, query: DnsQuery) -> Result<Vec<Value>, Cause>;

    /// Instances, in whatever state: `{"id", "region", "state", ...}`. Cancel safe.
    ///
    /// # Errors
    /// `ec2_credentials`, `ec2_denied`, `ec2_region`, `ec2_throttled`, `ec2_failed`, `ec2_missing`, `timeout`: each names the call, the
    /// region, whose credentials they were and what to do.
    async fn ec2_instances(&self, query: Ec2Query) -> Result<Vec<Value>, Cause>;

    /// The host keys that instances (id to region) have printed on their consoles, as a host's `host_keys` takes them; those that have printed
    /// none, or not yet, are left out. Cancel safe.
    ///
    /// # Errors
    /// As [`Discovery::ec2_instances`].
    async fn ec2_host_keys(
        &self,
        query: Ec2Query,
        of: BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, Vec<String>>, Cause>;

    /// The signed token.
    ///
    /// # Errors
    /// `jwt_key`: what is wrong with the key.
    fn jwt(&self, ask: JwtAsk) -> Result<String, Cause>;
}
