//! Where hosts come from: what sources say, what is believed of it, and who is out and why. Nothing is deployed unless it says so.

mod cloud;
#[cfg(feature = "ec2")]
mod ec2;
mod sources;

use serde_json::Value;

/// The ids of a fleet's hosts, in the order of a rollout.
fn ids(fleet: &Value) -> Vec<String> {
    let hosts = fleet["hosts"].as_array().unwrap_or_else(|| panic!("{fleet}"));
    hosts.iter().map(|host| host["id"].as_str().unwrap().to_owned()).collect()
}

/// `id:code` of those that are out.
fn out(fleet: &Value) -> Vec<String> {
    let out = fleet["out"].as_array().unwrap_or_else(|| panic!("{fleet}"));
    out.iter().map(|host| format!("{}:{}", host["id"].as_str().unwrap(), host["code"].as_str().unwrap())).collect()
}

/// Code and message of the error of a fleet's first source.
#[track_caller]
fn error(fleet: &Value) -> (String, String) {
    let error = &fleet["sources"][0]["error"];
    let text = |key: &str| error[key].as_str().unwrap_or_else(|| panic!("{fleet}")).to_owned();
    (text("code"), text("message"))
}
