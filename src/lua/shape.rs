//! The language in which the Lua surface is described: what a table may hold and what each value must be.

use std::{borrow::Cow, sync::Arc};

/// Text that is constant for the registry and owned for plugins that declare their options.
pub type Words = Cow<'static, str>;

/// Checks a text; `Err` says what is wrong with it, as the end of the sentence `"x" ...`.
pub type Rule = fn(&str) -> Result<(), String>;

/// What a value must be.
#[derive(Debug, Clone)]
pub enum Kind {
    /// Text that follows a rule.
    Text(Text),
    /// A `phased.secret` handle.
    Secret,
    /// An artifact of a release.
    Artifact,
    /// `"5m"`.
    Duration,
    /// `"5m"`, and not nothing.
    Limit,
    /// A whole number in a range, both ends included.
    Integer(i64, i64),
    /// Any finite number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// `"10%"`, 0 to 100.
    Percentage,
    /// One of these words.
    Enum(Vec<Words>),
    /// A function; the signature in LuaLS words, `fun(run: phased.Run)`.
    Function(Words),
    /// A sequence of at least so many.
    List(Arc<Kind>, usize),
    /// Text keys (following the rule) to values.
    Map(Text, Arc<Kind>),
    /// A table of known keys.
    Table(Arc<Shape>),
    /// What a plugin's value gave when it was called with its options.
    Bound(Definition),
    /// Any of these; the first whose Lua type fits decides.
    Union(Vec<Kind>),
    /// Plain data: nil, booleans, numbers, text, lists and maps of these.
    Data,
}

/// The kinds of definitions that plugins return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Definition {
    /// Finds hosts.
    Discovery,
    /// Tells people.
    Alert,
    /// Measures something.
    Probe,
}

impl Definition {
    /// The word in `phased.<word>`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Definition::Discovery => "discovery",
            Definition::Alert => "alert",
            Definition::Probe => "probe",
        }
    }

    /// The key under which a definition keeps its function.
    #[must_use]
    pub fn function(self) -> &'static str {
        match self {
            Definition::Discovery => "hosts",
            Definition::Alert => "send",
            Definition::Probe => "measure",
        }
    }
}

/// What a text must be.
#[derive(Debug, Clone)]
pub struct Text {
    /// Its noun with an article, `an absolute path`.
    pub what: Words,
    /// Its rule.
    pub rule: Rule,
    /// A `phased.secret` handle will do as well.
    pub secret: bool,
    /// Bytes that are not UTF-8 will do as well.
    pub bytes: bool,
    /// A whole number will do as well and is read as its text: `env = { PORT = 8080 }`.
    pub number: bool,
}

impl Text {
    /// Text that follows `rule`.
    #[must_use]
    pub const fn new(what: &'static str, rule: Rule) -> Self {
        Text { what: Cow::Borrowed(what), rule, secret: false, bytes: false, number: false }
    }

    /// The same, or a secret.
    #[must_use]
    pub const fn or_secret(mut self) -> Self {
        self.secret = true;
        self
    }

    /// The same, and it need not be UTF-8.
    #[must_use]
    pub const fn or_bytes(mut self) -> Self {
        self.bytes = true;
        self
    }

    /// The same, or a whole number.
    #[must_use]
    pub const fn or_number(mut self) -> Self {
        self.number = true;
        self
    }
}

/// On which object a step is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receiver {
    /// `run`: the integration server.
    Run,
    /// `host`: a deploy target.
    Host,
}

impl Receiver {
    /// `run` or `host`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Receiver::Run => "run",
            Receiver::Host => "host",
        }
    }

    /// From `run` or `host`.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        match word {
            "run" => Some(Receiver::Run),
            "host" => Some(Receiver::Host),
            _ => None,
        }
    }
}

/// One key or positional value.
#[derive(Debug, Clone)]
pub struct Field {
    /// The key; for a positional value the name under which it is kept.
    pub name: Words,
    /// One sentence.
    pub doc: Words,
    /// What it must be.
    pub kind: Kind,
    /// Its absence is an error.
    pub required: bool,
    /// What its absence means, as shown in the reference.
    pub default: Option<Words>,
    /// The only object on which the step may have it.
    pub only: Option<Receiver>,
    /// Put in when absent: plugin options only.
    pub fallback: Option<serde_json::Value>,
}

/// What a table may hold.
#[derive(Debug, Clone, Default)]
pub struct Shape {
    /// `project.source`; names its class in the types file.
    pub name: Words,
    /// One sentence or more.
    pub doc: Words,
    /// Values without a key, in order.
    pub positional: Vec<Field>,
    /// All further values without a key, at least one where it is required, kept as a list under this name; they may also be given under it.
    pub rest: Option<Field>,
    /// Keys.
    pub keys: Vec<Field>,
    /// Keys of the contract that this version does not do yet, refused by name.
    pub later: Vec<&'static str>,
    /// Of each group exactly one must be given.
    pub one_of: Vec<Vec<&'static str>>,
    /// Required keys that may be absent where something else is said.
    pub excuses: Vec<(&'static str, Excuse)>,
}

/// Whether a required key may be absent, by the other keys of its table.
pub type Excuse = fn(&std::collections::BTreeMap<String, mlua::Value>) -> bool;

impl Shape {
    /// An empty table.
    #[must_use]
    pub fn new(name: impl Into<Words>, doc: impl Into<Words>) -> Self {
        Shape { name: name.into(), doc: doc.into(), ..Shape::default() }
    }

    fn field(name: &'static str, kind: Kind, doc: &'static str) -> Field {
        Field {
            name: Cow::Borrowed(name),
            doc: Cow::Borrowed(doc),
            kind,
            required: false,
            default: None,
            only: None,
            fallback: None,
        }
    }

    /// A required positional value.
    #[must_use]
    pub fn first(mut self, name: &'static str, kind: Kind, doc: &'static str) -> Self {
        self.positional.push(Field { required: true, ..Self::field(name, kind, doc) });
        self
    }

    /// A positional value that may be absent.
    #[must_use]
    pub fn first_optional(mut self, name: &'static str, kind: Kind, doc: &'static str) -> Self {
        self.positional.push(Self::field(name, kind, doc));
        self
    }

    /// All positional values, at least one.
    #[must_use]
    pub fn rest(mut self, name: &'static str, kind: Kind, doc: &'static str) -> Self {
        self.rest = Some(Field { required: true, ..Self::field(name, kind, doc) });
        self
    }

    /// A required key.
    #[must_use]
    pub fn required(mut self, name: &'static str, kind: Kind, doc: &'static str) -> Self {
        self.keys.push(Field { required: true, ..Self::field(name, kind, doc) });
        self
    }

    /// A key that may be absent.
    #[must_use]
    pub fn optional(mut self, name: &'static str, kind: Kind, doc: &'static str) -> Self {
        self.keys.push(Self::field(name, kind, doc));
        self
    }

    /// A key with a value it has when absent.
    #[must_use]
    pub fn with_default(mut self, name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Self {
        self.keys.push(Field { default: Some(Cow::Borrowed(default)), ..Self::field(name, kind, doc) });
        self
    }

    /// A key that only steps of one object have.
    #[must_use]
    pub fn only(mut self, receiver: Receiver, name: &'static str, kind: Kind, doc: &'static str) -> Self {
        self.keys.push(Field { only: Some(receiver), ..Self::field(name, kind, doc) });
        self
    }

    /// Keys to be refused by name.
    #[must_use]
    pub fn later(mut self, names: &[&'static str]) -> Self {
        self.later.extend_from_slice(names);
        self
    }

    /// Exactly one of these.
    #[must_use]
    pub fn one_of(mut self, names: &[&'static str]) -> Self {
        self.one_of.push(names.to_vec());
        self
    }

    /// A required key that may be absent where `excuse` says so.
    #[must_use]
    pub fn unless(mut self, name: &'static str, excuse: Excuse) -> Self {
        self.excuses.push((name, excuse));
        self
    }

    /// As the kind of a value.
    #[must_use]
    pub fn table(self) -> Kind {
        Kind::Table(Arc::new(self))
    }

    /// Every field, positional ones first.
    pub fn fields(&self) -> impl Iterator<Item = &Field> {
        self.positional.iter().chain(&self.rest).chain(&self.keys)
    }
}

impl Kind {
    /// A list of at least one.
    #[must_use]
    pub fn some(self) -> Kind {
        Kind::List(Arc::new(self), 1)
    }

    /// One of constant words.
    #[must_use]
    pub fn words(words: &[&'static str]) -> Kind {
        Kind::Enum(words.iter().map(|word| Cow::Borrowed(*word)).collect())
    }

    /// This or a list of at least one.
    #[must_use]
    pub fn or_list(self) -> Kind {
        Kind::Union(vec![self.clone(), self.some()])
    }

    /// What is expected, for messages: `a duration such as "5m"`.
    #[must_use]
    pub fn expected(&self) -> String {
        match self {
            Kind::Text(text) if text.secret => format!("{} or a phased.secret", text.what),
            Kind::Text(text) => text.what.to_string(),
            Kind::Secret => "a phased.secret".to_owned(),
            Kind::Artifact => "an artifact of the release".to_owned(),
            Kind::Duration | Kind::Limit => "a duration such as \"5m\"".to_owned(),
            Kind::Integer(least, i64::MAX) => format!("a whole number of at least {least}"),
            Kind::Integer(least, most) => format!("a whole number from {least} to {most}"),
            Kind::Number => "a number".to_owned(),
            Kind::Boolean => "true or false".to_owned(),
            Kind::Percentage => "a percentage such as \"10%\"".to_owned(),
            Kind::Enum(words) => join(&words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>()),
            Kind::Function(_) => "a function".to_owned(),
            Kind::List(item, _) => match item.as_ref() {
                Kind::Text(_) => "a list of texts".to_owned(),
                Kind::Secret => "a list of secrets".to_owned(),
                Kind::Bound(definition) => format!("a list of {}s", definition.word()),
                _ => "a list".to_owned(),
            },
            Kind::Map(..) => "a table of names and values".to_owned(),
            Kind::Table(shape) => {
                let keys: Vec<&str> = shape.fields().map(|field| field.name.as_ref()).collect();
                if keys.len() > 4 { "a table".to_owned() } else { format!("a table of {}", keys.join(", ")) }
            }
            Kind::Bound(Definition::Discovery) => "a discovery, as in discovery.file { \"hosts.json\" }".to_owned(),
            Kind::Bound(Definition::Alert) => "an alert, as in require \"alerts.log\" {}".to_owned(),
            Kind::Bound(Definition::Probe) => "a probe".to_owned(),
            Kind::Union(kinds) => join(
                &kinds
                    .iter()
                    .flat_map(|kind| match kind {
                        Kind::Enum(words) => words.iter().map(|word| format!("{word:?}")).collect(),
                        other => vec![other.expected()],
                    })
                    .collect::<Vec<_>>(),
            ),
            Kind::Data => "plain data".to_owned(),
        }
    }
}

/// `a`, `a or b`, `a, b or c`.
#[must_use]
pub fn join(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

/// The candidate that `word` was most likely meant to be, if any is near.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let length = word.chars().count();
    if length > 64 {
        return None;
    }
    let limit = match length {
        0..=2 => 1,
        3..=5 => 2,
        n => n / 3,
    };
    candidates
        .into_iter()
        .filter(|candidate| candidate.chars().count().abs_diff(length) <= limit)
        .map(|candidate| (distance(&word.to_lowercase(), &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= limit && *distance < candidate.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Edits between two words: insertions, deletions, replacements and swaps of neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_find_the_word_that_was_meant() {
        let keys = ["source", "queue", "test", "environments", "notify", "max_parallel", "git"];
        for (slip, meant) in [
            ("sorce", Some("source")),
            ("Notify", Some("notify")),
            ("enviroments", Some("environments")),
            ("max_paralell", Some("max_parallel")),
            ("tset", Some("test")),
            ("gti", Some("git")),
            ("banana", None),
            ("", None),
        ] {
            assert_eq!(nearest(slip, keys), meant, "{slip}");
        }
    }
}
