//! Control connections, and who listens where.

use super::link::SimLink;
use super::rdma::RdmaWire;
use super::tcp::TcpWire;
use super::{ControlWire, Host, Listener, Pipe, Process, Wire, WireKind, World};
use crate::network::{Control, Network};
use crate::session::Nanos;
use crate::wire::{TRANSPORT_TCP, TRANSPORT_VERBS, Token};
use std::collections::VecDeque;
use tbus::grm::RelayEndpoint;

/// Bytes that a connection takes before its sender must keep them.
const WINDOW: usize = 1 << 17;

/// The network as one process sees it.
#[derive(Debug)]
pub struct SimNetwork {
    world: World,
    process: Process,
    host: Host,
    endpoint: String,
    /// Links that will not be made, and when that is known.
    vain: Vec<(Nanos, Token)>,
}

/// One end of a control connection.
#[derive(Debug)]
pub struct SimControl {
    world: World,
    process: Process,
    id: u64,
    end: usize,
}

impl SimNetwork {
    /// Where the relay of a host listens.
    pub fn endpoint_of(host: Host, port: u16) -> RelayEndpoint {
        RelayEndpoint {
            host: format!("10.0.0.{}", host + 1),
            port,
        }
    }

    /// The network of a new process on `host`; `None` if another one listens at `port` already.
    pub fn listen(world: &World, host: Host, port: u16) -> Option<SimNetwork> {
        let mut state = world.0.borrow_mut();
        let endpoint = Self::endpoint_of(host, port).to_string();
        if state.listeners.contains_key(&endpoint) {
            return None;
        }
        let process = state.id();
        let listener = Listener {
            process,
            host,
            controls: VecDeque::new(),
            links: VecDeque::new(),
        };
        state.listeners.insert(endpoint.clone(), listener);
        Some(SimNetwork {
            world: world.clone(),
            process,
            host,
            endpoint,
            vain: Vec::new(),
        })
    }

    /// The process that this is the network of.
    pub fn process(&self) -> Process {
        self.process
    }
}

impl Network for SimNetwork {
    type Control = SimControl;
    type Link = SimLink;
    type Arrival = SimLink;

    fn random(&mut self) -> u64 {
        self.world.touch(self.process);
        self.world.0.borrow_mut().random.bits()
    }

    fn transports(&self) -> u64 {
        match self.world.0.borrow().conditions.rdma {
            0 => TRANSPORT_TCP.into(),
            _ => (TRANSPORT_TCP | TRANSPORT_VERBS).into(),
        }
    }

    fn is_local(&self, endpoint: &RelayEndpoint) -> bool {
        endpoint.to_string() == self.endpoint
    }

    fn dial(&mut self, endpoint: &RelayEndpoint) -> SimControl {
        self.world.touch(self.process);
        let mut state = self.world.0.borrow_mut();
        let state = &mut *state;
        let (id, due) = (state.id(), state.arrival());
        let name = endpoint.to_string();
        let mut pipes = [Pipe::default(), Pipe::default()];
        let mut other = None;
        let mut host = self.host;
        match state.listeners.get_mut(&name) {
            Some(listener) => {
                (other, host) = (Some(listener.process), listener.host);
                listener.controls.push_back((due, id));
            }
            None => pipes[1].end(due), // refused
        }
        let wire = ControlWire {
            hosts: [self.host, host],
            processes: [Some(self.process), other],
            pipes,
            failed: [None, None],
            endpoint: name,
        };
        state.controls.insert(id, wire);
        SimControl {
            world: self.world.clone(),
            process: self.process,
            id,
            end: 0,
        }
    }

    fn accept(&mut self) -> Option<SimControl> {
        self.world.touch(self.process);
        let mut state = self.world.0.borrow_mut();
        let again = state.again();
        let state = &mut *state;
        let listener = state.listeners.get_mut(&self.endpoint)?;
        let at = listener.controls.iter().position(|c| c.0 <= state.now)?;
        let (_, id) = listener.controls.remove(at)?;
        let wire = state.controls.get(&id)?;
        if state
            .conditions
            .cut
            .contains(&(wire.hosts[0], wire.hosts[1]))
        {
            listener.controls.push_back((again, id));
            return None;
        }
        Some(SimControl {
            world: self.world.clone(),
            process: self.process,
            id,
            end: 1,
        })
    }

    fn connect_link(
        &mut self,
        control: &SimControl,
        transport: u8,
        _port: u16,
        token: Token,
    ) -> Result<Option<SimLink>, String> {
        self.world.touch(self.process);
        let mut state = self.world.0.borrow_mut();
        let state = &mut *state;
        let (id, due) = (state.id(), state.arrival());
        let by_rdma = transport == TRANSPORT_VERBS;
        if by_rdma && !state.random.chance(state.conditions.rdma) {
            if state.random.chance(500) {
                return Err("no way (simulated)".into());
            }
            self.vain.push((due, token));
            return Ok(None);
        }
        let gone = || "the peer is gone".to_string();
        let wire = state.controls.get(&control.id).ok_or_else(gone)?;
        let other = wire.processes[1 - control.end].ok_or_else(gone)?;
        let hosts = [wire.hosts[control.end], wire.hosts[1 - control.end]];
        let listener = state
            .listeners
            .values_mut()
            .find(|listener| listener.process == other)
            .ok_or_else(gone)?;
        listener.links.push_back((due, token, id));
        let (kind, tcp) = if by_rdma {
            state.counts.rdma_links += 1;
            (WireKind::Rdma(RdmaWire::default()), None)
        } else {
            state.counts.tcp_links += 1;
            let (wire, link) = TcpWire::new();
            (WireKind::Tcp(wire), Some(link))
        };
        let wire = Wire {
            hosts,
            processes: [Some(self.process), Some(other)],
            kind,
        };
        state.links.insert(id, wire);
        let link = SimLink::new(&self.world, self.process, id, 0, tcp);
        Ok(Some(link))
    }

    fn dialled_link(&mut self) -> Option<(Token, Result<SimLink, String>)> {
        let now = self.world.0.borrow().now;
        let at = self.vain.iter().position(|(due, _)| *due <= now)?;
        let (_, token) = self.vain.remove(at);
        Some((token, Err("no answer (simulated)".into())))
    }

    fn give_up(&mut self, token: Token) {
        self.vain.retain(|(_, vain)| *vain != token);
    }

    fn welcome(&mut self, link: SimLink) -> Result<SimLink, String> {
        Ok(link)
    }

    fn accept_link(&mut self) -> Option<(Token, SimLink)> {
        self.world.touch(self.process);
        let mut state = self.world.0.borrow_mut();
        let again = state.again();
        let state = &mut *state;
        let listener = state.listeners.get_mut(&self.endpoint)?;
        let at = listener.links.iter().position(|c| c.0 <= state.now)?;
        let (_, token, id) = listener.links.remove(at)?;
        let wire = state.links.get_mut(&id)?;
        if state
            .conditions
            .cut
            .contains(&(wire.hosts[0], wire.hosts[1]))
        {
            listener.links.push_back((again, token, id));
            return None;
        }
        let tcp = match &mut wire.kind {
            WireKind::Tcp(wire) => wire.accepted(),
            WireKind::Rdma(_) => None,
        };
        Some((token, SimLink::new(&self.world, self.process, id, 1, tcp)))
    }
}

impl Control for SimControl {
    fn send(&mut self, bytes: &[u8]) {
        self.world.touch(self.process);
        let mut state = self.world.0.borrow_mut();
        let due = state.arrival();
        if let Some(wire) = state.controls.get_mut(&self.id) {
            wire.pipes[self.end].send(due, bytes);
        }
    }

    fn poll(&mut self, received: &mut Vec<u8>) -> Result<bool, String> {
        self.world.touch(self.process);
        let mut state = self.world.0.borrow_mut();
        let Some(wire) = state.controls.get_mut(&self.id) else {
            return Err("the connection is gone".into());
        };
        if let Some(why) = &wire.failed[self.end] {
            return Err(why.clone());
        }
        let pipe = &mut wire.pipes[1 - self.end];
        if !pipe.arrived.is_empty() {
            received.append(&mut pipe.arrived);
            return Ok(true);
        }
        match pipe.ended {
            true => Err("the peer closed the connection".into()),
            false => Ok(false),
        }
    }

    fn unsent(&self) -> usize {
        let state = self.world.0.borrow();
        let wire = state.controls.get(&self.id);
        wire.map_or(0, |w| w.pipes[self.end].under_way().saturating_sub(WINDOW))
    }

    fn name(&self) -> String {
        let state = self.world.0.borrow();
        let name = |wire: &ControlWire| match self.end {
            0 => wire.endpoint.clone(),
            _ => format!("host {}", wire.hosts[0]),
        };
        state.controls.get(&self.id).map_or(String::new(), name)
    }
}

impl Drop for SimControl {
    fn drop(&mut self) {
        let mut state = self.world.0.borrow_mut();
        // Of one that is killed, the kernel closes it, later.
        if !state.silent.contains(&self.process) {
            state.close_control(self.id, self.end);
        }
    }
}
