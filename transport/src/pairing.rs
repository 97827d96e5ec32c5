//! What to do when a source ring meets a mirror: one pure function, since every rule of it matters.
//!
//! Positions of both rings mean the same bytes, so to resume is to compare integers. What makes it safe is that the source
//! remembers which mirror it was mirrored to: a mirror with another name has lost what the old one had.

use crate::wire::Resume;
use tbus::{Cursor, Gap, Uuid};

/// The source's side.
#[derive(Clone, Copy, Debug)]
pub struct SourceView {
    /// Bytes of its data area.
    pub capacity: u64,
    /// Up to where it is released: what is before is no longer there.
    pub released: Cursor,
    /// Up to where it is filled.
    pub tail: Cursor,
    /// The mirror it was mirrored to last, and up to where that one's application had released.
    pub stored: Option<(Uuid, Cursor)>,
}

/// How it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// From the mirror's tail.
    Continue {
        /// The mirror is another one than before, and its name is to be stored before the first byte goes out.
        store: bool,
        /// What is lost; to be reported first of all.
        gap: Option<Gap>,
    },
    /// Not at all.
    Refuse(String),
}

/// Compares a source with the mirror that the peer offers.
pub fn pair(source: &SourceView, mirror: &Resume) -> Pairing {
    let (released, tail) = (source.released.position, source.tail.position);
    if mirror.head.position > mirror.tail.position
        || mirror.head.sequence > mirror.tail.sequence
        || mirror.tail.position - mirror.head.position > source.capacity
    {
        return Pairing::Refuse(format!(
            "the mirror's application is at {}, its tail at {}: no ring of {} bytes can be so",
            mirror.head.position, mirror.tail.position, source.capacity
        ));
    }
    if mirror.tail.position > tail {
        return Pairing::Refuse(format!(
            "the mirror has come to {}, and the source only to {tail}: it is not the ring that was mirrored",
            mirror.tail.position
        ));
    }
    if mirror.tail.position < released {
        return Pairing::Refuse(format!(
            "the mirror has come to {}, and the source has released up to {released}: the peer must begin anew",
            mirror.tail.position
        ));
    }
    match source.stored {
        Some((uuid, _)) if uuid == mirror.mirror => Pairing::Continue {
            store: false,
            gap: None,
        },
        None => Pairing::Continue {
            store: true,
            gap: None,
        },
        Some((_, head)) => {
            let lost = head.position < released;
            let gap = lost.then_some(Gap {
                from: head,
                to: source.released,
            });
            Pairing::Continue { store: true, gap }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(position: u64) -> Cursor {
        Cursor {
            position,
            sequence: position / 16,
        }
    }

    fn view(released: u64, tail: u64, stored: Option<(u8, u64)>) -> SourceView {
        SourceView {
            capacity: 4096,
            released: at(released),
            tail: at(tail),
            stored: stored.map(|(uuid, head)| (Uuid([uuid; 16]), at(head))),
        }
    }

    fn mirror(uuid: u8, head: u64, tail: u64) -> Resume {
        Resume {
            slot: 0,
            attempt: 0,
            source: Uuid([9; 16]),
            mirror: Uuid([uuid; 16]),
            tail: at(tail),
            head: at(head),
            epoch: 0,
            remote: (0, 0),
        }
    }

    fn refused(pairing: Pairing) -> bool {
        matches!(pairing, Pairing::Refuse(_))
    }

    #[test]
    fn the_known_mirror_continues() {
        let go_on = Pairing::Continue {
            store: false,
            gap: None,
        };
        for tail in [160, 320, 480] {
            assert_eq!(
                pair(&view(160, 480, Some((1, 96))), &mirror(1, 96, tail)),
                go_on
            );
        }
    }

    #[test]
    fn first_contact_stores_the_name_first() {
        let first = Pairing::Continue {
            store: true,
            gap: None,
        };
        assert_eq!(pair(&view(0, 480, None), &mirror(1, 0, 0)), first);
        assert_eq!(pair(&view(160, 480, None), &mirror(1, 160, 160)), first);
    }

    #[test]
    fn another_mirror_means_a_gap_unless_all_was_released() {
        let gap = Gap {
            from: at(96),
            to: at(160),
        };
        let lost = Pairing::Continue {
            store: true,
            gap: Some(gap),
        };
        assert_eq!(
            pair(&view(160, 480, Some((1, 96))), &mirror(2, 160, 160)),
            lost
        );
        let nothing = Pairing::Continue {
            store: true,
            gap: None,
        };
        assert_eq!(
            pair(&view(160, 480, Some((1, 160))), &mirror(2, 160, 160)),
            nothing
        );
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(
            refused(pair(&view(160, 480, Some((1, 96))), &mirror(1, 96, 496))),
            "ahead of the source"
        );
        assert!(
            refused(pair(&view(160, 480, Some((1, 96))), &mirror(1, 96, 144))),
            "behind what is released"
        );
        assert!(
            refused(pair(&view(0, 480, None), &mirror(1, 176, 160))),
            "head past tail"
        );
        assert!(
            refused(pair(&view(8192, 12000, None), &mirror(1, 4000, 8192))),
            "more than a ring holds"
        );
    }
}
