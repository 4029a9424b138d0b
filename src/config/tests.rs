use std::{os::unix::fs::PermissionsExt as _, path::Path};

use super::*;
use crate::{
    ports::secrets::{SecretError, Secrets as _},
    sim::Random,
    tests::{below, chance, mutated},
};

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("phased.toml")).map_err(|error| error.to_string())
}

#[test]
fn an_empty_file_is_the_documented_defaults() {
    let config = parse("").unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.api.listen.unwrap().to_string(), "127.0.0.1:7427");
    assert_eq!(config.secret_dirs(Some(Path::new("/run/c"))), [Path::new("/run/c"), Path::new("/etc/phased/secrets")]);
}

#[test]
fn the_file_that_is_installed_names_every_key() {
    let installed = include_str!("../../packaging/phased.toml");
    let keys = |section: &str| -> Vec<String> {
        let refused = toml::from_str::<Config>(&format!("{section}no_such_key = 1")).unwrap_err();
        refused.message().split('`').skip(3).step_by(2).map(str::to_owned).collect()
    };
    let names =
        |part: &str, key: &str| part.lines().any(|line| line.trim_start_matches('#').starts_with(&format!("{key} = ")));
    for section in keys("").into_iter().filter(|section| !names(installed, section)) {
        let part = installed.split("\n[").find(|part| part.starts_with(&format!("{section}]")));
        let part = part.unwrap_or_else(|| panic!("[{section}] is missing"));
        let keys = keys(&format!("[{section}]\n"));
        assert!(!keys.is_empty(), "[{section}]");
        for key in keys {
            assert!(names(part, &key), "`{key}` is not in [{section}]");
        }
    }
}

/// A file that says nearly everything.
const WHOLE: &str = r#"
data_dir = "/srv/phased"
plugins = ["/a", "/b"]
[api]
socket = "/tmp/s"
listen = "[::1]:0"
tls = { cert = "/c.pem", key = "/k.pem" }
host_names = ["deploy.example.com"]
trusted_proxies = ["127.0.0.1", "10.0.0.0/8", "fd00::/8"]
client_header = "forwarded"
[secrets]
dir = "/s"
[exec]
uids = "61000-61999"
path = "/bin:/usr/bin"
[signals]
key = "signals"
host = "web1"
max_age = "2m"
accept = [{ key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE1GqVbPJnXxvLkkmNxwLOQ0DwA0nDxG3P7k1d3v2u1H ci", projects = ["shop/production"] }]
[limits]
memory = "128MiB"
instructions = 1000000
max_output = 1048576
max_queued = 3
connections = 100
client_connections = 10
first_byte_timeout = "1s"
head_timeout = "1m"
body_timeout = "1h"
write_timeout = "30s"
head_size = "16KiB"
headers = 50
body_size = "2MiB"
hook_body_size = "1MiB"
all_bodies_size = "2MiB"
hook_rate = "20/s"
refusal_rate = "none"
[log]
format = "json"
filter = "warn,phased::ssh=debug"
"#;

#[test]
fn everything_can_be_said() {
    let config = parse(WHOLE).unwrap();
    assert_eq!(config.exec.uids, Some(UidRange { first: 61000, last: 61999 }));
    assert_eq!((config.limits.memory, config.limits.max_output), (Size::mib(128), Size::mib(1)));
    assert_eq!(config.log.format, crate::telemetry::Format::Json);
    assert_eq!(parse("[api]\nlisten = \"none\"").unwrap().api.listen, None);
}

#[test]
fn a_listener_that_others_reach_is_guarded_or_meant() {
    let tls = "tls = { cert = \"/c\", key = \"/k\" }";
    for more in [tls, "plaintext = true", "trusted_proxies = [\"10.0.0.5\"]"] {
        parse(&format!("[api]\nlisten = \"0.0.0.0:7427\"\n{more}")).unwrap();
    }
    for listen in ["127.0.0.1:7427", "127.1.2.3:0", "[::1]:7427", "[::ffff:127.0.0.1]:7427", "none"] {
        parse(&format!("[api]\nlisten = \"{listen}\"")).unwrap();
    }
    // Signals are signed: all else is refused where they arrive.
    let accept = r#"accept = [{ key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE1GqVbPJnXxvLkkmNxwLOQ0DwA0nDxG3P7k1d3v2u1H", projects = ["shop"] }]"#;
    parse(&format!("[api]\nlisten = \"10.0.0.11:7427\"\n[signals]\nkey = \"signals\"\n{accept}")).unwrap();
}

#[test]
fn slips_are_refused_with_their_place_and_the_right_word() {
    for (text, start, part) in [
        ("data_dri = \"/x\"", "phased.toml:1:1: ", "did you mean `data_dir`?"),
        ("\n[api]\n  sokcet = \"/x\"", "phased.toml:3:3: ", "did you mean `socket`?"),
        ("[secret]\ndir = \"/x\"", "phased.toml:1:2: ", "did you mean `secrets`?"),
        ("[log]\nformat = \"jsom\"", "phased.toml:2:10: ", "did you mean `json`?"),
        ("data_dir = \"x\"", "phased.toml:1:12: ", "must be an absolute path"),
        ("[signals]\nkye = \"x\"", "phased.toml:2:1: ", "did you mean `key`?"),
        ("[signals]\nmax_age = \"1s\"\nkey = \"x\"", "phased.toml:1:1: ", "no two clocks"),
        ("[signals]\naccept = [{ key = \"ssh-rsa AAAA\", projects = [\"a\"] }]", "phased.toml:2:", "ssh-ed25519 only"),
        (
            "[signals]\naccept = [{ key = \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE1GqVbPJnXxvLkkmNxwLOQ0DwA0nDxG3P7k1d3v2u1H\", projects = [\"a\"] }]",
            "phased.toml:1:1: ",
            "phased keys make signals",
        ),
        (
            "[signals]\nkey = \"x\"\naccept = [{ key = \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE1GqVbPJnXxvLkkmNxwLOQ0DwA0nDxG3P7k1d3v2u1H\", projects = [] }]",
            "phased.toml:1:1: ",
            "no `projects`",
        ),
        (
            "[signals]\nkey = \"x\"\naccept = [{ key = \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE1GqVbPJnXxvLkkmNxwLOQ0DwA0nDxG3P7k1d3v2u1H\", projects = [\"a/b/c\"] }]",
            "phased.toml:1:1: ",
            "is no project",
        ),
        ("plugins = []", "phased.toml:1:11: ", "empty"),
        (
            "[api]\nlisten = \"7427\"",
            "phased.toml:2:10: ",
            "[api] listen: \"7427\" is not an address and port: write \"127.0.0.1:7427\"",
        ),
        ("[api]\ntls = { cert = \"/c\" }", "phased.toml:2:7: ", "missing field `key`"),
        ("[api]\ntls = { cert = \"c\", key = \"/k\" }", "phased.toml:2:", "must be an absolute path"),
        ("[api]\ntls = { cert = \"/c\", kye = \"/k\" }", "phased.toml:2:", "did you mean `key`?"),
        ("[api]\nlisten = \"none\"\ntls = { cert = \"/c\", key = \"/k\" }", "phased.toml:1:1: ", "leave `tls` out"),
        ("[api]\nplaintext = true\ntls = { cert = \"/c\", key = \"/k\" }", "phased.toml:1:1: ", "contradict"),
        ("[api]\nlisten = \"0.0.0.0:7427\"", "phased.toml:1:1: ", "tokens would cross the network readable"),
        ("[api]\nlisten = \"[::]:7427\"", "phased.toml:1:1: ", "plaintext = true"),
        ("[api]\ntrusted_proxies = [\"10.0.0.5/8\"]", "phased.toml:2:", "is it 10.0.0.0/8"),
        ("[api]\ntrusted_proxies = [\"proxy\"]", "phased.toml:2:", "is no network"),
        ("[api]\nclient_header = \"x-real-ip\"", "phased.toml:2:17: ", "`x-forwarded-for` or `forwarded`"),
        ("[limits]\nhook_rate = \"600\"", "phased.toml:2:13: ", "\"600/m\""),
        ("[limits]\nhook_rate = \"0/s\"", "phased.toml:2:13: ", "from 1 to 1000000"),
        ("[limits]\nhook_rate = \"5/d\"", "phased.toml:2:13: ", "(s, m or h)"),
        ("[limits]\nhead_timeout = \"10ms\"", "phased.toml:1:1: ", "from 1s to 1h"),
        ("[limits]\nhead_size = \"1KiB\"", "phased.toml:1:1: ", "from 8 to 1024 KiB"),
        ("[limits]\nall_bodies_size = \"20MiB\"", "phased.toml:1:1: ", "at least one body"),
        ("[limits]\nconnections = 0", "phased.toml:1:1: ", "from 1 to 100000"),
        ("[limits]\nheaders = 5", "phased.toml:1:1: ", "from 30 to 1000"),
        ("[exec]\nuids = \"0-5\"", "phased.toml:2:8: ", "root"),
        ("[exec]\nuids = \"9-5\"", "phased.toml:2:8: ", "ends before"),
        ("[exec]\nuids = \"60000-70000\"", "phased.toml:2:8: ", "65535"),
        ("[exec]\nuids = \"+1-5\"", "phased.toml:2:8: ", "61000-61999"),
        ("\n[exec]\nuser = \"a\"\nsame_user = true", "phased.toml:2:1: ", "contradict"),
        ("[exec]\nsame_user = true\njob_socket = \"/run/x\"", "phased.toml:1:1: ", "contradict"),
        ("[exec]\njob_socket = \"x\"", "phased.toml:2:14: ", "must be an absolute path"),
        ("[exec]\npath = \"bin\"", "phased.toml:1:1: ", "absolute"),
        ("[limits]\nmemory = \"1M\"", "phased.toml:2:10: ", "64MiB"),
        ("[limits]\nmemory = -1", "phased.toml:2:10: ", "negative"),
        ("[limits]\nmemory = \"1kB\"", "phased.toml:1:1: ", "below 1MiB"),
        ("[limits]\nmax_queued = 0", "phased.toml:1:1: ", "nothing could ever start"),
        ("[log]\nfilter = \"a=loud\"", "phased.toml:2:10: ", "log filter"),
        ("x = = 1", "phased.toml:1:", ""),
        ("data_dir = \"/a\"\ndata_dir = \"/b\"", "phased.toml:2:", ""),
        ("zzz = 1", "phased.toml:1:1: ", "unknown field `zzz`"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.starts_with(start) && error.contains(part), "{text:?} gave {error:?}");
    }
    assert!(!parse("zzz = 1").unwrap_err().contains("did you mean"));
    let missing = Config::load(Path::new("/nonexistent/phased.toml")).unwrap_err().to_string();
    assert!(missing.contains("/nonexistent/phased.toml") && missing.ends_with("`phased init` writes one"), "{missing}");
}

#[test]
fn a_value_of_another_kind_is_refused_by_the_name_of_its_key_with_what_it_must_be() {
    for (text, error) in [
        ("data_dir = 5", "1:12: data_dir must be an absolute path in quotes, and is 5"),
        ("plugins = \"/a\"", "1:11: plugins must be a list, and is \"/a\""),
        ("plugins = [\"/a\", 7]", "1:18: plugins 2 must be a path in quotes, and is 7"),
        ("api = 7427", "1:7: api must be a table, and is 7427"),
        (
            "[log]\nformat = \"text\"\n[api]\nlisten = 7427",
            "4:10: [api] listen must be an address and port in quotes, such as \"127.0.0.1:7427\", or \"none\", and is 7427",
        ),
        ("[api]\nplaintext = \"yes\"", "2:13: [api] plaintext must be true or false, and is \"yes\""),
        ("[api]\nhost_names = \"a.example\"", "2:14: [api] host_names must be a list, and is \"a.example\""),
        (
            "[api]\ntrusted_proxies = [10]",
            "2:20: [api] trusted_proxies 1 must be a network in quotes, such as \"10.0.0.0/8\", and is 10",
        ),
        (
            "[api]\ntls = { cert = 1, key = \"/k\" }",
            "2:16: [api] tls.cert must be an absolute path in quotes, and is 1",
        ),
        ("[api]\ntls = true", "2:7: [api] tls must be a table, and is true"),
        ("[log]\nformat = 5", "2:10: [log] format must be text in quotes, and is 5"),
        (
            "[log]\nformat = \"jsom\"",
            "2:10: [log] format must be `text` or `json`, and is \"jsom\"; did you mean `json`?",
        ),
        ("[exec]\nuser = { name = \"ci\" }", "2:8: [exec] user must be text in quotes, and is a table"),
        ("[limits]\nmax_queued = -1", "2:14: [limits] max_queued must be a whole number, 0 or more, and is -1"),
        ("[limits]\nmemory = true", "2:10: [limits] memory must be a size such as \"64MiB\", and is true"),
        (
            "[limits]\nhead_timeout = 10",
            "2:16: [limits] head_timeout must be a duration in quotes, such as \"10s\" or \"1h30m\", and is 10",
        ),
        (
            "[limits]\nhook_rate = 600",
            "2:13: [limits] hook_rate must be a rate in quotes, such as \"600/m\", or \"none\", and is 600",
        ),
        (
            "[[signals.accept]]\nkey = 1\nprojects = [\"shop\"]",
            "2:7: [signals] accept 1.key must be text in quotes, and is 1",
        ),
    ] {
        assert_eq!(parse(text).unwrap_err(), format!("phased.toml:{error}"), "{text:?}");
    }
    let long = format!("[log]\nfilter = [{:?},\n1]", "x".repeat(50));
    let said = parse(&long).unwrap_err();
    assert!(said.ends_with(&format!("and is [\"{}...", "x".repeat(38))), "{said}");
}

/// The file, with the value of one line in the place of another's.
fn exchanged(random: &mut Random) -> String {
    let lines: Vec<(&str, &str)> = WHOLE.lines().filter_map(|line| line.split_once(" = ")).collect();
    let ((name, old), (_, value)) = (lines[below(random, lines.len())], lines[below(random, lines.len())]);
    WHOLE.replacen(&format!("{name} = {old}"), &format!("{name} = {value}"), 1)
}

/// Whatever a file says: it is refused with its place, or what is read keeps to every rule that a slip could break.
#[test]
fn random_files_are_refused_with_their_place_or_keep_to_the_rules() {
    const WORDS: [&str; 24] = [
        "[api]",
        "[exec]",
        "[[limits]]",
        "\n",
        " = ",
        "\"",
        "\"\"\"",
        "'",
        "{",
        "}",
        "[",
        "]",
        ",",
        ".",
        "#",
        "-1",
        "0",
        "0.0.0.0:80",
        "0-5",
        "\\u0000",
        "18446744073709551616",
        "1e400",
        "true",
        "é\u{feff}",
    ];
    let (mut random, cases) = chance("config", 1000, 100_000);
    let mut seen = [0; 2];
    for case in cases {
        // Other bytes are no text, and are not read at all.
        let bytes =
            if case % 2 == 0 { mutated(&mut random, WHOLE, &WORDS) } else { exchanged(&mut random).into_bytes() };
        let Ok(text) = String::from_utf8(bytes) else { continue };
        match Config::parse(&text, Path::new("phased.toml")) {
            Ok(config) => {
                let Config { data_dir, plugins, api, secrets, exec, limits, .. } = &config;
                let mut paths = plugins.iter().chain([data_dir, &api.socket, &secrets.dir]);
                assert!(!plugins.is_empty() && paths.all(|path| path.is_absolute()), "case {case}: {text}");
                let guarded = api.tls.is_some() || api.plaintext || !api.trusted_proxies.is_empty();
                let reached = api.listen.is_some_and(|listen| !listen.ip().to_canonical().is_loopback());
                assert!(!reached || guarded || !config.signals.accept.is_empty(), "case {case}: {text}");
                let users = exec.uids.is_none_or(|uids| 0 < uids.first && uids.first <= uids.last);
                assert!(users && limits.connections > 0 && limits.max_queued > 0, "case {case}: {text}");
                seen[0] += 1;
            }
            Err(ConfigError::Invalid { line, column, message, .. }) => {
                let there = (1..=text.matches('\n').count() + 1).contains(&line) && column > 0;
                assert!(there && !message.is_empty(), "case {case}: {line}:{column}: {message}: {text}");
                seen[1] += 1;
            }
            Err(error) => panic!("case {case}: {error}: {text}"),
        }
    }
    assert!(seen.iter().all(|n| *n > 50), "all of it is met: {seen:?}");
}

fn secret_file(dir: &Path, name: &str, bytes: &[u8], mode: u32) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn secrets_are_files_and_the_first_directory_wins() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let secrets = FileSecrets::new(vec![first.path().into(), second.path().into()]);
    secret_file(second.path(), "shop/production/url", b"postgres://x\n", 0o600);
    assert_eq!(secrets.get("shop/production/url").unwrap().expose(), b"postgres://x");
    secret_file(first.path(), "shop/production/url", b"postgres://y", 0o400);
    assert_eq!(
        secrets.get("shop/production/url").unwrap().expose(),
        b"postgres://y",
        "read anew, first directory first"
    );
}

#[test]
fn unusable_secrets_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = FileSecrets::new(vec![dir.path().into()]);
    secret_file(dir.path(), "open", b"long enough", 0o640);
    secret_file(dir.path(), "short", b"1234567\n", 0o600);
    secret_file(dir.path(), "huge", &vec![b'x'; 70_000], 0o600);
    std::fs::create_dir(dir.path().join("folder")).unwrap();
    nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (name, part) in [
        ("open", "chmod 600 "),
        ("short", "shorter than 8"),
        ("huge", "longer"),
        ("folder", "not a file"),
        ("fifo", "not a file"),
    ] {
        let error = secrets.get(name).unwrap_err();
        assert!(matches!(error, SecretError::Unusable { .. }) && error.to_string().contains(part), "{name}: {error}");
        assert!(!error.to_string().contains("long enough"));
    }
    for name in ["absent", "open/below"] {
        let error = secrets.get(name).unwrap_err();
        assert!(matches!(error, SecretError::Missing { .. }), "{name}: {error}");
        assert!(error.to_string().contains(&dir.path().display().to_string()));
    }
}

#[test]
fn names_cannot_leave_the_directory() {
    let secrets = FileSecrets::new(vec!["/etc".into()]);
    for name in [
        "",
        ".",
        "..",
        "../passwd",
        "a/../../b",
        "/etc/passwd",
        "a//b",
        "a/",
        "a\0b",
        "a\nb",
        "é",
        "a b",
        &"x".repeat(300),
    ] {
        assert!(matches!(secrets.get(name), Err(SecretError::Name { .. })), "{name:?}");
    }
}
