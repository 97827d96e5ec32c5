//! A peer that lies: it greets as it should and then says and sends whatever comes to mind, now and then the truth. The
//! relay never panics, ends the session with a reason, and keeps no more for it than a bound.

use crate::flow::Wrong;
use crate::sim::Sim;
use crate::trace;
use tbus::{Address, Cursor, Kind, Region, Ring, RingSpec, Uuid};
use tbus_transport::link::Link;
use tbus_transport::network::{Control as _, Network};
use tbus_transport::sim::{Random, SimControl, SimLink, SimNetwork};
use tbus_transport::wire::{
    Control, Frame, Goodbye, Hello, Open, PROTOCOL_MAX, PROTOCOL_MIN, Refusal, Resume, Token,
};

/// Connections that it makes in a run.
const CONNECTIONS: u64 = 120;
const TOKEN: Token = Token([3; 16]);

struct Liar {
    network: SimNetwork,
    random: Random,
    control: Option<SimControl>,
    link: Option<SimLink>,
    received: Vec<u8>,
    open: Option<Open>,
    resume: Option<Resume>,
    ends: [Address; 2],
    memory: Region,
}

impl Liar {
    fn cursor(&mut self) -> Cursor {
        let position = match self.random.chance(500) {
            true => 8 * self.random.below(600),
            false => self.random.bits() >> self.random.within(1..60),
        };
        Cursor {
            position: position & !7,
            sequence: position / (16 + self.random.below(100)),
        }
    }

    fn uuid(&mut self) -> Uuid {
        Uuid([1 + self.random.below(4) as u8; 16])
    }

    fn number(&mut self) -> u32 {
        match self.random.chance(900) {
            true => self.random.below(3) as u32,
            false => self.random.bits() as u32,
        }
    }

    /// What it may know of the relay's epochs and attempts, or not.
    fn secret(&mut self) -> u64 {
        match self.random.below(3) {
            0 => self.open.as_ref().map_or(0, |open| open.attempt),
            1 => self.resume.as_ref().map_or(0, |resume| resume.epoch),
            _ => self.random.bits(),
        }
    }

    fn frame(&mut self) -> Frame {
        let (slot, attempt, epoch) = (self.number(), self.secret(), self.secret());
        let text = "a lie".to_string();
        match self.random.below(12) {
            0..=2 => Frame::Open(Open {
                slot,
                attempt,
                from: if self.random.chance(800) {
                    self.ends[0]
                } else {
                    Address(slot)
                },
                to: self.ends[1],
                source: self.uuid(),
                nonce: self.random.below(3),
                capacity: if self.random.chance(800) {
                    4096
                } else {
                    self.random.bits() >> 20
                },
                head: self.cursor(),
                tail: self.cursor(),
            }),
            3..=5 => {
                let open = self.open.clone();
                let honest = open.filter(|_| self.random.chance(600));
                Frame::Resume(Resume {
                    slot: honest.as_ref().map_or(slot, |open| open.slot),
                    attempt: honest.as_ref().map_or(attempt, |open| open.attempt),
                    source: self.uuid(),
                    mirror: self.uuid(),
                    tail: honest
                        .as_ref()
                        .map_or_else(|| self.cursor(), |open| open.head),
                    head: honest
                        .as_ref()
                        .map_or_else(|| self.cursor(), |open| open.head),
                    epoch: self.random.below(3),
                    remote: (self.random.bits(), slot),
                })
            }
            6 => Frame::Refuse {
                slot,
                attempt,
                why: Refusal::Ring,
                text,
            },
            7 => Frame::Reject {
                slot,
                epoch,
                position: 8 * u64::from(slot),
                text,
            },
            8 => Frame::Close { slot, epoch },
            9 => Frame::Gap {
                slot,
                from: self.cursor(),
                to: self.cursor(),
            },
            10 => Frame::Heartbeat {
                number: attempt,
                echo: u64::from(slot),
            },
            _ if self.random.chance(100) => Frame::Bye {
                why: Goodbye::Ending,
                text,
            },
            _ => Frame::Offer {
                transport: slot as u8,
                port: 0,
                token: TOKEN,
            },
        }
    }

    fn greet(&mut self) {
        let mut bytes = Vec::new();
        let hello = Hello {
            protocol: (PROTOCOL_MIN, PROTOCOL_MAX),
            node: 2,
            lease: self.random.bits(),
            capabilities: 1,
            cluster: "sim".into(),
            endpoint: SimNetwork::endpoint_of(1, 7000).to_string(),
        };
        Frame::Hello(hello).encode(&mut bytes);
        let offer = Frame::Offer {
            transport: 1,
            port: 0,
            token: TOKEN,
        };
        offer.encode(&mut bytes);
        if let Some(control) = &mut self.control {
            control.send(&bytes);
        }
    }

    /// Learns what the relay said. False if it has hung up.
    fn listen(&mut self) -> bool {
        let Some(control) = &mut self.control else {
            return false;
        };
        let alive = control.poll(&mut self.received).is_ok();
        while let Ok(Some((frame, length))) = Frame::decode(&self.received) {
            self.received.drain(..length);
            match frame {
                Frame::Open(open) => self.open = Some(open),
                Frame::Resume(resume) => self.resume = Some(resume),
                _ => {}
            }
        }
        alive
    }

    fn say(&mut self) {
        let mut bytes = Vec::new();
        for _ in 0..self.random.below(4) {
            self.frame().encode(&mut bytes);
        }
        if self.random.chance(30) && !bytes.is_empty() {
            let at = self.random.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << self.random.below(8);
        }
        if let Some(control) = &mut self.control {
            control.send(&bytes);
        }
    }

    fn send(&mut self) {
        let (slot, epoch) = (self.number() % 64, self.secret());
        let from = 8 * self.random.below(64);
        let to = from + 8 + 8 * self.random.below(64);
        let control = Control {
            slot,
            epoch,
            want: self.random.chance(300),
            delivered: self.cursor().position,
            consumed: self.cursor(),
        };
        let attaches = self.random.chance(300);
        let speaks = self.random.chance(100);
        if let Some(link) = &mut self.link {
            if attaches {
                let attached = link.attach_source(slot, self.memory.clone(), epoch, (0, 0));
                attached.expect("nothing is registered");
            }
            link.append(slot, from, to);
            if speaks {
                link.control(control);
            }
            link.kick();
            link.poll(1 << 16, &mut Vec::new());
        }
    }
}

/// The scenario: host 2 has no relay but a liar.
pub fn run(sim: &mut Sim) -> Result<(), Wrong> {
    sim.hosts[1].start_due = None;
    sim.start(0);
    let spec = RingSpec {
        kind: Kind::Source,
        lock_slot: 1000,
        ..RingSpec::local(4096, Address(1), Address(2))
    };
    let failed = |e: tbus::Error| e.to_string();
    let ring = Ring::create(sim.hosts[1].bus.directory(), &spec).map_err(failed)?;
    let reader = ring.source_reader().map_err(failed)?;
    let mut liar = Liar {
        network: SimNetwork::listen(&sim.world, 1, 7000).expect("nobody else is there"),
        random: Random::new(sim.random.bits()),
        control: None,
        link: None,
        received: Vec::new(),
        open: None,
        resume: None,
        ends: sim.flows[1].ends,
        memory: reader.region(),
    };
    let mut connections = 0;
    while connections < CONNECTIONS {
        let now = sim.now() + 20_000 + liar.random.skewed(20_000_000);
        sim.world.advance(now);
        trace::at(now, 0);
        let live = sim.hosts[0].live.as_mut().expect("started");
        live.relay.step(now);
        if let Some(control) = liar.network.accept() {
            connections += 1;
            (liar.control, liar.link) = (Some(control), None);
            liar.received.clear();
            liar.greet();
        }
        if let Some((_, link)) = liar.network.accept_link() {
            liar.link = Some(link);
        }
        if !liar.listen() {
            (liar.control, liar.link) = (None, None);
        } else if liar.random.chance(400) {
            liar.say();
        }
        liar.send();
    }
    let live = sim.hosts[0].live.as_ref().expect("started");
    let status = live.relay.status(sim.now());
    let files = sim.hosts[0].bus.directory().rings().map_err(failed)?.len();
    if status.totals.downs < CONNECTIONS / 4 || liar.open.is_none() || liar.resume.is_none() {
        return Err(format!("the lies went nowhere: {status:#?}"));
    }
    match status.peers.len() == 1 && status.rings.len() <= 2 && files <= 8 {
        true => Ok(()),
        false => Err(format!("{files} files of rings, and {status:#?}")),
    }
}
