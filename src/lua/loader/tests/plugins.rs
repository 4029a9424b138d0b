//! The shipped plugins, called with a `phased` whose functions answer at once.

use mlua::{Function, Lua, Value};
use serde_json::json;

use super::*;
use crate::lua::{check, project};

/// A project with `what` as its only channel or hosts, and the functions a plugin may call.
fn lua(files: &'static [(&'static str, &'static str)]) -> Lua {
    let lua = Lua::new();
    let phased = lua.create_table().unwrap();
    definitions::install(&lua, &phased, false).unwrap();
    lua.globals().set("phased", phased.clone()).unwrap();
    lua.globals().set("calls", lua.create_table().unwrap()).unwrap();
    for what in ["http", "exec", "smtp", "log"] {
        let recorded = lua
            .create_function(move |lua, args| {
                let data = check::plugin_args(what, &args).map_err(mlua::Error::runtime)?;
                let calls: mlua::Table = lua.globals().get("calls")?;
                calls.push(format!("{what} {}", crate::model::canonical::to_string(&data)))
            })
            .unwrap();
        phased.set(what, recorded).unwrap();
    }
    let read = move |_: &Lua, path: String| {
        let found = files.iter().find(|(name, _)| *name == path);
        found.map(|(_, text)| (*text).to_owned()).ok_or_else(|| mlua::Error::runtime("no such file"))
    };
    phased.set("read", lua.create_function(read).unwrap()).unwrap();
    let decode = |lua: &Lua, text: String| {
        let data: Json = serde_json::from_str(&text).map_err(|error| mlua::Error::runtime(error.to_string()))?;
        definitions::to_lua(lua, &data)
    };
    let table = lua.create_table().unwrap();
    table.set("decode", lua.create_function(decode).unwrap()).unwrap();
    let encode =
        |_: &Lua, args| Ok(check::plugin_args("json.encode", &args).map_err(mlua::Error::runtime)?["data"].to_string());
    table.set("encode", lua.create_function(encode).unwrap()).unwrap();
    phased.set("json", table).unwrap();
    let rows = |lua: &Lua, text: String| {
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let rows: Result<Vec<std::collections::BTreeMap<String, String>>, _> = reader.deserialize().collect();
        let rows = rows.map_err(|error| mlua::Error::runtime(error.to_string()))?;
        definitions::to_lua(lua, &serde_json::to_value(rows).unwrap())
    };
    let table = lua.create_table().unwrap();
    table.set("decode", lua.create_function(rows).unwrap()).unwrap();
    phased.set("csv", table).unwrap();
    let require = |lua: &Lua, name: String| {
        let (_, text) = SHIPPED.iter().find(|(module, _)| *module == name).unwrap();
        lua.load(*text).set_name(format!("@{name}")).eval::<Value>()
    };
    lua.globals().set("require", lua.create_function(require).unwrap()).unwrap();
    lua
}

fn function(lua: &Lua, key: &str, value: &str, path: &str) -> Function {
    let text = format!("return phased.project {{ {key} = {value}, environments = {{ {{ 'p', hosts = {value} }} }} }}");
    let returned: Value = lua.load(text).eval().unwrap();
    project::function(lua, &definitions::project(&returned).unwrap().table, path).unwrap()
}

/// What `channel` does with a message of a bad end.
fn sent(channel: &str) -> Vec<String> {
    let lua = lua(&[]);
    let message = json!({
        "event": "failed", "project": "shop", "run": "01k", "state": "failed", "title": "shop: tests failed <unit>",
        "text": "Nothing was deployed.", "revision": "a1b2c3d4e5f60718293a4b5c6d7e8f9012345678", "author": "Eve <eve@x>",
        "stage": "unit", "cause": {"code": "exit", "message": "npm test ended with 1"}, "output": "1 failed\n```rm```",
        "command": "phased log 01k",
    });
    let message = definitions::to_lua(&lua, &message).unwrap();
    function(&lua, "notify", channel, "notify/bad/1").call::<()>(message).unwrap();
    lua.globals().get::<Vec<String>>("calls").unwrap()
}

#[test]
fn slack_reads_well_and_nothing_in_it_is_markup() {
    let calls = sent("require 'alerts.slack' { url = phased.secret 'slack' }");
    let data: Json = serde_json::from_str(calls[0].strip_prefix("http ").unwrap()).unwrap();
    assert_eq!(data["url"], json!({"$secret": "slack"}));
    assert_eq!(
        data["json"]["text"].as_str().unwrap(),
        ":rotating_light: *shop: tests failed &lt;unit&gt;*\nNothing was deployed.\n*Why:* npm test ended with 1\n*Where:* stage unit\n\
         *Commit:* a1b2c3d4e5f6 by Eve &lt;eve@x&gt;\n```1 failed\n'''rm'''```\n*Look further:* `phased log 01k`"
    );
}

#[test]
fn mail_has_one_line_of_subject_and_all_a_person_needs() {
    let channel = "require 'alerts.email' { host = 'mail', from = 'phased@x', to = { 'ops@x', 'dev@x' }, user = 'u', password = phased.secret 'p' }";
    let data: Json = serde_json::from_str(sent(channel)[0].strip_prefix("smtp ").unwrap()).unwrap();
    assert_eq!(
        (data["port"].as_i64(), data["tls"].as_str(), &data["to"]),
        (Some(587), Some("starttls"), &json!(["ops@x", "dev@x"]))
    );
    assert_eq!(data["subject"], "[phased] shop: tests failed <unit>");
    assert_eq!(
        data["body"].as_str().unwrap(),
        "shop: tests failed <unit>\n\nWhy          npm test ended with 1\nProject      shop\nStage        unit\n\
         Commit       a1b2c3d4e5f60718293a4b5c6d7e8f9012345678\nAuthor       Eve <eve@x>\nRun          01k\n\nNothing was deployed.\n\n\
         The last lines of output:\n\n    1 failed\n    ```rm```\n\nTo look further: phased log 01k\n"
    );
}

#[test]
fn the_other_channels_pass_the_message_on() {
    let log = sent("require 'alerts.log' {}");
    assert_eq!(
        log,
        [r#"log {"text":"shop: tests failed <unit> | npm test ended with 1 | look further: phased log 01k"}"#]
    );
    let webhook =
        &sent("require 'alerts.webhook' { 'https://x/hook', headers = { authorization = phased.secret 't' } }")[0];
    let data: Json = serde_json::from_str(webhook.strip_prefix("http ").unwrap()).unwrap();
    assert_eq!((data["method"].as_str(), data["timeout"].as_str()), (Some("POST"), Some("30s")));
    assert_eq!(data["headers"], json!({"authorization": {"$secret": "t"}}));
    assert_eq!(data["json"]["cause"], json!({"code": "exit", "message": "npm test ended with 1"}));
    let command = &sent("require 'alerts.command' { argv = { '/bin/page', '--team', 5 } }")[0];
    let data: Json = serde_json::from_str(command.strip_prefix("exec ").unwrap()).unwrap();
    assert_eq!(data["argv"], json!(["/bin/page", "--team", "5"]));
    let stdin: Json = serde_json::from_str(data["stdin"].as_str().unwrap()).unwrap();
    assert_eq!(stdin["title"], "shop: tests failed <unit>");
}

/// The hosts that `discovery.file` finds, or what it says.
fn found(path: &str, text: &'static str) -> Result<Vec<crate::model::host::Host>, String> {
    let files: &'static [(&str, &str)] =
        Box::leak(Box::new([(Box::leak(path.to_owned().into_boxed_str()) as &str, text)]));
    let lua = lua(files);
    let hosts = function(&lua, "x", &format!("require 'discovery.file' {{ {path:?} }}"), "discovery/p/1");
    let returned: Value = hosts.call(()).map_err(|error| match error {
        mlua::Error::RuntimeError(message) => message.lines().next().unwrap_or_default().to_owned(),
        mlua::Error::CallbackError { cause, .. } => cause.to_string(),
        other => other.to_string(),
    })?;
    let args = mlua::MultiValue::from_iter([returned]);
    let data = check::plugin_args("json.encode", &args)?["data"].clone();
    project::discovered(&if data == json!({}) { json!([]) } else { data })
}

#[test]
fn hosts_come_from_json_and_csv() {
    let json = found("/h.json", r#"["10.0.0.1", {"id": "i-2", "address": "web2", "port": 2222, "labels": {"role": "web"}, "key": {"$secret": "k"}}]"#).unwrap();
    assert_eq!((json[0].id.as_str(), json[0].address.as_str()), ("10.0.0.1", "10.0.0.1"));
    assert_eq!((json[1].ssh.port, json[1].labels["role"].as_str()), (Some(2222), "web"));
    assert_eq!(json[1].ssh.key.as_ref().unwrap().name, "k");
    let csv = found("/h.csv", "id,address,port,labels.role,zone\ni-1,web1,,web,a\ni-2,web2,2222,,\n").unwrap();
    assert_eq!((csv[0].id.as_str(), csv[0].ssh.port, csv[0].zone.as_deref()), ("i-1", None, Some("a")));
    assert_eq!((csv[1].ssh.port, csv[1].labels.len()), (Some(2222), 0));
    assert!(found("/h.json", "[]").unwrap().is_empty());
}

#[test]
fn wrong_host_files_are_named_with_their_row() {
    for (path, text, expected) in [
        ("/h.json", "{", "/h.json: "),
        ("/h.json", "5", "/h.json: must hold a list of hosts"),
        ("/h.json", r#"{"hosts": []}"#, "/h.json: must hold a list of hosts"),
        ("/h.json", r#"["a", 5]"#, "/h.json: row 2 is a number, not a host table or an address"),
        ("/h.json", r#"[{"id": "a"}]"#, "/h.json: row 1 has no address"),
        ("/h.json", r#"["a", "b", "a"]"#, "/h.json: row 3 has the id \"a\" of row 1"),
        ("/h.json", r#"[{"address": "a", "prot": 1}]"#, "unknown key \"prot\" in host [1] (did you mean \"port\"?)"),
        ("/h.json", r#"["$(id)"]"#, "host [1].address: \"$(id)\" is not a host name or address"),
        ("/h.csv", "id,adress\na,b\n", "/h.csv: unknown column \"adress\""),
        ("/h.csv", "id,address,port\na,b,x\n", "/h.csv: row 1 has the port \"x\", which is no number"),
        ("/h.csv", "id,address\na\n", "/h.csv: "),
        ("/h.csv", "id,address\na,\n", "/h.csv: row 1 has no address"),
        ("/h.txt", "", "/h.txt: its name must end in .json or .csv"),
    ] {
        let said = found(path, text).unwrap_err();
        assert!(said.starts_with(expected), "{text}: {said}");
    }
}

#[test]
fn deploy_releases_takes_only_what_makes_sense() {
    let lua = lua(&[]);
    let said = |options: &str| {
        let made = lua
            .load(format!("local made = require('deploy.releases')({options})\nreturn made"))
            .set_name("@shop.lua")
            .eval::<Value>();
        made.map_or_else(|error| error.to_string().lines().next().unwrap_or_default().to_owned(), |_| "ok".to_owned())
    };
    let wanted = "dir = '/srv/shop', artifact = 'app'";
    assert_eq!(said(&format!("{{ {wanted}, shared = {{ 'log', 'tmp/pids/' }}, keep = 2, user = 'root' }}")), "ok");
    for (options, why) in [
        ("'x'".to_owned(), "takes one table"),
        ("{ dir = '/srv/shop' }".to_owned(), "needs dir and artifact"),
        (format!("{{ {wanted}, shard = {{}} }}"), "unknown key \"shard\""),
        (format!("{{ {wanted}, keep = 1 }}"), "keep = 1 must be a whole number, at least 2"),
        (format!("{{ {wanted}, keep = 2.5 }}"), "keep = 2.5"),
        (format!("{{ {wanted}, shared = 'log' }}"), "shared must be a table"),
        (format!("{{ {wanted}, shared = {{ '../log' }} }}"), "\"../log\" must be a path within the release"),
        (format!("{{ {wanted}, shared = {{ '/log' }} }}"), "must be a path within"),
        (format!("{{ {wanted}, shared = {{ '.' }} }}"), "must be a path within"),
        (format!("{{ {wanted}, shared = {{ log = true }} }}"), "shared must be a list"),
        ("{ dir = '/', artifact = 'app' }".to_owned(), "absolute directory"),
        ("{ dir = 'srv', artifact = 'app' }".to_owned(), "absolute directory"),
        ("{ dir = '/srv/../etc', artifact = 'app' }".to_owned(), "absolute directory"),
    ] {
        let said = said(&options);
        assert!(said.contains(why) && said.contains("shop.lua:1:"), "{options}: {said}");
    }
}
