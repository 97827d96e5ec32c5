//! How long what nobody has taken yet is there.

use crate::session::Nanos;
use std::collections::VecDeque;

/// When the bytes of a ring were first seen. Empty, and without memory of its own, as long as everything is taken at once.
#[derive(Debug, Default)]
pub(super) struct Ages(VecDeque<(u64, Nanos)>);

impl Ages {
    const MOST: usize = 16;

    /// All below `tail` is there at `now`, and all below `taken` is taken.
    pub fn note(&mut self, taken: u64, tail: u64, now: Nanos) {
        while self.0.front().is_some_and(|(to, _)| *to <= taken) {
            self.0.pop_front();
        }
        if tail <= self.0.back().map_or(taken, |(to, _)| *to) {
            return;
        }
        if self.0.len() == Self::MOST {
            // The oldest stays as it is. Of the others goes what leaves the smallest hole: what it told of counts as its
            // neighbour from then on, which is a little younger.
            let hole = |at: &usize| self.0[at + 1].1 - self.0[at - 1].1;
            if let Some(at) = (1..Self::MOST - 1).min_by_key(hole) {
                self.0.remove(at);
            }
        }
        self.0.push_back((tail, now));
    }

    /// When the first byte that is not taken was seen.
    pub fn oldest(&self, taken: u64) -> Option<Nanos> {
        let mut all = self.0.iter();
        all.find(|(to, _)| *to > taken).map(|(_, since)| *since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_what_was_seen_first_and_not_taken() {
        let mut ages = Ages::default();
        ages.note(0, 0, 5);
        assert_eq!(ages.oldest(0), None);
        ages.note(0, 10, 100);
        ages.note(0, 20, 200);
        assert_eq!(ages.oldest(0), Some(100));
        assert_eq!(ages.oldest(9), Some(100));
        assert_eq!(ages.oldest(10), Some(200));
        assert_eq!(ages.oldest(20), None);
        ages.note(20, 20, 300);
        assert!(ages.0.is_empty());
    }

    #[test]
    fn the_oldest_stays_however_much_comes() {
        let mut ages = Ages::default();
        for n in 1..10_000 {
            ages.note(0, n, n);
            assert!(ages.0.len() <= Ages::MOST);
            assert_eq!(ages.oldest(0), Some(1));
        }
        // Of an application that is always as far behind, at ten looks a second.
        let (mut ages, lag) = (Ages::default(), 120);
        for n in 0..10_000 {
            ages.note(u64::saturating_sub(n, lag), n, n);
            if let Some(since) = ages.oldest(u64::saturating_sub(n, lag)).filter(|_| n > lag) {
                assert!(
                    (lag / 2..=lag).contains(&(n - since)),
                    "{} at {n}",
                    n - since
                );
            }
        }
    }

    #[test]
    fn nothing_is_told_older_than_it_is() {
        let mut ages = Ages::default();
        (1..10_000).for_each(|n| ages.note(0, n, n));
        for taken in 1..9_999 {
            assert!(ages.oldest(taken).unwrap() > taken);
        }
    }
}
