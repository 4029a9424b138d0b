//! DNS lookups that ask every time: a cache would hide for its time that a host is gone.

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::ResponseCode,
        rr::{RData, RecordType},
    },
};
use serde_json::{Value, json};

use crate::{
    model::cause::Cause,
    ports::discovery::{DnsQuery, Records},
};

fn record_type(records: Records) -> RecordType {
    match records {
        Records::A => RecordType::A,
        Records::Aaaa => RecordType::AAAA,
        Records::Srv => RecordType::SRV,
    }
}

fn resolver(query: &DnsQuery) -> Result<TokioResolver, NetError> {
    let mut builder = match query.server {
        None => TokioResolver::builder_tokio()?,
        Some(server) => {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = server.port();
                connection
            });
            let server = NameServerConfig::new(server.ip(), true, connections.into());
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    let options = builder.options_mut();
    options.cache_size = 0;
    options.use_hosts_file = if query.server.is_some() { ResolveHosts::Never } else { ResolveHosts::Auto };
    options.timeout = options.timeout.min(query.timeout);
    builder.build()
}

pub(super) async fn lookup(query: DnsQuery) -> Result<Vec<Value>, Cause> {
    let records = record_type(query.records);
    let whom = query.server.map_or("the machine's resolvers".to_owned(), |server| server.to_string());
    let failed = |error: NetError| match &error {
        NetError::Dns(DnsError::NoRecordsFound(none)) if none.response_code == ResponseCode::NXDomain => {
            let message = format!(
                "{whom} say that there is no name {}: check its spelling, or that it is in that zone",
                query.name
            );
            Err(Cause::new("dns_unknown", message))
        }
        NetError::Dns(DnsError::NoRecordsFound(none)) if none.response_code == ResponseCode::NoError => Ok(Vec::new()),
        error => {
            let message = format!("{records} of {} cannot be had from {whom}: {error}", query.name);
            Err(Cause::new("dns_failed", message))
        }
    };
    let resolver = match resolver(&query) {
        Ok(resolver) => resolver,
        Err(error) => return failed(error),
    };
    let found = match resolver.lookup(query.name.as_str(), records).await {
        Ok(found) => found,
        Err(error) => return failed(error),
    };
    // A CNAME on the way is an answer too; it is no host.
    Ok(found
        .answers()
        .iter()
        .filter(|record| record.record_type() == records)
        .filter_map(|record| value(&record.data))
        .collect())
}

fn value(data: &RData) -> Option<Value> {
    match data {
        RData::A(address) => Some(json!({ "address": address.0.to_string() })),
        RData::AAAA(address) => Some(json!({ "address": address.0.to_string() })),
        // A service that is decidedly not there has the root as its target (RFC 2782).
        RData::SRV(srv) if srv.target.is_root() => None,
        RData::SRV(srv) => Some(json!({
            "target": srv.target.to_ascii().trim_end_matches('.'), "port": srv.port, "priority": srv.priority, "weight": srv.weight,
        })),
        _ => None,
    }
}
