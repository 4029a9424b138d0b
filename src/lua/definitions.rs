//! `phased.project`, `phased.discovery`, `phased.alert`, `phased.probe` and `phased.secret`, for loading and again in every call's VM.
//!
//! While loading nothing that is wrong with options raises: it is collected, so that all of it is shown at once. In a call the
//! code has been checked before.

use std::{borrow::Cow, sync::Arc};

use mlua::{Error, Function, Lua, MetaMethod, MultiValue, Table, UserData, UserDataMethods, Value};
use serde_json::Value as Json;

use super::{
    check::{self, Checked, Finding, Functions, Part},
    registry::registry,
    rules,
    shape::{Definition, Field, Kind, Shape, Text},
};
use crate::model::{canonical, ids::Digest};

/// A handle of a secret: its name. Resolved when a step uses it.
#[derive(Debug, Clone)]
pub struct Secret {
    /// Its name.
    pub name: String,
}

impl UserData for Secret {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        let refuse = |how: &'static str| {
            move |_: &Lua, secret: &Secret, _: MultiValue| -> mlua::Result<Value> {
                Err(Error::runtime(misuse(&secret.name, how)))
            }
        };
        methods.add_meta_method(MetaMethod::ToString, refuse("turned into text"));
        methods.add_meta_method(MetaMethod::Len, refuse("measured"));
        methods.add_meta_method(MetaMethod::Index, refuse("indexed"));
        methods.add_meta_method(MetaMethod::Call, refuse("called"));
        // Either side of `..` may be the secret.
        methods.add_meta_function(MetaMethod::Concat, |_, (left, right): (Value, Value)| -> mlua::Result<Value> {
            let name = check::secret(&left).or_else(|| check::secret(&right)).unwrap_or_default();
            Err(Error::runtime(misuse(&name, "joined to text")))
        });
        methods.add_meta_function(MetaMethod::Eq, |_, (left, right): (Value, Value)| {
            Ok(check::secret(&left).is_some() && check::secret(&left) == check::secret(&right))
        });
    }
}

/// A handle of an artifact of a release: what is known of it. Steps take it as it is.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// As the engine knows it: `{"name", "kind", ...}`.
    pub data: Json,
}

impl Artifact {
    fn text(&self, key: &str) -> &str {
        self.data.get(key).and_then(Json::as_str).unwrap_or_default()
    }

    fn misuse(&self, how: &str) -> Error {
        let name = self.text("name");
        Error::runtime(match self.text("kind") {
            "value" => format!(
                "the artifact {name:?} cannot be {how}: its text is .value, as in release.artifacts.{name}.value"
            ),
            kind => format!(
                "the artifact {name:?} is a {kind} and cannot be {how}: pass it to host:upload, or use its .sha256 or .size"
            ),
        })
    }
}

impl UserData for Artifact {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_meta_method(MetaMethod::Index, |lua, artifact, key: Value| {
            let known = ["name", "kind", "sha256", "size", "value"];
            let name = key.as_string().map(|key| key.to_string_lossy().to_string()).unwrap_or_default();
            if known.contains(&name.as_str()) {
                return to_lua(lua, artifact.data.get(&name).unwrap_or(&Json::Null));
            }
            Err(Error::runtime(format!("an artifact has no {}; it has {}", check::show(&key), known.join(", "))))
        });
        methods.add_meta_method(MetaMethod::ToString, |_, artifact, _: MultiValue| {
            Ok(format!("artifact {} ({})", artifact.text("name"), artifact.text("kind")))
        });
        methods.add_meta_function(MetaMethod::Concat, |_, (left, right): (Value, Value)| -> mlua::Result<Value> {
            match check::artifact(&left).or_else(|| check::artifact(&right)) {
                Some(artifact) => Err(artifact.misuse("joined to text")),
                None => Err(Error::runtime("attempt to concatenate an artifact")),
            }
        });
        methods.add_meta_function(MetaMethod::Eq, |_, (left, right): (Value, Value)| {
            Ok(check::artifact(&left).map(|a| a.data) == check::artifact(&right).map(|a| a.data))
        });
    }
}

fn misuse(name: &str, how: &str) -> String {
    format!(
        "the secret {} cannot be {how}: its value never enters Lua. Pass the handle where it is used, as in \
         run:sh {{ 'deploy --token \"$TOKEN\"', env = {{ TOKEN = phased.secret {name:?} }} }}, or as stdin",
        check::quote(name)
    )
}

/// A discovery, alert or probe that waits for its options: calling it gives a [`Bound`].
#[derive(Debug)]
pub struct Plugin {
    /// Which.
    pub definition: Definition,
    /// Its name.
    pub name: String,
    shape: Arc<Shape>,
    function: Option<Function>,
}

/// A discovery, alert or probe with its options.
#[derive(Debug, Clone)]
pub struct Bound {
    /// Which.
    pub definition: Definition,
    /// The plugin's name.
    pub plugin: String,
    /// Every secret in its options.
    pub secrets: Vec<String>,
    /// Of the options, secrets by name, but for those that every discovery takes.
    pub digest: Digest,
    function: Option<Function>,
    options: Table,
}

impl UserData for Bound {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        // Lua's own text has the address in it.
        methods.add_meta_method(MetaMethod::ToString, |_, bound, _: MultiValue| {
            Ok(format!("{} {}", bound.definition.word(), bound.plugin))
        });
    }
}

impl Bound {
    /// What its options say to phased itself: of a probe when a value is bad (`above`, `below`, `lasting`), of a discovery how it is
    /// asked and what is believed of it.
    #[must_use]
    pub fn limits(&self) -> serde_json::Map<String, Json> {
        let mut limits = serde_json::Map::new();
        if self.definition == Definition::Discovery {
            for field in source_options() {
                match self.options.raw_get::<Value>(field.name.as_ref()) {
                    Ok(Value::Integer(n)) => limits.insert(field.name.into_owned(), Json::from(n)),
                    Ok(Value::String(text)) => {
                        limits.insert(field.name.into_owned(), Json::String(text.to_string_lossy().to_string()))
                    }
                    _ => None,
                };
            }
        }
        if self.definition != Definition::Probe {
            return limits;
        }
        for name in ["above", "below"] {
            if let Ok(Some(level)) = self.options.raw_get::<Option<f64>>(name) {
                limits.insert(name.to_owned(), Json::from(level));
            }
        }
        if let Ok(Value::String(lasting)) = self.options.raw_get::<Value>("lasting") {
            limits.insert("lasting".to_owned(), Json::String(lasting.to_string_lossy().to_string()));
        }
        limits
    }

    /// The plugin's function with the options already given: a Lua function, so that it may wait for answers.
    ///
    /// # Errors
    /// Lua's.
    pub fn function(&self, lua: &Lua) -> mlua::Result<Function> {
        let function = self.function.clone().ok_or_else(|| Error::runtime("the plugin has no function"))?;
        let bind: Function = lua
            .load("local f, options = ... return function(...) return f(options, ...) end")
            .set_name("=phased")
            .set_mode(mlua::chunk::ChunkMode::Text)
            .into_function()?;
        bind.call((function, self.options.clone()))
    }
}

impl UserData for Plugin {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_meta_method(MetaMethod::Call, |lua, plugin, args: MultiValue| plugin.bind(lua, &args));
        methods.add_meta_method(MetaMethod::ToString, |_, plugin, _: MultiValue| {
            Ok(format!("{} {}", plugin.definition.word(), plugin.name))
        });
    }
}

impl Plugin {
    fn bind(&self, lua: &Lua, args: &MultiValue) -> mlua::Result<Bound> {
        let what = format!("{} {}", self.definition.word(), self.name);
        let checked = check::arguments(&what, &self.shape, args, Functions::Omitted, None);
        let secrets = checked.secrets.iter().map(|(_, name)| name.clone()).collect();
        let options = report(lua, &what, checked)?;
        let digest = self.digest(&options);
        let options = match to_lua(lua, &options)? {
            Value::Table(options) => options,
            _ => lua.create_table()?,
        };
        Ok(Bound {
            definition: self.definition,
            plugin: self.name.clone(),
            secrets,
            digest,
            function: self.function.clone(),
            options,
        })
    }

    fn digest(&self, options: &Json) -> Digest {
        let mut own = options.clone();
        if let (Definition::Discovery, Some(own)) = (self.definition, own.as_object_mut()) {
            for field in source_options() {
                own.remove(field.name.as_ref());
            }
        }
        Digest::of(canonical::to_string(&own).as_bytes())
    }
}

/// What `phased.project` gave.
#[derive(Debug, Clone)]
pub struct Project {
    /// What it was called with.
    pub table: Table,
    /// Where it was called.
    pub at: At,
}

impl UserData for Project {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_meta_method(MetaMethod::ToString, |_, _, _: MultiValue| Ok("project"));
    }
}

/// A place in a chunk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct At {
    /// The chunk's name, `projects/shop.lua`.
    pub chunk: String,
    /// From 1; 0 when unknown.
    pub line: usize,
}

/// A finding about the options of a plugin or definition.
#[derive(Debug)]
pub struct Located {
    /// Where the call is.
    pub at: At,
    /// What.
    pub finding: Finding,
}

/// What loading collects; app data of the VM.
#[derive(Debug, Default)]
pub struct Collected {
    /// Everything wrong so far.
    pub located: Vec<Located>,
    /// Every secret named, and where.
    pub secrets: Vec<(String, At)>,
}

/// Puts the definitions into the table `phased`. `loading`: findings are kept for [`collected`] instead of raised.
///
/// # Errors
/// Lua's.
pub fn install(lua: &Lua, phased: &Table, loading: bool) -> mlua::Result<()> {
    if loading {
        lua.set_app_data(Collected::default());
    }
    phased.raw_set("secret", lua.create_function(secret)?)?;
    phased.raw_set("localhost", localhost(lua)?)?;
    phased.raw_set(
        "project",
        lua.create_function(|lua, args: MultiValue| match args.iter().collect::<Vec<_>>().as_slice() {
            [Value::Table(table)] => Ok(Project { table: table.clone(), at: caller(lua) }),
            _ => Err(Error::runtime("phased.project takes one table: phased.project { source = ..., ... }")),
        })?,
    )?;
    for definition in [Definition::Discovery, Definition::Alert, Definition::Probe] {
        phased.raw_set(
            definition.word(),
            lua.create_function(move |lua, args: MultiValue| define(lua, definition, &args))?,
        )?;
    }
    Ok(())
}

/// This server itself as a host.
fn localhost(lua: &Lua) -> mlua::Result<Table> {
    lua.create_table_from([("id", "localhost"), ("address", "localhost"), ("transport", "local")])
}

/// What was collected while loading; nothing is left of it.
#[must_use]
pub fn collected(lua: &Lua) -> Collected {
    lua.remove_app_data::<Collected>().unwrap_or_default()
}

/// The table that the project's file gave to `phased.project`, from what the file returned.
///
/// # Errors
/// One sentence that says what it returned instead.
pub fn project(returned: &Value) -> Result<Project, String> {
    let otherwise = || {
        format!(
            "a file in projects/ must return phased.project {{ ... }}, and this one returns {}",
            check::show(returned)
        )
    };
    match returned {
        Value::UserData(data) => data.borrow::<Project>().map(|project| project.clone()).map_err(|_| otherwise()),
        _ => Err(otherwise()),
    }
}

fn secret(lua: &Lua, args: MultiValue) -> mlua::Result<Secret> {
    let name = match args.iter().collect::<Vec<_>>().as_slice() {
        [Value::String(name)] => name.to_string_lossy().to_string(),
        _ => return Err(Error::runtime("phased.secret takes one name: phased.secret \"deploy_key\"")),
    };
    if let Err(why) = rules::secret_name(&name) {
        return Err(Error::runtime(format!("phased.secret: {} {why}", check::quote(&name))));
    }
    let at = caller(lua);
    if let Some(mut collected) = lua.app_data_mut::<Collected>() {
        collected.secrets.push((name.clone(), at));
    }
    Ok(Secret { name })
}

fn define(lua: &Lua, definition: Definition, args: &MultiValue) -> mlua::Result<Plugin> {
    let what = format!("phased.{}", definition.word());
    let all = registry();
    let shape = match definition {
        Definition::Discovery => &all.discovery,
        Definition::Alert => &all.alert,
        Definition::Probe => &all.probe,
    };
    let [Value::Table(table)] = args.iter().collect::<Vec<_>>()[..] else {
        return Err(Error::runtime(format!(
            "{what} takes one table: {what} {{ name = ..., {} = ... }}",
            definition.function()
        )));
    };
    let data = report(lua, &what, check::table(&what, shape, table, Functions::Marked))?;
    let name = data.get("name").and_then(Json::as_str).unwrap_or("?").to_owned();
    let options = data.get("options").and_then(Json::as_object).cloned().unwrap_or_default();
    let mut shape = options_shape(&name, &options);
    if definition == Definition::Discovery {
        for field in source_options() {
            if options.contains_key(field.name.as_ref()) {
                return Err(Error::runtime(format!(
                    "{what}: {} is an option of every discovery already; give this one another name",
                    field.name
                )));
            }
            shape.keys.push(field);
        }
    }
    let function = table.raw_get::<Option<Function>>(definition.function()).ok().flatten();
    Ok(Plugin { definition, name, shape: Arc::new(shape), function })
}

/// What every discovery takes beside its own options; phased itself goes by them.
fn source_options() -> Vec<Field> {
    registry().source.fields().cloned().collect()
}

/// The shape of what a plugin takes, from its own declaration.
fn options_shape(name: &str, options: &serde_json::Map<String, Json>) -> Shape {
    let mut shape = Shape::new(name.to_owned(), "Options of a plugin.");
    let mut positional = Vec::new();
    for (key, option) in options {
        let word = |key: &str| option.get(key).and_then(Json::as_str);
        let field = Field {
            name: Cow::Owned(key.clone()),
            doc: Cow::Owned(word("doc").unwrap_or_default().to_owned()),
            kind: option_kind(option),
            required: option.get("required") == Some(&Json::Bool(true)),
            default: option.get("default").map(|default| Cow::Owned(default.to_string())),
            only: None,
            fallback: option.get("default").cloned(),
        };
        match option.get("position").and_then(Json::as_u64) {
            Some(position) => positional.push((position, field)),
            None => shape.keys.push(field),
        }
    }
    positional.sort_by_key(|(position, _)| *position);
    shape.positional = positional.into_iter().map(|(_, field)| field).collect();
    if shape.positional.last().is_some_and(|last| matches!(last.kind, Kind::List(..))) {
        shape.rest = shape.positional.pop();
    }
    shape
}

fn option_kind(option: &Json) -> Kind {
    if let Some(values) = option.get("values").and_then(Json::as_array) {
        return Kind::Enum(values.iter().filter_map(Json::as_str).map(|word| Cow::Owned(word.to_owned())).collect());
    }
    let text = Text::new("a text", rules::value);
    match option.get("kind").and_then(Json::as_str).unwrap_or_default() {
        "text" => Kind::Text(text),
        "secret" => Kind::Secret,
        "text_or_secret" => Kind::Text(text.or_secret()),
        "url" => Kind::Text(Text::new("a URL", rules::url)),
        "url_or_secret" => Kind::Text(Text::new("a URL", rules::url).or_secret()),
        "path" => Kind::Text(Text::new("an absolute path", rules::absolute_path)),
        "duration" => Kind::Duration,
        "integer" => Kind::Integer(i64::MIN, i64::MAX),
        "number" => Kind::Number,
        "boolean" => Kind::Boolean,
        "percentage" => Kind::Percentage,
        "list" => Kind::List(Arc::new(Kind::Text(text.or_secret().or_number())), 1),
        "map" => Kind::Map(Text::new("a name", rules::line), Arc::new(Kind::Text(text.or_secret().or_number()))),
        // A declaration that is wrong was reported where it stands.
        _ => Kind::Data,
    }
}

/// Keeps the findings while loading, else raises the first.
fn report(lua: &Lua, what: &str, checked: Checked) -> mlua::Result<Json> {
    if checked.findings.is_empty() {
        return Ok(checked.data);
    }
    let at = caller(lua);
    if let Some(mut collected) = lua.app_data_mut::<Collected>() {
        collected.located.extend(
            checked.findings.into_iter().map(|finding| Located {
                at: at.clone(),
                finding: Finding { message: finding.said_of(what), ..finding },
            }),
        );
        return Ok(checked.data);
    }
    Err(Error::runtime(checked.findings.first().map_or(String::new(), |finding| finding.said_of(what))))
}

/// Who called the function that is running.
fn caller(lua: &Lua) -> At {
    lua.inspect_stack(1, |frame| At {
        chunk: frame.source().source.as_deref().map(chunk_name).unwrap_or_default(),
        line: frame.current_line().unwrap_or(0),
    })
    .unwrap_or_default()
}

/// A chunk's name without the mark that says what kind of name it is.
fn chunk_name(source: &str) -> String {
    source.strip_prefix(['@', '=']).unwrap_or(source).to_owned()
}

/// Checked data as Lua values, secrets as handles again.
///
/// # Errors
/// Lua's, when memory is short.
pub fn to_lua(lua: &Lua, data: &Json) -> mlua::Result<Value> {
    use base64::Engine as _;
    Ok(match data {
        Json::Null => Value::Nil,
        Json::Bool(b) => Value::Boolean(*b),
        Json::Number(n) => n.as_i64().map_or_else(|| Value::Number(n.as_f64().unwrap_or(0.0)), Value::Integer),
        Json::String(text) => Value::String(lua.create_string(text)?),
        Json::Array(items) => {
            let table = lua.create_table_with_capacity(items.len(), 0)?;
            for item in items {
                table.raw_push(to_lua(lua, item)?)?;
            }
            Value::Table(table)
        }
        Json::Object(map) => match map.iter().next() {
            Some((key, Json::String(name))) if key == "$secret" && map.len() == 1 => {
                Value::UserData(lua.create_userdata(Secret { name: name.clone() })?)
            }
            Some((key, data)) if key == "$artifact" && map.len() == 1 => {
                Value::UserData(lua.create_userdata(Artifact { data: data.clone() })?)
            }
            Some((key, Json::String(text))) if key == "$b64" && map.len() == 1 => {
                let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
                Value::String(lua.create_string(bytes)?)
            }
            _ => {
                let table = lua.create_table_with_capacity(0, map.len())?;
                for (key, value) in map {
                    table.raw_set(key.as_str(), to_lua(lua, value)?)?;
                }
                Value::Table(table)
            }
        },
    })
}

/// The path of a key, for findings made elsewhere.
#[must_use]
pub fn key(name: &str) -> Part {
    Part::Key(name.to_owned())
}
