//! `phased.dns`, `phased.ec2_instances`, `phased.ec2_host_keys` and `phased.jwt`.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::{
    engine::{steps::values::Resolved, world::World},
    model::cause::Cause,
    ports::{
        discovery::{AwsKeys, DnsQuery, Ec2Query, JwtAsk, Records},
        secrets::Secret,
    },
};

pub(super) async fn dns(world: &World, args: &Resolved) -> Result<Value, Cause> {
    let name = args.text("name").unwrap_or_default();
    let server = args.text("server").map(|server| {
        server.parse().map_err(|_| {
            let message = format!(
                "the DNS server {server:?} is no address with a port: write \"10.0.0.2:53\" or \"[fd00::2]:53\""
            );
            Cause::new("dns_name", message)
        })
    });
    let records = match args.text("type").as_deref() {
        Some("AAAA") => Records::Aaaa,
        Some("SRV") => Records::Srv,
        _ => Records::A,
    };
    let timeout = args.span("timeout").unwrap_or(Duration::from_secs(10));
    let query = DnsQuery { name, records, server: server.transpose()?, timeout };
    Ok(Value::Array(world.discovery.dns(query).await?))
}

pub(super) async fn ec2_instances(world: &World, args: &Resolved) -> Result<Value, Cause> {
    Ok(Value::Array(world.discovery.ec2_instances(ec2(args)?).await?))
}

pub(super) async fn ec2_host_keys(world: &World, args: &Resolved) -> Result<Value, Cause> {
    let of = args.map("instances").into_iter().map(|(id, region)| (id, String::from_utf8_lossy(&region).into_owned()));
    let keys = world.discovery.ec2_host_keys(ec2(args)?, of.collect()).await?;
    serde_json::to_value(keys).map_err(|error| Cause::new("ec2_failed", error.to_string()))
}

/// As whom, where and what to ask.
fn ec2(args: &Resolved) -> Result<Ec2Query, Cause> {
    let secret = |key: &str| args.bytes(key).map(|bytes| Secret::new(&bytes));
    let keys = match (args.text("access_key_id"), secret("secret_access_key")) {
        (Some(id), Some(key)) => Some(AwsKeys { id, secret: key, session: secret("session_token") }),
        (None, None) => None,
        _ => {
            return Err(Cause::new(
                "ec2_credentials",
                "access_key_id and secret_access_key go together: give both, or neither",
            ));
        }
    };
    let filters = match args.raw("filters") {
        Some(Value::Object(filters)) => filters
            .iter()
            .map(|(name, values)| {
                let values = match values {
                    Value::Array(values) => values.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
                    one => one.as_str().map(str::to_owned).into_iter().collect(),
                };
                (name.clone(), values)
            })
            .collect(),
        _ => Vec::new(),
    };
    Ok(Ec2Query {
        regions: args.texts("regions"),
        filters,
        keys,
        profile: args.text("profile"),
        role: args.text("role"),
        external_id: args.text("external_id"),
        page_size: args.numbers("page_size").first().and_then(|n| i32::try_from(*n).ok()),
        endpoint: args.text("endpoint"),
        timeout: args.span("timeout").unwrap_or(Duration::from_secs(120)),
    })
}

pub(super) fn jwt(world: &World, args: &Resolved) -> Result<Value, Cause> {
    let object = |key: &str| match args.raw(key) {
        Some(Value::Object(fields)) => fields.clone(),
        _ => Map::new(),
    };
    let from_key =
        object("from_key").into_iter().filter_map(|(claim, field)| Some((claim, field.as_str()?.to_owned())));
    let ask = JwtAsk {
        key: Secret::new(&args.bytes("key").unwrap_or_default()),
        claims: object("claims"),
        from_key: from_key.collect(),
        header: object("header"),
        lifetime: args.span("lifetime").unwrap_or(Duration::from_secs(3600)),
    };
    Ok(Value::String(world.discovery.jwt(ask)?))
}
