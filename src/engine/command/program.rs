//! The text that is sent: the program, once a channel; then requests, each a subshell of literals and one call of `main`, closed on
//! its last line.
//!
//! Values reach the host only as single-quoted literals and quoted here-documents within that text: nothing is ever in an
//! argument vector, and nothing is interpreted by a shell on the way.

use std::{collections::BTreeMap, fmt::Write as _, sync::LazyLock};

use super::{CommandSpec, Shell, Upload, What};
use crate::model::{
    cause::Cause,
    ids::{Digest, RunId},
};

static PROGRAM: LazyLock<String> = LazyLock::new(|| stripped(concat!(include_str!("program.sh"), "clean\n")));
static FILES: LazyLock<String> = LazyLock::new(|| stripped(include_str!("files.sh")));
static PLACE: LazyLock<String> = LazyLock::new(|| stripped(include_str!("place.sh")));
static COUNTS: LazyLock<String> = LazyLock::new(|| stripped(include_str!("counts.sh")));
static LEFT: LazyLock<String> = LazyLock::new(|| stripped(include_str!("left.sh")));

/// `PATH` of every command unless `ssh.path` or `[exec] path` says otherwise.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What Linux takes as one argument or variable, `NAME=`, its value and the NUL at its end: `MAX_ARG_STRLEN`, 32 pages of 4 KiB.
const ONE: usize = 128 << 10;
/// What it takes of all of them: a quarter of the stack's limit of 8 MiB, less what `PATH`, `HOME`, a script's interpreter take.
const ALL: usize = (2 << 20) - (16 << 10);
/// How many bytes of a text there are but its own: a NUL, and a pointer to it.
const EACH: usize = 1 + size_of::<u64>();

/// Notes in the file that follows who leads the group that a time-out or stop signals, and when it began (proc_pid_stat(5), field 22): by
/// that it is told from whoever gets its number later.
const LEADS: &str =
    r#"read -r s s s s s s s s s s s s s s s s s s s s s born s </proc/self/stat; echo "pg $$ $born" >>"#;

/// No output is wanted: an offset nothing reaches.
const NO_OUTPUT: u64 = 1 << 60;

/// What the asker says after an answer, or when it waits for one for long: whoever reads standard input beside a command's wrapper
/// ends then, or follows the command. Without anybody to hear it, it does nothing.
pub(super) const FOLLOW: &[u8] = b"follow\n";
/// The machine's id is on our disk: go on.
pub(super) const MET: &[u8] = b"met\n";

/// What every request says besides its verb.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    /// Announces our first frame among whatever a login shell may print before.
    pub mark: &'a str,
    /// `None` = the default place.
    pub base: Option<&'a str>,
    /// The id the host must have.
    pub host_id: Option<&'a str>,
    /// Where output goes on, by stream.
    pub from: [u64; 2],
    /// The channel's control group has no commands but its own.
    pub counted: bool,
    /// What commands leave running is ended with this run, and what they were is forgotten then.
    pub run: Option<&'a RunId>,
}

/// The mark of everything asked about `token`: what the command prints does not contain it, since nobody told it.
pub(super) fn mark(token: &Digest) -> String {
    format!("phased-{}", &Digest::of(format!("mark of {token}").as_bytes()).as_str()[..32])
}

/// A text being built.
struct Text(Vec<u8>);

/// What most requests fit in, bytes.
const USUAL: usize = 4096;

impl Text {
    fn new(frame: &Frame<'_>, verb: &str, token: &str) -> Result<Self, Cause> {
        let mut text = Text(Vec::with_capacity(USUAL));
        text.push("(\n");
        text.set("MARK", frame.mark)?;
        text.set("V", verb)?;
        text.set("T", token)?;
        text.set("B", frame.base.unwrap_or(""))?;
        text.set("I", frame.host_id.unwrap_or(""))?;
        text.set("O", &frame.from[0].to_string())?;
        text.set("E", &frame.from[1].to_string())?;
        for (name, value) in
            [("L", "100"), ("K", "2"), ("M", "0"), ("G", ""), ("P", ""), ("AS", ""), ("FEED", ""), ("J", ""), ("F", "")]
        {
            text.set(name, value)?;
        }
        text.set("U", &frame.run.map_or_else(String::new, |run| format!("run.{run}")))?;
        Ok(text)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), Cause> {
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'=');
        self.0.extend(quote(value.as_bytes(), name)?);
        self.0.push(b'\n');
        Ok(())
    }

    fn push(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    fn finish(mut self) -> Vec<u8> {
        // Whatever was cut off before the last line has run nothing. A request that was killed takes the channel with it.
        self.push("main; exit 0\n) || exit\n");
        self.0
    }
}

/// What a channel's shell is told first; it does nothing yet.
pub(super) fn program() -> &'static [u8] {
    PROGRAM.as_bytes()
}

/// The program without comments and indentation: `bash` reads a script on a pipe byte by byte.
fn stripped(program: &str) -> String {
    let mut out = String::with_capacity(program.len());
    for line in program.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        out.push_str(line);
        out.push('\n');
    }
    out
}

/// `'...'` for any POSIX shell.
fn quote(bytes: &[u8], what: &str) -> Result<Vec<u8>, Cause> {
    let mut out = Vec::with_capacity(bytes.len() + 2);
    out.push(b'\'');
    for &byte in bytes {
        match byte {
            0 => {
                let message = format!("{what} contains a NUL byte, which no command line or environment can carry");
                return Err(Cause::new("bad_argument", message));
            }
            b'\'' => out.extend_from_slice(b"'\\''"),
            _ => out.push(byte),
        }
    }
    out.push(b'\'');
    Ok(out)
}

/// A line that ends a here-document of `text`. dash 0.5.12 drops a byte above 127 after what begins a line as the delimiter does, so no
/// line of the text has that either: what the delimiter begins with is chosen for it.
fn delimiter(name: &str, text: &[u8]) -> Result<String, Cause> {
    let spoils = |delimiter: &str, line: &[u8]| {
        let alike = delimiter.bytes().zip(line).take_while(|(a, b)| a == *b).count();
        alike == delimiter.len() || alike > 0 && line.get(alike).is_some_and(|next| !next.is_ascii())
    };
    let begins = ('A'..='Z').rev().chain('a'..='z').chain('0'..='9').chain("%+,./:=@_".chars());
    let mut delimiters = begins.map(|begin| format!("{begin}-PHASED-END-{name}"));
    delimiters.find(|delimiter| !text.split(|byte| *byte == b'\n').any(|line| spoils(delimiter, line))).ok_or_else(|| {
        let message = "the text of the command, or a variable, begins a line with each letter, digit and punctuation mark, followed by one that is not \
                       ASCII, and not every shell reads that from a here-document. Nothing was run. Write it to a file (host:write) and have the command read that";
        Cause::new("bad_argument", message)
    })
}

/// `feed`, which prints `bytes` whatever they are: a `printf` format of plain characters and octal escapes.
fn feed(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 64);
    out.push_str("feed() {\n");
    // In pieces: one argument of megabytes is slow in every shell.
    for piece in bytes.chunks(4096) {
        out.push_str("printf -- '");
        for &byte in piece {
            match byte {
                b'%' => out.push_str("%%"),
                b'a'..=b'z'
                | b'A'..=b'Z'
                | b'0'..=b'9'
                | b' '
                | b'_'
                | b'.'
                | b','
                | b':'
                | b'/'
                | b'='
                | b'+'
                | b'-' => {
                    out.push(char::from(byte));
                }
                _ => {
                    let _infallible = write!(out, "\\{byte:03o}");
                }
            }
        }
        out.push_str("'\n");
    }
    out.push_str(":\n}\n");
    out
}

fn valid_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// The kernel refuses a program that is given more (E2BIG), and a shell says so in the middle of a command, of a program that is not to blame.
fn fits(cmd: &CommandSpec) -> Result<(), Cause> {
    let env: BTreeMap<&str, usize> = cmd.env.iter().map(|(name, value)| (name.as_str(), value.len())).collect();
    let argv: &[Vec<u8>] = match &cmd.what {
        What::Exec { argv } => argv,
        What::Sh { .. } => &[],
    };
    let refused = |what: &str, remedy: &str| {
        let message = format!("{what}, and Linux starts no program with that. Nothing was run. {remedy}");
        Err(Cause::new("bad_argument", message))
    };
    let file = "Give it as stdin, or write it to a file (run:write, host:write) and pass the file's path";
    for (name, size) in &env {
        if name.len() + 1 + size >= ONE {
            let what = format!(
                "the environment variable {name} has {size} bytes, {} KiB with its name are too much",
                ONE >> 10
            );
            return refused(&what, file);
        }
    }
    for (i, argument) in argv.iter().enumerate() {
        if argument.len() >= ONE {
            let what = format!("argument {i} has {} bytes, {} KiB are too much", argument.len(), ONE >> 10);
            return refused(&what, file);
        }
    }
    let variables: usize = env.iter().map(|(name, size)| name.len() + 1 + size + EACH).sum();
    let arguments: usize = argv.iter().map(|argument| argument.len() + EACH).sum();
    if variables + arguments > ALL {
        let largest = env.iter().max_by_key(|(_, size)| **size).filter(|_| variables > arguments);
        let largest = largest.map_or(String::new(), |(name, size)| format!(" (most of it is in {name}, {size} bytes)"));
        let what = format!(
            "{} environment variables and {} arguments have {} bytes together{largest}, more than {} KiB are too much",
            env.len(),
            argv.len(),
            variables + arguments,
            ALL >> 10
        );
        return refused(
            &what,
            "Give the large ones as stdin, or write them to files (run:write, host:write) and pass the files' paths",
        );
    }
    Ok(())
}

/// What runs within the clean environment, after `exec 3<&-`: exports, directory, options, then the author's part. `left`: what it leaves
/// running is to be found.
fn inner(cmd: &CommandSpec, left: bool) -> Result<Vec<u8>, Cause> {
    fits(cmd)?;
    let mut inner = b"exec 3<&-\n".to_vec();
    if cmd.user.is_none() {
        inner.extend_from_slice(format!("{LEADS}\"$PHASED_GO\"\nunset PHASED_GO s born\n").as_bytes());
    }
    inner.extend_from_slice(b"export LANG=C.UTF-8 CI=true LOGNAME=\"$USER\" PATH=");
    inner.extend(quote(cmd.path.as_deref().unwrap_or(DEFAULT_PATH).as_bytes(), "path")?);
    inner.push(b'\n');
    for (name, value) in &cmd.env {
        if !valid_name(name) {
            let message = format!("{name:?} cannot be the name of an environment variable: use A-Z a-z 0-9 and _");
            return Err(Cause::new("bad_argument", message));
        }
        inner.extend_from_slice(format!("export {name}=").as_bytes());
        inner.extend(quote(value, &format!("the environment variable {name}"))?);
        inner.push(b'\n');
    }
    if let Some(cwd) = &cmd.cwd {
        inner.extend_from_slice(b"CDPATH= cd -- ");
        inner.extend(quote(cwd.as_bytes(), "cwd")?);
        inner.extend_from_slice(b" >/dev/null || exit 1\nunset OLDPWD\n");
    }
    match &cmd.what {
        // Begun anew, so that what it forks has the environment where others can see it: see `left.sh`.
        What::Sh { shell: Shell::Sh, .. } if left => {
            inner.extend_from_slice(b"exec /bin/sh -eu -c '. /dev/fd/4' sh\n");
        }
        What::Sh { shell: Shell::Sh, .. } => inner.extend_from_slice(b"set -eu\n. /dev/fd/4\n"),
        What::Sh { shell: Shell::Bash, .. } => {
            inner.extend_from_slice(b"exec bash -euo pipefail -c '. /dev/fd/4' bash\n");
        }
        What::Exec { argv } => {
            match argv.first() {
                Some(program) if !program.is_empty() && !program.starts_with(b"-") => {}
                _ => {
                    return Err(Cause::new(
                        "bad_argument",
                        "exec needs the name of a program, not beginning with \"-\"",
                    ));
                }
            }
            inner.extend_from_slice(b"exec 4<&-\nexec");
            for (i, argument) in argv.iter().enumerate() {
                inner.push(b' ');
                inner.extend(quote(argument, &format!("argument {i}"))?);
            }
            inner.push(b'\n');
        }
    }
    Ok(inner)
}

/// The function `launch`: becomes the command, in a session and a clean environment of its own.
fn launch(cmd: &CommandSpec, left: bool) -> Result<Vec<u8>, Cause> {
    let inner = inner(cmd, left)?;
    let text: &[u8] = match &cmd.what {
        What::Sh { text, .. } => text,
        What::Exec { .. } => b"",
    };
    if text.contains(&0) {
        return Err(Cause::new("bad_argument", "the text of the command contains a NUL byte, which no shell can read"));
    }
    let (e1, e2) = (delimiter("1", &inner)?, delimiter("2", text)?);
    let mut documents = format!(" /bin/sh -c '. /dev/fd/3' sh 3<<\\{e1} 4<<\\{e2}\n").into_bytes();
    documents.extend_from_slice(&inner);
    documents.extend_from_slice(format!("{e1}\nexec 4<&-; ").as_bytes());
    documents.extend_from_slice(text);
    documents.extend_from_slice(format!("\n{e2}\n").as_bytes());

    let mut out = Vec::with_capacity(documents.len() + 512);
    match &cmd.user {
        None => {
            if let Some(stdin) = &cmd.stdin {
                out.extend_from_slice(feed(stdin).as_bytes());
            }
            out.extend_from_slice(b"launch() {\nexport PHASED_GO=\"$d.go\"\nexec setsid");
            out.extend_from_slice(&documents);
        }
        // sudo closes every descriptor from 3 on and has its own environment: the whole goes in by its standard input.
        Some(_) => {
            let mut within = Vec::new();
            let clean = "env -i HOME=\"$HOME\" USER=\"$USER\" SHELL=\"${SHELL:-/bin/sh}\"";
            match &cmd.stdin {
                Some(stdin) => {
                    within.extend_from_slice(feed(stdin).as_bytes());
                    within.extend_from_slice(format!("feed | exec {clean}").as_bytes());
                }
                None => within.extend_from_slice(format!("exec </dev/null {clean}").as_bytes()),
            }
            within.extend_from_slice(&documents);
            let e0 = delimiter("0", &within)?;
            out.extend_from_slice(
                b"launch() {\nif [ \"$USER\" = \"$AS\" ]; then set -- /bin/sh; else set -- sudo -n -u \"$AS\" -- /bin/sh; fi\n",
            );
            out.extend_from_slice(
                format!("exec setsid sh -c '{LEADS}\"$0\"; exec \"$@\"' \"$d.go\" \"$@\" <<\\{e0}\n").as_bytes(),
            );
            out.extend_from_slice(&within);
            out.extend_from_slice(format!("{e0}\n").as_bytes());
        }
    }
    out.extend_from_slice(b"}\n");
    Ok(out)
}

fn epoch(text: &mut Text, epoch: Option<&super::EpochCheck>) -> Result<(), Cause> {
    if let Some(check) = epoch {
        text.set("G", &check.epoch.0.to_string())?;
        text.set("P", &format!("epoch.{}.{}", check.project, check.environment))?;
    }
    Ok(())
}

/// Runs `cmd`, or says how it ended.
pub(super) fn start(frame: &Frame<'_>, cmd: &CommandSpec) -> Result<Vec<u8>, Cause> {
    let mut text = Text::new(frame, "start", cmd.token.as_str())?;
    command_limits(&mut text, cmd)?;
    text.set("F", if cmd.passing { "1" } else { "" })?;
    epoch(&mut text, cmd.epoch.as_ref())?;
    if frame.counted {
        text.set("J", "1")?;
        text.push(&COUNTS);
    }
    if let Some(user) = &cmd.user {
        let plain = !user.is_empty()
            && !user.starts_with('-')
            && user.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'$' | b'@'));
        if !plain {
            return Err(Cause::new("bad_argument", format!("user = {user:?} is not the name of a user")));
        }
        text.set("AS", user)?;
    } else if cmd.stdin.is_some() {
        text.set("FEED", "1")?;
    }
    text.0.extend(launch(cmd, frame.run.is_some())?);
    Ok(text.finish())
}

fn command_limits(text: &mut Text, cmd: &CommandSpec) -> Result<(), Cause> {
    text.set("L", &(cmd.timeout.as_millis() / 10).clamp(1, 1 << 40).to_string())?;
    text.set("K", &cmd.grace.as_secs().clamp(1, 3600).to_string())?;
    text.set("M", &cmd.max_output.min(1 << 50).to_string())
}

/// Ends or forbids the command of `token`, and says what became of it. `from` = `None`: without its output.
pub(super) fn stop(frame: &Frame<'_>, token: &Digest, user: Option<&str>, output: bool) -> Result<Vec<u8>, Cause> {
    let frame = Frame { from: if output { frame.from } else { [NO_OUTPUT; 2] }, ..*frame };
    let mut text = Text::new(&frame, "stop", token.as_str())?;
    text.set("AS", user.unwrap_or(""))?;
    Ok(text.finish())
}

/// Ends what the commands of the frame's run have left running, and forgets how they ended.
pub(super) fn left(frame: &Frame<'_>, grace: std::time::Duration) -> Result<Vec<u8>, Cause> {
    let mut text = Text::new(frame, "left", "-")?;
    text.set("K", &grace.as_secs().clamp(1, 3600).to_string())?;
    text.push(&LEFT);
    Ok(text.finish())
}

/// Takes a file.
pub(super) fn upload(frame: &Frame<'_>, upload: &Upload) -> Result<Vec<u8>, Cause> {
    absolute("to", &upload.to)?;
    let mut text = Text::new(frame, "upload", upload.token.as_str())?;
    epoch(&mut text, upload.epoch.as_ref())?;
    text.set("SHA", upload.sha256.as_str())?;
    text.set("SIZE", &upload.size.to_string())?;
    text.set("TO", upload.to.trim_end_matches('/'))?;
    text.set("MODE", &mode(upload.mode)?)?;
    text.set("OWNER", &owner(upload.owner.as_deref())?)?;
    text.set("UNPACK", if upload.unpack { "1" } else { "" })?;
    text.push(&FILES);
    text.push(&PLACE);
    Ok(text.finish())
}

/// Puts what [`upload`] left in `staged` in its place, as a command of its own: another user's. It prints `changed` or `same`. Without
/// `staged` it only looks, and prints `missing` or `same`.
pub(super) fn place(upload: &Upload, staged: Option<&str>) -> Result<Vec<u8>, Cause> {
    absolute("to", &upload.to)?;
    let mut text = b"set +eu\nrefuse() { shift; echo \"$*\" >&2; exit 1; }\n".to_vec();
    for (name, value) in [
        ("T", upload.token.as_str()),
        ("SHA", upload.sha256.as_str()),
        ("SIZE", &upload.size.to_string()),
        ("TO", upload.to.trim_end_matches('/')),
        ("MODE", &mode(upload.mode)?),
        ("OWNER", &owner(upload.owner.as_deref())?),
        ("UNPACK", if upload.unpack { "1" } else { "" }),
        ("FROM", staged.unwrap_or_default()),
    ] {
        text.extend(name.bytes().chain(*b"="));
        text.extend(quote(value.as_bytes(), name)?);
        text.push(b'\n');
    }
    text.extend_from_slice(PLACE.as_bytes());
    let rest = if staged.is_some() {
        "if there; then keep; echo same; exit 0; fi\nsame \"$FROM\" || refuse upload \"$FROM is not what was sent\"\nplace \"$FROM\"\necho changed\n"
    } else {
        "if there; then keep; echo same; else echo missing; fi\n"
    };
    text.extend(rest.bytes());
    Ok(text)
}

/// Gives a file.
pub(super) fn download(frame: &Frame<'_>, path: &str) -> Result<Vec<u8>, Cause> {
    absolute("from", path)?;
    let mut text = Text::new(frame, "download", "-")?;
    text.set("FROM", path)?;
    text.push(&FILES);
    Ok(text.finish())
}

fn absolute(what: &str, path: &str) -> Result<(), Cause> {
    if path.starts_with('/') && path.trim_end_matches('/').contains('/') {
        return Ok(());
    }
    Err(Cause::new("bad_argument", format!("{what} = {path:?} must be an absolute path of a file")))
}

fn mode(mode: Option<u32>) -> Result<String, Cause> {
    match mode {
        None => Ok(String::new()),
        Some(bits) if bits <= 0o7777 => Ok(format!("{bits:04o}")),
        Some(bits) => Err(Cause::new("bad_argument", format!("mode {bits:o} is more than 7777"))),
    }
}

fn owner(owner: Option<&str>) -> Result<String, Cause> {
    let Some(owner) = owner else { return Ok(String::new()) };
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':' | b'$' | b'@');
    if owner.is_empty() || owner.starts_with('-') || !owner.bytes().all(plain) {
        return Err(Cause::new("bad_argument", format!("owner = {owner:?} is not user, user:group or :group")));
    }
    Ok(owner.to_owned())
}

/// The text of a command that writes `content` (its standard input) to `to` by temporary file and rename. It prints
/// `changed` or `same`.
pub(super) fn write_text(to: &str, file_mode: Option<u32>, file_owner: Option<&str>) -> Result<Vec<u8>, Cause> {
    absolute("path", to)?;
    let mut text = Vec::new();
    for (name, value) in [("to", to.to_owned()), ("mode", mode(file_mode)?), ("owner", owner(file_owner)?)] {
        text.extend_from_slice(name.as_bytes());
        text.push(b'=');
        text.extend(quote(value.as_bytes(), name)?);
        text.push(b'\n');
    }
    // A new file is closed to others until it has its mode; without one it gets what any new file gets.
    text.extend_from_slice(
        br#"[ ! -d "$to" ] || { echo "$to is a directory" >&2; exit 1; }
tmp=$(mktemp "${to%/*}/.phased-XXXXXX")
trap 'rm -f "$tmp"' EXIT
cat >"$tmp"
changed=same
if ! cmp -s "$tmp" "$to"; then
  changed=changed
else
  now=$(stat -c '%04a %U %U:%G :%G' "$to")
  [ -z "$mode" ] || case $now in "$mode "*) ;; *) changed=changed ;; esac
  [ -z "$owner" ] || case "$now " in *" $owner "*) ;; *) changed=changed ;; esac
fi
if [ $changed = changed ]; then
  if [ -n "$owner" ]; then chown "$owner" "$tmp"; fi
  if [ -n "$mode" ]; then chmod "$mode" "$tmp"
  elif [ -e "$to" ]; then chmod "$(stat -c %a "$to")" "$tmp"
  else chmod "$(printf '%o' $((0666 & ~$(umask))))" "$tmp"; fi
  mv -fT "$tmp" "$to"
fi
echo $changed
"#,
    );
    Ok(text)
}
