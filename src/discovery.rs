//! What discovery plugins cannot do in Lua: DNS, the API of EC2, and signatures. Everything else of discovery is in `plugins/discovery`.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use serde_json::Value;

use crate::{
    model::cause::Cause,
    ports::discovery::{Discovery, DnsQuery, Ec2Query, JwtAsk},
    time::{Clock, Span, within},
};

mod dns;
#[cfg(feature = "ec2")]
mod ec2;
mod jwt;

/// The lookups of this machine.
pub struct Lookups {
    clock: Arc<dyn Clock>,
}

impl Lookups {
    /// Lookups whose limits run on `clock`.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Lookups { clock }
    }
}

#[async_trait]
impl Discovery for Lookups {
    async fn dns(&self, query: DnsQuery) -> Result<Vec<Value>, Cause> {
        let (limit, name) = (query.timeout, query.name.clone());
        let done = within(&*self.clock, limit, dns::lookup(query)).await;
        done.unwrap_or_else(|| {
            Err(Cause::new("timeout", format!("DNS did not answer for {name} within {}", Span(limit))))
        })
    }

    #[cfg(feature = "ec2")]
    async fn ec2_instances(&self, query: Ec2Query) -> Result<Vec<Value>, Cause> {
        let (limit, regions) = (query.timeout, query.regions.join(", "));
        let done = within(&*self.clock, limit, ec2::instances(query)).await;
        done.unwrap_or_else(|| {
            let message = format!(
                "EC2 did not answer completely for {regions} within {}: it is slow, or cannot be reached from here",
                Span(limit)
            );
            Err(Cause::new("timeout", message))
        })
    }

    #[cfg(not(feature = "ec2"))]
    async fn ec2_instances(&self, _: Ec2Query) -> Result<Vec<Value>, Cause> {
        let message = "this phased was built without EC2: build it with the feature ec2, or use discovery.ansible or discovery.prometheus";
        Err(Cause::new("ec2_missing", message))
    }

    #[cfg(feature = "ec2")]
    async fn ec2_host_keys(
        &self,
        query: Ec2Query,
        of: BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, Vec<String>>, Cause> {
        let (limit, many) = (query.timeout, of.len());
        let done = within(&*self.clock, limit, ec2::host_keys(query, of)).await;
        done.unwrap_or_else(|| {
            let message = format!("EC2 did not give the console output of {many} instances within {}", Span(limit));
            Err(Cause::new("timeout", message))
        })
    }

    #[cfg(not(feature = "ec2"))]
    async fn ec2_host_keys(
        &self,
        query: Ec2Query,
        _: BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, Vec<String>>, Cause> {
        self.ec2_instances(query).await.map(|_| BTreeMap::new())
    }

    fn jwt(&self, ask: JwtAsk) -> Result<String, Cause> {
        jwt::signed(&ask, self.clock.now().wall_ms)
    }
}
