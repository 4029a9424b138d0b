//! Projects that are wrong, each a change of `BASE`, and everything that is said about them.

use super::*;

/// What is replaced (nothing = everything), by what, and the findings.
#[rustfmt::skip]
const BAD: &[(&str, &str, &str)] = &[
    (
        r##"source = {"##,
        r##"sorce = {"##,
        r##"shop:3:3+5 unknown_key: unknown key "sorce" in phased.project; did you mean "source"?"##,
    ),
    (
        r##"branch = "main""##,
        r##"brnach = "main""##,
        r##"shop:3:52+6 unknown_key: unknown key "brnach" in source; did you mean "branch"?"##,
    ),
    (
        r##"branch = "main""##,
        r##"branch = 5"##,
        r##"shop:3:61+1 wrong_type: source.branch must be a branch name, not 5"##,
    ),
    (
        r##"branch = "main""##,
        r##"branch = "refs/heads/main""##,
        r##"shop:3:61+17 bad_value: source.branch: "refs/heads/main" must be the short name, as in "main""##,
    ),
    (
        r##"branch = "main""##,
        r##"branch = "-x""##,
        r##"shop:3:61+4 bad_value: source.branch: "-x" is not a valid branch name"##,
    ),
    (
        r##", branch = "main""##,
        r##""##,
        r##"shop:3:12+1 missing_key: source has no "branch"; the branch that is deployed"##,
    ),
    (
        r##"git = "https://example.com/shop.git""##,
        r##"git = "ext::sh -c id""##,
        r##"shop:3:20+15 bad_value: source.git: "ext::sh -c id" names a remote helper, which could run anything: use https, ssh or file"##,
    ),
    (
        r##"git = "https://example.com/shop.git""##,
        r##"git = "https://user:pass@example.com/x.git""##,
        r##"shop:3:20+37 bad_value: source.git: "https://user:pass@example.com/x.git" holds a password: give it as token = phased.secret "name""##,
    ),
    (
        r##"git = "https://example.com/shop.git""##,
        r##"git = true"##,
        r##"shop:3:20+4 wrong_type: source.git must be a git URL, not true"##,
    ),
    (
        r##"branch = "main""##,
        r##"branch = "main", poll = 5"##,
        r##"shop:3:76+1 wrong_type: source.poll must be a duration such as "5m", not 5; write it as text with a unit: "5s" or "5m""##,
    ),
    (
        r##"branch = "main""##,
        r##"branch = "main", poll = "5 minutes""##,
        r##"shop:3:76+11 bad_value: source.poll: "5 minutes" is not a duration; write a whole number and a unit, as in "500ms", "10s", "5m" or "1h30m""##,
    ),
    (
        r##"branch = "main""##,
        r##"branch = "main", poll = "0s""##,
        r##"shop:3:76+4 bad_value: source.poll: "0s" must be more than nothing"##,
    ),
    (
        r##"branch = "main""##,
        r##"branch = "main", webhook = "plain""##,
        r##"shop:3:79+7 wrong_type: source.webhook must be a phased.secret or a list of secrets, not "plain"; write phased.secret "name" and put the value into the secrets directory"##,
    ),
    (
        r##"branch = "main""##,
        r##"branch = "main", webhook = phased.secret "nope""##,
        r##"shop:3:93+6 secret_missing: secret "nope" does not exist: put it into /etc/phased/secrets"##,
    ),
    (
        r##"branch = "main""##,
        r##"branch = "main", webhook = { phased.secret "good", phased.secret 'gone' }"##,
        r##"shop:3:117+6 secret_missing: secret "gone" does not exist: put it into /etc/phased/secrets"##,
    ),
    (
        r##"branch = "main""##,
        r##"branch = "main", key = phased.secret "good""##,
        r##"shop:3:69+3 bad_value: source.key does not go with "https://example.com/shop.git"; for https give token = phased.secret "name""##,
    ),
    (
        r##"branch = "main""##,
        r##"branch = "main", known_hosts = "known_hosts""##,
        r##"shop:3:83+13 bad_value: source.known_hosts: "known_hosts" is not absolute: begin it with /"##,
    ),
    (
        r##"branch = "main""##,
        r##"branch = "main", tags = "v[""##,
        r##"shop:3:76+4 bad_value: source.tags: "v[" is no pattern: unclosed character class; missing ']'"##,
    ),
    (
        r##"source = { git = "https://example.com/shop.git", branch = "main" }"##,
        r##"source = "https://example.com/shop.git""##,
        r##"shop:3:12+30 wrong_type: source must be a table, not "https://example.com/shop.git""##,
    ),
    (
        r##"source = { git = "https://example.com/shop.git", branch = "main" },"##,
        r##""##,
        r##"shop:2:8+14 missing_key: phased.project has no "source"; where commits come from"##,
    ),
    (
        r##"source = { git = "https://example.com/shop.git", branch = "main" },"##,
        r##"source = { git = "https://example.com/shop.git", branch = "main" }, queue = "lates","##,
        r##"shop:3:79+7 bad_value: queue must be "latest" or "all", not "lates"; did you mean "latest"?"##,
    ),
    (
        r##"source = { git = "https://example.com/shop.git", branch = "main" },"##,
        r##"source = { git = "https://example.com/shop.git", branch = "main" }, queue = true,"##,
        r##"shop:3:79+4 wrong_type: queue must be "latest" or "all", not true"##,
    ),
    (
        r##"source = { git = "https://example.com/shop.git", branch = "main" },"##,
        r##"source = { git = "https://example.com/shop.git", branch = "main" }, tasks = {},"##,
        r##"shop:3:71+5 not_supported: "tasks" is not supported by this version of phased; take it out: it would have no effect"##,
    ),
    (
        r##"source = { git = "https://example.com/shop.git", branch = "main" },"##,
        r##"source = { git = "https://example.com/shop.git", branch = "main" }, "stray","##,
        r##"shop:3:71+7 unknown_key: unexpected value "stray" without a key in phased.project; everything in it has a key"##,
    ),
    (
        r##"source = { git = "https://example.com/shop.git", branch = "main" },"##,
        r##"source = { git = "https://example.com/shop.git", branch = "main" }, [true] = 1,"##,
        r##"shop:2:8+14 unknown_key: phased.project has a key true that is no name"##,
    ),
    (
        r##"test = { { "unit", run = function(run) run:sh "npm test" end } }"##,
        r##"test = {}"##,
        r##"shop:4:10+1 bad_value: test is empty"##,
    ),
    (
        r##"test = { { "unit", run = function(run) run:sh "npm test" end } }"##,
        r##"test = { "unit", run = function(run) run:sh "npm test" end }"##,
        r##"shop:4:20+3 wrong_type: test must be a list, and has the key "run"; put it into braces of its own"##,
    ),
    (
        r##"test = { { "unit", run = function(run) run:sh "npm test" end } }"##,
        r##"test = function() end"##,
        r##"shop:4:10+8 wrong_type: test must be a list, not a function"##,
    ),
    (
        r##"{ "unit", run"##,
        r##"{ run"##,
        r##"shop:4:12+1 missing_key: test[1] has no name; it is the first value without a key: what the stage is called"##,
    ),
    (
        r##"{ "unit", run"##,
        r##"{ "a b", run"##,
        r##"shop:4:14+5 bad_value: test[1].name: "a b" must be 1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit"##,
    ),
    (
        r##"{ "unit", run"##,
        r##"{ 7, run"##,
        r##"shop:4:14+1 wrong_type: test[1].name must be a stage name, not 7"##,
    ),
    (
        r##"{ "unit", run"##,
        r##"{ "unit", setup = "scripts/populate", run"##,
        r##"shop:4:30+18 wrong_type: test[1].setup must be a function, not "scripts/populate""##,
    ),
    (
        r##"{ "unit", run"##,
        r##"{ "unit", "extra", run"##,
        r##"shop:4:22+7 unknown_key: unexpected value "extra" without a key in test[1]; only the name has no key"##,
    ),
    (
        r##"{ "unit", run"##,
        r##"{ "unit", clean_up = error, run"##,
        r##"shop:4:22+8 unknown_key: unknown key "clean_up" in test[1]; did you mean "cleanup"?"##,
    ),
    (
        r##"{ "unit", run = function(run) run:sh "npm test" end }"##,
        r##"{ "unit" }"##,
        r##"shop:4:12+1 missing_key: test[1] has no "run"; the tests; an error fails the run"##,
    ),
    (
        r##"{ "unit", run"##,
        r##"{ "unit", timeout = 30, run"##,
        r##"shop:4:32+2 wrong_type: test[1].timeout must be a duration such as "5m", not 30; write it as text with a unit: "30s" or "30m""##,
    ),
    (
        r##"test = { "##,
        r##"test = { { "unit", run = error }, "##,
        r##"shop:4:39+6 bad_value: the stage "unit" is there twice: test[1] is called so too"##,
    ),
    (
        r##"    { "production","##,
        r##"    { "production", canary = 1, alarms = {},"##,
        r##"shop:6:21+6 unknown_key: unknown key "canary" in environments[1]; it belongs into rollout = { ... }
shop:6:42+1 bad_value: environments[1].alarms is empty"##,
    ),
    (
        r##"    { "production","##,
        r##"    { "production", transport = "signal","##,
        r##"shop:6:5+1 missing_key: environments[1] has transport = "signal" and no "signal"; as in signal = { key = phased.secret "signals", receivers = "/etc/phased/receivers" }
shop:9:7+6 bad_value: environments[1].health does not go with transport = "signal"; each receiver looks at what it deploys, by its own project file, and is asked; tests from here belong into verify"##,
    ),
    (
        r##"    { "production","##,
        r##"    { "production", transport = "pigeon", signal = { key = "x", prot = 1 },"##,
        r##"shop:6:33+8 bad_value: environments[1].transport must be "ssh" or "signal", not "pigeon"
shop:6:60+3 wrong_type: environments[1].signal.key must be a phased.secret, not "x"; write phased.secret "name" and put the value into the secrets directory
shop:6:65+4 unknown_key: unknown key "prot" in environments[1].signal; did you mean "port"?"##,
    ),
    (
        r##"    { "production","##,
        r##"    { "production", signal = { key = phased.secret "good" },"##,
        r##"shop:6:21+6 bad_value: environments[1].signal is for transport = "signal", and its hosts are reached by SSH; add transport = "signal", or take it out"##,
    ),
    (
        r##""##,
        r##"return phased.project {
  source = { git = "https://example.com/shop.git", branch = "main" },
  test = { { "unit", run = function(run) end } },
  environments = { { "production", transport = "signal", ssh = {}, signal = { key = phased.secret "good" },
    hosts = { "10.0.0.1", phased.localhost, { address = "10.0.0.2", receiver_key = "ssh-rsa AAAA" } } } },
  notify = require "alerts.log" {},
}"##,
        r##"shop:4:58+3 bad_value: environments[1].ssh does not go with transport = "signal"; nothing is reached by SSH there: its daemons are sent signals
shop:5:15+10 bad_value: environments[1].hosts[1] has no receiver_key: nobody could tell the answers of its daemon from somebody else's; give it receiver_key = "ssh-ed25519 ...", which phased keys show prints there, or name a file of all by signal.receivers
shop:5:27+16 bad_value: environments[1].hosts[2] is this server itself, which is sent no signals; deploy to it in an environment of its own, without transport
shop:5:84+14 bad_value: environments[1].hosts[3].receiver_key: "ssh-rsa AAAA" is no public key: it is of the type ssh-rsa, and signals use ssh-ed25519 only"##,
    ),
    (
        r##""##,
        r##"return phased.project {
  source = { git = "https://example.com/shop.git", branch = "main" },
  environments = { { "production", when = "signal", hosts = { phased.localhost }, deploy = function(host) end, health = "none" },
    { "staging", hosts = { phased.localhost }, deploy = function(host) end, health = "none" } },
  notify = require "alerts.log" {},
}"##,
        r##"shop:1:8+14 missing_key: phased.project has no "test"; stages of tests on this server, in order; the first failure ends the run and nothing is deployed"##,
    ),
    (
        r##"    { "production","##,
        r##"    { "production", rollout = { canary = 1, waves = { "10%" } },"##,
        r##"shop:6:55+5 bad_value: the last of the waves is "10%", so not every host would get the release; the list ends in "100%""##,
    ),
    (
        r##"    { "production","##,
        r##"    { "production", rollout = { waves = { "50%", "10%", "100%" } },"##,
        r##"shop:6:50+5 bad_value: waves are how many hosts have it after each: 10% does not come after 50%; give them in rising order, the canary included"##,
    ),
    (
        r##"    { "production","##,
        r##"    { "production", rollout = { canary = { label = "x" }, on_failure = "retry", bake_time = 5 },"##,
        r##"shop:6:44+5 unknown_key: unknown key "label" in environments[1].rollout.canary; did you mean "labels"?
shop:6:72+7 bad_value: environments[1].rollout.on_failure must be "rollback", "halt" or "pause", not "retry"
shop:6:93+1 wrong_type: environments[1].rollout.bake_time must be a duration such as "5m", not 5; write it as text with a unit: "5s" or "5m""##,
    ),
    (
        r##"    { "production","##,
        r##"    { "production", rollout = { max_paralell = 2 },"##,
        r##"shop:6:33+12 unknown_key: unknown key "max_paralell" in environments[1].rollout; did you mean "max_parallel"?"##,
    ),
    (
        r##"    { "production","##,
        r##"    { "production", rollout = { max_parallel = 0 },"##,
        r##"shop:6:48+1 bad_value: environments[1].rollout.max_parallel must be a whole number from 1 to 10000, not 0"##,
    ),
    (
        r##"    { "production","##,
        r##"    { "production", rollout = { max_parallel = 1.5 },"##,
        r##"shop:6:48+3 wrong_type: environments[1].rollout.max_parallel must be a whole number from 1 to 10000, not 1.5"##,
    ),
    (
        r##"    { "production","##,
        r##"    { "production", rollout = { max_parallel = "2" },"##,
        r##"shop:6:48+3 wrong_type: environments[1].rollout.max_parallel must be a whole number from 1 to 10000, not "2"; write it without quotes: 2"##,
    ),
    (
        r##"    { "production","##,
        r##"    { "production", rollout = { max_failures = "120%" },"##,
        r##"shop:6:48+6 bad_value: environments[1].rollout.max_failures: "120%" is not a percentage from "0%" to "100%""##,
    ),
    (
        r##"    { "production","##,
        r##"    { "production", rollout = { max_failures = true },"##,
        r##"shop:6:48+4 wrong_type: environments[1].rollout.max_failures must be a whole number from 0 to 1000000 or a percentage such as "10%", not true"##,
    ),
    (
        r##"    { "production","##,
        r##"    { "production", ssh = { user = "a b", port = 70000, known_hosts = "etc", jump = "x:y" },"##,
        r##"shop:6:36+5 bad_value: environments[1].ssh.user: "a b" is not a user name
shop:6:50+5 bad_value: environments[1].ssh.port must be a whole number from 1 to 65535, not 70000
shop:6:71+5 bad_value: environments[1].ssh.known_hosts: "etc" is not absolute: begin it with /
shop:6:85+5 bad_value: environments[1].ssh.jump: "x:y" has no valid port"##,
    ),
    (
        r##"    { "production","##,
        r##"    { "production", ssh = { key = "~/.ssh/id_ed25519" },"##,
        r##"shop:6:35+19 wrong_type: environments[1].ssh.key must be a phased.secret, not "~/.ssh/id_ed25519"; write phased.secret "name" and put the value into the secrets directory"##,
    ),
    (
        r##"    { "production","##,
        r##"    { "", "##,
        r##"shop:6:7+2 bad_value: environments[1].name: "" must be 1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit"##,
    ),
    (
        r##"hosts = { "web1", "web2" },"##,
        r##""##,
        r##"shop:6:5+1 missing_key: environments[1] has no "hosts"; its hosts: a list of addresses, host tables and discoveries, or one discovery"##,
    ),
    (
        r##"hosts = { "web1", "web2" },"##,
        r##"hosts = {},"##,
        r##"shop:7:15+1 bad_value: environments[1].hosts is empty"##,
    ),
    (
        r##"hosts = { "web1", "web2" },"##,
        r##"hosts = "web1","##,
        r##"shop:7:15+6 wrong_type: environments[1].hosts must be a discovery, as in discovery.file { "hosts.json" } or a list, not "web1"; put it into braces: { "web1" }"##,
    ),
    (
        r##"hosts = { "web1", "web2" },"##,
        r##"hosts = { "web1", "web1" },"##,
        r##"shop:7:25+6 bad_value: the host "web1" is there twice: hosts[1] has the same id; a host's id is its address unless it has one of its own"##,
    ),
    (
        r##"hosts = { "web1", "web2" },"##,
        r##"hosts = { "web1", { address = "10.0.0.1", id = "web1" } },"##,
        r##"shop:7:25+1 bad_value: the host "web1" is there twice: hosts[1] has the same id; a host's id is its address unless it has one of its own"##,
    ),
    (
        r##"hosts = { "web1", "web2" },"##,
        r##"hosts = { { id = "a" }, { address = "h:22" }, { address = "-oProxyCommand=id" } },"##,
        r##"shop:7:17+1 missing_key: environments[1].hosts[1] has no "address"; where its sshd listens
shop:7:43+6 bad_value: environments[1].hosts[2].address: "h:22" holds a colon: give the port as port
shop:7:65+19 bad_value: environments[1].hosts[3].address: "-oProxyCommand=id" is not a host name or address"##,
    ),
    (
        r##"hosts = { "web1", "web2" },"##,
        r##"hosts = { { address = "h", port = "22", lables = {} } },"##,
        r##"shop:7:41+4 wrong_type: environments[1].hosts[1].port must be a whole number from 1 to 65535, not "22"; write it without quotes: 22
shop:7:47+6 unknown_key: unknown key "lables" in environments[1].hosts[1]; did you mean "labels"?"##,
    ),
    (
        r##"hosts = { "web1", "web2" },"##,
        r##"hosts = { { address = "h", labels = { "web" } } },"##,
        r##"shop:7:45+5 wrong_type: unexpected value "web" without a key in environments[1].hosts[1].labels; each needs a label's name"##,
    ),
    (
        r##"hosts = { "web1", "web2" },"##,
        r##"hosts = { "$(id)", "a b", 5 },"##,
        r##"shop:7:17+7 bad_value: environments[1].hosts[1]: "$(id)" is not a host name or address
shop:7:26+5 bad_value: environments[1].hosts[2]: "a b" is not a host name or address
shop:7:33+1 wrong_type: environments[1].hosts[3] must be an address, a discovery, as in discovery.file { "hosts.json" } or a table, not 5"##,
    ),
    (
        r##"hosts = { "web1", "web2" },"##,
        r##"hosts = { [1] = "a", [3] = "b" },"##,
        r##"shop:7:15+1 wrong_type: environments[1].hosts must be a list without gaps"##,
    ),
    (
        r##"hosts = { "web1", "web2" },"##,
        r##"hosts = require "discovery.file","##,
        r##"shop:7:15+24 wrong_type: environments[1].hosts must be a discovery, as in discovery.file { "hosts.json" } or a list, not the discovery plugin file without its options; call the discovery with its options, if only {}"##,
    ),
    (
        r##"hosts = { "web1", "web2" },"##,
        r##"hosts = require "discovery.file" { "hosts.json" },"##,
        r##"shop:7:23+16 bad_value: discovery file: path: "hosts.json" is not absolute: begin it with /"##,
    ),
    (
        r##"hosts = { "web1", "web2" },"##,
        r##"hosts = require "discovery.file" {},"##,
        r##"shop:7:15+7 missing_key: discovery file has no path; it is the first value without a key: the file, absolute; its name ends in .json or .csv"##,
    ),
    (
        r##"hosts = { "web1", "web2" },"##,
        r##"hosts = require "discovery.file" { "/hosts.json", format = "json" },"##,
         r##"shop:7:57+6 unknown_key: unknown key "format" in discovery file; it knows path, interval, timeout, min_hosts, max_shrink, max_growth, max_age, port_label, user_label"##,
    ),
    (
        r##"hosts = { "web1", "web2" },"##,
        r##"hosts = require "discovery.fiel" { "/hosts.json" },"##,
        r##"shop:7:7+51 module_missing: module "discovery.fiel" is not found: there is no DIR/discovery/fiel.lua and it is not a shipped plugin; did you mean "discovery.file"?"##,
    ),
    (
        r##"hosts = { "web1", "web2" },"##,
        r##"hosts = log,"##,
        r##"shop:7:15+3 wrong_type: environments[1].hosts must be a discovery, as in discovery.file { "hosts.json" } or a list, not the alert log"##,
    ),
    (
        r##"deploy = function(host) host:sh "true" end"##,
        r##"deploy = "npm install""##,
        r##"shop:8:16+13 wrong_type: environments[1].deploy must be a function, not "npm install""##,
    ),
    (
        r##"deploy = function(host) host:sh "true" end,"##,
        r##""##,
        r##"shop:6:5+1 missing_key: environments[1] has no "deploy"; puts the release on one host"##,
    ),
    (
        r##"health = { http = ":8080/healthz" } },"##,
        r##"health = { http = ":8080/healthz" }, freeze = { from = "fri 16:00", to = "mon 08:00", zone = "UTC" } },"##,
        r##"shop:9:55+4 wrong_type: environments[1].freeze must be a list, and has the key "from"; put it into braces of its own"##,
    ),
    (
        r##"health = { http = ":8080/healthz" } },"##,
        r##"health = { http = ":8080/healthz" }, freeze = { { from = "fri 16:00", to = "mon 08:00" } } },"##,
        r##"shop:9:55+1 missing_key: environments[1].freeze[1] has no "zone"; whose clock: "Europe/Berlin", "UTC""##,
    ),
    (
        r##"health = { http = ":8080/healthz" } },"##,
        r##"health = { http = ":8080/healthz" }, freeze = { { from = "fri 16:00", to = "08:00", zone = "UTC" } } },"##,
        r##"shop:9:82+7 bad_value: environments[1].freeze[1]: "from" and "to" must be of one kind: both times of day, both with a day of the week, or both with a date"##,
    ),
    (
        r##"health = { http = ":8080/healthz" } },"##,
        r##"health = { http = ":8080/healthz" }, freeze = { { days = "fri-sun", zone = "Europe/Berln" } } },"##,
        r##"shop:9:82+14 bad_value: environments[1].freeze[1].zone: "Europe/Berln" is no time zone: write it as in "Europe/Berlin", or "UTC""##,
    ),
    (
        r##"health = { http = ":8080/healthz" } },"##,
        r##"health = { http = ":8080/healthz" }, freeze = { { days = "fry", from = "4pm", zone = "UTC" } } },"##,
        r##"shop:9:78+5 bad_value: environments[1].freeze[1]: "4pm" is no time: write "16:00", "fri 16:00", "2026-12-20" or "2026-12-20 16:00""##,
    ),
    (
        r##"health = { http = ":8080/healthz" } },"##,
        r##"health = { http = ":8080/healthz" }, freeze = { { day = "fri", zone = "UTC" } } },"##,
        r##"shop:9:57+3 unknown_key: unknown key "day" in environments[1].freeze[1]; did you mean "days"?"##,
    ),
    (
        r##"health = { http = ":8080/healthz" } },"##,
        r##"health = { http = ":8080/healthz" }, freeze = { { days = "mon-wed", zone = "UTC" }, { days = "thu-sun", zone = "UTC" } } },"##,
        r##"shop:9:53+1 bad_value: environments[1].freeze: together they leave no time in which anything could be deployed; a freeze by hand is `phased freeze PROJECT ENVIRONMENT`"##,
    ),
    (
        r##"health = { http = ":8080/healthz" } },"##,
        r##"health = { http = ":8080/healthz" }, when = "tag" },"##,
        r##"shop:9:51+5 wrong_type: environments[1].when must be "push", "manual", "signal" or a table of tag, not "tag""##,
    ),
    (
        r##"health = { http = ":8080/healthz" } },"##,
        r##"health = { http = ":8080/healthz" }, when = { tag = "v*" } },"##,
        r##"shop:9:51+1 bad_value: environments[1].when waits for tags, and no pushed tag starts a run; add source.tags, as in source = { ..., tags = "v*" }, or write when = "manual""##,
    ),
    (
        r##"health = { http = ":8080/healthz" } },"##,
        r##"health = { http = ":8080/healthz" }, when = { tags = "v*" } },"##,
        r##"shop:9:53+4 unknown_key: unknown key "tags" in environments[1].when; did you mean "tag"?"##,
    ),
    (
        r##"health = { http = ":8080/healthz" } },"##,
        r##"health = { http = ":8080/healthz" }, group = "a b" },"##,
        r##"shop:9:52+5 bad_value: environments[1].group: "a b" must be 1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit"##,
    ),
    (
        r##"health = { http = ":8080/healthz" } },"##,
        r##"health = { http = ":8080/healthz" }, freeze = { { zone = "UTC" } } },"##,
        r##"shop:9:55+1 bad_value: environments[1].freeze[1]: it says no time: give from and to, or days"##,
    ),
    (
        r##"health = { http = ":8080/healthz" }"##,
        r##"health = nil"##,
        r##"shop:6:5+1 missing_key: environments[1] has no "health"; when a host is healthy after its deploy; "none" on purpose"##,
    ),
    (
        r##"health = { http = ":8080/healthz" }"##,
        r##"health = "nnone""##,
        r##"shop:9:16+7 wrong_type: environments[1].health must be "none" or a table, not "nnone"; did you mean "none"?"##,
    ),
    (
        r##"health = { http = ":8080/healthz" }"##,
        r##"health = {}"##,
        r##"shop:9:16+1 missing_key: environments[1].health has no check: give http, tcp, command, service, container or version; as in health = { http = ":8080/healthz" }, or health = "none" on purpose"##,
    ),
    (
        r##"health = { http = ":8080/healthz" }"##,
        r##"health = { htpp = ":8080/" }"##,
        r##"shop:9:18+4 unknown_key: unknown key "htpp" in environments[1].health; did you mean "http"?"##,
    ),
    (
        r##"health = { http = ":8080/healthz" }"##,
        r##"health = { http = "8080/healthz" }"##,
        r##"shop:9:25+14 bad_value: environments[1].health.http: "8080/healthz" is neither ":8080/path" nor a full URL"##,
    ),
    (
        r##"health = { http = ":8080/healthz" }"##,
        r##"health = { http = { ":8080/a", ":x/" } }"##,
        r##"shop:9:38+5 bad_value: environments[1].health.http[2]: ":x/" has no valid port ("x" is not 1 to 65535)"##,
    ),
    (
        r##"health = { http = ":8080/healthz" }"##,
        r##"health = { tcp = "5432" }"##,
        r##"shop:9:24+6 bad_value: environments[1].health.tcp: "5432" is neither ":5432" nor "host:port""##,
    ),
    (
        r##"health = { http = ":8080/healthz" }"##,
        r##"health = { command = "" }"##,
        r##"shop:9:28+2 bad_value: environments[1].health.command: "" is empty"##,
    ),
    (
        r##"health = { http = ":8080/healthz" }"##,
        r##"health = { http = ":8080/", min_healthy_time = "3m" }"##,
        r##"shop:9:54+4 bad_value: no host can be healthy: min_healthy_time (3m) is not shorter than healthy_deadline (2m)"##,
    ),
    (
        r##"health = { http = ":8080/healthz" }"##,
        r##"health = { http = ":8080/", healthy_deadline = "5s" }"##,
        r##"shop:9:54+4 bad_value: no host can be healthy: min_healthy_time (10s) is not shorter than healthy_deadline (5s)"##,
    ),
    (
        r##"health = { http = ":8080/healthz" }"##,
        r##"health = { service = "shop;reboot", container = "../x", version = {} }"##,
        r##"shop:9:28+13 bad_value: environments[1].health.service: "shop;reboot" is not the name of a unit
shop:9:55+6 bad_value: environments[1].health.container: "../x" is not the name of a container
shop:9:73+1 missing_key: environments[1].health.version needs one of http or command"##,
    ),
    (
        r##"health = { http = ":8080/healthz" }"##,
        r##"health = { version = { http = ":8080/v", jsn = "revision" } }"##,
        r##"shop:9:48+3 unknown_key: unknown key "jsn" in environments[1].health.version; did you mean "json"?"##,
    ),
    (
        r##"health = { http = ":8080/healthz" }"##,
        r##"health = { version = { http = ":8080/v", command = "cat v", json = "a..b" } }"##,
        r##"shop:9:28+1 bad_value: environments[1].health.version has http and command and must have only one of them
shop:9:74+6 bad_value: environments[1].health.version.json: "a..b" is no path of keys such as "build.revision""##,
    ),
    (
        r##"health = { http = ":8080/healthz" }"##,
        r##"health = { ":8080/healthz" }"##,
        r##"shop:9:18+15 unknown_key: unexpected value ":8080/healthz" without a key in environments[1].health; everything in it has a key"##,
    ),
    (
        r##"health = { http = ":8080/healthz" }"##,
        r##"health = "none", alarms = {}"##,
        r##"shop:9:33+1 bad_value: environments[1].alarms is empty"##,
    ),
    (
        r##"health = { http = ":8080/healthz" }"##,
        r##"health = "none", alarms = { { "x" } }"##,
        r##"shop:9:35+1 missing_key: environments[1].alarms[1] has no "action"; what happens to the deployment when it fires
shop:9:35+1 missing_key: environments[1].alarms[1] has no "alert"; who is told when it fires
shop:9:35+1 missing_key: environments[1].alarms[1] has no "cause"; what is measured"##,
    ),
    (
        r##"health = { http = ":8080/healthz" }"##,
        r##"health = "none", alarms = { { "x", cause = require "probes.prometheus" { query = "q" }, alert = "slack", action = "rolback" } }"##,
        r##"shop:9:103+7 wrong_type: environments[1].alarms[1].alert must be an alert, as in require "alerts.log" {}, not "slack"
shop:9:121+9 bad_value: environments[1].alarms[1].action must be "rollback", "halt", "pause" or "none", not "rolback"; did you mean "rollback"?"##,
    ),
    (
        r##"health = { http = ":8080/healthz" }"##,
        r##"health = "none", alarms = { { "x", cause = require "probes.prometheus" { query = "q" }, alert = require "alerts.log" {}, action = "halt" } }"##,
        r##"shop:9:35+1 bad_value: the alarm "x" does not say when it fires; give failure = { above = ... } or success = { below = ... }, or compare = "baseline""##,
    ),
    (
        r##"health = { http = ":8080/healthz" }"##,
        r##"health = "none", alarms = { { "x", cause = require "probes.prometheus" { query = "q" }, alert = require "alerts.log" {}, action = "halt", failure = { abve = 1 }, intervall = "1m" } }"##,
        r##"shop:9:157+4 unknown_key: unknown key "abve" in environments[1].alarms[1].failure; did you mean "above"?
shop:9:169+9 unknown_key: unknown key "intervall" in environments[1].alarms[1]; did you mean "interval"?"##,
    ),
    (
        r##"health = { http = ":8080/healthz" }"##,
        r##"health = "none", alarms = { { "x", cause = require "probes.prometheus" { query = "q" }, alert = require "alerts.log" {}, action = "halt", failure = { above = 2, below = 1 }, success = {} } }"##,
        r##"shop:9:155+1 bad_value: no value is above 2 and below 1: failure never holds; both must hold; a range to stay out of is success = { between = ... }
shop:9:191+1 bad_value: success is empty: give above, below or between"##,
    ),
    (
        r##"health = { http = ":8080/healthz" }"##,
        r##"health = "none", alarms = { { "x", cause = require "probes.prometheus" { query = "q" }, alert = require "alerts.log" {}, action = "halt", failure = { between = { 2, 1 } }, success = { between = { 1 } } } }"##,
        r##"shop:9:167+1 bad_value: failure.between must be two numbers, the smaller one first; as in between = { 0.9, 1.1 }
shop:9:201+1 bad_value: success.between must be two numbers, the smaller one first; as in between = { 0.9, 1.1 }"##,
    ),
    (
        r##"health = { http = ":8080/healthz" }"##,
        r##"health = "none", alarms = { { "x", cause = require "probes.prometheus" { query = "q" }, alert = require "alerts.log" {}, action = "halt", success = { between = { 1, 2, 3 } }, min_samples = 9, count = 3, worse = "lower" } }"##,
        r##"shop:9:167+1 bad_value: success.between must be two numbers, the smaller one first; as in between = { 0.9, 1.1 }
shop:9:196+1 bad_value: the alarm "x" can never pass: min_samples (9) is more than count (3)
shop:9:210+5 bad_value: worse of the alarm "x" does nothing without compare = "baseline""##,
    ),
    (
        r##"health = { http = ":8080/healthz" }"##,
        r##"health = "none", alarms = { { "x", cause = require "probes.http" { "https://x/", above = 1, below = 2, lasting = "1m" }, alert = require "alerts.log" {}, action = "halt", lasting = "2m" } }"##,
        r##"shop:9:50+76 bad_value: no value is good: the cause of the alarm "x" is bad above 1 and below 2
shop:9:178+7 bad_value: the alarm "x" has lasting twice: its cause has it too; give only one of them"##,
    ),
    (
        r##"health = { http = ":8080/healthz" }"##,
        r##"health = "none", alarms = { { "x", cause = require "probes.http" { "https://x/", above = 1 }, alert = require "alerts.log" {}, action = "halt", success = { below = 3 } }, { "x", cause = require "probes.prometheus" { query = "q" }, alert = require "alerts.log" {}, action = "none", compare = "baseline" } }"##,
        r##"shop:9:151+7 bad_value: the alarm "x" says twice when it fires: its cause has above, and it has success; give only one of them
shop:9:180+3 bad_value: the alarm "x" is there twice: alarms[1] is called so too"##,
    ),
    (
        r##"health = { http = ":8080/healthz" } },"##,
        r##"health = { http = ":8080/healthz" } },
    { "production", hosts = { "x" }, deploy = error, health = "none" },"##,
        r##"shop:10:7+12 bad_value: the environment "production" is there twice: environments[1] is called so too"##,
    ),
    (
        r##"notify = log,"##,
        r##""##,
        r##"shop:2:8+14 missing_key: phased.project has no "notify"; who is told: one alert or a list of them for every bad end and recovery, or { bad = ..., good = ... }"##,
    ),
    (
        r##"notify = log,"##,
        r##"notify = {},"##,
        r##"shop:11:12+1 bad_value: notify is empty"##,
    ),
    (
        r##"notify = log,"##,
        r##"notify = "ops@example.com","##,
        r##"shop:11:12+17 wrong_type: notify must be an alert, as in require "alerts.log" {}, a list of alerts or a table of bad, good, not "ops@example.com""##,
    ),
    (
        r##"notify = log,"##,
        r##"notify = error,"##,
        r##"shop:11:12+5 wrong_type: notify must be an alert, as in require "alerts.log" {}, a list of alerts or a table of bad, good, not a function; make it one: phased.alert { name = "...", send = function(options) ... end } {}"##,
    ),
    (
        r##"notify = log,"##,
        r##"notify = require "alerts.log","##,
        r##"shop:11:12+20 wrong_type: notify must be an alert, as in require "alerts.log" {}, a list of alerts or a table of bad, good, not the alert plugin log without its options; call the alert with its options, if only {}"##,
    ),
    (
        r##"notify = log,"##,
        r##"notify = { log, "x" },"##,
        r##"shop:11:19+3 wrong_type: notify[2] must be an alert, as in require "alerts.log" {}, not "x""##,
    ),
    (
        r##"notify = log,"##,
        r##"notify = { good = log },"##,
        r##"shop:11:12+1 missing_key: notify has no "bad"; for every bad end, and for recovery from one"##,
    ),
    (
        r##"notify = log,"##,
        r##"notify = { bad = {}, good = 5 },"##,
        r##"shop:11:20+1 bad_value: notify.bad is empty
shop:11:31+1 wrong_type: notify.good must be an alert, as in require "alerts.log" {} or a list of alerts, not 5"##,
    ),
    (
        r##"notify = log,"##,
        r##"notify = require "alerts.slack" {},"##,
        r##"shop:11:12+7 missing_key: alert slack has no "url"; the incoming webhook's URL; it is a secret"##,
    ),
    (
        r##"notify = log,"##,
        r##"notify = require "alerts.slack" { url = "hooks.slack.com" },"##,
        r##"shop:11:43+17 bad_value: alert slack: url: "hooks.slack.com" is not a URL: begin it with https:// or http://"##,
    ),
    (
        r##"notify = log,"##,
        r##"notify = require "alerts.slack" { url = phased.secret "slack_url", chanel = "#ops" },"##,
        r##"shop:11:57+11 secret_missing: secret "slack_url" does not exist: put it into /etc/phased/secrets
shop:11:70+6 unknown_key: unknown key "chanel" in alert slack; did you mean "channel"?"##,
    ),
    (
        r##"notify = log,"##,
        r##"notify = require "alerts.slack" { url = 5, timeout = 5 },"##,
        r##"shop:11:43+1 wrong_type: alert slack: url must be a URL or a phased.secret, not 5
shop:11:56+1 wrong_type: alert slack: timeout must be a duration such as "5m", not 5; write it as text with a unit: "5s" or "5m""##,
    ),
    (
        r##"notify = log,"##,
        r##"notify = require "alerts.email" { host = "h", from = "a", to = {}, tls = "ssl" },"##,
        r##"shop:11:66+1 bad_value: alert email: to is empty
shop:11:76+5 bad_value: alert email: tls must be "starttls", "implicit" or "none", not "ssl""##,
    ),
    (
        r##"return phased.project {"##,
        r##"return phased.project "shop" {"##,
        r##"shop:2:1+30 runtime: phased.project takes one table: phased.project { source = ..., ... }"##,
    ),
    (
        r##"return phased.project {"##,
        r##"return {"##,
        r##"shop:2:1+8 not_a_project: a file in projects/ must return phased.project { ... }, and this one returns a table; return phased.project { ... }"##,
    ),
    (
        r##"return phased.project {"##,
        r##"phased.project {"##,
        r##"shop:12:1+1 not_a_project: a file in projects/ must return phased.project { ... }, and this one returns nil; return phased.project { ... }"##,
    ),
    (
        r##"return phased.project {"##,
        r##"return phased.projekt {"##,
        r##"shop:2:1+23 runtime: attempt to call a nil value (field 'projekt')"##,
    ),
    (
        r##"return phased.project {"##,
        r##"local x = nil .. "a"
return phased.project {"##,
        r##"shop:2:1+20 runtime: attempt to concatenate a nil value"##,
    ),
    (
        r##"return phased.project {"##,
        r##"local url = "https://x/" .. phased.secret "good"
return phased.project {"##,
        r##"shop:2:1+48 runtime: the secret "good" cannot be joined to text: its value never enters Lua. Pass the handle where it is used, as in run:sh { 'deploy --token "$TOKEN"', env = { TOKEN = phased.secret "good" } }, or as stdin"##,
    ),
    (
        r##"return phased.project {"##,
        r##"local t = tostring(phased.secret "good")
return phased.project {"##,
        r##"shop:2:1+40 runtime: the secret "good" cannot be turned into text: its value never enters Lua. Pass the handle where it is used, as in run:sh { 'deploy --token "$TOKEN"', env = { TOKEN = phased.secret "good" } }, or as stdin"##,
    ),
    (
        r##"return phased.project {"##,
        r##"local t = phased.secret "../etc/passwd"
return phased.project {"##,
        r##"shop:2:1+39 runtime: phased.secret: "../etc/passwd" must be parts of A-Z a-z 0-9 . _ - joined by /, none of them . or .."##,
    ),
    (
        r##"return phased.project {"##,
        r##"local t = require "../x"
return phased.project {"##,
        r##"shop:2:1+24 runtime: "../x" is not a module name: parts of A-Z a-z 0-9 _ - joined by dots, as in "alerts.slack""##,
    ),
    (
        r##"return phased.project {"##,
        r##"local t = require "/etc/x"
return phased.project {"##,
        r##"shop:2:1+26 runtime: "/etc/x" is not a module name: parts of A-Z a-z 0-9 _ - joined by dots, as in "alerts.slack""##,
    ),
    (
        r##"return phased.project {"##,
        r##"local t = require "projects.shop"
return phased.project {"##,
        r##"shop:2:1+33 runtime: "projects.shop" is a project: no file can require it"##,
    ),
    (
        r##"return phased.project {"##,
        r##"local t = require "alerts.slak"
return phased.project {"##,
        r##"shop:2:1+31 module_missing: module "alerts.slak" is not found: there is no DIR/alerts/slak.lua and it is not a shipped plugin; did you mean "alerts.slack"?"##,
    ),
    (
        r##"branch = "main" },"##,
        r##"branch = "main" }"##,
        r##"shop:4:3+4 syntax: '}' expected (to close '{' at line 2) near 'test'"##,
    ),
    (
        r##"    { "production","##,
        r##"    { "production", max_parallel = 2,"##,
        r##"shop:6:21+12 unknown_key: unknown key "max_parallel" in environments[1]; it belongs into rollout = { ... }"##,
    ),
    (
        r##"health = { http = ":8080/healthz" }"##,
        r##"health = "http""##,
        r##"shop:9:16+6 wrong_type: environments[1].health must be "none" or a table, not "http""##,
    ),
    (
        r##"  environments = {"##,
        r##"  environments = "##,
        r##"shop:11:10+1 syntax: <eof> expected near '='"##,
    ),
    (
        r##"  environments = {"##,
        r##"  environments == {"##,
        r##"shop:5:3+17 runtime: there is no variable "environments""##,
    ),
    (
        r##"branch = "main" }"##,
        r##"branch = "main }"##,
        r##"shop:3:61+8 syntax: unfinished string near '"main },'"##,
    ),
    (
        r##""##,
        r##""##,
        r##"shop:1:1+1 not_a_project: a file in projects/ must return phased.project { ... }, and this one returns nil; return phased.project { ... }"##,
    ),
    (
        r##""##,
        r##"return 1
"##,
        r##"shop:1:1+8 not_a_project: a file in projects/ must return phased.project { ... }, and this one returns 1; return phased.project { ... }"##,
    ),
    (
        r##""##,
        r##"goto x
"##,
        r##"shop:1:1+6 syntax: no visible label 'x' for <goto> at line 1"##,
    ),
    (
        r##""##,
        r##"local log = require "alerts.log" { levl = 1 }
return phased.project {
  sorce = { git = "x" },
  test = { { "unit", run = 1 }, { "unit" } },
  environments = { { "production", hosts = { "a", "a" }, deploy = 1, health = { http = 1 } } },
  notfy = log,
}
"##,
        r##"shop:1:36+4 unknown_key: unknown key "levl" in alert log; it takes no options
shop:3:3+5 unknown_key: unknown key "sorce" in phased.project; did you mean "source"?
shop:4:28+1 wrong_type: test[1].run must be a function, not 1
shop:4:33+1 missing_key: test[2] has no "run"; the tests; an error fails the run
shop:4:35+6 bad_value: the stage "unit" is there twice: test[1] is called so too
shop:5:51+3 bad_value: the host "a" is there twice: hosts[1] has the same id; a host's id is its address unless it has one of its own
shop:5:67+1 wrong_type: environments[1].deploy must be a function, not 1
shop:5:88+1 wrong_type: environments[1].health.http must be ":8080/path" or a URL or a list of texts, not 1
shop:6:3+5 unknown_key: unknown key "notfy" in phased.project; did you mean "notify"?"##,
    ),
];

#[test]
fn every_mistake_is_named_at_its_place() {
    let mut wrong = 0;
    for (i, (old, new, expected)) in BAD.iter().enumerate() {
        let text = if old.is_empty() { (*new).to_owned() } else { BASE.replacen(old, new, 1) };
        assert_ne!(text, BASE, "case {i} changes nothing");
        let found = Fixture::project(&text).findings();
        if found != *expected {
            wrong += 1;
            println!("@@{i}\n{found}\n@@end");
        }
    }
    assert_eq!(wrong, 0, "see above");
}
