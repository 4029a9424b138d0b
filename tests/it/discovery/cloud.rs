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

#[test]
fn a_machine_of_googles_asks_its_metadata_server_and_says_what_that_refuses() {
    let (web, world) = (Web::start(), World::new());
    let token = "/computeMetadata/v1/instance/service-accounts/default/token";
    let list = "/compute/v1/projects/acme/aggregated/instances";
    let given = json!({"access_token": "ya29.machine", "expires_in": 3599, "token_type": "Bearer"}).to_string();
    web.gives(token, 200, &given);
    let mut page: Value = serde_json::from_str(&gce_page(&["1"], None)).unwrap();
    page["items"]["zones/europe-west1-b"]["instances"][0]["networkInterfaces"][0]["ipv6AccessConfigs"] =
        json!([{"externalIpv6": "2600:1901::7", "externalIpv6PrefixLength": 96}]);
    web.gives(list, 200, &page.to_string());
    let source = format!(
        "require \"discovery.gce\" {{ project = \"acme\", address = \"ipv6\", endpoint = \"{0}\", metadata = \"{0}\", interval = \"1h\" }}",
        web.url("")
    );
    let daemon = start(&world, &source);
    let found = fleet(&daemon, false);
    assert_eq!((ids(&found), &found["hosts"][0]["address"]), (vec!["771".to_owned()], &json!("2600:1901::7")));
    let asked = web.asked();
    assert_eq!(
        (asked[0].line.as_str(), asked[0].headers["metadata-flavor"].as_str()),
        (&*format!("GET {token}"), "Google")
    );
    assert_eq!(asked[1].headers["authorization"], "Bearer ya29.machine");

    // The machine's access scopes do not let it.
    let scopes = json!({"error": {"code": 403, "message": "Request had insufficient authentication scopes.",
        "errors": [{"reason": "insufficientPermissions"}], "status": "PERMISSION_DENIED"}});
    web.gives(list, 403, &scopes.to_string());
    let (_, message) = error(&fleet(&daemon, true));
    for part in [
        "Google instances.aggregatedList of project acme, asked by the service account default of this machine: ",
        "insufficient authentication scopes. (insufficientPermissions)",
        "roles/compute.viewer",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    // It has no service account.
    web.gives(token, 404, "The service account was not found.");
    let (_, message) = error(&fleet(&daemon, true));
    for part in
        ["gives no token for the service account default: status 404", "was not found", "attach a service account"]
    {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(!daemon.said().contains("ya29.machine"));
}

#[test]
fn a_machine_of_azures_asks_for_its_identity_and_an_answer_that_is_cut_is_no_list() {
    let (web, world) = (Web::start(), World::new());
    let token = "/metadata/identity/oauth2/token";
    let graph = "/providers/Microsoft.ResourceGraph/resources";
    let row = |name: &str| {
        json!({"id": name, "name": name, "vm_id": format!("vm-{name}"), "location": "westeurope",
            "power": "PowerState/running", "private_ip": format!("10.1.0.{name}")})
    };
    // Just after a start it is not ready, and says so.
    web.gives(token, 500, &json!({"error": "server_error", "error_description": "try again"}).to_string());
    web.then_gives(token, 200, &json!({"access_token": "eyJ0.machine", "expires_on": "1506484173"}).to_string());
    web.gives(graph, 200, &json!({"resultTruncated": "false", "data": [row("1"), row("2"), row("3")]}).to_string());
    let source = format!(
        "require \"discovery.azure\" {{ subscription = \"s-1\", client_id = \"c-9\", endpoint = \"{0}\", metadata = \"{0}\", interval = \"1h\" }}",
        web.url("")
    );
    let daemon = start(&world, &source);
    let found = fleet(&daemon, false);
    assert_eq!(ids(&found), ["vm-1", "vm-2", "vm-3"], "{found}");
    let asked = web.asked();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(
        asked[1]
            .line
            .starts_with("GET /metadata/identity/oauth2/token?api-version=2018-02-01&resource=http%3A%2F%2F127.0.0.1")
    );
    assert!(asked[1].line.ends_with("&client_id=c-9") && asked[1].headers["metadata"] == "true", "{asked:?}");
    assert_eq!(asked[2].headers["authorization"], "Bearer eyJ0.machine");

    let refused = |status: u16, body: &Value, parts: &[&str]| {
        web.gives(graph, status, &body.to_string());
        let fleet = fleet(&daemon, true);
        let (_, message) = error(&fleet);
        for part in parts {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert_eq!(ids(&fleet).len(), 3, "the last good list stays");
    };
    let asked_by = "Azure Resource Graph of subscription s-1, asked by this machine's managed identity c-9: ";
    // Resource Graph cuts what it has no way to go on from, and nothing but this says so.
    let cut = json!({"totalRecords": 3, "count": 2, "resultTruncated": "true", "data": [row("1"), row("2")]});
    refused(200, &cut, &[asked_by, "is truncated (2 machines of 3)", "resource_group, tags or where"]);
    let wrong = |code: &str, said: &str| json!({"error": {"code": code, "message": said}});
    let none = wrong("BadRequest", "There must be at least one subscription that is eligible to contain resources.");
    refused(
        400,
        &none,
        &[asked_by, "at least one subscription", "(BadRequest)", "look at the ids of the subscriptions"],
    );
    let none = wrong("SubscriptionNotFound", "The subscription 's-1' could not be found.");
    refused(
        404,
        &none,
        &[asked_by, "could not be found. (SubscriptionNotFound)", "look at the ids of the subscriptions"],
    );
    let none = json!({"error": "invalid_request", "error_description": "Identity not found"});
    web.gives(token, 400, &none.to_string());
    let (_, message) = error(&fleet(&daemon, true));
    let why = "Azure's metadata server gives no token for this machine's managed identity c-9: Identity not found (invalid_request)";
    assert!(message.contains(why) && message.contains("give this machine that identity"), "{message}");
    assert!(!daemon.said().contains("eyJ0.machine"));
}
