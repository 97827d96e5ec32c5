//! One end of a simulated link.

use super::rdma::End;
use super::{Process, State, WireKind, World};
use crate::link::tcp::TcpLink;
use crate::link::{Event, Link, Quiesced, Remote};
use crate::wire::Control;
use tbus::Region;

/// See the module.
#[derive(Debug)]
pub struct SimLink {
    world: World,
    process: Process,
    id: u64,
    end: usize,
    /// The real link, if this one is tcp-like.
    tcp: Option<TcpLink>,
}

impl SimLink {
    pub(super) fn new(
        world: &World,
        process: Process,
        id: u64,
        end: usize,
        tcp: Option<TcpLink>,
    ) -> SimLink {
        SimLink {
            world: world.clone(),
            process,
            id,
            end,
            tcp,
        }
    }

    /// True if it is rdma-like.
    pub fn is_rdma(&self) -> bool {
        self.tcp.is_none()
    }

    fn rdma<T: Default>(&self, act: impl FnOnce(&mut End, &mut State) -> T) -> T {
        let mut state = self.world.0.borrow_mut();
        let Some(mut wire) = state.links.remove(&self.id) else {
            return T::default();
        };
        let result = match &mut wire.kind {
            WireKind::Rdma(rdma) => act(rdma.end(self.end), &mut state),
            WireKind::Tcp(_) => T::default(),
        };
        state.links.insert(self.id, wire);
        result
    }

    /// Takes what the real link has sent.
    fn collect(&self) {
        let mut state = self.world.0.borrow_mut();
        let Some(mut wire) = state.links.remove(&self.id) else {
            return;
        };
        if let WireKind::Tcp(tcp) = &mut wire.kind {
            tcp.collect(self.end, &mut state);
        }
        state.links.insert(self.id, wire);
    }
}

impl Link for SimLink {
    fn attach_source(
        &mut self,
        slot: u32,
        source: Region,
        epoch: u64,
        remote: Remote,
    ) -> Result<(), String> {
        self.world.touch(self.process);
        match &mut self.tcp {
            Some(tcp) => tcp.attach_source(slot, source, epoch, remote),
            None => {
                self.rdma(|end, _| end.attach_source(slot, source, epoch));
                Ok(())
            }
        }
    }

    fn attach_mirror(
        &mut self,
        slot: u32,
        mirror: Region,
        epoch: u64,
        tail: u64,
        room: u64,
    ) -> Result<Remote, String> {
        self.world.touch(self.process);
        match &mut self.tcp {
            Some(tcp) => tcp.attach_mirror(slot, mirror, epoch, tail, room),
            None => {
                self.rdma(|end, _| end.attach_mirror(slot, mirror, epoch, tail, room));
                Ok((0, 0)) // the key is the epoch here
            }
        }
    }

    fn set_room(&mut self, slot: u32, room: u64) {
        self.world.touch(self.process);
        match &mut self.tcp {
            Some(tcp) => tcp.set_room(slot, room),
            None => self.rdma(|end, _| end.set_room(slot, room)),
        }
    }

    fn detach_source(&mut self, slot: u32) {
        self.world.touch(self.process);
        if let Some(tcp) = &mut self.tcp {
            tcp.detach_source(slot);
        }
    }

    fn detach_mirror(&mut self, slot: u32) {
        self.world.touch(self.process);
        match &mut self.tcp {
            Some(tcp) => tcp.detach_mirror(slot),
            None => self.rdma(|end, _| end.detach_mirror(slot)),
        }
    }

    fn append(&mut self, slot: u32, from: u64, to: u64) -> bool {
        self.world.touch(self.process);
        match &mut self.tcp {
            Some(tcp) => tcp.append(slot, from, to),
            None => self.rdma(|end, _| end.append(slot, from, to)),
        }
    }

    fn control(&mut self, control: Control) {
        self.world.touch(self.process);
        match &mut self.tcp {
            Some(tcp) => tcp.control(control),
            None => self.rdma(|end, _| end.control(control)),
        }
    }

    fn kick(&mut self) {
        self.world.touch(self.process);
        match &mut self.tcp {
            Some(tcp) => {
                tcp.kick();
                self.collect();
            }
            None => self.rdma(|end, state| end.kick(state)),
        }
    }

    fn poll(&mut self, budget: usize, events: &mut Vec<Event>) -> bool {
        self.world.touch(self.process);
        match &mut self.tcp {
            Some(tcp) => tcp.poll(budget, events),
            None => self.rdma(|end, state| end.poll(state.now, events)),
        }
    }

    fn is_busy(&self) -> bool {
        match &self.tcp {
            Some(tcp) => tcp.is_busy(),
            None => self.rdma(|end, _| end.is_busy()),
        }
    }

    fn quiesce(mut self) -> Quiesced {
        self.world.touch(self.process);
        self.world.0.borrow_mut().close_link(self.id, self.end);
        match self.tcp.take() {
            Some(tcp) => tcp.quiesce(),
            None => Quiesced::ended(),
        }
    }
}

impl Drop for SimLink {
    fn drop(&mut self) {
        let mut state = self.world.0.borrow_mut();
        // Of one that is killed, the kernel closes it, later.
        if !state.silent.contains(&self.process) {
            state.close_link(self.id, self.end);
        }
    }
}
