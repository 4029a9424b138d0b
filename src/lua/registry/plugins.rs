//! Definitions of plugins, and the functions of `phased` that they use.

use std::{borrow::Cow, sync::Arc};

use super::{
    PluginFunction,
    steps::{body, env, headers, methods},
};
use crate::lua::{
    rules,
    shape::{Definition, Kind, Shape, Text},
};

fn text(what: &'static str, rule: crate::lua::shape::Rule) -> Kind {
    Kind::Text(Text::new(what, rule))
}

pub(super) fn definition(what: Definition) -> Shape {
    let (doc, signature, sentence) = match what {
        Definition::Discovery => (
            "Finds hosts; calling the value with its options gives what an environment takes as hosts.",
            "fun(options: table, about: phased.Asking): phased.host[]",
            "Returns the hosts as they are now; those it says are stopped or terminated are out for that reason.",
        ),
        Definition::Alert => (
            "Tells people; calling the value with its options gives what a project takes as notify.",
            "fun(options: table, message: phased.Message)",
            "Sends one message; an error makes phased try again later.",
        ),
        Definition::Probe => (
            "Measures something; calling the value with its options gives what an alarm takes as its cause. Options of it that are called above, below (numbers) and lasting (a duration) say when a value is bad.",
            "fun(options: table, about: phased.About): number|phased.Measured|nil",
            "Takes one measurement: a number, { value = ..., message = ... }, or nil where there is no data.",
        ),
    };
    Shape::new(what.word(), doc)
        .required("name", text("a name", rules::name), "What the plugin is called in messages.")
        .optional(
            "options",
            Kind::Map(Text::new("an option's name", option_name), Arc::new(option().table())),
            "The options it takes, by name; others are refused.",
        )
        .required(what.function(), Kind::Function(Cow::Borrowed(signature)), sentence)
}

fn env_like() -> Kind {
    Kind::Map(
        Text::new("a field's name", rules::line),
        Arc::new(Kind::Text(Text::new("a text", rules::value).or_secret().or_number())),
    )
}

/// The options that phased itself reads of every discovery.
pub(super) fn source() -> Shape {
    Shape::new("of_every_discovery", "What every discovery takes beside its own options.")
        .with_default("interval", Kind::Duration, "\"1m\"", "How often it is asked while nothing is deployed; a plan and each wave ask anew.")
        .with_default("timeout", Kind::Limit, "\"2m\"", "The limit of one asking.")
        .with_default("min_hosts", Kind::Integer(0, 1_000_000), "0", "An answer with fewer running hosts is not believed.")
        .optional(
            "max_shrink",
            Kind::Percentage,
            "Nor one that has lost more than this since the last good one, reported terminations aside; that of rollout when absent.",
        )
        .optional("max_growth", Kind::Integer(0, 1_000_000), "Nor one with so many more running hosts than the last good one; five times as many when absent, and at least 50.")
        .with_default(
            "max_age",
            Kind::Duration,
            "\"1h\"",
            "How old the last good answer may be that stands in for a source that fails, where something new begins.",
        )
        .optional("port_label", text("a label's name", rules::label), "The label that holds the port of a host's sshd, where the source does not say it.")
        .optional("user_label", text("a label's name", rules::label), "The label that holds the user to log in as, where the source does not say it.")
}

fn option_name(text: &str) -> Result<(), String> {
    let fits = text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if fits { Ok(()) } else { Err("is not snake_case".to_owned()) }
}

/// The words by which a plugin says what an option must be.
pub(in crate::lua) const OPTION_KINDS: &[&str] = &[
    "text",
    "secret",
    "text_or_secret",
    "url",
    "url_or_secret",
    "path",
    "duration",
    "integer",
    "number",
    "boolean",
    "percentage",
    "list",
    "map",
    "data",
];

pub(super) fn option() -> Shape {
    Shape::new("option", "One option of a plugin: { \"text\", required = true, doc = \"...\" }.")
        .first("kind", Kind::words(OPTION_KINDS), "What it must be; list and map hold texts or secrets.")
        .with_default("required", Kind::Boolean, "false", "Its absence is an error.")
        .optional(
            "position",
            Kind::Integer(1, 9),
            "It is given without a name, in this place; a list takes all values from there on.",
        )
        .optional("default", Kind::Data, "Its value when absent.")
        .optional("values", text("a word", rules::line).some(), "The only values it may have.")
        .optional("doc", text("a sentence", rules::line), "One sentence for people.")
}

pub(super) fn functions() -> Vec<PluginFunction> {
    let function =
        |name, shape: Shape, returns, example| PluginFunction { name, shape: Arc::new(shape), returns, example };
    vec![
        function(
            "http",
            Shape::new("http", "Makes one HTTP request from here; redirects are not followed.")
                .first("url", Kind::Text(Text::new("a URL", rules::url).or_secret()), "Where to.")
                .with_default("method", methods(), "\"GET\"", "The method.")
                .optional("headers", headers(), "Further headers.")
                .optional("bearer", Kind::Secret, "Sent as Authorization: Bearer.")
                .optional("body", body(), "The body as it is.")
                .optional("json", Kind::Data, "The body as data, sent as JSON.")
                .optional("form", env_like(), "The body as the fields of a form.")
                .with_default("timeout", Kind::Limit, "\"30s\"", "The limit of each exchange.")
                .with_default(
                    "retries",
                    Kind::Integer(0, 10),
                    "0",
                    "How often it is tried again when the other side cannot be reached, is overloaded (429, 503) or fails (500, 502, 504): after 1s, 2s, 4s, or when its Retry-After says.",
                )
                .with_default(
                    "check",
                    Kind::Boolean,
                    "true",
                    "false: a status outside 200 to 299 is returned, not raised.",
                ),
            "phased.Answer",
            "phased.http { options.url, method = \"POST\", json = { text = message.title } }",
        ),
        function(
            "json.decode",
            Shape::new("json.decode", "Reads JSON.").first(
                "text",
                Kind::Text(Text::new("a text", rules::free).or_bytes()),
                "The JSON.",
            ),
            "any",
            "local rows = phased.json.decode(phased.read \"/etc/phased/hosts.json\")",
        ),
        function(
            "json.encode",
            Shape::new("json.encode", "Writes JSON.").first("data", Kind::Data, "The data."),
            "string",
            "local text = phased.json.encode(message)",
        ),
        function(
            "csv.decode",
            Shape::new("csv.decode", "Reads CSV whose first line names the columns.").first(
                "text",
                Kind::Text(Text::new("a text", rules::free).or_bytes()),
                "The CSV.",
            ),
            "table<string, string>[]",
            "local rows = phased.csv.decode(phased.read \"/etc/phased/hosts.csv\")",
        ),
        function(
            "log",
            Shape::new("log", "Adds a line to the daemon's log.").first(
                "text",
                Kind::Text(Text::new("a text", rules::free).or_bytes().or_number()),
                "The line.",
            ),
            "",
            "phased.log \"3 hosts found\"",
        ),
        function(
            "read",
            Shape::new("read", "Reads a file of this machine, at most 16 MiB.").first(
                "path",
                text("an absolute path", rules::absolute_path),
                "The file.",
            ),
            "string",
            "local text = phased.read \"/etc/phased/hosts.json\"",
        ),
        function(
            "exec",
            Shape::new("exec", "Runs a program on this machine as the project's own user, without a shell.")
                .rest(
                    "argv",
                    Kind::List(Arc::new(Kind::Text(Text::new("a text", rules::value).or_number())), 1),
                    "The program and its arguments.",
                )
                .optional("stdin", body(), "Its standard input.")
                .optional("env", env(), "Further environment variables.")
                .with_default("timeout", Kind::Limit, "\"1m\"", "The limit of the command.")
                .with_default("check", Kind::Boolean, "true", "false: a failure is returned, not raised."),
            "phased.Result",
            "phased.exec { argv = options.argv, stdin = phased.json.encode(message) }",
        ),
        function(
            "dns",
            Shape::new("dns", "Looks a name up, every time anew; a name without such records gives an empty list.")
                .first("name", text("a name", rules::address), "The name, in full.")
                .with_default("type", Kind::words(&["A", "AAAA", "SRV"]), "\"A\"", "Which records.")
                .optional("server", text("an address and port", rules::line), "Whom to ask, \"10.0.0.2:53\"; the machine's resolvers when absent.")
                .with_default("timeout", Kind::Limit, "\"10s\"", "The limit of the lookup."),
            "phased.Record[]",
            "for _, record in ipairs(phased.dns { \"_ssh._tcp.web.example.com\", type = \"SRV\" }) do end",
        ),
        function(
            "ec2_instances",
            as_whom(Shape::new("ec2_instances", "Lists instances of Amazon EC2, in whatever state, all pages of all regions."))
                .required("regions", text("a region", rules::line).or_list(), "Which regions, asked side by side.")
                .optional(
                    "filters",
                    Kind::Map(Text::new("a filter's name", rules::line), Arc::new(text("a text", rules::value).or_list())),
                    "As DescribeInstances takes them: { [\"tag:role\"] = \"web\" }.",
                )
                .with_default("page_size", Kind::Integer(5, 1000), "1000", "Reservations in one answer.")
                .with_default("timeout", Kind::Limit, "\"2m\"", "The limit of all of it."),
            "phased.Instance[]",
            "for _, instance in ipairs(phased.ec2_instances { regions = \"eu-west-1\" }) do end",
        ),
        function(
            "ec2_host_keys",
            as_whom(Shape::new("ec2_host_keys", "Reads the host keys that instances of Amazon EC2 have printed on their consoles (cloud-init does, at the first boot): id to keys, without those that have printed none yet."))
                .required(
                    "instances",
                    Kind::Map(Text::new("an instance's id", rules::line), Arc::new(text("a region", rules::line))),
                    "Which: id to region. One call of GetConsoleOutput each, four at a time.",
                )
                .with_default("timeout", Kind::Limit, "\"2m\"", "The limit of all of it."),
            "table<string, string[]>",
            "local keys = phased.ec2_host_keys { instances = { [\"i-0ab1\"] = \"eu-west-1\" } }",
        ),
        function(
            "jwt",
            Shape::new("jwt", "Signs a JSON Web Token (RS256) with a key that stays outside Lua.")
                .required("key", Kind::Secret, "A private RSA key in PEM, or a JSON key file with one as private_key.")
                .optional("claims", Kind::Data, "The claims; iat and exp are added.")
                .optional(
                    "from_key",
                    Kind::Map(Text::new("a claim's name", rules::line), Arc::new(text("a field's name", rules::line))),
                    "Claims taken from the JSON key file: { iss = \"client_email\" }.",
                )
                .optional("header", Kind::Data, "Further fields of the header.")
                .with_default("lifetime", Kind::Limit, "\"1h\"", "How long it is good."),
            "string",
            "local assertion = phased.jwt { key = options.key, claims = { aud = url }, from_key = { iss = \"client_email\" } }",
        ),
        function(
            "smtp",
            Shape::new("smtp", "Sends one mail.")
                .required("host", text("a host name or address", rules::address), "The relay.")
                .with_default("port", Kind::Integer(1, 65535), "587", "Its port.")
                .with_default(
                    "tls",
                    Kind::words(&["starttls", "implicit", "none"]),
                    "\"starttls\"",
                    "How the connection is protected; none is for a relay on this machine.",
                )
                .optional("user", text("a user name", rules::line), "The login; with password.")
                .optional("password", Kind::Secret, "The password; with user.")
                .required("from", text("a mail address", rules::mailbox), "Who sends it.")
                .required("to", text("a mail address", rules::mailbox).or_list(), "Who gets it.")
                .required("subject", text("one line of text", rules::line), "One line.")
                .required("body", text("a text", rules::free), "Plain text.")
                .with_default("timeout", Kind::Limit, "\"30s\"", "The limit of the whole exchange."),
            "",
            "phased.smtp { host = \"localhost\", from = \"phased@example.com\", to = \"ops@example.com\", subject = \"...\", body = \"...\" }",
        ),
    ]
}

/// With which credentials EC2 is asked.
fn as_whom(shape: Shape) -> Shape {
    shape
        .optional(
            "access_key_id",
            Kind::Text(Text::new("a text", rules::line).or_secret()),
            "With secret_access_key; else credentials are found as Amazon's tools find them.",
        )
        .optional("secret_access_key", Kind::Secret, "With access_key_id.")
        .optional("session_token", Kind::Secret, "Of temporary keys.")
        .optional("profile", text("a name", rules::line), "A profile of the shared files.")
        .optional("role", text("the ARN of a role", rules::line), "A role to assume.")
        .optional("external_id", text("a text", rules::line), "What the role's owner asks for.")
        .optional(
            "endpoint",
            text("a URL", rules::url),
            "Another endpoint than Amazon's; AWS_ENDPOINT_URL says the same.",
        )
}
