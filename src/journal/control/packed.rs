//! A map from keys to values, in order and in little room: each delivery of a forge is remembered for days, under two keys. In a tree, where
//! each key and each value is an allocation of its own, that takes two and a half times as much.
//!
//! Entries stand in order in blocks. Of each there is: how many bytes its key has in common with the one before, how many more it has, how
//! many its text has, its revision (all LEB128); what its key has more; its text.

use std::cmp::Ordering;

/// A change that leaves a block with more, in several entries, makes two of it. It copies one.
const BLOCK: usize = 2048;

/// The blocks. None is empty, and the first key of each is whole.
#[derive(Default)]
pub(super) struct Packed(Vec<Box<[u8]>>);

/// A value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Living<'a> {
    /// The number of the record that wrote it.
    pub(super) revision: u64,
    /// As JSON.
    pub(super) text: &'a str,
}

impl Packed {
    pub(super) fn get(&self, key: &str) -> Option<Living<'_>> {
        let (found, living) = self.since(key).next()?;
        (found == key).then_some(living)
    }

    /// Those whose key is `first` or comes after it.
    pub(super) fn since<'a>(&'a self, first: &str) -> impl Iterator<Item = (String, Living<'a>)> {
        let blocks = self.0.iter().skip(self.place(first));
        blocks.flat_map(move |block| {
            let mut walk = Walk::over(block);
            std::iter::from_fn(move || {
                loop {
                    let living = walk.step()?;
                    if walk.key.as_slice() >= first.as_bytes() {
                        // It was written as a text.
                        return Some((String::from_utf8_lossy(&walk.key).into_owned(), living));
                    }
                }
            })
        })
    }

    /// Sets what stands under `key`, or takes it away. Returns the length of the text that stood there.
    pub(super) fn set(&mut self, key: &str, value: Option<Living<'_>>) -> Option<usize> {
        let (at, key) = (self.place(key), key.as_bytes());
        let block = self.0.get(at).map(|block| &**block).unwrap_or_default();
        let mut walk = Walk::over(block);
        // What stands before it, what it has in common with the last of that, and the length of its own text.
        let (mut before, mut shared, mut old) = (0, 0, None);
        let next = loop {
            let Some(living) = walk.step() else { break None };
            match walk.key.as_slice().cmp(key) {
                Ordering::Less => (before, shared) = (block.len() - walk.rest.len(), common(&walk.key, key)),
                Ordering::Equal => old = Some(living.text.len()),
                Ordering::Greater => break Some(living),
            }
        };
        if value.is_none() && old.is_none() {
            return None;
        }
        let more = value.map_or(0, |value| key.len() + value.text.len());
        let mut bytes = Vec::with_capacity(block.len() + more + 64);
        bytes.extend_from_slice(block.get(..before).unwrap_or_default());
        if let Some(value) = value {
            push(&mut bytes, shared, key, value);
        }
        if let Some(next) = next {
            // In order, what two have in common those between them have as well.
            let with = common(key, &walk.key);
            push(&mut bytes, if value.is_some() { with } else { with.min(shared) }, &walk.key, next);
            bytes.extend_from_slice(walk.rest);
        }
        self.store(at, bytes);
        old
    }

    /// The block in which `key` stands or would.
    fn place(&self, key: &str) -> usize {
        self.0.partition_point(|block| first_key(block) <= key.as_bytes()).saturating_sub(1)
    }

    /// Makes `bytes` block `at`: none where it is empty, and two where it is too large.
    fn store(&mut self, at: usize, mut bytes: Vec<u8>) {
        let right = if bytes.len() > BLOCK { split(&mut bytes) } else { Vec::new() };
        let made = [bytes, right].into_iter().filter(|bytes| !bytes.is_empty()).map(Vec::into_boxed_slice);
        self.0.splice(at..self.0.len().min(at + 1), made);
    }
}

/// Cuts a block before the entry that reaches over its middle, but behind the first, and returns the rest: nothing, where there is only one.
fn split(bytes: &mut Vec<u8>) -> Vec<u8> {
    let (half, mut right) = (bytes.len() / 2, Vec::new());
    let mut walk = Walk::over(bytes);
    walk.step();
    loop {
        let cut = bytes.len() - walk.rest.len();
        let Some(living) = walk.step() else { return right };
        if bytes.len() - walk.rest.len() > half {
            push(&mut right, 0, &walk.key, living);
            right.extend_from_slice(walk.rest);
            bytes.truncate(cut);
            return right;
        }
    }
}

/// How many bytes two keys begin with alike.
fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Writes an entry behind another with whose key its own has `shared` bytes in common.
fn push(bytes: &mut Vec<u8>, shared: usize, key: &[u8], living: Living<'_>) {
    let own = key.get(shared..).unwrap_or_default();
    for number in [shared as u64, own.len() as u64, living.text.len() as u64, living.revision] {
        let mut left = number;
        while left > 0x7f {
            bytes.push(left as u8 | 0x80);
            left >>= 7;
        }
        bytes.push(left as u8);
    }
    bytes.extend_from_slice(own);
    bytes.extend_from_slice(living.text.as_bytes());
}

/// The first key of a block.
fn first_key(block: &[u8]) -> &[u8] {
    Walk::over(block).read().map_or(&[], |(_, own, ..)| own)
}

/// Goes through a block.
struct Walk<'a> {
    /// What is still to come.
    rest: &'a [u8],
    /// The key of the last entry.
    key: Vec<u8>,
}

impl<'a> Walk<'a> {
    fn over(block: &'a [u8]) -> Self {
        Walk { rest: block, key: Vec::new() }
    }

    /// The next entry, whose key is in `key` then.
    fn step(&mut self) -> Option<Living<'a>> {
        let (shared, own, revision, text) = self.read()?;
        self.key.truncate(shared);
        self.key.extend_from_slice(own);
        // It was written as a text.
        Some(Living { revision, text: str::from_utf8(text).unwrap_or_default() })
    }

    /// An entry as it stands there: what its key shares and what it has more, its revision, its text.
    fn read(&mut self) -> Option<(usize, &'a [u8], u64, &'a [u8])> {
        if self.rest.is_empty() {
            return None;
        }
        let [shared, own, length, revision] = [(); 4].map(|()| self.number());
        let (own, text) = (self.take(own), self.take(length));
        Some((shared as usize, own, revision, text))
    }

    fn number(&mut self) -> u64 {
        let (mut number, mut shift) = (0, 0);
        while let Some((&byte, rest)) = self.rest.split_first() {
            self.rest = rest;
            number |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        number
    }

    fn take(&mut self, length: u64) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(self.rest.len().min(length as usize));
        self.rest = rest;
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::tests::{below, chance};

    #[test]
    fn random_changes_leave_what_a_tree_would_hold() {
        let (mut random, cases) = chance("packed", 30, 3_000);
        for _ in cases {
            let (mut packed, mut tree) = (Packed::default(), BTreeMap::<String, (u64, String)>::new());
            // Few keys that are near each other, or many; small texts, and some that fill blocks.
            let (keys, large) = ([9, 300, 90_000][below(&mut random, 3)], [1, 20, 2000][below(&mut random, 3)]);
            let mut growing = true;
            for number in 0..1500_u64 {
                // Of the last two, the letters begin with the same byte.
                let place = ["", "a/", "delivery/", "é", "è"][below(&mut random, 5)];
                let key = match below(&mut random, 40) {
                    0 => place.to_owned(),
                    _ => format!("{place}{:x}", below(&mut random, keys)),
                };
                growing ^= below(&mut random, 300) == 0;
                let keep = below(&mut random, 10) < if growing { 8 } else { 2 };
                let most = if below(&mut random, 20) == 0 { 9000 } else { large };
                let text = "ß".repeat(below(&mut random, most));
                let revision = if below(&mut random, 9) == 0 { u64::MAX } else { number << below(&mut random, 50) };
                let value = keep.then_some(Living { revision, text: &text });
                let old = match value {
                    Some(value) => tree.insert(key.clone(), (value.revision, value.text.to_owned())),
                    None => tree.remove(&key),
                };
                assert_eq!(packed.set(&key, value), old.map(|(_, text)| text.len()));
                assert_eq!(packed.get(&key), value);
                let other = format!("delivery/{:x}", below(&mut random, keys));
                fn living((revision, text): &(u64, String)) -> Living<'_> {
                    Living { revision: *revision, text }
                }
                assert_eq!(packed.get(&other), tree.get(&other).map(living));
                if number % 100 == 99 {
                    for first in ["", &other, "delivery/", "z", "éé"] {
                        let held = tree.iter().filter(|(key, _)| key.as_str() >= first);
                        let held = held.map(|(key, value)| (key.clone(), living(value)));
                        assert!(packed.since(first).eq(held), "{first}");
                    }
                    // A block is cut once, however large what came to it is: then it has the half and an entry more.
                    assert!(packed.0.iter().all(|block| (1..3 * 18_100).contains(&block.len())));
                }
            }
        }
    }

    #[test]
    fn a_delivery_takes_little() {
        let mut packed = Packed::default();
        for number in 0..5000_u64 {
            let name = crate::model::ids::Digest::of(&number.to_le_bytes());
            for forge in ["delivery/github/", "signature/"] {
                let text = "\"01m8fy966vwdj5d8nmmf2acd1a\"";
                packed.set(&format!("{forge}{}", &name.as_str()[..32]), Some(Living { revision: number, text }));
            }
        }
        let held: usize = packed.0.iter().map(|block| block.len() + size_of::<Box<[u8]>>()).sum();
        assert!(held < 5000 * 2 * 66, "{held}");
    }
}
