//! The simulated network: a clock, hosts, control connections and links in one process, with every fault that a seed
//! brings.
//!
//! What it carries is real: a [`crate::relay::Relay`] over [`SimNetwork`] serves real rings. A link has one of two
//! characters. *Tcp-like*: the real [`crate::link::tcp::TcpLink`] over a socket pair, between whose ends the world keeps
//! the bytes back, and cuts them anywhere. *Rdma-like*: pieces of a write land in any order straight in the mirror's
//! memory, whatever has become of the relay there, until its end of the link is quiesced or its process is gone; bytes of
//! the source are read when a piece lands.
//!
//! A relay may be killed inside a step: the world unwinds out of one of its calls with [`Killed`], and whoever steps the
//! relay catches that. Until [`World::exit`] such a process still is: its memory is written and its roles are held.

mod link;
mod network;
mod pipe;
mod random;
mod rdma;
mod tcp;

pub use link::SimLink;
pub use network::{SimControl, SimNetwork};
pub use random::Random;

use crate::session::Nanos;
use crate::wire::Token;
use pipe::Pipe;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::rc::Rc;

/// The number of a host.
pub type Host = usize;
/// The number of a process, never used again.
pub type Process = u64;

/// Between two attempts to send what was lost.
const AGAIN: Range<Nanos> = 20_000_000..400_000_000;

/// What unwinds out of a call of a process that is killed in it.
#[derive(Clone, Copy, Debug)]
pub struct Killed(pub Process);

/// How the network is just now.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// How long things are under way.
    pub delay: Range<Nanos>,
    /// How many of a thousand are lost and come later.
    pub loss: u64,
    /// How many of a thousand pieces of a write go astray, and come up to two seconds later.
    pub stray: u64,
    /// How many of a thousand links that are asked for by RDMA are made; 0: no host has a device.
    pub rdma: u64,
    /// From where to where nothing passes.
    pub cut: BTreeSet<(Host, Host)>,
}

/// What has happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Links made, tcp-like.
    pub tcp_links: u64,
    /// Links made, rdma-like.
    pub rdma_links: u64,
    /// Things lost and sent again.
    pub losses: u64,
    /// Pieces that landed twice.
    pub replays: u64,
    /// Pieces that landed before one sent earlier.
    pub reordered: u64,
    /// Pieces that landed although the sender or the receiver had given the link up, or was dead.
    pub late_writes: u64,
    /// The same, that were refused since the receiver had ended its part.
    pub fenced_writes: u64,
    /// Processes killed inside a call.
    pub kills_inside: u64,
}

/// The network. Clones are the same one.
#[derive(Clone, Debug)]
pub struct World(Rc<RefCell<State>>);

#[derive(Debug)]
struct State {
    now: Nanos,
    random: Random,
    conditions: Conditions,
    counts: Counts,
    next: u64,
    listeners: BTreeMap<String, Listener>,
    controls: BTreeMap<u64, ControlWire>,
    links: BTreeMap<u64, Wire>,
    /// To be killed in so many calls.
    doomed: Option<(Process, u64)>,
    /// Killed or stopped, but not gone.
    silent: BTreeSet<Process>,
    /// Processes for which something has come.
    woken: BTreeSet<Process>,
}

/// Where a relay listens.
#[derive(Debug)]
struct Listener {
    process: Process,
    host: Host,
    controls: VecDeque<(Nanos, u64)>,
    links: VecDeque<(Nanos, Token, u64)>,
}

/// A control connection; end 0 dialled.
#[derive(Debug)]
struct ControlWire {
    hosts: [Host; 2],
    processes: [Option<Process>; 2],
    /// From end 0, from end 1.
    pipes: [Pipe; 2],
    failed: [Option<String>; 2],
    endpoint: String,
}

/// A link; end 0 connected.
#[derive(Debug)]
struct Wire {
    hosts: [Host; 2],
    processes: [Option<Process>; 2],
    kind: WireKind,
}

#[derive(Debug)]
enum WireKind {
    Tcp(tcp::TcpWire),
    Rdma(rdma::RdmaWire),
}

impl State {
    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// When something sent now is there: sometimes later, since it was lost on the way.
    fn arrival(&mut self) -> Nanos {
        let mut due = self.now + self.random.within(self.conditions.delay.clone());
        let mut tries = 0;
        while self.random.chance(self.conditions.loss) && tries < 6 {
            self.counts.losses += 1;
            tries += 1;
            due += self.random.within(AGAIN) << (tries / 2);
        }
        due
    }

    fn again(&mut self) -> Nanos {
        self.now + self.random.within(AGAIN)
    }

    fn is_cut(&self, from: Host, to: Host) -> bool {
        self.conditions.cut.contains(&(from, to))
    }

    fn wake(&mut self, process: Option<Process>) {
        self.woken.extend(process);
    }

    fn advance(&mut self) {
        for id in self.controls.keys().copied().collect::<Vec<_>>() {
            self.advance_control(id);
        }
        for id in self.links.keys().copied().collect::<Vec<_>>() {
            let mut wire = self.links.remove(&id).expect("just listed");
            let over = match &mut wire.kind {
                WireKind::Tcp(tcp) => tcp.advance(wire.hosts, wire.processes, self),
                WireKind::Rdma(rdma) => rdma.advance(wire.hosts, wire.processes, self),
            };
            if !over {
                self.links.insert(id, wire);
            }
        }
        let now = self.now;
        let due: Vec<Process> = self
            .listeners
            .values()
            .filter(|l| l.controls.iter().any(|c| c.0 <= now) || l.links.iter().any(|c| c.0 <= now))
            .map(|l| l.process)
            .collect();
        self.woken.extend(due);
    }

    fn advance_control(&mut self, id: u64) {
        let again = self.again();
        let Some(wire) = self.controls.get_mut(&id) else {
            return;
        };
        for end in 0..2 {
            let (from, to) = (wire.hosts[end], wire.hosts[1 - end]);
            let cut = self.conditions.cut.contains(&(from, to));
            if wire.pipes[end].advance(self.now, cut, again) {
                self.woken.extend(wire.processes[1 - end]);
            }
        }
        if wire.processes == [None; 2] && wire.pipes.iter().all(|pipe| pipe.due().is_none()) {
            self.controls.remove(&id);
        }
    }

    /// One end of a control connection is closed, by its process or by the end of that.
    fn close_control(&mut self, id: u64, end: usize) {
        let due = self.arrival();
        if let Some(wire) = self.controls.get_mut(&id) {
            wire.processes[end] = None;
            wire.pipes[end].end(due);
        }
    }

    /// One end of a link is closed. Nothing lands there any more.
    fn close_link(&mut self, id: u64, end: usize) {
        let Some(mut wire) = self.links.remove(&id) else {
            return;
        };
        wire.processes[end] = None;
        match &mut wire.kind {
            WireKind::Tcp(tcp) => tcp.close(end, self),
            WireKind::Rdma(rdma) => rdma.close(end, self),
        }
        self.links.insert(id, wire);
    }
}

impl World {
    /// A world of `seed`.
    pub fn new(seed: u64, conditions: Conditions) -> World {
        World(Rc::new(RefCell::new(State {
            now: 1,
            random: Random::new(seed),
            conditions,
            counts: Counts::default(),
            next: 0,
            listeners: BTreeMap::new(),
            controls: BTreeMap::new(),
            links: BTreeMap::new(),
            doomed: None,
            silent: BTreeSet::new(),
            woken: BTreeSet::new(),
        })))
    }

    /// The time.
    pub fn now(&self) -> Nanos {
        self.0.borrow().now
    }

    /// It is `now`: what is due comes.
    pub fn advance(&self, now: Nanos) {
        let mut state = self.0.borrow_mut();
        assert!(now >= state.now, "time goes on");
        state.now = now;
        state.advance();
    }

    /// When something comes next.
    pub fn due(&self) -> Option<Nanos> {
        let state = self.0.borrow();
        let controls = state.controls.values().flat_map(|wire| &wire.pipes);
        let links = state.links.values().filter_map(|wire| match &wire.kind {
            WireKind::Tcp(tcp) => tcp.due(),
            WireKind::Rdma(rdma) => rdma.due(state.now),
        });
        let accepts = state.listeners.values().flat_map(|l| {
            let links = l.links.iter().map(|link| link.0);
            l.controls.iter().map(|control| control.0).chain(links)
        });
        let now = state.now;
        let all = controls.filter_map(Pipe::due).chain(links).chain(accepts);
        all.filter(|due| *due > now).min()
    }

    /// Processes for which something has come since the last call.
    pub fn take_woken(&self) -> BTreeSet<Process> {
        std::mem::take(&mut self.0.borrow_mut().woken)
    }

    /// Changes how the network is.
    pub fn set<T>(&self, change: impl FnOnce(&mut Conditions) -> T) -> T {
        change(&mut self.0.borrow_mut().conditions)
    }

    /// What has happened.
    pub fn counts(&self) -> Counts {
        self.0.borrow().counts
    }

    /// `process` is killed inside one of its calls, after `calls` more.
    pub fn doom(&self, process: Process, calls: u64) {
        self.0.borrow_mut().doomed = Some((process, calls));
    }

    /// Nobody is killed inside a call after all.
    pub fn spare(&self) {
        self.0.borrow_mut().doomed = None;
    }

    /// `process` was killed between its calls; it is until [`World::exit`].
    pub fn kill(&self, process: Process) {
        self.0.borrow_mut().silent.insert(process);
    }

    /// `process` is stopped, or goes on.
    pub fn pause(&self, process: Process, stopped: bool) {
        let silent = &mut self.0.borrow_mut().silent;
        match stopped {
            true => silent.insert(process),
            false => silent.remove(&process),
        };
    }

    /// The kernel has ended `process`: its connections close and nothing lands in its memory any more.
    pub fn exit(&self, process: Process) {
        let mut state = self.0.borrow_mut();
        state.silent.remove(&process);
        state.doomed.take_if(|(doomed, _)| *doomed == process);
        let mut controls = Vec::new();
        let mut links = Vec::new();
        state.listeners.retain(|_, listener| {
            if listener.process == process {
                controls.extend(listener.controls.iter().map(|(_, id)| (*id, 1)));
                links.extend(listener.links.iter().map(|(_, _, id)| (*id, 1)));
            }
            listener.process != process
        });
        let ends_of = |processes: &[Option<Process>; 2], id: u64| {
            let is_its = |end: &usize| processes[*end] == Some(process);
            (0..2)
                .filter(is_its)
                .map(move |end| (id, end))
                .collect::<Vec<_>>()
        };
        for (id, wire) in &state.controls {
            controls.extend(ends_of(&wire.processes, *id));
        }
        for (id, wire) in &state.links {
            links.extend(ends_of(&wire.processes, *id));
        }
        for (id, end) in controls {
            state.close_control(id, end);
        }
        for (id, end) in links {
            state.close_link(id, end);
        }
    }

    /// Breaks a random control connection between two hosts, at one end or both. False if there is none.
    pub fn break_control(&self) -> bool {
        let mut state = self.0.borrow_mut();
        let live: Vec<u64> = state
            .controls
            .iter()
            .filter(|(_, wire)| wire.processes.iter().all(Option::is_some))
            .map(|(id, _)| *id)
            .collect();
        if live.is_empty() {
            return false;
        }
        let id = live[state.random.below(live.len() as u64) as usize];
        let ends = state.random.within(1..4);
        let state = &mut *state;
        let wire = state.controls.get_mut(&id).expect("just listed");
        for end in (0..2).filter(|end| ends & 1 << end != 0) {
            wire.failed[end] = Some("connection reset (simulated)".into());
            state.woken.extend(wire.processes[end]);
        }
        true
    }

    /// Breaks a random link, at one end or both; what is under way may still land. False if there is none.
    pub fn break_link(&self) -> bool {
        let mut state = self.0.borrow_mut();
        let live: Vec<u64> = state
            .links
            .iter()
            .filter(|(_, wire)| wire.processes.iter().all(Option::is_some))
            .map(|(id, _)| *id)
            .collect();
        if live.is_empty() {
            return false;
        }
        let id = live[state.random.below(live.len() as u64) as usize];
        let ends = state.random.within(1..4);
        let mut wire = state.links.remove(&id).expect("just listed");
        for end in (0..2).filter(|end| ends & 1 << end != 0) {
            match &mut wire.kind {
                WireKind::Tcp(tcp) => tcp.reset(end),
                WireKind::Rdma(rdma) => rdma.fail(end, "an error completion (simulated)"),
            }
            state.wake(wire.processes[end]);
        }
        state.links.insert(id, wire);
        true
    }

    /// Breaks all rdma-like links, at one end or both each.
    pub fn break_rdma(&self) {
        let mut state = self.0.borrow_mut();
        let all: Vec<u64> = state.links.keys().copied().collect();
        for id in all {
            let ends = state.random.within(1..4);
            let mut woken = Vec::new();
            let Some(wire) = state.links.get_mut(&id) else {
                continue;
            };
            if let WireKind::Rdma(rdma) = &mut wire.kind {
                for end in (0..2).filter(|end| ends & 1 << end != 0) {
                    rdma.fail(end, "the device has gone (simulated)");
                    woken.push(wire.processes[end]);
                }
            }
            for process in woken {
                state.wake(process);
            }
        }
    }

    /// Called at the beginning of every call of `process`: it may be its last.
    fn touch(&self, process: Process) {
        let mut state = self.0.borrow_mut();
        let Some((doomed, calls)) = &mut state.doomed else {
            return;
        };
        if *doomed != process {
            return;
        }
        if *calls > 0 {
            *calls -= 1;
            return;
        }
        state.doomed = None;
        state.silent.insert(process);
        state.counts.kills_inside += 1;
        drop(state);
        // Without the panic hook: nothing went wrong.
        std::panic::resume_unwind(Box::new(Killed(process)));
    }
}
