//! The channel under test: how the two processes of a measurement get its two ends. Everything else of a measurement
//! knows [`End`] only, so another way to connect them is written here.

use super::Result;
use super::remote::{Between, Daemon, Embedded, RawTcp, attach, make_certificates, make_hosts};
use super::scratch::Scratch;
use std::path::Path;
use std::time::Duration;
use tbus::config::Security;
use tbus::grm::Transport;
use tbus::{
    Address, Directory, Receiver, Ring, RingSpec, Sender, TryRecvError, TrySendError, Uuid,
};

/// What connects the two processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// Two rings.
    #[default]
    Local,
    /// Two hosts on this machine, with relays in the two processes' own loops.
    Embedded(Security, Transport),
    /// Two hosts on this machine, with a `tbusd` each.
    Daemons(Security, Transport),
}

impl Way {
    /// For people and for files.
    pub fn name(self) -> String {
        let (relays, security, transport) = match self {
            Way::Local => return "local".into(),
            Way::Embedded(security, transport) => ("embedded relays", security, transport),
            Way::Daemons(security, transport) => ("two tbusd", security, transport),
        };
        let over = match transport {
            Transport::Tcp => "tcp on loopback",
            other => other.name(),
        };
        let mut name = format!("remote, {over}, {relays}");
        // As results were named before there was another.
        if security != Security::None {
            name += &format!(", security {}", security.name());
        }
        name
    }
}

/// Payload bytes that a stream sends between two passes of an embedded relay.
const BYTES_PER_PASS: usize = 1 << 16;
/// What a message takes besides.
const BYTES_PER_MESSAGE: usize = 16;

/// One end of the channel under test.
#[derive(Debug)]
pub struct End {
    sender: Sender,
    receiver: Receiver,
    relay: Option<Embedded>,
    /// Bytes sent since the relay's last pass.
    sent: usize,
    /// The same of what was taken.
    taken: usize,
    /// The limit beside a remote channel.
    pub raw: Option<RawTcp>,
    daemons: Vec<Daemon>,
}

/// Makes the channel in the scratch directory. Returns the first process's end, and the arguments with which the second
/// one gets its own.
pub fn open_first(scratch: &Scratch, capacity: u64, way: Way) -> Result<(End, Vec<String>)> {
    match way {
        Way::Local => open_local(scratch, capacity),
        Way::Embedded(security, transport) => {
            open_remote(scratch, capacity, &Between::new(security, transport)?, true)
        }
        Way::Daemons(security, transport) => open_remote(
            scratch,
            capacity,
            &Between::new(security, transport)?,
            false,
        ),
    }
}

fn open_local(scratch: &Scratch, capacity: u64) -> Result<(End, Vec<String>)> {
    let make = |slot| {
        let spec = RingSpec {
            lock_slot: slot,
            ..RingSpec::local(capacity, Address(1), Address(2))
        };
        Ring::create(scratch.directory(), &spec)
    };
    let (there, back) = (make(0)?, make(1)?);
    let end = End::local(&there, &back)?;
    Ok((end, vec![there.uuid().to_string(), back.uuid().to_string()]))
}

fn open_remote(
    scratch: &Scratch,
    capacity: u64,
    between: &Between,
    embedded: bool,
) -> Result<(End, Vec<String>)> {
    let path = scratch.directory().path();
    make_hosts(path, capacity, between)?;
    make_certificates(path, between.security)?;
    let (raw, address) = RawTcp::listen()?;
    let mut daemons = Vec::new();
    if !embedded {
        for host in 0..2 {
            daemons.push(Daemon::start(path, host, between)?);
        }
    }
    let end = End::remote(path, 0, embedded.then_some(between), raw, daemons)?;
    let mut arguments = vec![address.to_string()];
    arguments.extend(between.addresses.map(|address| address.to_string()));
    let names = [between.security.name(), between.transport.name()];
    arguments.extend(names.map(str::to_string));
    arguments.push(embedded.to_string());
    Ok((end, arguments))
}

/// The second process's end, by the arguments of [`open_first`].
pub fn open_second(directory: &Path, arguments: &[String]) -> Result<End> {
    match arguments {
        [incoming, outgoing] => {
            let directory = Directory::open(directory)?;
            let open = |uuid: &str| -> Result<Ring> {
                let uuid: Uuid = uuid.parse()?;
                Ok(Ring::open(&directory, uuid)?)
            };
            End::local(&open(outgoing)?, &open(incoming)?)
        }
        [raw, first, second, security, transport, embedded] => {
            let between = Between {
                addresses: [first.parse()?, second.parse()?],
                security: Security::by_name(security).ok_or("no such security")?,
                transport: Transport::ALL
                    .into_iter()
                    .find(|t| t.name() == transport)
                    .ok_or("no such transport")?,
            };
            let relay = embedded.parse::<bool>()?.then_some(&between);
            End::remote(directory, 1, relay, RawTcp::connect(raw)?, Vec::new())
        }
        _ => Err("the channel is missing".into()),
    }
}

impl End {
    fn local(outgoing: &Ring, incoming: &Ring) -> Result<End> {
        outgoing.prefault();
        incoming.prefault();
        Ok(End {
            sender: outgoing.sender()?,
            receiver: incoming.receiver()?,
            relay: None,
            sent: 0,
            taken: 0,
            raw: None,
            daemons: Vec::new(),
        })
    }

    fn remote(
        scratch: &Path,
        host: usize,
        embedded: Option<&Between>,
        raw: RawTcp,
        daemons: Vec<Daemon>,
    ) -> Result<End> {
        let (bus, sender, receiver) = attach(scratch, host)?;
        let relay = embedded
            .map(|between| Embedded::new(scratch, bus, host, between))
            .transpose()?;
        Ok(End {
            sender,
            receiver,
            relay,
            sent: 0,
            taken: 0,
            raw: Some(raw),
            daemons,
        })
    }

    /// Gets ready: the relays may have lost each other while nobody ran them.
    pub fn connect(&mut self) -> Result<()> {
        match &mut self.relay {
            Some(relay) => relay.connect(),
            None => Ok(()),
        }
    }

    /// Processor time that the relays have taken so far, if they are processes of their own.
    pub fn relays_time(&self) -> Result<Option<Duration>> {
        let times = self.daemons.iter().map(Daemon::processor_time);
        let times = times.collect::<Result<Vec<_>>>()?;
        Ok((!times.is_empty()).then(|| times.iter().sum()))
    }

    /// Lets the relay do what is left, as an application's loop would: what was sent must leave before the process waits
    /// for something else.
    pub fn settle(&mut self) {
        if let Some(relay) = &mut self.relay {
            for _ in 0..100 {
                relay.step();
            }
        }
    }

    #[inline(always)]
    fn step(&mut self) {
        if let Some(relay) = &mut self.relay {
            relay.step();
            (self.sent, self.taken) = (0, 0);
        }
    }

    /// Sends a message if there is room.
    #[inline(always)]
    pub fn try_send(&mut self, payload: &[u8]) -> Result<bool> {
        match self.sender.try_send(payload) {
            Ok(()) => {
                if self.relay.is_some() {
                    self.sent += payload.len() + BYTES_PER_MESSAGE;
                    if self.sent >= BYTES_PER_PASS {
                        self.step();
                    }
                }
                Ok(true)
            }
            Err(TrySendError::Full) => {
                self.step();
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a message, polling while there is no room.
    #[inline(always)]
    pub fn send(&mut self, payload: &[u8]) -> Result<()> {
        while !self.try_send(payload)? {
            for _ in 0..16 {
                std::hint::spin_loop();
            }
        }
        Ok(())
    }

    /// The same, and lets it go out at once, as an application does that waits for the answer.
    #[inline(always)]
    pub fn send_now(&mut self, payload: &[u8]) -> Result<()> {
        self.send(payload)?;
        self.step();
        Ok(())
    }

    /// Takes a message if there is one: reads a byte of each of its lines in place, and releases it.
    #[inline(always)]
    pub fn try_take(&mut self) -> Result<bool> {
        match self.receiver.peek() {
            Ok(message) => {
                // SAFETY: the sender is our own process, which does not change what it sent.
                let bytes = unsafe { message.as_slice() };
                let sum = bytes
                    .chunks(64)
                    .fold(0u64, |sum, line| sum.wrapping_add(u64::from(line[0])));
                std::hint::black_box(sum);
                let length = bytes.len();
                message.release();
                if self.relay.is_some() {
                    // What was taken is room for the other side, which must hear of it.
                    self.taken += length + BYTES_PER_MESSAGE;
                    if self.taken >= BYTES_PER_PASS {
                        self.step();
                    }
                }
                Ok(true)
            }
            Err(TryRecvError::Empty) => {
                self.step();
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Takes a message, polling until there is one. True if it was not there yet.
    #[inline(always)]
    pub fn take(&mut self) -> Result<bool> {
        let mut waited = false;
        while !self.try_take()? {
            waited = true;
        }
        Ok(waited)
    }
}
