//! One direction of a connection: a stream of bytes that comes late, in order, and may end.

use crate::session::Nanos;
use std::collections::VecDeque;

#[derive(Debug)]
struct Segment {
    due: Nanos,
    bytes: Vec<u8>,
    end: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pipe {
    segments: VecDeque<Segment>,
    /// Bytes that are there and not taken.
    pub arrived: Vec<u8>,
    /// Nothing more comes.
    pub ended: bool,
    sent_end: bool,
}

impl Pipe {
    /// Sends `bytes`, to be there at `due`, or later if older bytes are.
    pub fn send(&mut self, due: Nanos, bytes: &[u8]) {
        if !bytes.is_empty() && !self.sent_end {
            self.push(due, bytes.to_vec(), false);
        }
    }

    /// Ends the stream after what was sent.
    pub fn end(&mut self, due: Nanos) {
        if !std::mem::replace(&mut self.sent_end, true) {
            self.push(due, Vec::new(), true);
        }
    }

    fn push(&mut self, due: Nanos, bytes: Vec<u8>, end: bool) {
        let due = due.max(self.segments.back().map_or(0, |last| last.due));
        self.segments.push_back(Segment { due, bytes, end });
    }

    /// Bytes that have not come yet.
    pub fn under_way(&self) -> usize {
        self.segments
            .iter()
            .map(|segment| segment.bytes.len())
            .sum()
    }

    /// When the next segment comes.
    pub fn due(&self) -> Option<Nanos> {
        self.segments.front().map(|segment| segment.due)
    }

    /// What is due comes, or, if it is lost on a cut line, is sent again at `again`. True if anything came.
    pub fn advance(&mut self, now: Nanos, is_cut: bool, again: Nanos) -> bool {
        let mut any = false;
        while let Some(first) = self.segments.front_mut()
            && first.due <= now
        {
            if is_cut {
                first.due = again;
                break;
            }
            any = true;
            self.arrived.append(&mut first.bytes);
            self.ended |= first.end;
            self.segments.pop_front();
        }
        any
    }
}
