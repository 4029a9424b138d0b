//! systemd's journal, by its native protocol: each field of an event is a field of the entry, so that `journalctl PHASED_PROJECT=shop`
//! finds it. <https://systemd.io/JOURNAL_NATIVE_PROTOCOL>

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    os::unix::{ffi::OsStrExt as _, net::UnixDatagram},
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

/// Where the journal takes entries.
const SOCKET: &str = "/run/systemd/journal/socket";

/// The longest value: an entry is one datagram, and those of a usual kernel have 208 KiB.
const LONGEST: usize = 48 * 1024;

/// All values of an entry together.
const MOST: usize = 160 * 1024;

/// How long a journal that takes nothing holds the daemon up, once; then entries are lost until it takes one again, and that is said.
const PATIENCE: Duration = Duration::from_secs(2);

/// The journal.
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    lost: AtomicU64,
    patient: AtomicBool,
}

/// Whether standard error is the very stream that systemd connected to its journal: a child of a unit may have had it sent elsewhere.
fn is_journal(stream: &std::ffi::OsStr) -> bool {
    let text = stream.as_bytes();
    let number = |part: &[u8]| std::str::from_utf8(part).ok()?.parse::<u64>().ok();
    let mut parts = text.splitn(2, |b| *b == b':').map(number);
    let (Some(Some(device)), Some(Some(inode))) = (parts.next(), parts.next()) else { return false };
    nix::sys::stat::fstat(io::stderr()).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (device, inode))
}

/// Where the journal is; a debug build may be told otherwise, by tests.
fn place() -> PathBuf {
    #[cfg(debug_assertions)]
    if let Some(path) = std::env::var_os("PHASED_JOURNAL_SOCKET") {
        return path.into();
    }
    SOCKET.into()
}

impl Journal {
    /// The journal, if standard error goes there and it can be reached.
    pub(super) fn of_stderr() -> Option<Self> {
        let stream = std::env::var_os("JOURNAL_STREAM")?;
        if is_journal(&stream) { Journal::at(place()).ok() } else { None }
    }

    fn at(path: PathBuf) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        // Not connected: the journal may be restarted. But it has to be there now.
        std::fs::metadata(&path)?;
        Ok(Journal { socket, path, lost: AtomicU64::new(0), patient: AtomicBool::new(true) })
    }

    fn send(&self, entry: &Entry) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 && self.put(&Entry::about_lost(lost)).is_err() {
            self.lost.fetch_add(lost, Ordering::Relaxed);
        }
        match self.put(entry) {
            Ok(()) => self.waits(true),
            Err(_) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                // It has been waited for once: from here on nobody is held up until it takes something again.
                self.waits(false);
            }
        }
    }

    /// Whether the next entry waits for a journal that is busy.
    fn waits(&self, patient: bool) {
        if self.patient.swap(patient, Ordering::Relaxed) != patient {
            let _it_waits_at_most = self.socket.set_nonblocking(!patient);
        }
    }

    fn put(&self, entry: &Entry) -> io::Result<()> {
        self.socket.send_to(&entry.bytes, &self.path).map(drop)
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.send(&Entry::of(event));
    }
}

/// One entry, as the journal takes it.
#[derive(Debug)]
struct Entry {
    bytes: Vec<u8>,
}

/// The sentence, and the fields in their order.
#[derive(Default)]
struct Words {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Words {
    fn take(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            name => self.fields.push((name, value)),
        }
    }
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.take(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value.to_owned());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.take(field, value.to_string());
    }
}

impl Entry {
    fn of(event: &Event<'_>) -> Self {
        let mut words = Words::default();
        event.record(&mut words);
        let meta = event.metadata();
        let mut entry = Entry::new(priority(*meta.level()), &words);
        entry.field("PHASED_TARGET", meta.target());
        if let Some(file) = meta.file() {
            entry.field("CODE_FILE", file);
        }
        if let Some(line) = meta.line() {
            entry.field("CODE_LINE", &line.to_string());
        }
        entry
    }

    fn about_lost(count: u64) -> Self {
        let message = format!("{count} entries before this one were lost: the journal took nothing for a while");
        Entry::new(4, &Words { message, fields: Vec::new() })
    }

    fn new(priority: u8, words: &Words) -> Self {
        let mut entry = Entry { bytes: Vec::with_capacity(512) };
        entry.field("PRIORITY", &priority.to_string());
        entry.field("SYSLOG_IDENTIFIER", "phased");
        // What `journalctl` shows by itself has to say it all.
        let mut message = printable(&words.message);
        for (name, value) in &words.fields {
            let _a_string_takes_all =
                if value.is_empty() || value.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"') {
                    write!(message, " {name}={value:?}")
                } else {
                    write!(message, " {name}={value}")
                };
        }
        entry.field("MESSAGE", message.trim_start());
        for (name, value) in &words.fields {
            entry.field(&field_name(name), value);
        }
        entry
    }

    /// A field that fits on a line is `NAME=value`; any other has its length before it.
    fn field(&mut self, name: &str, value: &str) {
        let room = MOST.saturating_sub(self.bytes.len()).min(LONGEST);
        let value = shortened(value, room);
        let _a_vec_takes_all = if value.contains('\n') {
            let length = u64::try_from(value.len()).unwrap_or(0).to_le_bytes();
            writeln!(self.bytes, "{name}").and_then(|()| self.bytes.write_all(&length))
        } else {
            write!(self.bytes, "{name}=")
        };
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(b'\n');
    }
}

/// As much of `text` as there is room for.
fn shortened(text: &str, room: usize) -> std::borrow::Cow<'_, str> {
    if text.len() <= room {
        return text.into();
    }
    const MARK: &str = " [... shortened]";
    let end = (0..=room.saturating_sub(MARK.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}{MARK}", &text[..end]).into()
}

/// Without what would make `journalctl` show "blob data" instead: people write messages that end up in here.
fn printable(text: &str) -> String {
    let keep = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().flat_map(|c| if keep(c) { vec![c] } else { c.escape_default().collect() }).collect()
}

/// syslog's numbers.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// `project` is `PHASED_PROJECT`. The journal takes letters, digits and `_`, at most 64 of them.
fn field_name(name: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("PHASED_{}", name.chars().map(legal).take(57).collect::<String>())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// Reads an entry as the journal does.
    fn fields(mut bytes: &[u8]) -> BTreeMap<String, String> {
        let mut fields = BTreeMap::new();
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            let line = String::from_utf8(bytes[..end].to_vec()).unwrap();
            bytes = &bytes[end + 1..];
            match line.split_once('=') {
                Some((name, value)) => fields.insert(name.to_owned(), value.to_owned()),
                None => {
                    let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
                    let value = String::from_utf8(bytes[8..8 + length].to_vec()).unwrap();
                    assert_eq!(bytes[8 + length], b'\n');
                    bytes = &bytes[8 + length + 1..];
                    fields.insert(line, value)
                }
            };
        }
        assert!(bytes.is_empty());
        fields
    }

    fn received(socket: &UnixDatagram) -> BTreeMap<String, String> {
        let mut bytes = vec![0; 512 * 1024];
        let length = socket.recv(&mut bytes).unwrap();
        fields(&bytes[..length])
    }

    #[test]
    fn each_field_of_an_event_is_one_of_the_entry() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let socket = UnixDatagram::bind(&path).unwrap();
        let subscriber = tracing_subscriber::registry().with(Journal::at(path).unwrap());
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(project = %"shop", run = "01k", environment = None::<&str>, error = "no\nroom", "host web1: failed");
            tracing::info!(text = %"x".repeat(1 << 20), "long");
            tracing::info!(by = "\u{1b}[2J", "red \u{1b}[31m");
        });
        let entry = received(&socket);
        let of = |name: &str| entry.get(name).map(String::as_str);
        assert_eq!(of("PRIORITY"), Some("4"));
        assert_eq!(of("SYSLOG_IDENTIFIER"), Some("phased"));
        assert_eq!(of("MESSAGE"), Some("host web1: failed project=shop run=01k error=\"no\\nroom\""));
        assert_eq!(
            (of("PHASED_PROJECT"), of("PHASED_RUN"), of("PHASED_ERROR")),
            (Some("shop"), Some("01k"), Some("no\nroom"))
        );
        assert_eq!(of("PHASED_ENVIRONMENT"), None);
        assert!(of("CODE_LINE").is_some());
        let long = received(&socket);
        assert!(long["MESSAGE"].ends_with("[... shortened]") && long["PHASED_TEXT"].len() <= LONGEST);
        assert_eq!(received(&socket)["MESSAGE"], r#"red \u{1b}[31m by="\u{1b}[2J""#);
    }

    #[test]
    fn what_is_lost_is_counted_and_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let socket = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::at(path.clone()).unwrap();
        let entry = |message: &str| Entry::new(6, &Words { message: message.to_owned(), fields: Vec::new() });
        drop(socket);
        std::fs::remove_file(&path).unwrap();
        journal.send(&entry("one"));
        journal.send(&entry("two"));
        // It comes back as another one at the same place.
        let socket = UnixDatagram::bind(&path).unwrap();
        journal.send(&entry("three"));
        assert!(received(&socket)["MESSAGE"].starts_with("2 entries before this one were lost"));
        assert_eq!(received(&socket)["MESSAGE"], "three");
    }

    #[test]
    fn a_journal_that_takes_nothing_is_waited_for_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let socket = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::at(path).unwrap();
        let entry = Entry::new(6, &Words { message: "x".repeat(4096), fields: Vec::new() });
        while journal.lost.load(Ordering::Relaxed) == 0 {
            journal.send(&entry);
        }
        assert!(!journal.patient.load(Ordering::Relaxed));
        // By the thousand, and none of them waits: each would take two seconds.
        (0..1000).for_each(|_| journal.send(&entry));
        assert!(journal.lost.load(Ordering::Relaxed) > 1000);
        while journal.lost.load(Ordering::Relaxed) > 0 {
            // Room for the word on those that are lost, and for the entry.
            received(&socket);
            received(&socket);
            journal.send(&entry);
        }
        assert!(journal.patient.load(Ordering::Relaxed));
    }

    #[test]
    fn names_are_such_as_the_journal_takes() {
        assert_eq!(field_name("project"), "PHASED_PROJECT");
        assert_eq!(field_name("duration-ms.x"), "PHASED_DURATION_MS_X");
        assert_eq!(field_name(&"x".repeat(100)).len(), 64);
    }

    #[test]
    fn standard_error_is_the_journal_only_where_it_is_that_very_stream() {
        for not in ["", "8", "8:", "x:y", "1:1", "18446744073709551616:1"] {
            assert!(!is_journal(std::ffi::OsStr::new(not)), "{not}");
        }
        let stat = nix::sys::stat::fstat(io::stderr()).unwrap();
        assert!(is_journal(std::ffi::OsStr::new(&format!("{}:{}", stat.st_dev, stat.st_ino))));
    }
}
