//! `phased.json` and `phased.csv`.

use std::rc::Rc;

use mlua::{Error, Lua, MultiValue, Table, Value};

use super::Meter;
use crate::{
    lua::{check, convert, definitions},
    model::canonical,
};

/// `phased.json` and `phased.csv`: plain functions, everywhere.
pub(super) fn install(lua: &Lua, phased: &Table, meter: &Rc<Meter>) -> mlua::Result<()> {
    let text = |args: &MultiValue, what: &str| -> mlua::Result<Vec<u8>> {
        match args.iter().next() {
            Some(Value::String(text)) => Ok(text.as_bytes().to_vec()),
            other => Err(Error::runtime(format!(
                "{what} takes a text, not {}",
                other.map_or("nothing".to_owned(), check::show)
            ))),
        }
    };
    let json = lua.create_table()?;
    let counted = Rc::clone(meter);
    json.raw_set(
        "decode",
        lua.create_function(move |lua, args: MultiValue| {
            let bytes = text(&args, "phased.json.decode")?;
            counted.look(bytes.len() as u64 / 8)?;
            let data: serde_json::Value =
                serde_json::from_slice(&bytes).map_err(|e| Error::runtime(format!("no JSON: {e}")))?;
            definitions::to_lua(lua, &data)
        })?,
    )?;
    let counted = Rc::clone(meter);
    json.raw_set(
        "encode",
        lua.create_function(move |_, value: Value| {
            let data = convert::from_lua(&value).map_err(Error::runtime)?;
            let text = canonical::to_string(&data);
            counted.look(text.len() as u64 / 8)?;
            Ok(text)
        })?,
    )?;
    phased.raw_set("json", json)?;
    let csv = lua.create_table()?;
    let counted = Rc::clone(meter);
    csv.raw_set(
        "decode",
        lua.create_function(move |lua, args: MultiValue| {
            let bytes = text(&args, "phased.csv.decode")?;
            counted.look(bytes.len() as u64 / 8)?;
            let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(bytes.as_slice());
            let wrong = |e: csv::Error| Error::runtime(format!("no CSV: {e}"));
            let headers = reader.headers().map_err(wrong)?.clone();
            let rows = lua.create_table()?;
            for record in reader.records() {
                let record = record.map_err(wrong)?;
                let row = lua.create_table()?;
                for (name, cell) in headers.iter().zip(&record) {
                    row.raw_set(name, cell)?;
                }
                rows.raw_push(row)?;
            }
            Ok(rows)
        })?,
    )?;
    phased.raw_set("csv", csv)
}
