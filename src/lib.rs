//! phased.

pub mod alert;
pub mod api;
pub mod app;
pub mod blobs;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod discovery;
pub mod engine;
pub mod exec;
pub mod forge;
pub mod http;
pub mod journal;
pub mod lifecycle;
pub mod lua;
pub mod model;
pub mod ports;
pub mod probe;
pub mod ssh;
pub mod store;
pub mod telemetry;
pub mod time;
