//! `phased.project{}` and everything below it.

use std::{borrow::Cow, sync::Arc};

use super::Object;
use crate::{
    lua::{
        rules,
        shape::{Definition, Kind, Shape, Text},
    },
    model::{host::Presence, host_key::Policy},
};

fn text(what: &'static str, rule: crate::lua::shape::Rule) -> Kind {
    Kind::Text(Text::new(what, rule))
}

fn function(signature: &'static str) -> Kind {
    Kind::Function(Cow::Borrowed(signature))
}

pub(super) fn project() -> Shape {
    Shape::new("project", "One deployable system; the file in projects/ returns it, and the file's name is the project's name.")
        .required("source", source().table(), "Where commits come from.")
        .with_default("queue", Kind::words(&["latest", "all"]), "\"latest\"", "What happens to pushes while one is being tested: a newer one supersedes those still queued, or every one is a run.")
        .required("test", Kind::List(Arc::new(stage().table()), 1), "Stages of tests on this server, in order; the first failure ends the run and nothing is deployed.")
        .unless("test", |project| environments_listen(project.get("environments")))
        .required("environments", Kind::List(Arc::new(environment().table()), 1), "Environments in order; each is deployed to only if the one before is good.")
        .required("notify", Kind::Union(vec![Kind::Bound(Definition::Alert), Kind::Bound(Definition::Alert).some(), notify().table()]), "Who is told: one alert or a list of them for every bad end and recovery, or { bad = ..., good = ... }.")
        .later(&["tasks"])
}

/// Whether every environment of a list is entered by signals.
fn environments_listen(environments: Option<&mlua::Value>) -> bool {
    let Some(mlua::Value::Table(list)) = environments else { return false };
    let listens = |environment: mlua::Result<mlua::Table>| {
        let when = environment.and_then(|environment| environment.raw_get::<mlua::Value>("when"));
        when.is_ok_and(|when| when.as_string().is_some_and(|word| word.as_bytes() == b"signal".as_slice()))
    };
    list.raw_len() > 0 && list.sequence_values::<mlua::Table>().all(listens)
}

/// Whether an environment is reached by signals.
fn by_signals(environment: &std::collections::BTreeMap<String, mlua::Value>) -> bool {
    matches!(environment.get("transport"), Some(mlua::Value::String(word)) if word.as_bytes() == b"signal".as_slice())
}

fn source() -> Shape {
    Shape::new("source", "The repository that is deployed.")
        .required(
            "git",
            text("a git URL", rules::git_url),
            "The URL as git takes it: https://, ssh://, user@host:path or file:///.",
        )
        .required("branch", text("a branch name", rules::branch), "The branch that is deployed.")
        .optional(
            "tags",
            text("a pattern of tags", rules::tag_pattern).or_list(),
            "Pushed tags that match start runs too, and may be started although they are not on the branch: \"v*\".",
        )
        .optional(
            "poll",
            Kind::Limit,
            "How often the branch's head and tags are asked for, beside webhooks; without it only at start.",
        )
        .optional(
            "webhook",
            Kind::Secret.or_list(),
            "The secret that signs webhooks, or two during a rotation; without it the project has no webhook endpoint.",
        )
        .optional(
            "user",
            text("a user name", rules::user),
            "User for https://, where the forge wants one beside the token.",
        )
        .optional("token", Kind::Secret, "Password or token for https://.")
        .optional("key", Kind::Secret, "Private key for ssh:// and user@host:path.")
        .optional(
            "known_hosts",
            text("an absolute path", rules::absolute_path),
            "The known_hosts file for ssh:// and user@host:path.",
        )
        .later(&["paths", "schedule"])
}

fn stage() -> Shape {
    Shape::new("stage", "A named group of tests, run in the run's own checkout.")
        .first("name", text("a stage name", rules::name), "What the stage is called.")
        .optional("setup", function("fun(run: phased.Run)"), "Called before run, to make what the tests need.")
        .required("run", function("fun(run: phased.Run)"), "The tests; an error fails the run.")
        .optional("cleanup", function("fun(run: phased.Run)"), "Always called in the end: pass, fail, stop or crash.")
        .with_default("timeout", Kind::Limit, "\"1h\"", "The limit of each of these calls as a whole.")
}

fn environment() -> Shape {
    Shape::new("environment", "A named set of hosts with its own rules.")
        .first("name", text("an environment name", rules::name), "What the environment is called.")
        .required(
            "hosts",
            Kind::Union(vec![Kind::Bound(Definition::Discovery), hosts()]),
            "Its hosts: a list of addresses, host tables and discoveries, or one discovery.",
        )
        .optional("ssh", ssh().table(), "How to reach its hosts; a host's own values win.")
        .optional("rollout", rollout().table(), "How many hosts at once, and how many may fail.")
        .required(
            "deploy",
            function("fun(host: phased.Host, release: phased.Release)"),
            "Puts the release on one host.",
        )
        .unless("deploy", by_signals)
        .required(
            "health",
            Kind::Union(vec![Kind::words(&["none"]), health().table()]),
            "When a host is healthy after its deploy; \"none\" on purpose.",
        )
        .unless("health", by_signals)
        .optional(
            "verify",
            function("fun(run: phased.Run, deployment: phased.Deployment)"),
            "Tests in production, after the last host; an error is a bad deployment.",
        )
        .optional(
            "alarms",
            Kind::List(Arc::new(alarm().table()), 1),
            "What is watched while a deployment goes on; each with cause, alert and action.",
        )
        .with_default("timeout", Kind::Limit, "\"1h\"", "The limit of each of its calls as a whole.")
        .with_default(
            "when",
            Kind::Union(vec![Kind::words(&["push", "manual", "signal"]), when().table()]),
            "\"push\"",
            "Which runs enter it by themselves: all, none, those that another daemon asks for by a signal, or those of tags. Where every environment says \"signal\" the project may have no test: what comes was tested by its sender. A run stops at the first environment that nothing opens for it; `phased start PROJECT ENVIRONMENT` opens it.",
        )
        .optional(
            "freeze",
            freeze().table().some(),
            "Times in which nothing new is deployed there; rollbacks and late hosts are.",
        )
        .optional(
            "group",
            text("a name", rules::name),
            "Environments of one group, also of other projects, are deployed to one at a time.",
        )
        .optional(
            "prepare",
            function("fun(host: phased.Host, release: phased.Release)"),
            "Every host, 64 at a time, before anything is switched; it must not touch what serves. Also on the way back.",
        )
        .optional("before", function("fun(deployment: phased.Deployment)"), "Once, after every prepare: the place of migrations.")
        .optional("before_wave", function("fun(wave: phased.Wave)"), "Before each wave.")
        .optional("drain", function("fun(host: phased.Host)"), "Takes one host out of service, before its deploy. Also on the way back.")
        .optional("undrain", function("fun(host: phased.Host)"), "Takes one host into service again, once it is healthy. Also on the way back.")
        .optional("after_wave", function("fun(wave: phased.Wave)"), "After each wave.")
        .optional("after", function("fun(deployment: phased.Deployment)"), "Once, when every host has it and it is verified.")
        .optional(
            "rollback_safe",
            function("fun(release: phased.Release): boolean, string?"),
            "Asked before anything is touched: whether a failure may go back to the known-good release, and if not, why.",
        )
        .with_default(
            "transport",
            Kind::words(&["ssh", "signal"]),
            "\"ssh\"",
            "How its hosts are reached: by SSH, or by signals to a daemon of each host's own, which deploys by its own project file. Then there is no ssh and no health (each receiver looks at what it deploys, and is asked), and deploy is host:signal() when absent.",
        )
        .optional("signal", signal().table(), "With transport = \"signal\": how the daemons of its hosts are spoken to.")
}

fn signal() -> Shape {
    Shape::new("signal", "How the daemons of an environment's hosts are spoken to.")
        .required("key", Kind::Secret, "The private key that signs; phased keys make makes one. Receivers accept its public half in [signals] of their configuration.")
        .optional("receivers", text("an absolute path", rules::absolute_path), "A file with the public keys of the receivers, HOST-ID ssh-ed25519 AAAA... a line; a host's own receiver_key wins.")
        .with_default("port", Kind::Integer(1, 65535), "7427", "Where the daemons listen; a host's own port wins.")
        .with_default("tls", Kind::Boolean, "false", "true: by https, where they speak it, or a proxy in front of them. Signals and answers are signed either way.")
}

fn when() -> Shape {
    Shape::new("when", "Runs of which tags enter an environment by themselves.").required(
        "tag",
        text("a pattern of tags", rules::tag_pattern).or_list(),
        "As in \"v*\"; source.tags says which pushed tags start runs.",
    )
}

fn freeze() -> Shape {
    let time = || text("a time", rules::line);
    Shape::new(
        "freeze",
        "A window in which nothing new is deployed: { from = \"fri 16:00\", to = \"mon 08:00\" } each week, { days = \"mon-fri\", from = \"22:00\", to = \"06:00\" } on each of these days, { days = \"sat,sun\" } all day, { from = \"2026-12-20\", to = \"2027-01-02\" } once.",
    )
    .optional("days", time(), "The days on which it begins: \"mon-fri\", \"sat,sun\"; with times of day only.")
    .optional("from", time(), "\"16:00\", \"fri 16:00\", \"2026-12-20\" or \"2026-12-20 16:00\".")
    .optional("to", time(), "The same kind. Not later than from on the same day is on the next; a date alone is the whole of that day.")
    .required("zone", text("a time zone", rules::zone), "Whose clock: \"Europe/Berlin\", \"UTC\".")
    .optional("reason", text("one line", rules::line), "Why, for those who wait.")
}

fn hosts() -> Kind {
    let one = Kind::Union(vec![text("an address", rules::address), Kind::Bound(Definition::Discovery), host().table()]);
    one.some()
}

pub(super) fn host() -> Shape {
    Shape::new("host", "A deploy target, as a project writes it and a discovery returns it.")
        .required("address", text("a host name or address", rules::address), "Where its sshd listens.")
        .optional("id", text("a host id", rules::host_id), "Its identity, by its provider; the address when absent.")
        .optional(
            "name",
            text("a name", rules::line),
            "What people call it, and its place in the order of a rollout; the id when absent.",
        )
        .optional("zone", text("a name", rules::line), "Its failure domain.")
        .with_default(
            "state",
            Kind::words(Presence::WORDS),
            "\"running\"",
            "What its source says of it; only a running one is deployed to.",
        )
        .optional("reason", text("one line of text", rules::line), "Why it is in that state.")
        .optional(
            "labels",
            Kind::Map(
                Text::new("a label's name", rules::label),
                Arc::new(Kind::Text(Text::new("a text", rules::value).or_number())),
            ),
            "Free facts, for the pipeline to read.",
        )
        .optional("user", text("a user name", rules::user), "The user to log in as.")
        .optional("port", Kind::Integer(1, 65535), "The port of its sshd, or of its own daemon.")
        .with_default(
            "transport",
            Kind::words(&["ssh", "local"]),
            "\"ssh\"",
            "local: it is this server itself, and its commands run as the project's own user; phased.localhost is such a host.",
        )
        .optional("receiver_key", text("a public key", rules::public_key), "Of its own daemon, where that is sent signals: what phased keys show prints there.")
        .optional("key", Kind::Secret, "The private key to log in with.")
        .optional(
            "known_hosts",
            text("an absolute path", rules::absolute_path),
            "The known_hosts file its key is held against.",
        )
        .optional(
            "host_keys",
            policy_or_keys(),
            "By what it is known to be itself, as in ssh; or its keys: { \"SHA256:...\" } or { \"ssh-ed25519 AAAA...\" }, any of them.",
        )
        .optional("jump", way(), "The bastion on the way, or several in their order; \"none\" where that of ssh is not meant.")
        .optional("connect_timeout", Kind::Limit, "Connecting, key exchange and login together.")
        .optional("path", text("a PATH", rules::line), "PATH of its commands.")
        .optional("base", text("an absolute path", rules::absolute_path), "Where phased keeps its files on the host.")
}

fn ssh() -> Shape {
    Shape::new("ssh", "How to reach the hosts of an environment.")
        .optional(
            "user",
            text("a user name", rules::user),
            "The user to log in as; the daemon's own user name when absent.",
        )
        .with_default("port", Kind::Integer(1, 65535), "22", "The port of sshd.")
        .optional("key", Kind::Secret, "The private key to log in with.")
        .optional(
            "known_hosts",
            text("an absolute path", rules::absolute_path),
            "The known_hosts file that host keys are held against.",
        )
        .with_default(
            "host_keys",
            Kind::words(Policy::WORDS),
            "\"pin\"",
            "By what a host is known to be itself: pin: its key is in known_hosts; ca: it has a certificate of an authority in known_hosts (@cert-authority); tofu: the first key that its id shows is kept, and every other one refused.",
        )
        .optional("jump", way(), "The bastion on the way, \"[user@]host[:port]\", or several in their order; what a bastion's table does not say is as for the hosts.")
        .with_default("connect_timeout", Kind::Limit, "\"10s\"", "Connecting, key exchange and login together.")
        .optional("path", text("a PATH", rules::line), "PATH of commands on the hosts.")
        .with_default(
            "base",
            text("an absolute path", rules::absolute_path),
            "/var/tmp/phased-<uid>",
            "Where phased keeps its files on a host.",
        )
        .optional(
            "max_sessions",
            Kind::Integer(1, 10_000),
            "Sessions to these hosts at the same moment, whatever they are for; further ones wait. Without it only [limits] sessions of the daemon counts.",
        )
}

/// `host_keys` of one machine.
fn policy_or_keys() -> Kind {
    Kind::Union(vec![Kind::words(Policy::WORDS), text("a host key", rules::host_key).some()])
}

/// `ssh.jump`.
fn way() -> Kind {
    let hop = || Kind::Union(vec![text("[user@]host[:port]", rules::jump), jump().table()]);
    Kind::Union(vec![text("[user@]host[:port]", rules::jump), hop().some(), jump().table()])
}

fn jump() -> Shape {
    Shape::new("jump", "A bastion. All hosts behind it share one session to it.")
        .required("address", text("a host name or address", rules::address), "Where its sshd listens.")
        .with_default("port", Kind::Integer(1, 65535), "22", "The port of its sshd.")
        .optional("user", text("a user name", rules::user), "The user to log in as; that of the hosts when absent.")
        .optional("key", Kind::Secret, "The private key to log in with; that of the hosts when absent.")
        .optional(
            "known_hosts",
            text("an absolute path", rules::absolute_path),
            "The known_hosts file its key is held against; that of the hosts when absent.",
        )
        .optional(
            "host_keys",
            policy_or_keys(),
            "By what it is known to be itself, as for a host; the policy of the hosts when absent.",
        )
        .with_default(
            "max_handshakes",
            Kind::Integer(1, 1000),
            "8",
            "Hosts that are connected to through it at the same moment, until they have let us in; further ones wait.",
        )
}

fn rollout() -> Shape {
    let budget = || Kind::Union(vec![Kind::Integer(0, 1_000_000), Kind::Percentage]);
    let labels = Kind::Map(
        Text::new("a label's name", rules::label),
        Arc::new(Kind::Text(Text::new("a text", rules::value).or_number())),
    );
    let canary = Shape::new("canary", "Which hosts come first.").required(
        "labels",
        labels,
        "Those that have all of these labels.",
    );
    Shape::new("rollout", "How a deployment goes over its hosts. Sizes are rounded down to at least 1, budgets (max_*) down and may be 0, floors (min_*) up.")
        .with_default(
            "canary",
            Kind::Union(vec![Kind::Integer(0, 1_000_000), Kind::Percentage, canary.table()]),
            "1",
            "Hosts that come first and are watched by themselves: so many of the first by name, or { labels = {...} }; 0 for none.",
        )
        .with_default(
            "waves",
            Kind::Union(vec![Kind::Integer(1, 1_000_000), Kind::Percentage, Kind::List(Arc::new(budget()), 1)]),
            "{ \"100%\" }",
            "A list is how many hosts have it after each wave, the canary included, and ends in \"100%\"; a single value is the size of every wave.",
        )
        .with_default("max_parallel", Kind::Integer(1, 10_000), "1", "Hosts updated at the same moment.")
        .with_default("stagger", Kind::Duration, "\"0s\"", "At least so long between the beginnings of two hosts.")
        .with_default("bake_time", Kind::Duration, "\"2m\"", "How long it is watched after the canary and after every wave; only watched time counts. With when = \"signal\" it is \"0s\": whoever sends the signal watches.")
        .optional("max_bake", Kind::Limit, "A bake from which nothing can be concluded is given up after so long; three times bake_time when absent.")
        .with_default(
            "max_failures",
            budget(),
            "0",
            "Failed hosts that do not stop the rollout; it stops when this is exceeded.",
        )
        .optional("max_failures_per_wave", budget(), "The same within one wave.")
        .with_default(
            "max_unreachable",
            budget(),
            "0",
            "Unreachable hosts that do not stop the rollout; it stops when this is exceeded.",
        )
        .optional("min_healthy", budget(), "No host is taken if fewer than these would serve then; those healthy at plan time less max_parallel, max_failures and max_unreachable when absent.")
        .optional("progress_deadline", Kind::Limit, "Nobody newly healthy for so long is a failure; when absent the limits of each call and of health are all.")
        .with_default("pause_timeout", Kind::Limit, "\"24h\"", "A pause that nobody ends is halted after so long.")
        .optional("rollback_parallel", Kind::Integer(1, 10_000), "Hosts that go back at the same moment; max_parallel when absent.")
        .with_default("max_shrink", Kind::Percentage, "\"30%\"", "A list of hosts that has lost more than this since the last deployment stops it.")
        .with_default("zones", Kind::Boolean, "false", "Hosts of two zones are never updated at the same moment, forwards or back.")
        .with_default("on_failure", Kind::words(&["rollback", "halt", "pause"]), "\"rollback\"", "What happens when it fails after a host was touched.")
        .with_default("on_inconclusive", Kind::words(&["rollback", "halt", "promote"]), "\"rollback\"", "What happens when a bake ends without a verdict.")
}

fn health() -> Shape {
    Shape::new("health", "When a host is healthy: every check good, without a break, for min_healthy_time, before healthy_deadline.")
        .optional("http", text("\":8080/path\" or a URL", rules::http_target).or_list(), "GET; good is a status from 200 to 299. \":8080/path\" is the host's own loopback, asked through its SSH session; a full URL is asked from here.")
        .optional("tcp", text("\":5432\" or \"host:port\"", rules::tcp_target).or_list(), "Something listens there, as the host sees it.")
        .optional("command", text("a command", rules::text).or_list(), "Shell text on the host; good is exit code 0.")
        .optional("service", text("a unit's name", rules::unit).or_list(), "A systemd unit, shop or shop.service: good is active. One that ends and is restarted by systemd while it is watched (NRestarts) is unhealthy at once.")
        .optional("container", text("a container's name", rules::container).or_list(), "A container of docker or podman: good is running, and healthy where it has a health check of its own. One that ends and is restarted while it is watched is unhealthy at once.")
        .optional("version", version().table(), "The version that the host reports: good is the release that was deployed.")
        .with_default("min_healthy_time", Kind::Duration, "\"10s\"", "How long all checks must be good without a break.")
        .with_default("healthy_deadline", Kind::Limit, "\"2m\"", "Not healthy by then is a failed host.")
        .with_default("interval", Kind::Limit, "\"1s\"", "Between looks.")
        .with_default("timeout", Kind::Limit, "\"5s\"", "Of one look.")
}

fn version() -> Shape {
    Shape::new("version", "Where a host tells the version it runs: the release's id, its commit, or at least 7 digits of that.")
        .optional("http", text("\":8080/path\" or a URL", rules::http_target), "GET, asked as health.http is.")
        .optional("command", text("a command", rules::text), "Shell text on the host that prints the version.")
        .optional("json", text("a path of keys", rules::json_path), "The answer is JSON, and the version is there: \"revision\" or \"build.revision\". Without it the answer is the version.")
        .one_of(&["http", "command"])
}

fn alarm() -> Shape {
    let count = |least| Kind::Integer(least, 10_000);
    Shape::new("alarm", "A measurement that says a deployment is bad, who is told, and what happens then. Judged as in Argo Rollouts' analysis: see docs/alarms.md.")
        .first("name", text("a name", rules::line), "What people call it, as in \"error rate\".")
        .required("cause", Kind::Bound(Definition::Probe), "What is measured.")
        .required("alert", Kind::Bound(Definition::Alert), "Who is told when it fires.")
        .required("action", Kind::words(&["rollback", "halt", "pause", "none"]), "What happens to the deployment when it fires.")
        .optional("failure", condition("failure", "What a bad value is; every other one is good unless success says otherwise. A probe's own above and below say the same.").table(), "When a measurement is bad.")
        .optional("success", condition("success", "What a good value is; every other one is bad unless failure says otherwise.").table(), "When a measurement is good.")
        .optional("lasting", Kind::Duration, "A bad value counts once it has been there for so long without a good one in between.")
        .with_default("interval", Kind::Limit, "\"30s\"", "Between measurements.")
        .with_default("timeout", Kind::Limit, "\"10s\"", "The limit of one measurement.")
        .optional("count", count(1), "After so many measurements it has passed; without it, when the bake is over.")
        .with_default("failure_limit", count(0), "0", "Bad measurements that do not make it fire; it fires when this is exceeded.")
        .with_default("inconclusive_limit", count(0), "0", "Measurements that are neither good nor bad and do not make it inconclusive.")
        .with_default("consecutive_error_limit", count(0), "4", "Errors and measurements without data, in a row, that do not make it inconclusive.")
        .optional("consecutive_success_limit", count(1), "So many good measurements in a row pass before the end.")
        .with_default("min_samples", count(1), "1", "With fewer values it is inconclusive.")
        .optional("compare", Kind::words(&["baseline"]), "Also measures as many hosts that still run what was live before, and fires when the new release is worse by more than chance explains (Mann-Whitney U test).")
        .optional("worse", Kind::words(&["higher", "lower"]), "Which values are worse in a comparison; higher when absent.")
        .optional("tolerance", Kind::Percentage, "A difference in a comparison of so much of the baseline is none; \"10%\" when absent.")
}

fn condition(name: &'static str, doc: &'static str) -> Shape {
    Shape::new(name, doc)
        .optional("above", Kind::Number, "The value is more than this.")
        .optional("below", Kind::Number, "The value is less than this.")
        .optional(
            "between",
            Kind::List(Arc::new(Kind::Number), 1),
            "The value is from the first to the second of these, both included.",
        )
}

fn notify() -> Shape {
    Shape::new("notify", "Who is told, bad and good ends apart.")
        .required("bad", Kind::Bound(Definition::Alert).or_list(), "For every bad end, and for recovery from one.")
        .optional("good", Kind::Bound(Definition::Alert).or_list(), "For good ends.")
}

pub(super) const OBJECTS: &[Object] = &[
    Object {
        name: "Run",
        doc: "One press of the button; its steps run on this server, in the run's checkout, as the project's own user.",
        fields: &[
            ("id", "string", "The run's id."),
            ("project", "string", "The project's name."),
            ("release", "phased.Release", "What is tested and deployed."),
            ("reason", "string?", "Why it was started, in the words of whoever did."),
            ("dir", "string", "The checkout."),
        ],
    },
    Object {
        name: "Host",
        doc: "A deploy target; its steps run there, as the user of ssh.user.",
        fields: &[
            ("id", "string", "Its identity, by its provider."),
            ("name", "string", "What people call it."),
            ("address", "string", "Where its sshd listens."),
            ("labels", "table<string, string>", "Free facts of the project or its discovery."),
            ("zone", "string?", "Its failure domain."),
        ],
    },
    Object {
        name: "Release",
        doc: "The immutable thing that ships: the project at one commit.",
        fields: &[
            ("id", "string", "12 hex digits of the commit, and .2 and so on for a further build."),
            ("revision", "string", "The full hash of the commit."),
            ("short", "string", "The first 7 digits of it."),
            ("branch", "string?", "The branch it came by."),
            ("tag", "string?", "The tag it came by."),
            ("author", "string", "Name and mail of the commit's author."),
            ("message", "string", "The commit's message."),
            ("committed_at", "string", "When, RFC 3339."),
            ("previous", "phased.Release?", "What was live before."),
            ("artifacts", "table<string, phased.Artifact>", "What its tests stored, by name; none while they run."),
        ],
    },
    Object {
        name: "Artifact",
        doc: "Something that a test stage stored with the release.",
        fields: &[
            ("name", "string", "What run:artifact called it."),
            ("kind", "\"tree\"|\"file\"|\"value\"", "What it is."),
            ("sha256", "string?", "Of the file, or of the tree as a tar archive."),
            ("size", "integer?", "Of the same, bytes."),
            ("value", "string?", "The value."),
        ],
    },
    Object {
        name: "Deployment",
        doc: "One attempt to put a release on one environment.",
        fields: &[
            ("id", "string", "The run's id and a number."),
            ("run", "string", "The run's id."),
            ("environment", "string", "The environment's name."),
            ("release", "phased.Release", "What is deployed."),
            ("previous", "phased.Release?", "What was live before."),
            ("rollback_of", "string?", "The deployment that it takes back."),
            ("hosts", "phased.Host[]", "The hosts."),
        ],
    },
    Object {
        name: "Wave",
        doc: "Hosts that are updated together.",
        fields: &[
            ("n", "integer", "Which, from 1."),
            ("canary", "boolean", "Whether it is the canary."),
            ("environment", "string", "The environment's name."),
            ("release", "phased.Release", "What is deployed."),
            ("hosts", "phased.Host[]", "Its hosts."),
        ],
    },
    Object {
        name: "Result",
        doc: "What a command did.",
        fields: &[
            ("stdout", "string", "Its standard output, at most the last 1 MiB."),
            ("stderr", "string", "Its standard error, at most the last 1 MiB."),
            ("code", "integer", "Its exit code."),
            ("duration_ms", "integer", "How long it ran."),
            ("truncated", "boolean", "Whether there was more output than is shown here."),
        ],
    },
    Object {
        name: "Answer",
        doc: "What an HTTP request brought.",
        fields: &[
            ("status", "integer", "100 to 599."),
            ("headers", "table<string, string>", "By lower-case names."),
            ("body", "string", "At most 1 MiB."),
            ("truncated", "boolean", "Whether there was more."),
            ("duration_ms", "integer", "How long it took."),
        ],
    },
    Object {
        name: "Service",
        doc: "A systemd unit of a host; each of its methods (restart, start, stop, status) takes the step options in a table.",
        fields: &[
            ("restart", "fun(self: phased.Service, options?: table): phased.Result", "Restarts it."),
            ("start", "fun(self: phased.Service, options?: table): phased.Result", "Starts it."),
            ("stop", "fun(self: phased.Service, options?: table): phased.Result", "Stops it."),
            (
                "status",
                "fun(self: phased.Service, options?: table): phased.Result",
                "Asks for it; a unit that is not active is no error.",
            ),
        ],
    },
    Object {
        name: "Record",
        doc: "What DNS says: an address, or a service.",
        fields: &[
            ("address", "string?", "Of an A or AAAA record."),
            ("target", "string?", "Of an SRV record: the name of the host."),
            ("port", "integer?", "Of an SRV record."),
            ("priority", "integer?", "Of an SRV record."),
            ("weight", "integer?", "Of an SRV record."),
        ],
    },
    Object {
        name: "Instance",
        doc: "An instance of EC2; what it does not have is absent.",
        fields: &[
            ("id", "string", "i-..."),
            ("region", "string", "Where it was found."),
            ("account", "string?", "Whose it is."),
            ("state", "string", "pending, running, shutting-down, terminated, stopping or stopped."),
            ("state_reason", "string?", "Why it is in that state."),
            ("private_ip", "string?", "Its private IPv4 address."),
            ("public_ip", "string?", "Its public IPv4 address."),
            ("ipv6", "string?", "Its first IPv6 address."),
            ("private_dns", "string?", "The name of its private address."),
            ("public_dns", "string?", "The name of its public address."),
            ("zone", "string?", "Its availability zone."),
            ("type", "string?", "Its type."),
            ("image", "string?", "Its image."),
            ("vpc", "string?", "Its VPC."),
            ("subnet", "string?", "Its subnet."),
            ("key", "string?", "The name of the key pair it was launched with."),
            ("autoscaling_group", "string?", "Its Auto Scaling group."),
            ("launched_at", "string?", "When, RFC 3339."),
            ("tags", "table<string, string>", "Its tags."),
        ],
    },
    Object {
        name: "Asking",
        doc: "What a discovery's hosts gets beside its options: whose hosts are asked for.",
        fields: &[
            ("project", "string", "The project's name."),
            ("environment", "string", "The environment's name."),
            (
                "known",
                "string[]",
                "The ids of the running hosts of its last good answer: what became of those that are missing now may be told.",
            ),
            (
                "host_keys",
                "table<string, string|string[]>",
                "The host_keys that its last good answer gave, by id: what was found out with some trouble need not be found out again.",
            ),
        ],
    },
    Object {
        name: "About",
        doc: "What a probe's measure gets: whose alarm it is.",
        fields: &[
            ("project", "string", "The project's name."),
            ("environment", "string", "The environment's name."),
            ("alarm", "string", "The alarm's name."),
            ("group", "string", "canary: the hosts with the new release; baseline: those it is compared with."),
            ("hosts", "phased.Host[]", "The hosts of that group."),
        ],
    },
    Object {
        name: "Measured",
        doc: "A measurement with words about it.",
        fields: &[
            ("value", "number?", "The value; absent where there is no data."),
            ("message", "string?", "What people should know of it, one line."),
        ],
    },
    Object {
        name: "Message",
        doc: "What an alert's send gets.",
        fields: &[
            (
                "event",
                "string",
                "failed, rolled_back, rollback_failed, halted, damaged, stopped, recovered or succeeded.",
            ),
            ("project", "string", "The project's name."),
            ("run", "string?", "The run's id."),
            ("state", "string?", "The run's state."),
            ("title", "string", "One line that says it all."),
            ("text", "string", "The sentences a person needs."),
            ("release", "string?", "The release's id."),
            ("revision", "string?", "The full hash of the commit."),
            ("author", "string?", "Name and mail of the commit's author."),
            ("environment", "string?", "Where."),
            ("stage", "string?", "Which stage of tests."),
            ("host", "string?", "Which host."),
            ("cause", "{code: string, message: string}?", "Why."),
            ("output", "string?", "The last lines of output."),
            ("command", "string?", "What to type to look further."),
        ],
    },
];
