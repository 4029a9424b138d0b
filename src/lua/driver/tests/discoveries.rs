//! Shipped discoveries, against answers as their services document them.

use std::collections::{BTreeMap, VecDeque};

use super::*;
use crate::{
    lua::{
        loader::{Loader, SHIPPED},
        sandbox::Limits,
    },
    model::host::Host,
    ports::{
        program::{PluginTurn, Programs},
        secrets::{Secret, SecretError, Secrets},
    },
    tests::{chance, mutated},
};

struct Any;

impl Secrets for Any {
    fn get(&self, _: &str) -> Result<Secret, SecretError> {
        Ok(Secret::new(b"0123456789"))
    }
}

/// What a discovery asked for, in order, and what it made of the answers.
struct Found {
    asked: Vec<(String, Json)>,
    hosts: Result<Vec<Host>, Cause>,
}

impl Found {
    /// The hosts by id.
    #[track_caller]
    fn all(self) -> BTreeMap<String, Host> {
        match self.hosts {
            Ok(hosts) => hosts.into_iter().map(|host| (host.id.to_string(), host)).collect(),
            Err(cause) => panic!("{cause:?}"),
        }
    }

    #[track_caller]
    fn fails(&self, why: &[&str]) {
        let message = match &self.hosts {
            Err(cause) => &cause.message,
            Ok(hosts) => panic!("{hosts:?}"),
        };
        for why in why {
            assert!(message.contains(why), "{why:?} is not in {message:?}");
        }
    }
}

/// Calls the discovery `lua` once; its requests get `answers`, in order.
fn discover(lua: &str, known: &[&str], answers: Vec<Outcome>) -> Found {
    discoverer(lua, known)(answers)
}

/// The discovery `lua`, to be called as often as one likes.
fn discoverer(lua: &str, known: &[&str]) -> impl Fn(Vec<Outcome>) -> Found {
    let folder = tempfile::tempdir().unwrap();
    let plugins = folder.path().join("plugins");
    std::fs::create_dir_all(plugins.join("projects")).unwrap();
    let text = format!(
        "return phased.project {{ source = {{ git = 'https://x/y.git', branch = 'main' }}, test = {{ {{ 'unit', run = error }} }},
        notify = require 'alerts.log' {{}}, environments = {{ {{ 'p', hosts = {lua}, deploy = error, health = 'none' }} }} }}"
    );
    std::fs::write(plugins.join("projects/shop.lua"), text).unwrap();
    std::fs::create_dir_all(plugins.join("discovery")).unwrap();
    let example = include_str!("../../../../packaging/examples/hetzner.lua");
    std::fs::write(plugins.join("discovery/hetzner.lua"), example).unwrap();
    let loader = Loader::new(vec![plugins], SHIPPED, folder.path(), Arc::new(Any), Limits::default());
    let loaded = loader.load().unwrap().remove(0);
    loader.pin(&loaded).unwrap();
    let input = json!({"project": "shop", "environment": "p", "known": known});
    move |answers| {
        let _kept = &folder;
        let mut plugin = loader.plugin(&loaded.code, &loaded.name, "discovery/p/1", input.clone()).unwrap();
        let (mut answers, mut asked, mut turn) = (VecDeque::from(answers), Vec::new(), plugin.start());
        loop {
            match turn {
                PluginTurn::Request(request) => {
                    let answer = answers.pop_front();
                    asked.push((request.what, request.args));
                    turn = plugin.resume(&answer.unwrap_or_else(|| panic!("there is no answer to {asked:?}")));
                }
                PluginTurn::Raised(cause) => return Found { asked, hosts: Err(cause) },
                PluginTurn::Return(hosts) => {
                    assert!(answers.is_empty(), "{answers:?} were not asked for");
                    return Found { asked, hosts: Ok(serde_json::from_value(hosts).unwrap()) };
                }
            }
        }
    }
}

fn text(text: &str) -> Vec<Outcome> {
    vec![Outcome::Ok(json!(text))]
}

fn http(status: u16, body: &Json) -> Outcome {
    let body = body.as_str().map_or_else(|| body.to_string(), str::to_owned);
    Outcome::Ok(json!({"status": status, "body": body, "headers": {}, "truncated": false}))
}

fn ended(code: i32, stdout: &str, stderr: &str) -> Outcome {
    Outcome::Ok(json!({"stdout": stdout, "stderr": stderr, "code": code, "truncated": false}))
}

#[test]
fn a_file_of_targets_is_a_list_of_hosts() {
    let groups = json!([
        {"targets": ["10.0.0.1:9100", "10.0.0.1:8080", "[fd00::1]:9100"], "labels": {"env": "prod", "zone": "a"}},
        {"targets": ["web9", "http://web10:9100/metrics"]},
        {"targets": ["10.0.0.7:22"], "labels": {"__meta_phased_host_id": "i-7", "__meta_phased_host_name": "web-7"}}]);
    let lua = "require 'discovery.prometheus' { '/sd/web.json' }";
    let found = discover(lua, &[], text(&groups.to_string()));
    assert_eq!(found.asked, [("read".to_owned(), json!({"path": "/sd/web.json"}))]);
    let all = found.all();
    assert_eq!(all.keys().map(String::as_str).collect::<Vec<_>>(), ["10.0.0.1", "fd00::1", "i-7", "web10", "web9"]);
    assert_eq!((all["10.0.0.1"].zone.as_deref(), all["10.0.0.1"].labels["env"].as_str()), (Some("a"), "prod"));
    assert_eq!(
        (all["i-7"].name.as_str(), all["i-7"].address.as_str(), all["i-7"].ssh.port),
        ("web-7", "10.0.0.7", None)
    );
    let lua = "require 'discovery.prometheus' { '/sd/web.json', port_from = 'target' }";
    assert_eq!(discover(lua, &[], text(&groups.to_string())).all()["i-7"].ssh.port, Some(22));
    assert!(discover(lua, &[], text("[]")).all().is_empty());

    for (bad, why) in [
        ("{", "no JSON"),
        (r#"{"targets": []}"#, "must hold a list of target groups"),
        (r#"[{"labels": {}}]"#, "group 1 has no list of targets"),
        (r#"[{"targets": [], "labels": {"a": 1}}]"#, "the label a of group 1 is no text"),
        (r#"[{"targets": ["a"]}, {"targets": [1]}]"#, "a target of group 2 is no text"),
        (r#"[{"targets": ["a b"]}]"#, "host [1].address"),
    ] {
        discover(lua, &[], text(bad)).fails(&[why]);
    }
    discover("require 'discovery.prometheus' { '/sd/web.yml' }", &[], vec![]).fails(&["/sd/web.yml", "is YAML"]);
}

#[test]
fn a_service_of_targets_is_asked_with_its_token() {
    let lua = "require 'discovery.prometheus' { 'https://sd.example.com/x', token = phased.secret 'sd' }";
    let found = discover(lua, &[], vec![http(200, &json!([{"targets": ["10.0.0.1:9100"], "labels": {}}]))]);
    let (what, args) = &found.asked[0];
    assert_eq!(
        (what.as_str(), &args["url"], &args["bearer"]),
        ("http", &json!("https://sd.example.com/x"), &json!({"$secret": "sd"}))
    );
    assert_eq!(found.all().len(), 1);
    // What is secret in an address is not said again.
    let secret = "require 'discovery.prometheus' { 'https://me:p%40ss@sd.example.com/x?token=t0p' }";
    let said = discover(secret, &[], vec![http(200, &json!({"a": 1}))]);
    said.fails(&["https://sd.example.com/x: must hold a list"]);
    let said = discover(&secret.replace("prometheus", "ansible"), &[], vec![http(200, &json!(["a"]))]);
    said.fails(&["https://sd.example.com/x: must hold an object of groups"]);
}

const INI: &str = "
mail.example.com ansible_port=5555   # a comment
jumper ansible_host=192.0.2.50 ansible_user=\"ops\"

[webservers]
web[01:03].example.com http_port=80
web[09:09].example.com:2222

[dbservers]
db-[a:c].example.com
two ansible_host=10.0.0.2

[eu:children]
webservers
dbservers

[eu:vars]
zone=eu-1
ansible_user=deploy

[webservers:vars]
zone = eu-2
";

#[test]
fn an_ini_inventory_is_read_as_ansible_reads_it() {
    let lua = "require 'discovery.ansible' { '/etc/ansible/hosts', zone = 'zone', vars = { 'http_port' } }";
    let all = discover(lua, &[], text(INI)).all();
    assert_eq!(all.len(), 10, "{:?}", all.keys());
    let at = |id: &str| {
        let host = &all[id];
        (host.address.as_str(), host.ssh.port, host.ssh.user.as_deref(), host.zone.as_deref())
    };
    assert_eq!(at("mail.example.com"), ("mail.example.com", Some(5555), None, None));
    assert_eq!(at("jumper"), ("192.0.2.50", None, Some("ops"), None));
    assert_eq!(at("web02.example.com"), ("web02.example.com", None, Some("deploy"), Some("eu-2")));
    assert_eq!(at("web09.example.com"), ("web09.example.com", Some(2222), Some("deploy"), Some("eu-2")));
    assert_eq!(at("two"), ("10.0.0.2", None, Some("deploy"), Some("eu-1")));
    assert_eq!(all["web01.example.com"].labels["groups"], "eu,webservers");
    assert_eq!(all["web01.example.com"].labels["http_port"], "80");
    assert!(all["mail.example.com"].labels.is_empty());

    let of = |group: &str| {
        let lua = format!("require 'discovery.ansible' {{ '/etc/ansible/hosts', group = '{group}' }}");
        discover(&lua, &[], text(INI))
    };
    assert_eq!(of("webservers").all().len(), 4);
    assert_eq!(of("webservers:dbservers").all().len(), 8);
    assert_eq!(of("eu:!webservers").all().len(), 4);
    assert_eq!(of("webservers:&dbservers").all().len(), 0);
    assert_eq!(of("all").all().len(), 10);
    of("webs").fails(&["there is no group \"webs\"; there are dbservers, eu, ungrouped, webservers"]);
}

#[test]
fn what_is_wrong_in_an_inventory_is_said_with_its_line() {
    for (bad, why) in [
        ("[web\nx", "line 1: [web is no section"),
        ("[web:vars]\nnonsense", "line 2: nonsense is not name=value"),
        ("[web:kids]\n", "line 1: a section is [group]"),
        ("web1 nonsense", "line 1: nonsense is not name=value"),
        ("web[1-3]", "line 1: the range [1-3]"),
        ("\nweb[3:1]", "line 2: the range [3:1] goes backwards"),
        ("web[1:99999]", "more than 10000 hosts"),
        ("web1 ansible_port=ssh", "ansible_port of web1 is \"ssh\", which is no number"),
        ("web1 ansible_host=\"{{ ip }}\"", "ansible_host of web1 is the template {{ ip }}"),
        ("web1 ansible_host='10.0.0.1", "is not name=value"),
        ("[a:children]\nb\n[b:children]\na\n[a]\nx", "is its own descendant"),
        ("[a:children]\nb\n[b]\nx\n[a:children]\nwbe\n", "line 6: there is no group wbe: no [wbe] in this inventory"),
        ("[web]\nx\n\n[wbe:vars]\na=1", "line 4: there is no group wbe"),
    ] {
        discover("require 'discovery.ansible' { '/hosts' }", &[], text(bad)).fails(&["/hosts: ", why]);
    }
}

#[test]
fn the_json_of_an_inventory_is_read_with_its_groups_and_variables() {
    let inventory = json!({
        "_meta": {"hostvars": {"web1": {"ansible_host": "10.0.0.1", "ansible_port": 2222}, "db1": {}}},
        "all": {"children": ["web", "db"], "vars": {"ansible_user": "root"}},
        "web": {"hosts": ["web1"], "vars": {"ansible_user": "www"}},
        "db": ["db1"]});
    let lua = "require 'discovery.ansible' { '/inventory.json' }";
    let all = discover(lua, &[], text(&inventory.to_string())).all();
    let one = &all["web1"];
    assert_eq!((one.address.as_str(), one.ssh.port, one.ssh.user.as_deref()), ("10.0.0.1", Some(2222), Some("www")));
    assert_eq!((all["db1"].ssh.user.as_deref(), all["db1"].labels["groups"].as_str()), (Some("root"), "db"));
    for (bad, why) in [
        ("[]x", "no JSON"),
        (r#"["a"]"#, "must hold an object of groups"),
        (r#"{"web": "a"}"#, "the group web must be a list or an object"),
        (r#"{"web": {"hosts": [1]}}"#, "a host of the group web is no text"),
        (r#"{"web": {"hosts": "a"}}"#, "hosts of web must be a list"),
        (r#"{"all": {"hosts": {"web1": {}}}}"#, "hosts of all is an object, as Ansible's YAML plugin has it"),
        (r#"{"all": {"hosts": {"web1": null}}}"#, "hosts of a group is an object"),
        (r#"{"all": {"children": {"web": {"hosts": {"web1": null}}}}}"#, "format = \"ansible-inventory\""),
        (r#"{"_meta": {"hostvars": {"a": 1}}, "web": ["a"]}"#, "the variables of a"),
    ] {
        discover(lua, &[], text(bad)).fails(&["/inventory.json: ", why]);
    }
}

/// What people make of an inventory by accident: it is a list of hosts, or an error that says what is wrong, in words of ours.
#[test]
fn random_inventories_are_lists_or_errors_that_say_what_is_wrong() {
    const CSV: &str = "id,name,address,port,zone,labels.role,host_keys\nweb1,Web,10.0.0.1,22,a,\"web, \"\"front\"\"\",pin\nweb2,,10.0.0.2,,,,\n";
    const JSON: &str = r#"[{"id": "web1", "address": "10.0.0.1", "port": 22, "labels": {"role": "web"}}, "10.0.0.2", {"address": "x", "ssh": null}]"#;
    const GROUPS: &str = r#"{"_meta": {"hostvars": {"web1": {"ansible_host": "10.0.0.1", "ansible_port": 2222}, "db1": {}}},
        "all": {"children": ["web", "db"], "vars": {"ansible_user": "root"}}, "web": {"hosts": ["web1"]}, "db": ["db1"]}"#;
    const TARGETS: &str =
        r#"[{"targets": ["10.0.0.1:9100", "[fd00::1]:9100"], "labels": {"env": "prod"}}, {"targets": ["web9"]}]"#;
    // What is swapped in: tokens of all of the formats.
    const PIECES: [&str; 24] = [
        "[",
        "]",
        "{",
        "}",
        "\"",
        ",",
        ":",
        "=",
        "\n",
        "null",
        "1e999",
        "-1",
        "0.5",
        "true",
        "[]",
        "{}",
        "web[1:3]",
        ":children]",
        ":vars]",
        "#",
        "'",
        "\0",
        "\u{feff}",
        "é",
    ];
    let formats = [
        ("require 'discovery.file' { '/hosts.csv' }", CSV),
        ("require 'discovery.file' { '/hosts.json' }", JSON),
        ("require 'discovery.ansible' { '/hosts' }", INI),
        ("require 'discovery.ansible' { '/hosts.json' }", GROUPS),
        ("require 'discovery.prometheus' { '/hosts.json' }", TARGETS),
    ];
    let discover = formats.map(|(lua, whole)| {
        let discover = discoverer(lua, &[]);
        assert!(discover(text(whole)).hosts.is_ok(), "{lua}");
        discover
    });
    let (mut random, cases) = chance("inventories", 500, 5000);
    let mut refused = [0; 5];
    for case in cases {
        let (n, (lua, whole)) = (case % 5, formats[case % 5]);
        let bytes = mutated(&mut random, whole, &PIECES);
        let bad = String::from_utf8_lossy(&bytes).into_owned();
        if let Err(cause) = discover[n](text(&bad)).hosts {
            // Lua's own word for what a plugin has not thought of.
            let thoughtless = ["attempt to", "bad argument", "stack overflow", "not enough memory"];
            let stumbled = thoughtless.iter().find(|word| cause.message.contains(**word));
            assert!(stumbled.is_none() && !cause.message.is_empty(), "{lua} of {bad:?}: {cause:?}");
            refused[n] += 1;
        }
    }
    assert!(refused.iter().all(|n| *n > 5), "of each some are refused: {refused:?}");
}

#[test]
fn an_inventory_script_is_run_and_asked_for_each_host_where_it_must_be() {
    let lua = "require 'discovery.ansible' { '/inventory.py' }";
    let found = discover(
        lua,
        &[],
        vec![
            ended(0, r#"{"web": ["a", "b"]}"#, ""),
            ended(0, r#"{"ansible_host": "10.0.0.1"}"#, ""),
            ended(0, "{}", ""),
        ],
    );
    let argv: Vec<&Json> = found.asked.iter().map(|(_, args)| &args["argv"]).collect();
    assert_eq!(argv[0], &json!(["/inventory.py", "--list"]));
    assert_eq!(argv[1], &json!(["/inventory.py", "--host", "a"]));
    let all = found.all();
    assert_eq!((all["a"].address.as_str(), all["b"].address.as_str()), ("10.0.0.1", "b"));
    discover(lua, &[], vec![ended(3, "", "no such database\n")])
        .fails(&["/inventory.py: --list ended with 3: no such database"]);
    discover(lua, &[], vec![ended(0, r#"{"web": ["a"]}"#, ""), ended(0, "nope", "")])
        .fails(&["--host a printed no JSON"]);
    let yaml = "require 'discovery.ansible' { '/hosts.yml' }";
    let found = discover(
        yaml,
        &[],
        vec![ended(
            0,
            r#"{"_meta": {"hostvars": {"a": {}}}, "all": {"children": ["web"]}, "web": {"hosts": ["a"]}}"#,
            "",
        )],
    );
    assert_eq!(found.asked[0].1["argv"], json!(["ansible-inventory", "-i", "/hosts.yml", "--list"]));
    assert_eq!(found.asked[0].1["env"], json!({"ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true"}));
    assert_eq!(found.all().len(), 1);
    let missing = Outcome::failed(Cause::new("exit", "ansible-inventory: not found"));
    discover(yaml, &[], vec![missing]).fails(&["install ansible-core"]);
}

#[test]
fn dns_records_are_hosts() {
    let srv = json!([{"target": "web1.example.com", "port": 2222, "priority": 1, "weight": 5}]);
    let lua =
        "require 'discovery.dns' { names = { '_ssh._tcp.web.example.com' }, type = 'SRV', server = '127.0.0.1:53' }";
    let found = discover(lua, &[], vec![Outcome::Ok(srv.clone())]);
    assert_eq!(
        found.asked[0],
        ("dns".to_owned(), json!({"name": "_ssh._tcp.web.example.com", "type": "SRV", "server": "127.0.0.1:53"}))
    );
    let all = found.all();
    assert_eq!(
        (all["web1.example.com"].ssh.port, all["web1.example.com"].labels["weight"].as_str()),
        (Some(2222), "5")
    );
    let http = "require 'discovery.dns' { names = { '_http._tcp.web.example.com' }, type = 'SRV' }";
    assert_eq!(discover(http, &[], vec![Outcome::Ok(srv)]).all()["web1.example.com"].ssh.port, None);
    let record = |address: &str| Outcome::Ok(json!([{ "address": address }]));
    for two in ["names = { 'a.example.com', 'b.example.com' }", "'a.example.com', 'b.example.com', type = 'A'"] {
        let two = format!("require 'discovery.dns' {{ {two} }}");
        let found = discover(&two, &[], vec![record("10.0.0.1"), record("10.0.0.1")]);
        let names: Vec<&str> = found.asked.iter().map(|(_, args)| args["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["a.example.com", "b.example.com"]);
        assert_eq!(found.all().len(), 1);
    }
    let one = "require 'discovery.dns' 'a.example.com'";
    assert_eq!(discover(one, &[], vec![record("10.0.0.1")]).all().len(), 1);
}

fn instance(id: &str, more: &Json) -> Json {
    let mut instance = json!({"id": id, "region": "eu-west-1", "account": "123456789012", "state": "running",
        "private_ip": "10.0.0.1", "zone": "eu-west-1a", "type": "t3.micro", "tags": {"Name": "web-1", "role": "web"}});
    instance.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    instance
}

#[test]
fn instances_of_ec2_are_hosts_and_those_that_ended_say_why() {
    let lua = "require 'discovery.ec2' { region = 'eu-west-1', tags = { role = 'web' }, filters = { ['vpc-id'] = { 'a', 'b' } }, autoscaling_group = 'g' }";
    let dead =
        json!({"state": "terminated", "state_reason": "User initiated shutdown", "private_ip": null, "tags": {}});
    let found = discover(
        lua,
        &["i-1", "i-2", "i-3"],
        vec![
            Outcome::Ok(json!([
                instance("i-1", &json!({"autoscaling_group": "g"})),
                instance("i-9", &json!({"state": "pending"}))
            ])),
            Outcome::Ok(json!([instance("i-2", &dead), instance("i-3", &json!({}))])),
        ],
    );
    assert_eq!(
        found.asked[0].1["filters"],
        json!({"tag:role": "web", "vpc-id": ["a", "b"], "tag:aws:autoscaling:groupName": "g"})
    );
    assert_eq!(found.asked[1].1["filters"], json!({"instance-id": ["i-2", "i-3"]}));
    let all = found.all();
    let one = &all["i-1"];
    assert_eq!(
        (one.name.as_str(), one.address.as_str(), one.zone.as_deref()),
        ("web-1", "10.0.0.1", Some("eu-west-1a"))
    );
    let labels: Vec<(&str, &str)> = one.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(
        labels,
        [
            ("Name", "web-1"),
            ("account", "123456789012"),
            ("autoscaling_group", "g"),
            ("region", "eu-west-1"),
            ("role", "web"),
            ("type", "t3.micro")
        ]
    );
    assert_eq!(
        (all["i-2"].state.as_str(), all["i-2"].reason.as_deref()),
        ("terminated", Some("User initiated shutdown"))
    );
    assert_eq!(all["i-9"].state.as_str(), "starting");
    assert!(!all.contains_key("i-3"), "it runs and does not match any more");

    let of = |address: &str, more: &Json| {
        let lua =
            format!("require 'discovery.ec2' {{ regions = {{ 'eu-west-1', 'us-east-1' }}, address = '{address}' }}");
        discover(&lua, &[], vec![Outcome::Ok(json!([instance("i-1", more)]))])
    };
    of("public", &json!({})).fails(&["i-1", "no public address"]);
    of("ipv6", &json!({})).fails(&["i-1", "no ipv6 address"]);
    assert_eq!(of("ipv6", &json!({"ipv6": "2001:db8::7"})).all()["i-1"].address, "2001:db8::7");
    discover("require 'discovery.ec2' {}", &[], vec![]).fails(&["give region or regions"]);
}

/// Google's documented shape of `instances.aggregatedList`.
fn gce_page(names: &[&str], next: Option<&str>) -> Json {
    let instances: Vec<Json> = names
        .iter()
        .map(|name| {
            json!({"id": format!("77{name}"), "name": name, "status": if name.starts_with('x') { "TERMINATED" } else { "RUNNING" },
                "zone": "https://www.googleapis.com/compute/v1/projects/acme/zones/europe-west1-b",
                "machineType": "https://www.googleapis.com/compute/v1/projects/acme/zones/europe-west1-b/machineTypes/e2-small",
                "labels": {"role": "web"}, "tags": {"items": ["http", "ssh"]},
                "networkInterfaces": [{"networkIP": "10.132.0.2", "accessConfigs": [{"natIP": "34.1.2.3"}]}]})
        })
        .collect();
    let mut page = json!({"kind": "compute#instanceAggregatedList", "items": {
        "zones/europe-west1-b": {"instances": instances},
        "zones/us-central1-a": {"warning": {"code": "NO_RESULTS_ON_PAGE", "message": "There are no results"}}}});
    if let Some(next) = next {
        page["nextPageToken"] = json!(next);
    }
    page
}

#[test]
fn google_is_asked_page_by_page_with_the_token_of_the_machine() {
    let lua = "require 'discovery.gce' { project = 'acme', filter = 'labels.role=web' }";
    let token = http(200, &json!({"access_token": "ya29.t", "expires_in": 3599, "token_type": "Bearer"}));
    let found = discover(
        lua,
        &[],
        vec![token.clone(), http(200, &gce_page(&["a", "x"], Some("p/2"))), http(200, &gce_page(&["b"], None))],
    );
    let url = |i: usize| found.asked[i].1["url"].as_str().unwrap().to_owned();
    assert_eq!(url(0), "http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/token");
    assert_eq!(found.asked[0].1["headers"], json!({"metadata-flavor": "Google"}));
    assert_eq!(
        url(1),
        "https://compute.googleapis.com/compute/v1/projects/acme/aggregated/instances?maxResults=500&returnPartialSuccess=false&filter=labels.role%3Dweb"
    );
    assert!(url(2).ends_with("&pageToken=p%2F2"), "{}", url(2));
    assert_eq!(found.asked[1].1["headers"], json!({"authorization": "Bearer ya29.t"}));
    let all = found.all();
    let one = &all["77a"];
    assert_eq!(
        (one.name.as_str(), one.address.as_str(), one.zone.as_deref()),
        ("a", "10.132.0.2", Some("europe-west1-b"))
    );
    assert_eq!(
        (one.labels["role"].as_str(), one.labels["tags"].as_str(), one.labels["type"].as_str()),
        ("web", "http,ssh", "e2-small")
    );
    assert_eq!((all["77x"].state.as_str(), all["77x"].reason.as_deref()), ("stopped", Some("TERMINATED")));

    let six = "require 'discovery.gce' { project = 'acme', address = 'ipv6' }";
    let with = |card: Json| {
        let mut page = gce_page(&["a"], None);
        page["items"]["zones/europe-west1-b"]["instances"][0]["networkInterfaces"] = json!([card]);
        discover(six, &[], vec![token.clone(), http(200, &page)])
    };
    let outside = json!({"networkIP": "10.132.0.2", "ipv6AccessConfigs": [{"externalIpv6": "2600:1901::7", "externalIpv6PrefixLength": 96}]});
    assert_eq!(with(outside).all()["77a"].address, "2600:1901::7");
    let inside = json!({"networkIP": "10.132.0.2", "ipv6Address": "fd20:0:0:1::7"});
    assert_eq!(with(inside).all()["77a"].address, "fd20:0:0:1::7");
    with(json!({"networkIP": "10.132.0.2"})).fails(&["instance a has no ipv6 address"]);

    let denied = json!({"error": {"code": 403, "message": "Required 'compute.instances.list' permission for 'projects/acme'",
        "errors": [{"reason": "forbidden"}]}});
    discover(lua, &[], vec![token.clone(), http(403, &denied)]).fails(&[
        "Google instances.aggregatedList of project acme",
        "Required 'compute.instances.list' permission",
        "(forbidden)",
        "asked by the service account default of this machine",
        "roles/compute.viewer",
    ]);
    let unknown = json!({"error": {"code": 404, "message": "The resource 'projects/acme' was not found", "errors": [{"reason": "notFound"}]}});
    discover(lua, &[], vec![token.clone(), http(404, &unknown)]).fails(&["look at the project's id, \"acme\""]);
    let expired = json!({"error": {"code": 401, "message": "Request had invalid authentication credentials.", "status": "UNAUTHENTICATED"}});
    discover(lua, &[], vec![token.clone(), http(401, &expired)]).fails(&["(UNAUTHENTICATED)", "the token is not good"]);
    let mut unreachable = gce_page(&["a"], None);
    unreachable["items"]["zones/us-central1-a"]["warning"]["code"] = json!("UNREACHABLE");
    discover(lua, &[], vec![token.clone(), http(200, &unreachable)]).fails(&["zones/us-central1-a cannot be reached"]);
    let again = http(200, &gce_page(&["a"], Some("p")));
    discover(lua, &[], vec![token.clone(), again.clone(), again]).fails(&["the same page again"]);
    // Google leaves `items` out where there is nothing; what is no list of its at all is no empty list.
    let empty = json!({"kind": "compute#instanceAggregatedList", "id": "projects/acme/aggregated/instances"});
    assert!(discover(lua, &[], vec![token.clone(), http(200, &empty)]).all().is_empty());
    for not_a_list in
        [json!({}), json!("<html>sign in</html>"), json!({"kind": "compute#instanceAggregatedList", "items": "x"})]
    {
        discover(lua, &[], vec![token.clone(), http(200, &not_a_list)]).fails(&["is not what it should be"]);
    }
    let mut unknown = gce_page(&["a"], None);
    unknown["items"]["zones/europe-west1-b"]["instances"][0]["status"] = json!("DREAMING");
    discover(lua, &[], vec![token, http(200, &unknown)]).fails(&["instance a is in the state DREAMING"]);
    let nowhere = Outcome::failed(Cause::new("http_connect", "failed to look up metadata.google.internal"));
    discover(lua, &[], vec![nowhere]).fails(&["metadata server", "outside of Google give key"]);
}

#[test]
fn google_exchanges_a_signed_assertion_for_a_token() {
    let lua = "require 'discovery.gce' { project = 'acme', key = phased.secret 'gcp.json', address = 'public' }";
    let found = discover(
        lua,
        &[],
        vec![Outcome::Ok(json!("a.b.c")), http(200, &json!({"access_token": "t"})), http(200, &gce_page(&["a"], None))],
    );
    assert_eq!(found.asked[0].0, "jwt");
    assert_eq!(found.asked[0].1["from_key"], json!({"iss": "client_email"}));
    assert_eq!(
        found.asked[0].1["claims"],
        json!({"scope": "https://www.googleapis.com/auth/compute.readonly", "aud": "https://oauth2.googleapis.com/token"})
    );
    assert_eq!(
        found.asked[1].1["form"],
        json!({"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": "a.b.c"})
    );
    assert_eq!(found.all()["77a"].address, "34.1.2.3");
    let refused = json!({"error": "invalid_grant", "error_description": "Invalid JWT Signature."});
    // Whose the key is stands in what is signed with it.
    let claims = base64::Engine::encode(
        &base64::engine::general_purpose::URL_SAFE_NO_PAD,
        json!({"iss": "ci@acme.iam.gserviceaccount.com", "exp": 1_800_000_000, "why": "~?>"}).to_string(),
    );
    let signed = || Outcome::Ok(json!(format!("eyJ.{claims}.c")));
    let denied = json!({"error": {"code": 403, "message": "Required permission", "errors": [{"reason": "forbidden"}]}});
    discover(lua, &[], vec![signed(), http(200, &json!({"access_token": "t"})), http(403, &denied)])
        .fails(&["of project acme, asked by the service account ci@acme.iam.gserviceaccount.com: Required permission"]);
    discover(lua, &[], vec![signed(), http(400, &refused)]).fails(&[
        "Google refused a token for the service account ci@acme.iam.gserviceaccount.com: ",
        "Invalid JWT Signature. (invalid_grant)",
        "make a new key",
    ]);
}

fn azure_row(name: &str, power: &str) -> Json {
    json!({"id": format!("/subscriptions/s-1/resourceGroups/rg/providers/Microsoft.Compute/virtualMachines/{name}"), "name": name,
        "location": "westeurope", "resourceGroup": "rg", "subscriptionId": "s-1", "tags": {"role": "web"}, "zones": ["2"],
        "vm_id": format!("vm-{name}"), "size": "Standard_B1s", "power": power, "private_ip": "10.1.0.4", "public_ip": ""})
}

#[test]
fn azure_is_asked_page_by_page_with_the_identity_of_the_machine() {
    let lua =
        "require 'discovery.azure' { subscription = 's-1', tags = { role = \"we'b\" }, where = \"location == '%s'\" }";
    let token = http(200, &json!({"access_token": "eyJ0", "expires_on": "1506484173", "token_type": "Bearer"}));
    let page = |rows: Vec<Json>, skip: Option<&str>| {
        let mut page =
            json!({"totalRecords": 2, "count": rows.len(), "resultTruncated": "false", "data": rows, "facets": []});
        if let Some(skip) = skip {
            page["$skipToken"] = json!(skip);
        }
        http(200, &page)
    };
    let found = discover(
        lua,
        &[],
        vec![
            token.clone(),
            page(vec![azure_row("a", "PowerState/running")], Some("s2")),
            page(vec![azure_row("b", "PowerState/deallocated")], None),
        ],
    );
    assert_eq!(
        found.asked[0].1["url"],
        "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fmanagement.azure.com%2F"
    );
    assert_eq!(found.asked[0].1["headers"], json!({"metadata": "true"}));
    let first = &found.asked[1].1;
    assert_eq!(
        first["url"],
        "https://management.azure.com/providers/Microsoft.ResourceGraph/resources?api-version=2021-03-01"
    );
    assert_eq!((&first["json"]["subscriptions"], &first["json"]["options"]["$top"]), (&json!(["s-1"]), &json!(1000)));
    let query = first["json"]["query"].as_str().unwrap();
    assert!(
        query.contains("| where tostring(tags['role']) == 'we\\'b'\n| where location == '%s'\n| extend nic"),
        "{query}"
    );
    assert_eq!(found.asked[2].1["json"]["options"]["$skipToken"], "s2");
    let all = found.all();
    let one = &all["vm-a"];
    assert_eq!((one.name.as_str(), one.address.as_str(), one.zone.as_deref()), ("a", "10.1.0.4", Some("westeurope-2")));
    assert_eq!((one.labels["role"].as_str(), one.labels["size"].as_str()), ("web", "Standard_B1s"));
    assert_eq!(
        (all["vm-b"].state.as_str(), all["vm-b"].reason.as_deref()),
        ("stopped", Some("PowerState/deallocated"))
    );

    let denied = json!({"error": {"code": "Forbidden", "message": "Access denied", "details": [{"code": "x", "message": "no access to s-1"}]}});
    let unknown = page(vec![azure_row("a", "PowerState/unknown")], None);
    discover(lua, &[], vec![token.clone(), unknown]).fails(&["machine a is in the state PowerState/unknown"]);
    let new = discover(lua, &[], vec![token.clone(), page(vec![azure_row("n", "")], None)]).all();
    assert_eq!((new["vm-n"].state.as_str(), new["vm-n"].reason.as_deref()), ("starting", Some("no power state")));
    // More than there is in the answer, and no way to the rest: as all there is it would end the others.
    for truncated in [json!("true"), json!(true)] {
        let cut =
            json!({"totalRecords": 7, "resultTruncated": truncated, "data": [azure_row("a", "PowerState/running")]});
        discover(lua, &[], vec![token.clone(), http(200, &cut)]).fails(&[
            "Azure Resource Graph of subscription s-1, asked by this machine's managed identity: ",
            "is truncated (1 machines of 7) and says nothing of a next page",
            "resource_group, tags or where",
        ]);
    }
    let cut = json!({"resultTruncated": "true", "$skipToken": "s", "data": [azure_row("a", "PowerState/running")]});
    let rest = page(vec![azure_row("b", "PowerState/running")], None);
    assert_eq!(
        discover(lua, &[], vec![token.clone(), http(200, &cut), rest]).all().len(),
        2,
        "with a next page it is followed"
    );
    for (status, code, said) in [
        (
            400,
            "BadRequest",
            "There must be at least one subscription that is eligible to contain resources. Given: 's-1'.",
        ),
        (404, "SubscriptionNotFound", "The subscription 's-1' could not be found."),
    ] {
        let wrong = json!({"error": {"code": code, "message": said}});
        discover(lua, &[], vec![token.clone(), http(status, &wrong)]).fails(&[
            "Azure Resource Graph of subscription s-1, asked by this machine's managed identity: ",
            &format!("{said} ({code})"),
            "look at the ids of the subscriptions",
        ]);
    }
    discover(lua, &[], vec![token, http(403, &denied)]).fails(&[
        "Azure Resource Graph of subscription s-1",
        "asked by this machine's managed identity: ",
        "Access denied: no access to s-1 (Forbidden)",
        "the role Reader",
    ]);
    let none = json!({"error": "invalid_request", "error_description": "Identity not found"});
    discover(lua, &[], vec![http(400, &none)]).fails(&[
        "metadata server gives no token for this machine's managed identity: Identity not found (invalid_request)",
    ]);
}

#[test]
fn azure_exchanges_a_client_secret_for_a_token() {
    let lua = "require 'discovery.azure' { subscriptions = { 's-1', 's-2' }, tenant = 't-1', client_id = 'c-1', client_secret = phased.secret 'az' }";
    let rows = http(200, &json!({"data": [azure_row("a", "PowerState/running")]}));
    let found = discover(lua, &[], vec![http(200, &json!({"access_token": "t"})), rows]);
    assert_eq!(found.asked[0].1["url"], "https://login.microsoftonline.com/t-1/oauth2/v2.0/token");
    assert_eq!(
        found.asked[0].1["form"],
        json!({"grant_type": "client_credentials", "client_id": "c-1", "client_secret": {"$secret": "az"},
            "scope": "https://management.azure.com/.default"})
    );
    assert_eq!(found.all().len(), 1);
    let refused = json!({"error": "invalid_client", "error_description": "AADSTS7000222: The provided client secret keys are expired.\r\nTrace ID: x"});
    discover(lua, &[], vec![http(401, &refused)]).fails(&[
        "client c-1 of the tenant t-1",
        "AADSTS7000222",
        "whether the client secret has expired",
    ]);
    let without = "require 'discovery.azure' { subscription = 's', client_secret = phased.secret 'az' }";
    discover(without, &[], vec![]).fails(&["client_secret goes with tenant and client_id"]);
}

#[test]
fn a_large_inventory_stays_within_the_limits_of_lua() {
    let instances: Vec<Json> = (0..5000)
        .map(|n| instance(&format!("i-{n}"), &json!({"private_ip": format!("10.0.{}.{}", n / 250, n % 250 + 1)})))
        .collect();
    let found = discover("require 'discovery.ec2' { region = 'eu-west-1' }", &[], vec![Outcome::Ok(json!(instances))]);
    assert_eq!(found.all().len(), 5000);
    let hosts: String = (0..5000).map(|n| format!("web{n} ansible_host=10.0.0.1 role=web zone=\"eu 1\"\n")).collect();
    assert_eq!(discover("require 'discovery.ansible' { '/hosts' }", &[], text(&hosts)).all().len(), 5000);
}

#[test]
fn the_example_of_another_cloud_works() {
    let server = |id: u32, status: &str| {
        json!({"id": id, "name": format!("web-{id}"), "status": status, "labels": {"role": "web"}, "private_net": [],
            "public_net": {"ipv4": {"ip": format!("203.0.113.{id}")}}, "location": {"name": "fsn1"}})
    };
    let page = |servers: Vec<Json>, next: Json| {
        http(200, &json!({"servers": servers, "meta": {"pagination": {"page": 1, "next_page": next}}}))
    };
    let lua = "require 'discovery.hetzner' { token = phased.secret 'h', selector = 'role=web' }";
    let found =
        discover(lua, &[], vec![page(vec![server(1, "running")], json!(2)), page(vec![server(2, "off")], Json::Null)]);
    assert_eq!(
        found.asked[1].1["url"],
        "https://api.hetzner.cloud/v1/servers?per_page=50&page=2&label_selector=role%3Dweb"
    );
    let all = found.all();
    assert_eq!((all["1"].address.as_str(), all["1"].zone.as_deref()), ("203.0.113.1", Some("fsn1")));
    assert_eq!((all["2"].state.as_str(), all["2"].reason.as_deref()), ("stopped", Some("off")));
    discover(lua, &[], vec![page(vec![server(3, "unknown")], Json::Null)]).fails(&["web-3 is in the state unknown"]);
    let mut six = server(4, "running");
    six["public_net"]["ipv4"] = Json::Null;
    discover(lua, &[], vec![page(vec![six], Json::Null)]).fails(&["web-4 has neither a private nor a public IPv4"]);
    discover(lua, &[], vec![http(401, &json!({"error": {"code": "unauthorized"}}))]).fails(&["make a new one"]);
}
