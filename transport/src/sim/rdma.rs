//! The wire between two rdma-like ends: what network cards do, and what they do not check.
//!
//! A write is cut into pieces that land in any order, each read from the source ring when it lands. A card checks one thing
//! only, that the memory is registered under the key, which is the epoch here. A notice follows the last piece.

use super::{Host, Process, State};
use crate::link::Event;
use crate::session::Nanos;
use crate::wire::Control;
use std::collections::{HashMap, VecDeque};
use tbus::Region;

/// Writes and control records that may wait for their notices.
const DEPTH: usize = 16;

#[derive(Debug)]
struct Piece {
    from: u64,
    to: u64,
    due: Nanos,
    /// What the source held when its end was closed.
    bytes: Option<Vec<u8>>,
    landed: bool,
}

#[derive(Debug)]
struct Write {
    slot: u32,
    epoch: u64,
    source: Region,
    from: u64,
    to: u64,
    pieces: Vec<Piece>,
    /// Parts of it will never land.
    broken: bool,
}

#[derive(Debug)]
enum Operation {
    Write(Write),
    Control(Control, Nanos),
}

#[derive(Debug)]
enum Notice {
    Write {
        slot: u32,
        epoch: u64,
        from: u64,
        to: u64,
    },
    Control(Control),
}

#[derive(Debug)]
struct Mirror {
    region: Region,
    epoch: u64,
    next: u64,
    room: u64,
    dropped: bool,
}

/// One end: a queue pair and the memory registered for it.
#[derive(Debug, Default)]
pub(super) struct End {
    closed: bool,
    sources: HashMap<u32, (Region, u64)>,
    mirrors: HashMap<u32, Mirror>,
    accepted: VecDeque<Operation>,
    posted: VecDeque<Operation>,
    notices: VecDeque<(Nanos, Notice)>,
    done: VecDeque<(Nanos, u32, u64)>,
    down: Option<String>,
    told: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct RdmaWire {
    ends: [End; 2],
}

impl End {
    pub fn attach_source(&mut self, slot: u32, region: Region, epoch: u64) {
        self.sources.insert(slot, (region, epoch));
    }

    pub fn attach_mirror(&mut self, slot: u32, region: Region, epoch: u64, next: u64, room: u64) {
        let mirror = Mirror {
            region,
            epoch,
            next,
            room,
            dropped: false,
        };
        self.mirrors.insert(slot, mirror);
    }

    pub fn set_room(&mut self, slot: u32, room: u64) {
        if let Some(mirror) = self.mirrors.get_mut(&slot) {
            mirror.room = mirror.room.max(room);
        }
    }

    pub fn detach_mirror(&mut self, slot: u32) {
        if let Some(mirror) = self.mirrors.get_mut(&slot) {
            mirror.dropped = true;
        }
    }

    pub fn append(&mut self, slot: u32, from: u64, to: u64) -> bool {
        if self.accepted.len() + self.posted.len() >= DEPTH || self.down.is_some() {
            return false;
        }
        let Some((source, epoch)) = self.sources.get(&slot) else {
            return false;
        };
        self.accepted.push_back(Operation::Write(Write {
            slot,
            epoch: *epoch,
            source: source.clone(),
            from,
            to,
            pieces: Vec::new(),
            broken: false,
        }));
        true
    }

    pub fn control(&mut self, control: Control) {
        self.accepted.push_back(Operation::Control(control, 0));
    }

    pub fn is_busy(&self) -> bool {
        self.down.is_none() && !self.accepted.is_empty()
    }

    /// Posts what was accepted.
    pub fn kick(&mut self, state: &mut State) {
        while let Some(mut operation) = self.accepted.pop_front() {
            match &mut operation {
                Operation::Control(_, due) => *due = state.arrival(),
                Operation::Write(write) => {
                    let mut at = write.from;
                    while at < write.to {
                        let left = write.to - at;
                        let length = match state.random.chance(500) {
                            true => left,
                            false => (8 + state.random.below(left)).min(left),
                        };
                        let mut due = state.arrival();
                        if state.random.chance(state.conditions.stray) {
                            due += state.random.below(2_000_000_000); // a packet that went astray
                        }
                        write.pieces.push(Piece {
                            from: at,
                            to: at + length,
                            due,
                            bytes: None,
                            landed: false,
                        });
                        at += length;
                    }
                }
            }
            self.posted.push_back(operation);
        }
    }

    pub fn poll(&mut self, now: Nanos, events: &mut Vec<Event>) -> bool {
        let mut any = false;
        while self.down.is_none()
            && let Some((due, _)) = self.notices.front()
            && *due <= now
        {
            any = true;
            if let Some((_, notice)) = self.notices.pop_front()
                && let Err(why) = self.hear(notice, events)
            {
                self.down = Some(why);
            }
        }
        while let Some((due, slot, to)) = self.done.front().copied()
            && due <= now
        {
            self.done.pop_front();
            events.push(Event::SourceDone { slot, to });
        }
        if let Some(why) = &self.down
            && !std::mem::replace(&mut self.told, true)
        {
            events.push(Event::Down(why.clone()));
        }
        any
    }

    /// What the link's software checks when it learns of something.
    fn hear(&mut self, notice: Notice, events: &mut Vec<Event>) -> Result<(), String> {
        let (slot, epoch, from, to) = match notice {
            Notice::Control(control) => {
                events.push(Event::Remote(control));
                return Ok(());
            }
            Notice::Write {
                slot,
                epoch,
                from,
                to,
            } => (slot, epoch, from, to),
        };
        let Some(mirror) = self.mirrors.get_mut(&slot) else {
            return Err(format!("a notice for slot {slot}, which is not open"));
        };
        if mirror.epoch != epoch {
            return Err(format!("a notice for slot {slot} in another epoch"));
        }
        if mirror.dropped {
            return Ok(());
        }
        if from != mirror.next || to > mirror.room || to < from {
            return Err(format!(
                "a notice of [{from}, {to}) for slot {slot}, where [{}, {}) is free",
                mirror.next, mirror.room
            ));
        }
        mirror.next = to;
        events.push(Event::Arrived { slot, to });
        Ok(())
    }

    /// A piece comes in. False if no memory is registered for it.
    fn land(&mut self, write: &Write, piece: &Piece) -> bool {
        let Some(mirror) = self
            .mirrors
            .get(&write.slot)
            .filter(|mirror| mirror.epoch == write.epoch)
        else {
            return false;
        };
        if mirror.dropped {
            return true;
        }
        let length = (piece.to - piece.from) as usize;
        let from = match &piece.bytes {
            Some(bytes) => bytes.as_ptr(),
            None => write.source.at(piece.from, length),
        };
        let to = mirror.region.at(piece.from, length);
        // SAFETY: both are `length` bytes, of rings whose mappings the regions keep or of a buffer that long; a source and a
        // mirror are different files. The world is one thread, and no reference into a ring lives across a step.
        unsafe { std::ptr::copy_nonoverlapping(from, to, length) };
        true
    }
}

impl RdmaWire {
    pub fn end(&mut self, end: usize) -> &mut End {
        &mut self.ends[end]
    }

    pub fn fail(&mut self, end: usize, why: &str) {
        self.ends[end].down.get_or_insert_with(|| why.into());
    }

    pub fn due(&self, now: Nanos) -> Option<Nanos> {
        let mut due = None;
        let mut see = |at: Nanos| {
            if at > now {
                due = Some(due.map_or(at, |other: Nanos| other.min(at)));
            }
        };
        for end in &self.ends {
            for operation in &end.posted {
                match operation {
                    Operation::Control(_, at) => see(*at),
                    Operation::Write(write) => {
                        let left = write.pieces.iter().filter(|piece| !piece.landed);
                        left.for_each(|piece| see(piece.due));
                    }
                }
            }
            end.notices.iter().for_each(|(at, _)| see(*at));
            end.done.iter().for_each(|(at, _, _)| see(*at));
        }
        due
    }

    /// True if nothing is left of it.
    pub fn advance(
        &mut self,
        hosts: [Host; 2],
        processes: [Option<Process>; 2],
        state: &mut State,
    ) -> bool {
        for end in 0..2 {
            let to = 1 - end;
            let cut = state.is_cut(hosts[end], hosts[to]);
            let silent = [end, to].iter().any(|end| {
                processes[*end].is_none_or(|process| state.silent.contains(&process))
                    || self.ends[*end].down.is_some()
            });
            let mut posted = std::mem::take(&mut self.ends[end].posted);
            for operation in &mut posted {
                let refused = match operation {
                    Operation::Control(_, due) => {
                        if *due <= state.now && cut {
                            *due = state.again();
                        }
                        false
                    }
                    Operation::Write(write) => self.land(write, end, cut, silent, state),
                };
                if refused {
                    self.fail(end, "the peer's memory is not registered (simulated)");
                    self.fail(to, "a write to memory that is not registered (simulated)");
                    state.wake(processes[end]);
                    state.wake(processes[to]);
                }
            }
            self.notify(end, &mut posted, state);
            self.ends[end].posted = posted;
            let has_due = |end: &End| {
                end.notices
                    .front()
                    .is_some_and(|first| first.0 <= state.now)
                    || end.done.front().is_some_and(|first| first.0 <= state.now)
            };
            if has_due(&self.ends[end]) {
                state.wake(processes[end]);
            }
        }
        self.ends
            .iter()
            .all(|end| end.closed && end.posted.is_empty())
    }

    /// Pieces that are due land at the other end. True if one was refused there.
    fn land(
        &mut self,
        write: &mut Write,
        end: usize,
        cut: bool,
        silent: bool,
        state: &mut State,
    ) -> bool {
        let mut refused = false;
        for index in 0..write.pieces.len() {
            if write.pieces[index].landed || write.pieces[index].due > state.now {
                continue;
            }
            if cut {
                write.pieces[index].due = state.again();
                continue;
            }
            let target = &mut self.ends[1 - end];
            if target.closed {
                state.counts.fenced_writes += 1;
                write.pieces[index].landed = true;
                write.broken = true;
                self.fail(end, "the peer does not answer (simulated)");
                continue;
            }
            refused |= !target.land(write, &write.pieces[index]);
            if silent {
                state.counts.late_writes += 1;
            }
            if write.pieces[..index].iter().any(|before| !before.landed) {
                state.counts.reordered += 1;
            }
            let again = state.now + 1 + state.random.below(20_000_000);
            let piece = &mut write.pieces[index];
            // Its acknowledgement was lost: it is sent again before the write is complete.
            match state.random.chance(state.conditions.loss / 2) {
                true => {
                    state.counts.replays += 1;
                    piece.due = again;
                }
                false => piece.landed = true,
            }
        }
        refused
    }

    /// Whatever is complete is told at both ends, in order.
    fn notify(&mut self, end: usize, posted: &mut VecDeque<Operation>, state: &mut State) {
        let sender_closed = self.ends[end].closed;
        loop {
            let notice = match posted.front() {
                Some(Operation::Control(control, due)) if *due <= state.now => {
                    Notice::Control(*control)
                }
                Some(Operation::Write(write))
                    if !write.broken && write.pieces.iter().all(|piece| piece.landed) =>
                {
                    // Each piece completes for itself, in order, and ends in the midst of a record or not.
                    let done = &mut self.ends[end].done;
                    for piece in write.pieces.iter().filter(|_| !sender_closed) {
                        let last = done.back().map_or(0, |last| last.0);
                        let due = state.now + state.random.skewed(20_000_000);
                        done.push_back((due.max(last), write.slot, piece.to));
                    }
                    Notice::Write {
                        slot: write.slot,
                        epoch: write.epoch,
                        from: write.from,
                        to: write.to,
                    }
                }
                _ => break,
            };
            posted.pop_front();
            let target = &mut self.ends[1 - end];
            if !target.closed {
                let last = target.notices.back().map_or(0, |last| last.0);
                let due = last.max(state.now + state.random.skewed(100_000));
                target.notices.push_back((due, notice));
            }
        }
        let is_over = |operation: &Operation| match operation {
            Operation::Control(..) => true,
            Operation::Write(write) => write.pieces.iter().all(|piece| piece.landed),
        };
        if (sender_closed || self.ends[1 - end].closed) && posted.iter().all(is_over) {
            posted.clear(); // nothing more comes of these
        }
    }

    /// The queue pair is destroyed. Of its own writes, what is on the wire still lands.
    pub fn close(&mut self, end: usize, state: &mut State) {
        let end = &mut self.ends[end];
        if std::mem::replace(&mut end.closed, true) {
            return;
        }
        end.mirrors.clear();
        end.sources.clear();
        end.accepted.clear();
        end.notices.clear();
        end.done.clear();
        for operation in &mut end.posted {
            let Operation::Write(write) = operation else {
                continue;
            };
            for piece in write.pieces.iter_mut().filter(|piece| !piece.landed) {
                if state.random.chance(300) {
                    write.broken = true;
                    piece.landed = true;
                    continue;
                }
                let length = (piece.to - piece.from) as usize;
                let mut bytes = vec![0; length];
                let from = write.source.at(piece.from, length);
                // SAFETY: `length` bytes of a ring whose mapping the region keeps, into a buffer of that length.
                unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), length) };
                piece.bytes = Some(bytes);
            }
        }
    }
}
