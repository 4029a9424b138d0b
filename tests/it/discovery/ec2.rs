//! EC2: moto, and answers as Amazon documents them.

use std::collections::BTreeSet;

use serde_json::json;

use super::{error, ids, out};
use crate::fixture::{Asked, Daemon, Moto, Project, Sshd, Web, World, eventually, fleet, refused_port};

const REGION: &str = "eu-west-1";

fn start(world: &World, hosts: &str, env: &[(&str, String)]) -> Daemon {
    world.project(&Project::new("shop").hosts(&[hosts]));
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    world.start_with(&env)
}

fn ec2(more: &str) -> String {
    format!("require \"discovery.ec2\" {{ interval = \"1h\", timeout = \"4m\", {more} }}")
}

#[test]
fn a_fleet_of_2500_instances_is_found_page_by_page() {
    let moto = Moto::start(&[]);
    let mut launched = BTreeSet::new();
    for _ in 0..50 {
        launched.extend(moto.launch(REGION, 50, "t3.large", &[]));
    }
    moto.launch(REGION, 3, "t3.micro", &[]);
    let (front, world) = (Web::in_front_of(&moto), World::new());
    let source = ec2("region = \"eu-west-1\", filters = { [\"instance-type\"] = \"t3.large\" }, page_size = 20");
    let daemon = start(&world, &source, &Moto::env_at(front.url("")));
    let found = fleet(&daemon, false);
    assert_eq!(found["sources"][0]["hosts"], 2500, "{}", found["sources"]);
    assert_eq!(ids(&found).into_iter().collect::<BTreeSet<_>>(), launched);
    // 50 reservations, 20 on a page.
    let pages = front.calls("DescribeInstances");
    assert_eq!(pages.len(), 3, "{pages:?}");
    assert!(pages.iter().all(|page| page.body.contains("&MaxResults=20")), "{pages:?}");
    let follow: Vec<bool> = pages.iter().map(|page| page.body.contains("&NextToken=")).collect();
    assert_eq!(follow, [false, true, true]);
}

#[test]
fn instances_are_hosts_by_their_tags_and_one_that_ended_says_so() {
    let moto = Moto::start(&[]);
    let web = moto.launch(
        REGION,
        3,
        "t3.micro",
        &[("role", "web"), ("Name", "web"), ("aws:autoscaling:groupName", "web-asg")],
    );
    let other = moto.launch("us-east-1", 1, "t3.micro", &[("role", "web")]);
    moto.launch(REGION, 1, "t3.micro", &[("role", "db")]);
    let world = World::new();
    let daemon = start(
        &world,
        &ec2(
            "regions = { \"eu-west-1\", \"us-east-1\" }, tags = { role = \"we*\" }, address = \"public\", max_shrink = \"0%\"",
        ),
        &moto.env(),
    );
    let found = fleet(&daemon, false);
    let all: BTreeSet<&String> = web.iter().chain(&other).collect();
    assert_eq!(ids(&found).iter().collect::<BTreeSet<_>>(), all, "{found}");
    let one = found["hosts"].as_array().unwrap().iter().find(|host| host["id"] == web[0].as_str()).unwrap();
    assert_eq!(
        (&one["name"], &one["labels"]["region"], &one["labels"]["account"]),
        (&json!("web"), &json!(REGION), &json!("123456789012"))
    );
    assert_eq!(one["labels"]["autoscaling_group"], "web-asg", "{one}");
    assert!(one["zone"].as_str().unwrap().starts_with(REGION), "{one}");
    assert!(one["address"].as_str().unwrap().parse::<std::net::Ipv4Addr>().is_ok(), "{one}");

    // A reported termination is no loss, whatever max_shrink says.
    moto.terminate(REGION, &[&web[1]]);
    let fewer = fleet(&daemon, true);
    assert_eq!(ids(&fewer).len(), 3, "{fewer}");
    assert_eq!(out(&fewer), [format!("{}:terminated", web[1])]);
    let message = fewer["out"][0]["message"].as_str().unwrap();
    assert!(message.starts_with("ec2 says it is terminated: "), "{message}");
    assert!(fewer["out"][0]["since"].is_string() && fewer["sources"][0]["error"].is_null(), "{fewer}");
    // One that was only untagged is not there any more, and is no termination.
    moto.call("ec2", REGION, &format!("Action=DeleteTags&Version=2016-11-15&ResourceId.1={}&Tag.1.Key=role", web[2]));
    let (code, message) = error(&fleet(&daemon, true));
    assert!(code == "max_shrink" && message.contains("had 3 hosts and finds 2 now"), "{message}");
}

#[test]
fn a_role_of_another_account_is_assumed_with_given_keys() {
    let moto = Moto::start(&[]);
    moto.launch(REGION, 2, "t3.micro", &[]);
    let theirs = moto.launch_in("210987654321", REGION, 1);
    let (front, world) = (Web::in_front_of(&moto), World::new());
    world.secret("aws", "wJalrXUtnFEMItestkey");
    let keys = "access_key_id = \"AKIATESTTESTTESTTEST\", secret_access_key = phased.secret \"aws\"";
    let role = "role = \"arn:aws:iam::210987654321:role/phased\", external_id = \"x1\"";
    let env = [("AWS_EC2_METADATA_DISABLED", "true".to_owned())];
    let source = ec2(&format!("region = \"eu-west-1\", endpoint = \"{}\", {keys}, {role}", front.url("")));
    let daemon = start(&world, &source, &env);
    let found = fleet(&daemon, false);
    assert_eq!(ids(&found), theirs, "{found}");
    assert_eq!(found["hosts"][0]["labels"]["account"], "210987654321");
    // By the keys that were given, and for its owner's eyes.
    let assumed = front.calls("AssumeRole");
    assert_eq!(assumed.len(), 1, "{assumed:?}");
    for field in
        ["&RoleArn=arn%3Aaws%3Aiam%3A%3A210987654321%3Arole%2Fphased", "&ExternalId=x1", "&RoleSessionName=phased"]
    {
        assert!(assumed[0].body.contains(field), "{field}: {assumed:?}");
    }
    let by = |asked: &Asked| asked.headers["authorization"].contains("Credential=AKIATESTTESTTESTTEST/");
    assert!(by(&assumed[0]) && !front.calls("DescribeInstances").iter().any(by), "{:?}", front.asked());
}

#[test]
fn wrong_keys_are_named_with_the_call_the_region_and_what_to_do() {
    let moto = Moto::start(&[("INITIAL_NO_AUTH_ACTION_COUNT", "0")]);
    let world = World::new();
    let daemon = start(&world, &ec2("region = \"eu-west-1\""), &moto.env());
    let (code, message) = error(&fleet(&daemon, false));
    assert_eq!(code, "ec2_credentials", "{message}");
    for part in [
        "EC2 DescribeInstances in eu-west-1",
        "the access key AKIATESTTESTTESTTEST of the daemon's environment",
        "AuthFailure",
        "check the access key",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(!daemon.said().contains("wJalrXUtnFEMItestkey"));
}

#[test]
fn no_credentials_at_all_are_said_to_be_missing() {
    let world = World::new();
    let env = [("AWS_EC2_METADATA_DISABLED", "true".to_owned()), ("AWS_ENDPOINT_URL", "http://127.0.0.1:9".to_owned())];
    let daemon = start(&world, &ec2("region = \"eu-west-1\""), &env);
    let (code, message) = error(&fleet(&daemon, false));
    assert_eq!(code, "ec2_credentials", "{message}");
    assert!(
        message.contains("the credentials this machine finds") && message.contains("instance profile"),
        "{message}"
    );
}

fn ec2_error(code: &str, message: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors><RequestID>0</RequestID></Response>"
    )
}

/// The error that a daemon shows when EC2 answers so; more answers follow the first.
fn refused(status: u16, code: &str, said: &str, more: &[(u16, &str)]) -> (String, String) {
    let web = Web::start();
    web.gives("/", status, &ec2_error(code, said));
    for (status, body) in more {
        web.then_gives("/", *status, body);
    }
    let world = World::new();
    let env = [
        ("AWS_ENDPOINT_URL", web.url("")),
        ("AWS_ACCESS_KEY_ID", "ASIATESTTESTTESTTEST".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMItestkey".to_owned()),
        ("AWS_SESSION_TOKEN", "token".to_owned()),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
    ];
    let daemon = start(&world, &ec2("region = \"eu-south-2\""), &env);
    error(&fleet(&daemon, false))
}

#[test]
fn every_refusal_of_ec2_says_what_to_do() {
    let (code, message) = refused(400, "RequestExpired", "Request has expired.", &[]);
    assert!(
        code == "ec2_credentials" && message.contains("have expired") && message.contains("RequestExpired"),
        "{message}"
    );
    let (code, message) = refused(401, "OptInRequired", "You are not subscribed to this service.", &[]);
    assert!(code == "ec2_region" && message.contains("enable the region eu-south-2"), "{message}");
    let (code, message) = refused(400, "InvalidParameterValue", "The filter 'x' is invalid", &[]);
    assert!(code == "ec2_failed" && message.contains("look at the filters"), "{message}");
    let identity = "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><GetCallerIdentityResult>\
        <Arn>arn:aws:iam::210987654321:user/ci</Arn><UserId>A</UserId><Account>210987654321</Account></GetCallerIdentityResult>\
        <ResponseMetadata><RequestId>0</RequestId></ResponseMetadata></GetCallerIdentityResponse>";
    let (code, message) =
        refused(403, "UnauthorizedOperation", "You are not authorized to perform this operation.", &[(200, identity)]);
    assert_eq!(code, "ec2_denied", "{message}");
    assert!(
        message.contains("of account 210987654321 (arn:aws:iam::210987654321:user/ci)")
            && message.contains("allow it ec2:DescribeInstances"),
        "{message}"
    );
}

#[test]
fn a_throttled_call_is_tried_again_later() {
    let none = "<DescribeInstancesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>0</requestId><reservationSet/></DescribeInstancesResponse>";
    let web = Web::start();
    web.gives("/", 503, &ec2_error("RequestLimitExceeded", "Request limit exceeded."));
    web.then_gives("/", 503, &ec2_error("RequestLimitExceeded", "Request limit exceeded."));
    web.then_gives("/", 200, none);
    let world = World::new();
    let env = [
        ("AWS_ENDPOINT_URL", web.url("")),
        ("AWS_ACCESS_KEY_ID", "AKIATESTTESTTESTTEST".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMItestkey".to_owned()),
    ];
    let daemon = start(&world, &ec2("region = \"eu-west-1\""), &env);
    let found = fleet(&daemon, false);
    assert!(found["sources"][0]["error"].is_null() && ids(&found).is_empty(), "{found}");
    assert_eq!(web.asked().len(), 3);

    web.gives("/", 503, &ec2_error("RequestLimitExceeded", "Request limit exceeded."));
    let (code, message) = error(&fleet(&daemon, true));
    assert!(code == "ec2_throttled" && message.contains("asked 6 times"), "{message}");
}

#[test]
fn an_endpoint_where_nobody_is_cannot_be_asked() {
    let (_guard, port) = refused_port();
    let world = World::new();
    let env = [
        ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}")),
        ("AWS_ACCESS_KEY_ID", "AKIATESTTESTTESTTEST".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMItestkey".to_owned()),
    ];
    let daemon = start(&world, &ec2("region = \"eu-west-1\""), &env);
    let (code, message) = error(&fleet(&daemon, false));
    assert!(code == "ec2_unreachable" && message.contains("the spelling of the region"), "{message}");
}

#[test]
fn one_that_is_terminated_during_a_rollout_is_gone_and_one_that_is_launched_gets_it() {
    let (moto, world) = (Moto::start(&[]), World::new());
    // Each instance's address is one at which this world's sshd answers, and its console shows that sshd's key.
    let (front, subnet) = (Web::in_front_of(&moto), moto.loopback(REGION, "127.40.0.0/24"));
    front.gives("Action=GetConsoleOutput", 200, &console("i-0abc", &printed(&world)));
    let tags = [("role", "web")];
    let mut web = moto.launch_at(&subnet, REGION, 4, &tags);
    web.sort();
    web.iter().for_each(|id| drop(world.host_table(id)));
    let source = "require \"discovery.ec2\" { region = \"eu-west-1\", tags = { role = \"web\" }, console_keys = true, max_shrink = \"0%\" }";
    world.project(
        &Project::new("shop")
            .rollout("waves = 1, min_healthy = 1, max_shrink = \"0%\"")
            .deploy_takes(1.0)
            .ssh(&known_by_nobody(&world))
            .ssh(&format!("base = {:?}", world.host(&web[0]).join("base")))
            .hosts(&[source]),
    );
    let env = Moto::env_at(front.url(""));
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let daemon = world.start_with(&env);
    world.repo.push("to the cloud");
    let run = daemon.press();
    eventually("the first host is being deployed to", || (!world.touched(&web[0]).is_empty()).then_some(()));
    // Amazon takes the tags off what it has ended: only who asks for its id is told.
    moto.terminate(REGION, &[&web[3]]);
    moto.untag(REGION, &[&web[3]], "role");
    let late = moto.launch_at(&subnet, REGION, 1, &tags).remove(0);
    world.host_table(&late);
    let ended = run.wait().is("succeeded");
    assert_eq!(ended.host(&web[3])["state"], "gone", "{}", ended.deployment("production"));
    let why = ended.host(&web[3])["cause"]["message"].as_str().unwrap().to_owned();
    assert!(why.starts_with("ec2 says it is terminated: "), "{why}");
    // Who is no more lacks nothing.
    let status = daemon.status();
    assert!(!status.to_string().contains("hosts_left_out"), "{status}");
    let there = [web[0].as_str(), &web[1], &web[2], &late];
    assert!(world.hosts_have(&there, &world.repo.head()), "{}", ended.deployment("production"));
    assert_eq!(world.revision(&web[3]), None);

    // An API that says there is nobody stops it loudly, and nobody is touched.
    let before = world.touched(&late).len();
    moto.untag(REGION, &there, "role");
    world.repo.push("to nobody");
    let ended = daemon.deploy().is("failed");
    assert_eq!(ended.deployment("production")["cause"]["code"], "max_shrink", "{}", ended.deployment("production"));
    assert_eq!(world.touched(&late).len(), before);
}

#[test]
fn an_instance_is_reached_at_its_ipv6_address() {
    let card = "<networkInterfaceSet><item><ipv6AddressesSet><item><ipv6Address>2001:db8::7</ipv6Address></item></ipv6AddressesSet></item></networkInterfaceSet>";
    for more in ["<ipv6Address>2001:db8::7</ipv6Address>", card] {
        let (web, world) = (Web::start(), World::new());
        let described = instances("i-0abc").replace("<placement>", &format!("{more}<placement>"));
        web.gives("/", 200, &described);
        let daemon = start(&world, &ec2("region = \"eu-west-1\", address = \"ipv6\""), &Moto::env_at(web.url("")));
        let found = fleet(&daemon, false);
        assert_eq!(found["hosts"][0]["address"], "2001:db8::7", "{found}");
    }
}

#[test]
fn the_credentials_of_an_instance_profile_are_found_at_the_metadata_service() {
    let none = "<DescribeInstancesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>0</requestId><reservationSet/></DescribeInstancesResponse>";
    let (web, world) = (Web::start(), World::new());
    web.gives("/", 200, none);
    web.gives("/latest/api/token", 200, "imds-token");
    let keys = json!({"Code": "Success", "LastUpdated": "2026-01-01T00:00:00Z", "Type": "AWS-HMAC", "AccessKeyId": "ASIAFROMTHEPROFILE",
        "SecretAccessKey": "secret", "Token": "session", "Expiration": "2099-01-01T00:00:00Z", "AccountId": "123456789012"});
    for kind in ["security-credentials", "security-credentials-extended"] {
        web.gives(&format!("/latest/meta-data/iam/{kind}/"), 200, "web-role");
        web.gives(&format!("/latest/meta-data/iam/{kind}"), 200, "web-role");
        web.gives(&format!("/latest/meta-data/iam/{kind}/web-role"), 200, &keys.to_string());
    }
    let env = [("AWS_ENDPOINT_URL", web.url("")), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", web.url(""))];
    let daemon = start(&world, &ec2("region = \"eu-west-1\""), &env);
    let found = fleet(&daemon, false);
    assert!(found["sources"][0]["error"].is_null(), "{found}");
    let call = &web.calls("DescribeInstances")[0];
    assert!(call.headers["authorization"].contains("Credential=ASIAFROMTHEPROFILE/"), "{call:?}");
}

#[test]
fn an_instance_whose_console_shows_no_keys_is_still_starting() {
    let moto = Moto::start(&[]);
    let ids_of = moto.launch(REGION, 2, "t3.micro", &[]);
    let world = World::new();
    let daemon = start(&world, &ec2("region = \"eu-west-1\", console_keys = true"), &moto.env());
    // What moto's consoles show is the boot of a kernel.
    let found = fleet(&daemon, false);
    assert!(ids(&found).is_empty() && found["sources"][0]["error"].is_null(), "{found}");
    assert_eq!(found["out"].as_array().unwrap().len(), ids_of.len());
    let message = found["out"][0]["message"].as_str().unwrap();
    assert!(message.contains("starting") && message.contains("its console does not show its host keys"), "{message}");
}

fn instances(id: &str) -> String {
    format!(
        "<DescribeInstancesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>0</requestId><reservationSet><item>\
         <reservationId>r-1</reservationId><ownerId>123456789012</ownerId><instancesSet><item><instanceId>{id}</instanceId>\
         <instanceState><code>16</code><name>running</name></instanceState><privateIpAddress>127.0.0.1</privateIpAddress>\
         <placement><availabilityZone>eu-west-1a</availabilityZone></placement></item></instancesSet></item></reservationSet>\
         </DescribeInstancesResponse>"
    )
}

/// The answer of GetConsoleOutput as Amazon documents it: base64 in lines.
fn console(id: &str, output: &str) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(output);
    let lines: Vec<String> =
        text.as_bytes().chunks(76).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    format!(
        "<GetConsoleOutputResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>0</requestId><instanceId>{id}</instanceId>\
         <timestamp>2026-11-26T07:00:00.000Z</timestamp><output>{}</output></GetConsoleOutputResponse>",
        lines.join("\n")
    )
}

/// What the console of an instance shows whose sshd is that of `world`.
fn printed(world: &World) -> String {
    let key = std::fs::read_to_string(world.path("sshd/hostkey.pub")).unwrap();
    format!(
        "[    1.0] Linux\r\nci-info: no keys\r\n-----BEGIN SSH HOST KEY KEYS-----\r\n{}\r\n-----END SSH HOST KEY KEYS-----\r\nlogin: ",
        key.trim()
    )
}

/// Keys of `ssh` with which no file knows any host.
fn known_by_nobody(world: &World) -> String {
    std::fs::write(world.path("empty"), "").unwrap();
    format!("known_hosts = {:?}", world.path("empty"))
}

#[test]
fn an_instance_is_known_by_the_keys_on_its_console_which_is_read_once() {
    let world = World::new();
    let web = Web::start();
    web.gives("/", 200, &instances("i-0abc"));
    web.gives("Action=GetConsoleOutput", 200, &console("i-0abc", &printed(&world)));
    let env = Moto::env_at(web.url(""));
    let source = ec2("region = \"eu-west-1\", console_keys = true");
    let ssh = known_by_nobody(&world);
    let deploy = "host:sh \"true\"";
    world.project(&Project::new("shop").hosts(&[&source]).ssh(&ssh).deploy(deploy));
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let daemon = world.start_with(&env);
    assert_eq!(ids(&fleet(&daemon, false)), ["i-0abc"]);
    let consoles = || web.calls("GetConsoleOutput").len();
    assert_eq!(consoles(), 1);
    world.repo.push("by its console");
    assert_eq!(daemon.deploy().is("succeeded").hosts(), ["i-0abc:healthy"]);
    // Kept with the list, also over a restart; the console may show something else by then.
    daemon.kill();
    let daemon = world.start_with(&env);
    assert_eq!(ids(&fleet(&daemon, true)), ["i-0abc"]);
    assert_eq!(consoles(), 1);
    // Another machine with another key at its address is refused.
    let other = Sshd::start(&world.path("other"), &std::fs::read_to_string(world.path("id.pub")).unwrap(), "");
    world.project(&Project::new("shop").hosts(&[&source]).ssh(&format!("{ssh}, port = {}", other.port)).deploy(deploy));
    assert_eq!(daemon.cli(&["reload"]).code, 0);
    world.repo.push("somebody else");
    let run = daemon.deploy().is("failed");
    let cause = &run.host("i-0abc")["cause"];
    assert!(
        cause["code"] == "host_key_changed" && cause["message"].as_str().unwrap().contains("its host_keys"),
        "{cause}"
    );
}

#[test]
fn a_console_that_may_not_be_read_names_the_call_to_allow() {
    let web = Web::start();
    web.gives("/", 200, &instances("i-0abc"));
    web.then_gives("/", 403, &ec2_error("UnauthorizedOperation", "You are not authorized to perform this operation."));
    let world = World::new();
    let env = [
        ("AWS_ENDPOINT_URL", web.url("")),
        ("AWS_ACCESS_KEY_ID", "AKIATESTTESTTESTTEST".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMItestkey".to_owned()),
    ];
    let daemon = start(&world, &ec2("region = \"eu-west-1\", console_keys = true"), &env);
    let (code, message) = error(&fleet(&daemon, false));
    assert!(code == "ec2_denied" && message.contains("EC2 GetConsoleOutput in eu-west-1"), "{message}");
    assert!(message.contains("allow it ec2:GetConsoleOutput"), "{message}");
}
