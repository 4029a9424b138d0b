//! DNS lookups that ask every time: a cache would hide for its time that a host is gone.

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        ProtoError,
        op::ResponseCode,
        rr::{Name, RData, RecordType},
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

/// The name as it is written. The search list of the machine is not for it: with that, `web` or a name that its own zone does not answer for
/// would be looked up below another zone, and found there.
fn whole(name: &str) -> Result<Name, ProtoError> {
    let mut name = Name::from_utf8(name)?;
    name.set_fqdn(true);
    Ok(name)
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
    let name = match whole(&query.name) {
        Ok(name) => name,
        Err(why) => return Err(Cause::new("dns_name", format!("{:?} is no name of DNS: {why}", query.name))),
    };
    let found = match resolver.lookup(name, records).await {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_search_list_is_not_for_names_of_hosts() {
        // A server that has nothing: every name it is asked for is kept, and the answer is SERVFAIL.
        let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = server.local_addr().unwrap();
        let asked = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let told = std::sync::Arc::clone(&asked);
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((n, from)) = server.recv_from(&mut query) {
                let labels = query[12..n].split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
                told.lock().unwrap().push(labels);
                query[2..4].copy_from_slice(&[0x81, 0x82]);
                let _gone = server.send_to(&query[..n], from);
            }
        });
        let connections = [ConnectionConfig::udp()].map(|mut connection| {
            connection.port = at.port();
            connection
        });
        let servers = vec![NameServerConfig::new(at.ip(), true, connections.into())];
        let search = vec![Name::from_utf8("corp.example.").unwrap()];
        let config = ResolverConfig::from_parts(None, search, servers);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        builder.options_mut().use_hosts_file = ResolveHosts::Never;
        let resolver = builder.build().unwrap();
        assert!(resolver.lookup(whole("web.test").unwrap(), RecordType::A).await.is_err());
        let names = asked.lock().unwrap().clone();
        assert!(!names.is_empty() && names.iter().all(|name| name == b"\x03web\x04test"), "{names:?}");
    }
}
