//! What lies in `data_dir/journal`: the journals of runs, the control log with its leases, and the output of commands.
//!
//! ```text
//! line     one record as bytes, and what a file of them says after a crash      pure
//! disk     the few calls that reach the disk, so that tests can fail them or cut the power
//! data_disk   the reserve, and whether the disk is well, full or failed
//! file     append-only files and the one thread that writes and syncs them      group commit
//! runs     runs/<run>/journal        control   the key-value log        leases   grants over control
//! outputs  runs/<run>/out/                     lock, layout, schema   the data directory itself, and which format it has
//! backup   all of it as one archive, while it is written
//! kill     where a debug build dies on purpose, for tests of recovery
//! ```
//!
//! Nothing is acknowledged before it is on disk, and after the first failed write or sync of a file nothing further is. A write that
//! finds no room has not failed: it waits for some.

pub mod backup;
mod control;
mod data_disk;
mod disk;
mod file;
mod host_keys;
mod kill;
mod layout;
mod leases;
pub mod line;
mod lock;
mod outputs;
mod runs;
mod schema;

pub use backup::DataArchive;
pub use control::ControlLog;
pub use data_disk::DataDisk;
pub use disk::simulated::SimulatedDisk;
pub use file::Later;
pub use host_keys::ControlHostKeys;
pub use kill::{Kill, Kills};
pub use layout::Layout;
pub use leases::ControlLeases;
pub use lock::{DataLock, LockError};
pub use outputs::FileOutputs;
pub use runs::{RunJournals, records_after};
pub use schema::{SCHEMA, SchemaError};
