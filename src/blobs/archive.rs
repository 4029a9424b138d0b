//! Checks a tar archive that code under test may have had a hand in, while it streams by.

use std::{
    collections::BTreeSet,
    io::{self, Read},
    path::{Component, Path},
};

/// A longer name is nobody's; hosts could not make it.
const LONGEST_NAME: usize = 4096;

fn refused(name: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{} in the archive {why}", name.display()))
}

/// Reads `archive` to its end: every entry is a file, a directory or a link, at a place of its own within, after the one before.
///
/// # Errors
/// `archive`'s; `InvalidData` for anything else.
pub(super) fn check(archive: &mut dyn Read) -> io::Result<()> {
    let mut entries = tar::Archive::new(archive);
    let mut last: Option<Vec<u8>> = None;
    let mut links: BTreeSet<Vec<u8>> = BTreeSet::new();
    for entry in entries.entries()? {
        let entry = entry?;
        let bytes = entry.path_bytes().into_owned();
        let path = entry.path()?.into_owned();
        let kind = entry.header().entry_type();
        if !(kind.is_file() || kind.is_dir() || kind.is_symlink()) {
            return Err(refused(&path, "is neither a file nor a directory nor a symbolic link"));
        }
        let within = |part: Component| matches!(part, Component::Normal(_));
        if bytes.len() > LONGEST_NAME || bytes.is_empty() || !path.components().all(within) {
            return Err(refused(&path, "is no place within it"));
        }
        let name = bytes.strip_suffix(b"/").unwrap_or(&bytes).to_vec();
        if last.as_ref().is_some_and(|last| *last >= name) {
            return Err(refused(&path, "is out of order or there twice"));
        }
        // A host that unpacks it would follow the link.
        let beneath = path.ancestors().skip(1).any(|above| links.contains(above.as_os_str().as_encoded_bytes()));
        if beneath {
            return Err(refused(&path, "lies beneath a link"));
        }
        if kind.is_symlink() {
            links.insert(name.clone());
        }
        last = Some(name);
    }
    // Whatever another tar would make of it, nothing follows the end.
    let rest = entries.into_inner();
    let mut buffer = [0; 4096];
    loop {
        match rest.read(&mut buffer)? {
            0 => return Ok(()),
            n if buffer[..n].iter().all(|byte| *byte == 0) => {}
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "something follows the archive's end")),
        }
    }
}

#[cfg(test)]
mod tests {
    use tar::EntryType;

    use super::*;

    fn archive(entries: &[(&str, EntryType)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_size(0);
            header.set_mode(0o644);
            // As hostile code writes it, not as this library lets us.
            let field = &mut header.as_old_mut().name;
            field[..name.len()].copy_from_slice(name.as_bytes());
            if kind.is_symlink() {
                header.set_link_name("/etc").unwrap();
            }
            header.set_cksum();
            builder.append(&header, io::empty()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_plain_tree_passes_and_a_hostile_one_does_not() {
        use EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};
        let plain = [("a/", Directory), ("a/b\nc", Regular), ("a-b", Regular), ("l", Symlink), ("l-x", Regular)];
        let mut sorted = plain;
        sorted.sort_by_key(|(name, _)| name.trim_end_matches('/'));
        check(&mut archive(&sorted).as_slice()).unwrap();
        for (entries, why) in [
            (vec![("../x", Regular)], "no place within"),
            (vec![("a/../../x", Regular)], "no place within"),
            (vec![("/etc/passwd", Regular)], "no place within"),
            (vec![("l", Symlink), ("l/passwd", Regular)], "beneath a link"),
            (vec![("b", Regular), ("a", Regular)], "out of order"),
            (vec![("a", Regular), ("a", Symlink)], "there twice"),
            (vec![("dev", Block)], "neither"),
            (vec![("dev", Char)], "neither"),
            (vec![("fifo", Fifo)], "neither"),
            (vec![("hard", Link)], "neither"),
        ] {
            let error = check(&mut archive(&entries).as_slice()).unwrap_err();
            assert!(
                error.kind() == io::ErrorKind::InvalidData && error.to_string().contains(why),
                "{entries:?}: {error}"
            );
        }
        let two = [archive(&[("a", Regular)]), archive(&[("../b", Regular)])].concat();
        assert!(check(&mut two.as_slice()).is_err(), "one behind the other");
        let whole = archive(&[("a", Regular)]);
        assert!(check(&mut &whole[..100]).is_err());
        assert!(check(&mut &b"not a tar archive at all"[..]).is_err());
    }
}
