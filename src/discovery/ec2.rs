//! Instances of Amazon EC2: `DescribeInstances` of every region, page by page, with Amazon's own retries and credential chain.
//!
//! Errors say what a person needs to mend them: which call, in which region, as whom, and what to do.

use std::{collections::BTreeMap, time::Duration};

use aws_config::{
    BehaviorVersion, Region, SdkConfig, retry::RetryConfig, sts::AssumeRoleProvider, timeout::TimeoutConfig,
};
use aws_sdk_ec2::{
    Client,
    config::{Credentials, SharedCredentialsProvider},
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
    types::{Filter, Instance, InstanceStateName},
};
use base64::Engine as _;
use futures_util::{StreamExt as _, TryStreamExt as _, future::try_join_all};
use serde_json::{Map, Value, json};

use crate::{model::cause::Cause, ports::discovery::Ec2Query};

mod console;

/// The most that EC2 gives at once.
const PAGE: i32 = 1000;
/// A throttled call is tried again, each time after twice as long, at most this often.
const ATTEMPTS: u32 = 6;
/// The first of these pauses, before it is randomised.
const PAUSE: Duration = Duration::from_millis(300);
const CONNECT: Duration = Duration::from_secs(5);
const ATTEMPT: Duration = Duration::from_secs(30);
/// Consoles read at the same moment: EC2 allows few such calls in a second.
const CONSOLES: usize = 4;
/// Much more than a console keeps (64 KiB), in base64.
const LONGEST_CONSOLE: usize = 1 << 20;

/// All instances that the filters let through, of all regions.
pub(super) async fn instances(query: Ec2Query) -> Result<Vec<Value>, Cause> {
    let shared = config(&query).await?;
    let regions = query.regions.iter().map(|region| of_region(&query, &shared, region));
    Ok(try_join_all(regions).await?.into_iter().flatten().collect())
}

/// What instances (id to region) have printed of their host keys; those that have printed none yet are left out.
pub(super) async fn host_keys(
    query: Ec2Query,
    of: BTreeMap<String, String>,
) -> Result<BTreeMap<String, Vec<String>>, Cause> {
    let shared = config(&query).await?;
    let (query, shared) = (&query, &shared);
    let asked = of.into_iter().map(|(id, region)| async move {
        let shared = shared.clone().into_builder().region(Region::new(region.clone())).build();
        let asked = Client::new(&shared).get_console_output().instance_id(&id).send().await;
        let output = match asked {
            Ok(answer) => answer.output.unwrap_or_default(),
            // It was terminated since it was listed.
            Err(error) if error.code().is_some_and(|code| code.starts_with("InvalidInstanceID")) => String::new(),
            Err(error) => return Err(explained(query, &shared, "GetConsoleOutput", &region, &error).await),
        };
        let text: Vec<u8> = output.bytes().take(LONGEST_CONSOLE).filter(|b| !b.is_ascii_whitespace()).collect();
        let text = base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
        Ok((id, console::host_keys(&String::from_utf8_lossy(&text))))
    });
    let found: Vec<(String, Vec<String>)> =
        futures_util::stream::iter(asked).buffer_unordered(CONSOLES).try_collect().await?;
    Ok(found.into_iter().filter(|(_, keys)| !keys.is_empty()).collect())
}

async fn config(query: &Ec2Query) -> Result<SdkConfig, Cause> {
    let first = query.regions.first().cloned().unwrap_or_default();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(first))
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS).with_initial_backoff(PAUSE))
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).operation_attempt_timeout(ATTEMPT).build());
    if let Some(endpoint) = &query.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    if let Some(profile) = &query.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(keys) = &query.keys {
        let text = |secret: &crate::ports::secrets::Secret| {
            String::from_utf8(secret.expose().to_vec())
                .map_err(|_| Cause::new("ec2_credentials", "a key of AWS is no text: look at the file of the secret"))
        };
        let session = keys.session.as_ref().map(text).transpose()?;
        loader = loader.credentials_provider(Credentials::new(&keys.id, text(&keys.secret)?, session, None, "phased"));
    }
    let shared = loader.load().await;
    let Some(role) = &query.role else { return Ok(shared) };
    let mut assumed = AssumeRoleProvider::builder(role).configure(&shared).session_name("phased");
    if let Some(id) = &query.external_id {
        assumed = assumed.external_id(id);
    }
    let provider = assumed.build().await;
    Ok(shared.into_builder().credentials_provider(SharedCredentialsProvider::new(provider)).build())
}

async fn of_region(query: &Ec2Query, shared: &SdkConfig, region: &str) -> Result<Vec<Value>, Cause> {
    let shared = shared.clone().into_builder().region(Region::new(region.to_owned())).build();
    let client = Client::new(&shared);
    let filters = query
        .filters
        .iter()
        .map(|(name, values)| Filter::builder().name(name).set_values(Some(values.clone())).build())
        .collect::<Vec<_>>();
    let call = client.describe_instances().set_filters(Some(filters).filter(|filters| !filters.is_empty()));
    let mut pages = call.into_paginator().page_size(query.page_size.unwrap_or(PAGE)).send();
    let mut found = Vec::new();
    while let Some(page) = pages.next().await {
        let page = match page {
            Ok(page) => page,
            Err(error) => return Err(explained(query, &shared, "DescribeInstances", region, &error).await),
        };
        for reservation in page.reservations() {
            let account = reservation.owner_id();
            found.extend(reservation.instances().iter().filter_map(|instance| value(instance, region, account)));
        }
    }
    Ok(found)
}

/// What Lua gets of an instance; one without an id is none.
fn value(instance: &Instance, region: &str, account: Option<&str>) -> Option<Value> {
    let state = instance.state().and_then(|state| state.name()).map_or("unknown", InstanceStateName::as_str);
    let tags: Map<String, Value> =
        instance.tags().iter().filter_map(|tag| Some((tag.key()?.to_owned(), json!(tag.value()?)))).collect();
    let reason = instance.state_reason().and_then(|reason| reason.message()).or(instance.state_transition_reason());
    let ipv6 = instance.ipv6_address().or_else(|| {
        instance.network_interfaces().iter().flat_map(|card| card.ipv6_addresses()).find_map(|a| a.ipv6_address())
    });
    let mut value = json!({
        "id": instance.instance_id()?,
        "region": region,
        "account": account,
        "state": state,
        "state_reason": reason.filter(|reason| !reason.is_empty()),
        "private_ip": instance.private_ip_address(),
        "public_ip": instance.public_ip_address(),
        "ipv6": ipv6,
        "private_dns": instance.private_dns_name(),
        "public_dns": instance.public_dns_name(),
        "zone": instance.placement().and_then(|placement| placement.availability_zone()),
        "type": instance.instance_type().map(|kind| kind.as_str()),
        "image": instance.image_id(),
        "vpc": instance.vpc_id(),
        "subnet": instance.subnet_id(),
        "key": instance.key_name(),
        "autoscaling_group": tags.get("aws:autoscaling:groupName"),
        "launched_at": instance.launch_time().map(|at| at.to_string()),
        "tags": tags,
    });
    if let Value::Object(fields) = &mut value {
        // What is not known is absent in Lua; so is what EC2 gives as an empty text, as names of instances without a public address.
        fields.retain(|_, field| !field.is_null() && field.as_str() != Some(""));
    }
    Some(value)
}

/// The error of `action` for people.
async fn explained<E: ProvideErrorMetadata + std::error::Error + 'static>(
    query: &Ec2Query,
    shared: &SdkConfig,
    action: &str,
    region: &str,
    error: &SdkError<E>,
) -> Cause {
    let who = Who::of(query);
    let call = format!("EC2 {action} in {region}");
    let Some(service) = error.as_service_error() else { return unserved(&call, region, &who, error) };
    let (code, said) = (service.code().unwrap_or("no code"), service.message().unwrap_or("no message"));
    let (our, remedy) = match code {
        "RequestExpired" | "ExpiredToken" | "ExpiredTokenException" => (
            "ec2_credentials",
            "the temporary credentials have expired (or this machine's clock is wrong): give phased an instance profile or a role to assume, which renew themselves".to_owned(),
        ),
        "AuthFailure" | "InvalidClientTokenId" | "SignatureDoesNotMatch" | "UnrecognizedClientException" | "IncompleteSignature"
        | "MissingAuthenticationToken" => (
            "ec2_credentials",
            format!("check the access key and its secret, that the key is active, and that the region {region} is enabled for the account"),
        ),
        "UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException" => {
            ("ec2_denied", format!("allow it ec2:{action} (in IAM, and in the service control policies of the organisation)"))
        }
        "OptInRequired" | "Blocked" | "PendingVerification" => {
            ("ec2_region", format!("enable the region {region} or EC2 for the account, or ask another region"))
        }
        "RequestLimitExceeded" | "Throttling" | "ThrottlingException" | "RequestThrottled" | "RequestThrottledException" => {
            ("ec2_throttled", format!("it was asked {ATTEMPTS} times: ask less often (interval), or with narrower filters"))
        }
        _ if code.starts_with("InvalidParameter") || code.starts_with("Filter") => {
            ("ec2_failed", "look at the filters and tags of the discovery".to_owned())
        }
        _ => ("ec2_failed", "look the code up in Amazon's list of EC2 error codes".to_owned()),
    };
    let account = if our == "ec2_denied" { caller(shared).await } else { None };
    let account =
        account.or_else(|| who.account.clone()).map_or(String::new(), |account| format!(" of account {account}"));
    let message = format!("{call} as {}{account} was refused: {said} ({code}); {remedy}", who.text);
    Cause::new(our, message).with("aws_code", code).with("region", region)
}

/// Whether it was a role that could not be assumed. Only the word itself: requests and hosts have it in them too.
fn is_of_sts(lower: &str) -> bool {
    lower.contains("assume") || lower.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == "sts")
}

/// Nobody answered, or nothing could be asked.
fn unserved<E: std::error::Error + 'static>(call: &str, region: &str, who: &Who, error: &SdkError<E>) -> Cause {
    let words = DisplayErrorContext(error).to_string();
    // Debug output follows the chain of errors in words.
    let words = words.split(" (").next().unwrap_or(&words).to_owned();
    let chain = chain(error);
    let lower = format!("{words} {chain}").to_lowercase();
    let (code, remedy) = if is_of_sts(&lower) {
        (
            "ec2_credentials",
            "the role cannot be assumed: look at its trust policy, the external id, and that the credentials may call sts:AssumeRole",
        )
    } else if lower.contains("credential") || lower.contains("profile") {
        (
            "ec2_credentials",
            "give the daemon an instance profile, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or access_key_id and secret_access_key as options",
        )
    } else {
        (
            "ec2_unreachable",
            "look at the spelling of the region, at DNS, and at the way to the endpoint (proxy, firewall, AWS_ENDPOINT_URL)",
        )
    };
    let message = format!("{call} as {} could not be asked: {chain}; {remedy}", who.text);
    Cause::new(code, message).with("region", region)
}

/// An error and what it comes from, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !words.iter().any(|word| word.contains(&text)) {
            words.push(text);
        }
        next = error.source();
    }
    words.join(": ")
}

/// Whose credentials were used, as far as the options tell.
struct Who {
    text: String,
    account: Option<String>,
}

impl Who {
    fn of(query: &Ec2Query) -> Who {
        let text = match (&query.role, &query.keys, &query.profile) {
            (Some(role), ..) => format!("the role {role}"),
            (None, Some(keys), _) => format!("the access key {}", keys.id),
            (None, None, Some(profile)) => format!("the profile {profile}"),
            (None, None, None) => match std::env::var("AWS_ACCESS_KEY_ID") {
                Ok(id) => format!("the access key {id} of the daemon's environment"),
                Err(_) => "the credentials this machine finds".to_owned(),
            },
        };
        // arn:aws:iam::123456789012:role/name
        let account = query.role.as_ref().and_then(|role| role.split(':').nth(4)).filter(|id| !id.is_empty());
        Who { text, account: account.map(str::to_owned) }
    }
}

/// Account and principal of credentials that are good for that much.
async fn caller(shared: &SdkConfig) -> Option<String> {
    let identity = aws_sdk_sts::Client::new(shared).get_caller_identity().send().await.ok()?;
    Some(format!("{} ({})", identity.account()?, identity.arn().unwrap_or("?")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_word_sts_is_sts() {
        assert!(is_of_sts("dispatch failure: sts.eu-west-1.amazonaws.com"));
        assert!(is_of_sts("assumerole was refused"));
        assert!(!is_of_sts("too many requests; no such hosts"));
    }
}
