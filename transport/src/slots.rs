//! [`BySlot`]: a table by the numbers that a peer gives its rings.

use std::collections::HashMap;

/// Numbers below this are looked up without a hash: an honest peer counts its rings from 0 on.
const LOW: u32 = 4096;

/// The same, all by hash.
pub(crate) type Hashed<T> = HashMap<u32, T, foldhash::fast::RandomState>;

/// By the numbers that a peer gives its rings. They may be any, so a table of its own size is no choice for all of them; and they are
/// looked up several times a message, so for those that a peer gives first it is one.
#[derive(Debug)]
pub(crate) struct BySlot<T> {
    low: Vec<Option<T>>,
    high: Hashed<T>,
    len: usize,
}

impl<T> Default for BySlot<T> {
    fn default() -> BySlot<T> {
        BySlot {
            low: Vec::new(),
            high: Hashed::default(),
            len: 0,
        }
    }
}

impl<T> BySlot<T> {
    #[inline]
    pub fn get(&self, slot: &u32) -> Option<&T> {
        match *slot < LOW {
            true => self.low.get(*slot as usize)?.as_ref(),
            false => self.high.get(slot),
        }
    }

    #[inline]
    pub fn get_mut(&mut self, slot: &u32) -> Option<&mut T> {
        match *slot < LOW {
            true => self.low.get_mut(*slot as usize)?.as_mut(),
            false => self.high.get_mut(slot),
        }
    }

    pub fn contains_key(&self, slot: &u32) -> bool {
        self.get(slot).is_some()
    }

    /// What was there before.
    pub fn insert(&mut self, slot: u32, value: T) -> Option<T> {
        let old = if slot < LOW {
            if slot as usize >= self.low.len() {
                self.low.resize_with(slot as usize + 1, || None);
            }
            self.low[slot as usize].replace(value)
        } else {
            self.high.insert(slot, value)
        };
        self.len += usize::from(old.is_none());
        old
    }

    pub fn remove(&mut self, slot: &u32) -> Option<T> {
        let old = match *slot < LOW {
            true => self.low.get_mut(*slot as usize)?.take(),
            false => self.high.remove(slot),
        };
        self.len -= usize::from(old.is_some());
        old
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn clear(&mut self) {
        *self = BySlot::default();
    }

    /// All with their numbers, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let low = self.low.iter().enumerate();
        let low = low.filter_map(|(slot, value)| Some((slot as u32, value.as_ref()?)));
        low.chain(self.high.iter().map(|(slot, value)| (*slot, value)))
    }

    /// The same, of a table that is not needed any more.
    pub fn into_all(self) -> impl Iterator<Item = (u32, T)> {
        let low = self.low.into_iter().enumerate();
        let low = low.filter_map(|(slot, value)| Some((slot as u32, value?)));
        low.chain(self.high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_size() {
        let mut table = BySlot::default();
        let slots = [0, 7, LOW - 1, LOW, LOW + 1, u32::MAX];
        for (n, slot) in slots.into_iter().enumerate() {
            assert!(!table.contains_key(&slot));
            assert_eq!(table.insert(slot, n), None);
            assert_eq!(table.len(), n + 1);
        }
        assert_eq!(table.insert(7, 9), Some(1));
        *table.get_mut(&u32::MAX).unwrap() += 10;
        assert_eq!(table.get(&7), Some(&9));
        assert_eq!((table.remove(&LOW), table.remove(&LOW)), (Some(3), None));
        assert_eq!(
            (table.remove(&1), table.remove(&5000), table.len()),
            (None, None, 5)
        );
        let mut seen: Vec<_> = table.iter().map(|(slot, value)| (slot, *value)).collect();
        let mut all: Vec<_> = table.into_all().collect();
        seen.sort();
        all.sort();
        let expected = [(0, 0), (7, 9), (LOW - 1, 2), (LOW + 1, 4), (u32::MAX, 15)];
        assert_eq!(all, expected);
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_cleared_table_is_empty() {
        let mut table = BySlot::default();
        table.insert(3, ());
        table.insert(LOW, ());
        table.clear();
        assert_eq!(
            (table.len(), table.get(&3), table.get(&LOW)),
            (0, None, None)
        );
    }
}
