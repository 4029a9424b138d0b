//! A map from keys to values, in order and in little room: each delivery of a forge is remembered for days, under two keys. In a tree, a key
//! and a value would each be an allocation of its own; that takes twice as much, among others that come and go.
//!
//! Entries stand in order in blocks. Of each there is: how many bytes its key has in common with the one before, how many more it has, how
//! many its text has, its revision (all LEB128); what its key has more; its text.

use std::cmp::Ordering;

/// What a block may have before it becomes two.
const BLOCK: usize = 4096;

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
        let mut walk = Walk::over(self.0.get(self.place(key))?);
        loop {
            let living = walk.step()?;
            match walk.key.as_slice().cmp(key.as_bytes()) {
                Ordering::Less => {}
                Ordering::Equal => return Some(living),
                Ordering::Greater => return None,
            }
        }
    }

    /// Those whose key is `first` or comes after it.
    pub(super) fn since<'a>(&'a self, first: &'a str) -> impl Iterator<Item = (String, Living<'a>)> {
        let blocks = self.0.iter().skip(self.place(first));
        let entries = blocks.flat_map(|block| {
            let mut walk = Walk::over(block);
            std::iter::from_fn(move || {
                let living = walk.step()?;
                Some((String::from_utf8_lossy(&walk.key).into_owned(), living))
            })
        });
        entries.skip_while(move |(key, _)| key.as_str() < first)
    }

    /// Sets what stands under `key`, or takes it away. Returns the length of the text that stood there.
    pub(super) fn set(&mut self, key: &str, value: Option<Living<'_>>) -> Option<usize> {
        let (at, key) = (self.place(key), key.as_bytes());
        let block = self.0.get(at).map_or(&[][..], |block| block);
        let mut walk = Walk::over(block);
        // What stands before it, and what it has in common with the last of that.
        let (mut before, mut shared, mut old) = (0, 0, None);
        let next = loop {
            let Some(living) = walk.step() else { break None };
            match walk.key.as_slice().cmp(key) {
                Ordering::Less => (before, shared) = (block.len() - walk.rest.len(), common(&walk.key, key)),
                Ordering::Equal => old = Some(living.text.len()),
                Ordering::Greater => break Some(living),
            }
        };
        let mut bytes = block.get(..before).unwrap_or_default().to_vec();
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
        self.0.partition_point(|block| first(block) <= key.as_bytes()).saturating_sub(1)
    }

    /// Makes `bytes` block `at`: none where it is empty, and two where it is too large.
    fn store(&mut self, at: usize, mut bytes: Vec<u8>) {
        let right = if bytes.len() > BLOCK { split(&mut bytes) } else { Vec::new() };
        let made = [bytes, right].into_iter().filter(|bytes| !bytes.is_empty()).map(Vec::into_boxed_slice);
        self.0.splice(at..self.0.len().min(at + 1), made);
    }
}

/// Cuts off the second half of a block; nothing, where there is only one entry.
fn split(bytes: &mut Vec<u8>) -> Vec<u8> {
    let (half, mut right) = (bytes.len() / 2, Vec::new());
    let mut walk = Walk::over(bytes);
    walk.step();
    loop {
        let cut = bytes.len() - walk.rest.len();
        let Some(living) = walk.step() else { return right };
        if cut >= half || walk.rest.is_empty() {
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
fn first(block: &[u8]) -> &[u8] {
    Walk::over(block).read().map_or(&[], |(_, own, _)| own)
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
        let (shared, own, living) = self.read()?;
        self.key.truncate(shared);
        self.key.extend_from_slice(own);
        Some(living)
    }

    /// As it stands there.
    fn read(&mut self) -> Option<(usize, &'a [u8], Living<'a>)> {
        if self.rest.is_empty() {
            return None;
        }
        let [shared, own, length, revision] = [(); 4].map(|()| self.number());
        let (own, text) = (self.take(own), self.take(length));
        Some((shared as usize, own, Living { revision, text: str::from_utf8(text).unwrap_or_default() }))
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
    fn what_is_packed_is_what_a_tree_would_hold() {
        let (mut random, cases) = chance("packed", 30, 3_000);
        for _ in cases {
            let (mut packed, mut tree) = (Packed::default(), BTreeMap::<String, (u64, String)>::new());
            // Few keys that are near each other, or many; small texts, and some that fill blocks.
            let (keys, large) = ([9, 300, 90_000][below(&mut random, 3)], [1, 20, 2000][below(&mut random, 3)]);
            let mut growing = true;
            for revision in 0..1500 {
                let key = format!("{}/{:x}", ["a", "delivery", "é"][below(&mut random, 3)], below(&mut random, keys));
                growing ^= below(&mut random, 300) == 0;
                let keep = below(&mut random, 10) < if growing { 8 } else { 2 };
                let most = if below(&mut random, 20) == 0 { 9000 } else { large };
                let text = "ß".repeat(below(&mut random, most));
                let value = keep.then_some(Living { revision: revision << below(&mut random, 50), text: &text });
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
                if revision % 100 == 99 {
                    for first in ["", &other, "delivery/", "z", "éé"] {
                        let held = tree.iter().filter(|(key, _)| key.as_str() >= first);
                        let held = held.map(|(key, value)| (key.clone(), living(value)));
                        assert!(packed.since(first).eq(held), "{first}");
                    }
                    // One text of 18 KB may be more than a block has room for.
                    assert!(packed.0.iter().all(|block| (1..BLOCK + 19_000).contains(&block.len())));
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
