//! Man pages from our own Markdown and our own commented TOML: what these two use, and no more.

use std::fmt::Write as _;

/// A page of section 5 around `body`.
pub(super) fn page(name: &str, what: &str, body: &str) -> String {
    format!(
        ".TH {name} 5 \"\" \"{}\" \"phased\"\n.ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n.SH NAME\n{name} \\- {what}\n{body}\
         .SH SEE ALSO\n.BR phased (8),\n.BR phased\\-check (8),\n.BR phased.toml (5),\n.BR phased\\-lua (5)\n",
        super::VERSION
    )
}

/// A commented TOML file: sections, keys, and what their comments say.
///
/// A comment above a key tells what it is; one behind it goes on. `#key = value` is a key that stands at its default.
pub(super) fn toml(text: &str) -> String {
    let mut out = String::from(".SH DESCRIPTION\n");
    let mut said = String::new();
    let mut inside = false;
    for line in text.lines() {
        let bare = line.strip_prefix('#').unwrap_or(line);
        if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            flush(&mut said, &mut out);
            let _infallible = writeln!(out, ".SH \"[{}]\"", escape(section));
            inside = true;
        } else if is_key(bare) {
            if !inside {
                // What the file begins with is about the file; the comment right above the first key is that key's.
                let (about, key) = said.rsplit_once("\n\n").unwrap_or(("", &said));
                let _infallible = writeln!(out, "{}\n.SH KEYS", escape(about.trim()));
                said = key.to_owned();
                inside = true;
            }
            let (key, more) = comment_behind(bare);
            if !more.is_empty() {
                let _infallible = write!(said, "\n{more}");
            }
            let _infallible = writeln!(out, ".TP\n\\fB{}\\fR", escape(key.trim()));
            flush(&mut said, &mut out);
        } else {
            said.push_str(bare.trim());
            said.push('\n');
        }
    }
    flush(&mut said, &mut out);
    out
}

fn flush(said: &mut String, out: &mut String) {
    let text = std::mem::take(said);
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        out.push_str(&safe(&escape(line.trim())));
        out.push('\n');
    }
}

/// `name = ...`, not prose.
fn is_key(line: &str) -> bool {
    let Some((name, _)) = line.split_once(" = ") else { return false };
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// The key, and the comment behind its value; a `#` inside a string is none.
fn comment_behind(line: &str) -> (&str, &str) {
    let mut quoted = false;
    for (at, c) in line.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '#' if !quoted => return (&line[..at], line[at + 1..].trim()),
            _ => {}
        }
    }
    (line, "")
}

/// Markdown with headings, paragraphs, tables and code.
pub(super) fn markdown(text: &str) -> String {
    let mut out = String::new();
    let mut header: Vec<String> = Vec::new();
    let mut code = false;
    for line in text.lines() {
        if line.starts_with("```") {
            code = !code;
            out.push_str(if code { ".PP\n.RS 4\n.nf\n" } else { ".fi\n.RE\n" });
        } else if code {
            out.push_str(&safe(&escape(line)));
            out.push('\n');
        } else if let Some(title) = line.strip_prefix("### ") {
            let _infallible = writeln!(out, ".SS \"{}\"", inline(title).replace('"', "\\(dq"));
        } else if let Some(title) = line.strip_prefix("## ") {
            let _infallible = writeln!(out, ".SH \"{}\"", inline(title).to_uppercase());
        } else if line.starts_with("# ") {
            out.push_str(".SH DESCRIPTION\n");
        } else if let Some(row) = line.strip_prefix('|') {
            let cells = cells(row);
            if header.is_empty() {
                header = cells;
            } else if !line.starts_with("|---") {
                entry(&header, &cells, &mut out);
            }
        } else if line.is_empty() {
            header.clear();
        } else {
            let _infallible = writeln!(out, ".PP\n{}", safe(&inline(line)));
        }
    }
    out
}

/// A table's row as an entry: its first cell is what it is about, a column without a name tells more.
fn entry(header: &[String], cells: &[String], out: &mut String) {
    let Some((first, rest)) = cells.split_first() else { return };
    let mut facts = Vec::new();
    let mut told = String::new();
    for (name, cell) in header.iter().skip(1).zip(rest).filter(|(_, cell)| !cell.is_empty()) {
        match name.as_str() {
            "" => told = inline(cell),
            "default" if cell == "required" => facts.push("required".to_owned()),
            "default" => facts.push(format!("default {}", inline(cell))),
            _ => facts.push(inline(cell)),
        }
    }
    let _infallible = writeln!(out, ".TP\n{}", inline(first));
    if !facts.is_empty() {
        let _infallible = writeln!(out, "{}.", safe(&facts.join("; ")));
    }
    if !told.is_empty() {
        let _infallible = writeln!(out, "{}", safe(&told));
    }
}

/// `a | b\|c |` as its cells.
fn cells(row: &str) -> Vec<String> {
    let row = row.replace("\\|", "\u{0}");
    let row = row.trim_end().strip_suffix('|').unwrap_or(&row);
    row.split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect()
}

/// `code` and **strong** are bold; of a link the words stay.
fn inline(text: &str) -> String {
    let mut out = String::new();
    for (at, part) in text.split('`').enumerate() {
        if at % 2 == 1 {
            let _infallible = write!(out, "\\fB{}\\fR", escape(part));
            continue;
        }
        for (at, part) in part.split("**").enumerate() {
            let part = escape(&unlinked(part));
            if at % 2 == 1 {
                let _infallible = write!(out, "\\fB{part}\\fR");
            } else {
                out.push_str(&part);
            }
        }
    }
    out
}

fn unlinked(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, words, after)) = link(rest) {
        out.push_str(before);
        out.push_str(words);
        rest = after;
    }
    out + rest
}

/// What is before the first link, its words, what is behind it.
fn link(text: &str) -> Option<(&str, &str, &str)> {
    let middle = text.find("](")?;
    let open = text[..middle].rfind('[')?;
    let close = middle + text[middle..].find(')')?;
    Some((&text[..open], &text[open + 1..middle], &text[close + 1..]))
}

/// For troff: its escape character, and a hyphen that stays what is typed.
fn escape(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq")
}

/// A line that is text even where it begins as a request does.
fn safe(line: &str) -> String {
    if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commented_file_becomes_keys_with_what_is_said_of_them() {
        let text = "# About the file.\n# More.\n\n# Where it writes.\n#data_dir = \"/var/lib/x\"\n\n[api]\n# Who may.\nlisten = \"a#b\"   # \"none\" = not at all\n";
        let said = toml(text);
        let expected = ".SH DESCRIPTION\nAbout the file.\nMore.\n.SH KEYS\n.TP\n\\fBdata_dir = \"/var/lib/x\"\\fR\nWhere it writes.\n\
                        .SH \"[api]\"\n.TP\n\\fBlisten = \"a#b\"\\fR\nWho may.\n\"none\" = not at all\n";
        assert_eq!(said, expected);
    }

    #[test]
    fn markdown_becomes_requests_of_man() {
        let text = "# Title\n\nSee [the page](x.md), `a-b` and **no**.\n\n## Two words\n\n### run:sh\n\n```lua\n.x\n```\n\n\
                    | key | value | default | |\n|---|---|---|---|\n| `a` | b \\| c | `\"1\"` | Says. |\n| `d` | e | required |  |\n";
        let expected = ".SH DESCRIPTION\n.PP\nSee the page, \\fBa\\-b\\fR and \\fBno\\fR.\n.SH \"TWO WORDS\"\n.SS \"run:sh\"\n.PP\n.RS 4\n.nf\n\\&.x\n.fi\n.RE\n\
                        .TP\n\\fBa\\fR\nb | c; default \\fB\"1\"\\fR.\nSays.\n.TP\n\\fBd\\fR\ne; required.\n";
        assert_eq!(markdown(text), expected);
    }

    #[test]
    fn no_text_becomes_a_request_or_an_escape() {
        assert_eq!(safe(&escape(".so /etc/passwd")), "\\&.so /etc/passwd");
        assert_eq!(escape("a\\nb"), "a\\enb");
        assert_eq!(safe(&escape("'tis")), "\\(aqtis");
    }
}
