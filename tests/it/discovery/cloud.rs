//! Google Compute Engine and Azure: answers as they document them.

use std::process::Command;

use serde_json::{Value, json};

use super::{error, ids, out};
use crate::fixture::{Daemon, Project, Web, World, fleet};

fn start(world: &World, hosts: &str) -> Daemon {
    world.project(&Project::new("shop").hosts(&[hosts]));
    world.start()
}

/// A service account's key file with a fresh key.
fn key_file(world: &World) -> String {
    let path = world.path("gcp.pem");
    let made = Command::new("openssl")
        .args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out"])
        .arg(&path)
        .output();
    assert!(made.unwrap().status.success());
    let pem = std::fs::read_to_string(path).unwrap();
    json!({"type": "service_account", "private_key_id": "k1", "private_key": pem, "client_email": "phased@acme.iam.gserviceaccount.com"}).to_string()
}

fn gce_page(names: &[&str], next: Option<&str>) -> String {
    let instances: Vec<Value> = names
        .iter()
        .map(|name| {
            json!({"id": format!("77{name}"), "name": name, "status": "RUNNING", "zone": "https://x/zones/europe-west1-b",
                "networkInterfaces": [{"networkIP": format!("10.0.0.{name}")}]})
        })
        .collect();
    json!({"kind": "compute#instanceAggregatedList", "items": {"zones/europe-west1-b": {"instances": instances}}, "nextPageToken": next})
        .to_string()
}

#[test]
fn google_is_asked_with_a_service_account_and_tried_again_when_it_is_busy() {
    let (web, world) = (Web::start(), World::new());
    world.secret("gcp.json", &key_file(&world));
    let list = "/compute/v1/projects/acme/aggregated/instances";
    web.gives("/token", 200, &json!({"access_token": "ya29.secret", "expires_in": 3599}).to_string());
    web.gives(list, 503, &json!({"error": {"code": 503, "message": "Backend Error"}}).to_string());
    web.then_gives(list, 200, &gce_page(&["1", "2"], Some("n")));
    web.then_gives(list, 200, &gce_page(&["3"], None));
    let source = format!(
        "require \"discovery.gce\" {{ project = \"acme\", key = phased.secret \"gcp.json\", endpoint = \"{}\", token_url = \"{}\", interval = \"1h\" }}",
        web.url(""),
        web.url("/token")
    );
    let daemon = start(&world, &source);
    assert_eq!(ids(&fleet(&daemon, false)), ["771", "772", "773"]);
    let asked = web.asked();
    assert!(
        asked[0].body.contains("grant%2Dtype%3Ajwt%2Dbearer") || asked[0].body.contains("jwt%2Dbearer"),
        "{}",
        asked[0].body
    );
    assert_eq!(asked[1].headers["authorization"], "Bearer ya29.secret");
    assert_eq!(asked.len(), 4, "the busy answer was followed by another try");
    assert!(asked[3].line.contains("pageToken=n"), "{}", asked[3].line);

    web.gives(
        "/token",
        400,
        &json!({"error": "invalid_grant", "error_description": "Invalid JWT Signature."}).to_string(),
    );
    let (_, message) = error(&fleet(&daemon, true));
    assert!(
        message.contains("service account") && message.contains("Invalid JWT Signature. (invalid_grant)"),
        "{message}"
    );
    assert!(!daemon.said().contains("BEGIN PRIVATE KEY"));
}

#[test]
fn azure_is_asked_with_a_client_secret_which_nobody_sees() {
    let (web, world) = (Web::start(), World::new());
    world.secret("azure", "s3cr3t~value.of/azure");
    let row = |name: &str, power: &str| json!({"id": name, "name": name, "vm_id": format!("vm-{name}"), "location": "westeurope", "power": power, "private_ip": "10.1.0.4"});
    let graph = "/providers/Microsoft.ResourceGraph/resources";
    web.gives("/t-1/oauth2/v2.0/token", 200, &json!({"access_token": "eyJ0", "expires_in": 3599}).to_string());
    web.gives(graph, 200, &json!({"data": [row("a", "PowerState/running")], "$skipToken": "s"}).to_string());
    web.then_gives(graph, 200, &json!({"data": [row("b", "PowerState/deallocated")]}).to_string());
    let source = format!(
        "require \"discovery.azure\" {{ subscription = \"s-1\", tenant = \"t-1\", client_id = \"c-1\", client_secret = phased.secret \"azure\", \
         endpoint = \"{0}\", login = \"{0}\", interval = \"1h\" }}",
        web.url("")
    );
    let daemon = start(&world, &source);
    let found = fleet(&daemon, false);
    assert_eq!((ids(&found), out(&found)), (vec!["vm-a".to_owned()], vec!["vm-b:stopped".to_owned()]));
    let plan = daemon.api.get("/v1/projects/shop/plan").json();
    assert_eq!(plan["environments"][0]["skipped"][0]["id"], "vm-b", "{plan:#}");
    assert!(web.asked()[0].body.contains("client%5Fsecret=s3cr3t%7Evalue%2Eof%2Fazure"), "{}", web.asked()[0].body);
    assert!(web.asked()[2].body.contains("\"$skipToken\":\"s\""), "{}", web.asked()[2].body);

    let expired = "AADSTS7000222: The provided client secret keys for app 's3cr3t~value.of/azure' are expired.";
    web.gives(
        "/t-1/oauth2/v2.0/token",
        401,
        &json!({"error": "invalid_client", "error_description": expired}).to_string(),
    );
    let (_, message) = error(&fleet(&daemon, true));
    assert!(message.contains("the client c-1 of the tenant t-1") && message.contains("AADSTS7000222"), "{message}");
    assert!(!message.contains("s3cr3t") && !daemon.said().contains("s3cr3t"), "{message}");
}
