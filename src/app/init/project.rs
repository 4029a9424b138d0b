//! The first project's file and the script that prepares its hosts: what a user sees first, so it has to read well.

use std::fmt::Write as _;

use super::detect::Found;
use crate::model::{
    host::{Host, SecretRef, Ssh},
    ids::IdError,
};

/// What is known of a project to be.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    pub name: String,
    pub git: String,
    pub branch: String,
    /// Secrets of the source that there are.
    pub token: Option<String>,
    pub git_key: Option<String>,
    pub webhook: String,
    pub found: Vec<Found>,
    /// Empty = nobody has said any yet.
    pub hosts: Vec<Address>,
    pub user: String,
    pub key: String,
    pub known_hosts: String,
    /// Where releases lie on hosts.
    pub dir: String,
    /// The unit that is restarted.
    pub service: Option<String>,
    /// What a healthy host answers.
    pub health: Option<String>,
    /// The file itself, for its first line.
    pub file: String,
}

/// A host as it was said: an address, and its port if that is not 22.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub host: String,
    pub port: Option<u16>,
}

impl Address {
    /// Where a host is.
    pub fn of(host: &Host) -> Address {
        Address { host: host.address.clone(), port: host.ssh.port.filter(|port| *port != 22) }
    }

    /// What the project calls it: its id.
    pub fn id(&self) -> String {
        match self.port {
            Some(port) if self.host.contains(':') => format!("[{}]:{port}", self.host),
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.clone(),
        }
    }
}

impl Draft {
    /// One of its hosts, as the daemon will know it.
    pub fn host(&self, address: &Address) -> Result<Host, IdError> {
        let ssh = Ssh {
            user: Some(self.user.clone()),
            port: address.port,
            key: Some(SecretRef { name: self.key.clone() }),
            known_hosts: Some(self.known_hosts.clone()),
            ..Ssh::default()
        };
        Ok(Host { ssh, ..Host::at(address.id().parse()?, address.host.clone()) })
    }
}

/// A text as Lua writes it.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => out.extend(c.to_string().bytes().map(|byte| format!("\\{byte:03}"))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A word of POSIX sh.
fn shell(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The project's file.
pub(super) fn lua(draft: &Draft) -> String {
    let mut out = String::new();
    let name = &draft.name;
    let found: Vec<&str> = draft.found.iter().map(|found| found.what.as_str()).collect();
    let found = if found.is_empty() { "nothing that is known here".to_owned() } else { found.join(", ") };
    let _infallible = write!(
        out,
        r#"-- {file}: how {name} is tested and deployed. `phased init` wrote it once; it is yours now.
-- In the repository it found {found}.
--   phased check           says what is wrong with it, with line and column
--   phased reload          makes the daemon read it
--   phased start {name} --wait   presses the button; a push to {branch} does that by itself
-- Everything that may stand here: docs/lua.md, docs/rollouts.md; further examples: /usr/share/phased/examples.

-- Who is told when something goes wrong. This one writes to the daemon's log only: put alerts.slack, alerts.email or
-- alerts.webhook in its place, or beside it (notify = {{ log, slack }}), so that bad news reaches somebody.
local log = require "alerts.log" {{}}

-- On each host: {dir}/releases/<id>, and {dir}/current is a link to the one that serves. Five are kept.
local releases = require "deploy.releases"
local app = releases {{ dir = {quoted_dir}, artifact = "app" }} -- shared = {{ "log", "uploads" }} outlives releases

return phased.project {{
  source = {{
    git = {git},
    branch = {quoted_branch},
    poll = "1m", -- asked for as well, in case a webhook is lost or there is none
    webhook = phased.secret {webhook}, -- POST /hooks/github/{name}, signed with this
"#,
        file = draft.file,
        branch = draft.branch,
        dir = draft.dir,
        quoted_dir = quoted(&draft.dir),
        git = quoted(&draft.git),
        quoted_branch = quoted(&draft.branch),
        webhook = quoted(&draft.webhook),
    );
    if let Some(token) = &draft.token {
        let _infallible = writeln!(out, "    token = phased.secret {},", quoted(token));
    }
    if let Some(key) = &draft.git_key {
        let _infallible = writeln!(out, "    key = phased.secret {},", quoted(key));
        let _infallible = writeln!(out, "    known_hosts = {},", quoted(&draft.known_hosts));
    }
    out.push_str("  },\n\n");
    out.push_str(&stages(draft));
    out.push_str(&environment(draft));
    out.push_str("  notify = log,\n}\n");
    out
}

fn stages(draft: &Draft) -> String {
    let mut out = String::from(
        "  -- Here, as a user that sees nothing else: a fresh checkout for each run, stages in order. The first failure ends the run and\n  \
         -- no host is touched.\n  test = {\n    {\n      \"build\",\n      run = function(run)\n",
    );
    for found in &draft.found {
        for command in &found.build {
            let _infallible = writeln!(out, "        run:sh {}", quoted(command));
        }
    }
    let path = match &draft.found[..] {
        [one] => one.path.unwrap_or("."),
        _ => ".",
    };
    let mut exclude = vec![".git"];
    exclude.extend(draft.found.iter().flat_map(|found| &found.exclude));
    let exclude = match path {
        "." => format!(", exclude = {{ {} }}", exclude.iter().map(|e| quoted(e)).collect::<Vec<_>>().join(", ")),
        _ => String::new(),
    };
    let _infallible = writeln!(
        out,
        "        run:artifact {{ \"app\", path = {}{exclude} }} -- what hosts get: built once, the same bytes everywhere",
        quoted(path)
    );
    out.push_str("      end,\n    },\n");
    let tests: Vec<&String> = draft.found.iter().flat_map(|found| &found.test).collect();
    if tests.is_empty() {
        out.push_str(
            "    -- No tests were found. Until there are some here, every commit that builds is deployed:\n    \
             -- { \"unit\", run = function(run) run:sh { \"make test\", timeout = \"10m\" } end },\n",
        );
    } else {
        out.push_str("    {\n      \"unit\",\n      run = function(run)\n");
        for test in tests {
            let _infallible = writeln!(out, "        run:sh {{ {}, timeout = \"15m\" }}", quoted(test));
        }
        out.push_str("      end,\n    },\n");
    }
    let integration: Vec<&String> = draft.found.iter().filter_map(|found| found.integration.as_ref()).collect();
    if !integration.is_empty() {
        out.push_str("    {\n      \"integration\", -- setup = ..., cleanup = ...: what these tests need, made before and always removed\n      run = function(run)\n");
        for test in integration {
            let _infallible = writeln!(out, "        run:sh {{ {}, timeout = \"20m\" }}", quoted(test));
        }
        out.push_str("      end,\n    },\n");
    }
    out.push_str("  },\n\n");
    out
}

fn environment(draft: &Draft) -> String {
    let mut out = String::from(
        "  -- Then, environment by environment, each only if the one before is good.\n  environments = {\n    {\n      \"production\",\n",
    );
    if draft.hosts.is_empty() {
        out.push_str(
            "      -- TO DO: your hosts. Until then nothing is deployed: \"manual\" waits for `phased start`.\n      \
             when = \"manual\",\n      hosts = { \"web1.example.com\" },\n",
        );
    } else {
        let hosts: Vec<String> = draft.hosts.iter().map(host).collect();
        let line = format!("      hosts = {{ {} }},\n", hosts.join(", "));
        match line.len() {
            0..110 => out.push_str(&line),
            _ => {
                let _infallible = writeln!(out, "      hosts = {{\n        {},\n      }},", hosts.join(",\n        "));
            }
        }
    }
    let _infallible = writeln!(
        out,
        "      ssh = {{ user = {}, key = phased.secret {}, known_hosts = {} }},",
        quoted(&draft.user),
        quoted(&draft.key),
        quoted(&draft.known_hosts)
    );
    out.push_str(
        "      -- One host first, then the others one after the other; each time what is new is watched for a minute. If it is bad, every\n      \
         -- host goes back to the last good release by itself.\n      \
         rollout = { canary = 1, max_parallel = 1, bake_time = \"1m\", on_failure = \"rollback\" },\n\n",
    );
    let on_host: Vec<&String> = draft.found.iter().flat_map(|found| &found.on_host).collect();
    if on_host.is_empty() {
        out.push_str("      -- On every host before anything is switched: the release lies there, and nothing serves it yet.\n      prepare = app.prepare,\n");
    } else {
        out.push_str("      -- On every host before anything is switched: the release lies there, with what cannot be brought along, and nothing serves\n      -- it yet.\n");
        out.push_str("      prepare = function(host, release)\n        app.prepare(host, release)\n        host:sh {\n          [[\n");
        let _infallible = writeln!(out, "            cd {}/releases/\"$PHASED_RELEASE\"", shell(&draft.dir));
        for command in on_host {
            let _infallible = writeln!(out, "            {command}");
        }
        out.push_str("          ]],\n          timeout = \"10m\",\n        }\n      end,\n");
    }
    out.push_str("      deploy = function(host, release)\n        app.activate(host, release)\n");
    match &draft.service {
        Some(unit) => {
            let _infallible = writeln!(
                out,
                "        host:service({}):restart() -- sudo -n systemctl restart {}",
                quoted(unit),
                full(unit)
            );
        }
        None => out.push_str("        -- host:service(\"NAME\"):restart() restarts a systemd unit.\n"),
    }
    out.push_str("      end,\n\n");
    out.push_str(&health(draft));
    out.push_str("    },\n  },\n\n");
    out
}

fn health(draft: &Draft) -> String {
    let good = "min_healthy_time = \"10s\", healthy_deadline = \"2m\"";
    let service = draft.service.as_ref().map(|unit| format!("service = {}, ", quoted(unit))).unwrap_or_default();
    match &draft.health {
        Some(http) => format!(
            "      -- A host counts as deployed when all of this was good for 10 s without a break; not within 2 m: it has failed.\n      \
             health = {{ http = {}, {service}{good} }},\n",
            quoted(http)
        ),
        None if draft.service.is_some() => format!(
            "      -- A host counts as deployed when its unit was active for 10 s without restarting; not within 2 m: it has failed. What it\n      \
             -- answers says more: http = \":8080/healthz\".\n      health = {{ {service}{good} }},\n"
        ),
        None => format!(
            "      -- All that is known to be looked at. What it answers says more: http = \":8080/healthz\".\n      \
             health = {{ command = {}, {good} }},\n",
            quoted(&format!("test -e {}/current/", shell(&draft.dir)))
        ),
    }
}

fn host(address: &Address) -> String {
    match address.port {
        None => quoted(&address.host),
        Some(port) => {
            format!("{{ id = {}, address = {}, port = {port} }}", quoted(&address.id()), quoted(&address.host))
        }
    }
}

/// A unit with its kind.
fn full(unit: &str) -> String {
    if unit.contains('.') { unit.to_owned() } else { format!("{unit}.service") }
}

/// The line that lets the user restart the unit.
pub(super) fn sudoers(draft: &Draft) -> Option<String> {
    let unit = draft.service.as_ref().filter(|_| draft.user != "root")?;
    Some(format!("{} ALL=(root) NOPASSWD: /usr/bin/systemctl restart {}", draft.user, full(unit)))
}

/// What prepares a host, to be run there as root; more than once does no harm.
pub(super) fn host_script(draft: &Draft, public_key: &str) -> String {
    let (user, dir) = (shell(&draft.user), shell(&draft.dir));
    let mut out = format!(
        "#!/bin/sh\n# Prepares a host for {name}: the user, the key that phased logs in with, {plain_dir}, and leave to restart the unit.\n\
         # Run it on each host as root, as in: ssh root@HOST sh <{name}.host.sh    It may be run again.\n\
         set -eu\n\n\
         for tool in flock setsid; do\n  command -v $tool >/dev/null || {{ echo \"$tool is missing: install util-linux\" >&2; exit 1; }}\ndone\n",
        name = draft.name,
        plain_dir = draft.dir,
    );
    if draft.user != "root" {
        let _infallible = write!(
            out,
            "id {user} >/dev/null 2>&1 || {{\n  useradd --create-home --shell /bin/sh {user}\n  \
             usermod --password '*' {user} # no password; and not locked, which sshd may take for no entry at all\n}}\n"
        );
    }
    let _infallible = write!(
        out,
        "home=$(getent passwd {user} | cut -d: -f6)\ngroup=$(id -gn {user})\n\
         install -d -m 0700 -o {user} -g \"$group\" \"$home/.ssh\"\n\
         keys=$home/.ssh/authorized_keys\n\
         grep -qxF {key} \"$keys\" 2>/dev/null || echo {key} >>\"$keys\"\n\
         chown {user}:\"$group\" \"$keys\"\nchmod 0600 \"$keys\"\n\
         install -d -m 0755 -o {user} -g \"$group\" {dir}\n",
        key = shell(public_key),
    );
    if let Some(unit) = &draft.service {
        let note = format!("note: there is no unit {} yet; what it runs will be in {}/current", full(unit), draft.dir);
        let _infallible = writeln!(
            out,
            "command -v sudo >/dev/null || {{ echo 'sudo is missing: install it, then run this again' >&2; exit 1; }}\n\
             systemctl cat {} >/dev/null 2>&1 || echo {}",
            shell(&full(unit)),
            shell(&note)
        );
    }
    if let Some(line) = sudoers(draft) {
        let file = draft.name.replace('.', "_");
        // A file that sudo cannot read takes sudo from everybody: it is looked at first, under a name with a dot, which sudo passes over.
        let _infallible = writeln!(
            out,
            "PATH=$PATH:/usr/sbin:/sbin\numask 0227\nnew=$(mktemp /etc/sudoers.d/.phased-XXXXXX)\ntrap 'rm -f \"$new\"' EXIT\necho {} >\"$new\"\nchmod 0440 \"$new\"\n\
             visudo -cf \"$new\" >/dev/null || {{ echo 'sudo does not read what it was to be told; nothing was changed for it' >&2; exit 1; }}\n\
             mv -f \"$new\" /etc/sudoers.d/phased-{file}",
            shell(&line)
        );
    }
    out.push_str("echo ready\n");
    out
}

/// What says, on a host and as the user, whether all is there: a line for each thing that is not.
pub(super) fn host_check(draft: &Draft) -> String {
    let dir = shell(&draft.dir);
    let mut out = format!(
        "if [ -d {dir} ]; then [ -w {dir} ] || echo directory; else [ -w \"$(dirname {dir})\" ] || echo directory; fi\n"
    );
    if let Some(unit) = &draft.service {
        let unit = shell(&full(unit));
        let _infallible = write!(
            out,
            "sudo -n -l systemctl restart {unit} >/dev/null 2>&1 || echo sudo\nsystemctl cat {unit} >/dev/null 2>&1 || echo unit\n"
        );
    }
    out.push_str("true\n");
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::app::init) fn draft() -> Draft {
        Draft {
            name: "shop".into(),
            git: "https://github.com/acme/shop.git".into(),
            branch: "main".into(),
            token: None,
            git_key: None,
            webhook: "shop_webhook".into(),
            found: Vec::new(),
            hosts: vec![Address { host: "web1.example.com".into(), port: None }],
            user: "deploy".into(),
            key: "deploy_key".into(),
            known_hosts: "/etc/phased/known_hosts".into(),
            dir: "/srv/shop".into(),
            service: Some("shop".into()),
            health: None,
            file: "projects/shop.lua".into(),
        }
    }

    #[test]
    fn what_goes_into_lua_and_sh_stays_what_it_is() {
        assert_eq!(quoted("a\"b\\c\n\u{1}é"), "\"a\\\"b\\\\c\\010\\001é\"");
        let script = host_script(&Draft { dir: "/srv/it's".into(), ..draft() }, "ssh-ed25519 AAAA x");
        assert!(script.contains(r"/srv/it'\''s'"), "{script}");
    }

    #[test]
    fn the_script_for_hosts_is_one_that_sh_reads() {
        for user in ["deploy", "root"] {
            for service in [Some("shop".to_owned()), None] {
                let draft = Draft { user: user.into(), service, ..draft() };
                for text in [host_script(&draft, "ssh-ed25519 AAAA x"), host_check(&draft)] {
                    let done = std::process::Command::new("sh").args(["-n", "-c", &text]).output().unwrap();
                    assert!(done.status.success(), "{}\n{text}", String::from_utf8_lossy(&done.stderr));
                }
            }
        }
        let script = host_script(&draft(), "ssh-ed25519 AAAA x");
        assert!(script.find("visudo -cf").unwrap() < script.find("mv -f").unwrap(), "{script}");
        assert_eq!(sudoers(&draft()).unwrap(), "deploy ALL=(root) NOPASSWD: /usr/bin/systemctl restart shop.service");
    }
}
