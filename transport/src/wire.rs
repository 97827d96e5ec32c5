//! Frames: what relays say to each other, byte by byte. `docs/protocol.md` is this file for readers without Rust; a test
//! decodes its examples.
//!
//! Two kinds of connection carry frames. The control connection carries [`Frame`]s: 8 bytes {length of the body u32,
//! type u8, zero u8, zero u16}, then the body. The data of a TCP link comes in chunks of a [`Chunk`] header and
//! up to [`MAX_CHUNK`] bytes of a ring. All numbers are little-endian.
//!
//! Everything that is decoded comes from another host and may be anything: lengths are checked before use, unknown
//! types and bits are errors, and nothing here panics on any input.

use std::fmt;
use tbus::{Address, Cursor, Uuid};

/// First eight bytes of a HELLO: "TBUSRLAY".
pub const MAGIC: u64 = u64::from_le_bytes(*b"TBUSRLAY");
/// The oldest protocol version that this relay speaks.
pub const PROTOCOL_MIN: u16 = 1;
/// The newest protocol version that this relay speaks.
pub const PROTOCOL_MAX: u16 = 1;
/// The transport of data in clear over TCP.
pub const TRANSPORT_TCP: u8 = 1;
/// The transport of data by RDMA writes. They are in clear, whoever watches.
pub const TRANSPORT_VERBS: u8 = 2;
/// The transport of data by UCX, in clear too.
pub const TRANSPORT_UCX: u8 = 4;
/// The transport of data with TLS over TCP.
pub const TRANSPORT_TLS: u8 = 8;
/// Bytes before a frame's body.
pub const FRAME_HEADER: usize = 8;
/// The longest body of a frame, bytes.
pub const MAX_BODY: usize = 1024;
/// The longest text in a frame, bytes; longer ones are cut.
pub const MAX_TEXT: usize = 255;
/// Bytes of a chunk's header.
pub const CHUNK_HEADER: usize = 64;
/// The most ring bytes in one chunk.
pub const MAX_CHUNK: usize = 1 << 16;

/// Receive buffers of each end of a link over RDMA.
pub const VERBS_BUFFERS: u32 = 256;
/// Bytes of a message on such a link: the credit, then a chunk's header.
pub const VERBS_MESSAGE: usize = 68;
/// The most ring bytes that one notice of such a link tells of.
pub const VERBS_PIECE: usize = 1 << 18;

/// A secret that ties a link to its session: used once.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub [u8; 16]);

/// Not the secret.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// Who a relay is, the first frame on a control connection, from both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The oldest and the newest protocol version that it speaks.
    pub protocol: (u16, u16),
    /// Its node number; the lower one dials.
    pub node: u32,
    /// Random for each run of a relay.
    pub lease: u64,
    /// Which transports it has: bit 0 tcp, bit 1 verbs, bit 2 ucx, bit 3 tcp with TLS.
    pub capabilities: u64,
    /// Which relays belong together.
    pub cluster: String,
    /// Where it is reached, as the routes of others are printed: "tcp://host:port".
    pub endpoint: String,
}

/// A source ring that is to be mirrored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The sender's number for it.
    pub slot: u32,
    /// Which attempt this is; RESUME echoes it.
    pub attempt: u64,
    /// Its ends.
    pub from: Address,
    /// See `from`.
    pub to: Address,
    /// Its name.
    pub source: Uuid,
    /// What its commit words derive from.
    pub nonce: u64,
    /// Bytes of its data area.
    pub capacity: u64,
    /// Up to where it is released.
    pub head: Cursor,
    /// Up to where it is filled.
    pub tail: Cursor,
}

/// The mirror that an OPEN asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume {
    /// As in OPEN.
    pub slot: u32,
    /// As in OPEN.
    pub attempt: u64,
    /// As in OPEN.
    pub source: Uuid,
    /// The mirror's name: that of the first generation of its line, see [`tbus::Ring::origin`].
    pub mirror: Uuid,
    /// Up to where the mirror is published.
    pub tail: Cursor,
    /// Up to where its application has released.
    pub head: Cursor,
    /// What every chunk for it must carry from now on: random, never used before.
    pub epoch: u64,
    /// For RDMA, the mirror's registered data area: address and key; zeros otherwise.
    pub remote: (u64, u32),
}

/// Why a channel is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Refusal {
    /// The map has no such channel, or the peer's end of it is not the peer's.
    NoChannel = 1,
    /// The rings have other capacities.
    Capacity = 2,
    /// The generation before is not received to its end; later perhaps.
    NotDrained = 3,
    /// The rings' positions contradict each other.
    Positions = 4,
    /// The ring cannot be used: see the text.
    Ring = 5,
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Goodbye {
    /// No protocol version in common.
    Protocol = 1,
    /// Another cluster.
    Cluster = 2,
    /// A node number that is this relay's own, or another live peer's.
    Node = 3,
    /// No route leads to the peer.
    NoRoute = 4,
    /// The lower node dials, and this one is not it.
    NotYours = 5,
    /// A newer connection takes over.
    Replaced = 6,
    /// The relay ends.
    Ending = 7,
    /// Nothing was heard for too long.
    Silence = 8,
    /// The link failed.
    Link = 9,
    /// The peer broke the protocol.
    Violation = 10,
    /// The peer is not who it says, or the two do not agree on security.
    Security = 11,
    /// The control connection failed.
    Control = 12,
    /// There is no transport for data that both relays have, and that their routes allow.
    Transport = 13,
}

/// What the control connection carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Who I am.
    Hello(Hello),
    /// From who was dialled: the link may be made, with this token; or, while there is one, one of another transport beside
    /// it, for a trial. The transport is a bit as in [`Hello::capabilities`];
    /// the port is the transport's, 0 for the one dialled.
    Offer {
        /// Which transport.
        transport: u8,
        /// Where.
        port: u16,
        /// With what secret.
        token: Token,
    },
    /// The first frame on a TCP link.
    Attach(Token),
    /// Mirror this ring.
    Open(Open),
    /// Here is the mirror.
    Resume(Resume),
    /// There is no mirror.
    Refuse {
        /// As in OPEN.
        slot: u32,
        /// As in OPEN.
        attempt: u64,
        /// Why, for machines.
        why: Refusal,
        /// Why, for people.
        text: String,
    },
    /// A record of this ring broke the rules: the channel is poisoned, and it alone.
    Reject {
        /// As in OPEN.
        slot: u32,
        /// The epoch in which it came.
        epoch: u64,
        /// Where it lies.
        position: u64,
        /// What is wrong with it.
        text: String,
    },
    /// The sender is done with this ring.
    Close {
        /// As in OPEN.
        slot: u32,
        /// As in RESUME.
        epoch: u64,
    },
    /// Messages that were in the mirror's memory and are lost with it.
    Gap {
        /// As in OPEN.
        slot: u32,
        /// The first one, as far as known.
        from: Cursor,
        /// The first one after them.
        to: Cursor,
    },
    /// A sign of life, every half second.
    Heartbeat {
        /// Counts up.
        number: u64,
        /// The last number that came from the other side.
        echo: u64,
    },
    /// What was offered does not come to be.
    Decline {
        /// Of the OFFER.
        token: Token,
        /// Why, for people.
        text: String,
    },
    /// The connection ends.
    Bye {
        /// Why, for machines.
        why: Goodbye,
        /// Why, for people.
        text: String,
    },
}

/// What is wrong with bytes that were to be a frame or a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Malformed {}

fn malformed<T>(what: impl Into<String>) -> Result<T, Malformed> {
    Err(Malformed(what.into()))
}

/// Writes numbers and texts behind each other.
struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }
    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }
    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }
    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }
    fn cursor(&mut self, cursor: Cursor) -> &mut Self {
        self.u64(cursor.position).u64(cursor.sequence)
    }
    fn text(&mut self, text: &str) -> &mut Self {
        let mut cut = text.len().min(MAX_TEXT);
        while !text.is_char_boundary(cut) {
            cut -= 1;
        }
        self.u8(cut as u8).bytes(&text.as_bytes()[..cut])
    }
}

/// Reads them again.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        match self.0.split_first_chunk::<N>() {
            Some((taken, rest)) => {
                self.0 = rest;
                Ok(*taken)
            }
            None => malformed("it ends in the midst of a field"),
        }
    }
    fn u8(&mut self) -> Result<u8, Malformed> {
        self.take::<1>().map(|[byte]| byte)
    }
    fn u16(&mut self) -> Result<u16, Malformed> {
        self.take().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_le_bytes)
    }
    fn uuid(&mut self) -> Result<Uuid, Malformed> {
        match self.take().map(Uuid)? {
            Uuid::NONE => malformed("a ring's name is all zeros"),
            uuid => Ok(uuid),
        }
    }
    fn token(&mut self) -> Result<Token, Malformed> {
        self.take().map(Token)
    }
    fn position(&mut self) -> Result<u64, Malformed> {
        let position = self.u64()?;
        match position < tbus::layout::MAX_POSITION && position.is_multiple_of(8) {
            true => Ok(position),
            false => malformed(format!("{position} is no position of a record")),
        }
    }
    fn cursor(&mut self) -> Result<Cursor, Malformed> {
        let position = self.position()?;
        let sequence = self.u64()?;
        match sequence < tbus::layout::MAX_POSITION {
            true => Ok(Cursor { position, sequence }),
            false => malformed(format!("{sequence} is no sequence")),
        }
    }
    fn text(&mut self) -> Result<String, Malformed> {
        let length = usize::from(self.u8()?);
        let Some((text, rest)) = self.0.split_at_checked(length) else {
            return malformed("it ends in the midst of a text");
        };
        self.0 = rest;
        match std::str::from_utf8(text) {
            // Texts end up in logs and on terminals.
            Ok(text) => Ok(text
                .chars()
                .map(|c| if c.is_control() { '\u{fffd}' } else { c })
                .collect()),
            Err(_) => malformed("a text is not UTF-8"),
        }
    }
}

impl Refusal {
    fn from_number(number: u16) -> Option<Refusal> {
        use Refusal::*;
        [NoChannel, Capacity, NotDrained, Positions, Ring]
            .into_iter()
            .find(|r| *r as u16 == number)
    }
}

impl Goodbye {
    fn from_number(number: u16) -> Option<Goodbye> {
        use Goodbye::*;
        [
            Protocol, Cluster, Node, NoRoute, NotYours, Replaced, Ending, Silence, Link, Violation,
            Security, Control, Transport,
        ]
        .into_iter()
        .find(|g| *g as u16 == number)
    }
}

impl Frame {
    /// Names of the types, in the order of their numbers from 1 on.
    pub const TYPES: [&str; 12] = [
        "HELLO",
        "OFFER",
        "ATTACH",
        "OPEN",
        "RESUME",
        "REFUSE",
        "REJECT",
        "CLOSE",
        "GAP",
        "HEARTBEAT",
        "BYE",
        "DECLINE",
    ];

    fn number(&self) -> u8 {
        match self {
            Frame::Hello(_) => 1,
            Frame::Offer { .. } => 2,
            Frame::Attach(_) => 3,
            Frame::Open(_) => 4,
            Frame::Resume(_) => 5,
            Frame::Refuse { .. } => 6,
            Frame::Reject { .. } => 7,
            Frame::Close { .. } => 8,
            Frame::Gap { .. } => 9,
            Frame::Heartbeat { .. } => 10,
            Frame::Bye { .. } => 11,
            Frame::Decline { .. } => 12,
        }
    }

    /// Its name, as in the specification.
    pub fn name(&self) -> &'static str {
        Self::TYPES[usize::from(self.number()) - 1]
    }

    /// Appends the frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        let mut w = Writer(out);
        w.u32(0).u8(self.number()).u8(0).u16(0);
        match self {
            Frame::Hello(hello) => {
                w.u64(MAGIC)
                    .u16(hello.protocol.0)
                    .u16(hello.protocol.1)
                    .u32(hello.node);
                w.u64(hello.lease)
                    .u64(hello.capabilities)
                    .text(&hello.cluster)
                    .text(&hello.endpoint);
            }
            Frame::Offer {
                transport,
                port,
                token,
            } => {
                w.u8(*transport).u8(0).u16(*port).bytes(&token.0);
            }
            Frame::Attach(token) => {
                w.u64(MAGIC).bytes(&token.0);
            }
            Frame::Open(open) => {
                w.u32(open.slot)
                    .u64(open.attempt)
                    .u32(open.from.0)
                    .u32(open.to.0)
                    .bytes(&open.source.0);
                w.u64(open.nonce)
                    .u64(open.capacity)
                    .cursor(open.head)
                    .cursor(open.tail);
            }
            Frame::Resume(resume) => {
                w.u32(resume.slot)
                    .u64(resume.attempt)
                    .bytes(&resume.source.0)
                    .bytes(&resume.mirror.0);
                w.cursor(resume.tail).cursor(resume.head).u64(resume.epoch);
                w.u64(resume.remote.0).u32(resume.remote.1);
            }
            Frame::Refuse {
                slot,
                attempt,
                why,
                text,
            } => {
                w.u32(*slot).u64(*attempt).u16(*why as u16).text(text);
            }
            Frame::Reject {
                slot,
                epoch,
                position,
                text,
            } => {
                w.u32(*slot).u64(*epoch).u64(*position).text(text);
            }
            Frame::Close { slot, epoch } => {
                w.u32(*slot).u64(*epoch);
            }
            Frame::Gap { slot, from, to } => {
                w.u32(*slot).cursor(*from).cursor(*to);
            }
            Frame::Heartbeat { number, echo } => {
                w.u64(*number).u64(*echo);
            }
            Frame::Bye { why, text } => {
                w.u16(*why as u16).text(text);
            }
            Frame::Decline { token, text } => {
                w.bytes(&token.0).text(text);
            }
        }
        let length = (out.len() - begin - FRAME_HEADER) as u32;
        out[begin..begin + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// Takes the first frame off `bytes`: the frame and its length with the header, or `None` if it is not all there.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Frame, usize)>, Malformed> {
        let Some((header, rest)) = bytes.split_first_chunk::<FRAME_HEADER>() else {
            return Ok(None);
        };
        let mut r = Reader(header);
        let (length, number, zeros) = (r.u32()? as usize, r.u8()?, (r.u8()?, r.u16()?));
        if length > MAX_BODY {
            return malformed(format!(
                "a frame of {length} bytes; the longest has {MAX_BODY}"
            ));
        }
        if zeros != (0, 0) || number == 0 || usize::from(number) > Self::TYPES.len() {
            return malformed(format!("no frame begins with type {number} and {zeros:?}"));
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let name = Self::TYPES[usize::from(number) - 1];
        let mut r = Reader(body);
        let frame =
            Self::decode_body(number, &mut r).map_err(|m| Malformed(format!("{name}: {m}")))?;
        if !r.0.is_empty() {
            return malformed(format!("{name}: {} bytes too many", r.0.len()));
        }
        Ok(Some((frame, FRAME_HEADER + length)))
    }

    fn decode_body(number: u8, r: &mut Reader<'_>) -> Result<Frame, Malformed> {
        let magic = |r: &mut Reader<'_>| match r.u64()? {
            MAGIC => Ok(()),
            other => malformed(format!(
                "it begins with {other:#x}; this is no relay of tbus"
            )),
        };
        Ok(match number {
            1 => {
                magic(r)?;
                Frame::Hello(Hello {
                    protocol: (r.u16()?, r.u16()?),
                    node: r.u32()?,
                    lease: r.u64()?,
                    capabilities: r.u64()?,
                    cluster: r.text()?,
                    endpoint: r.text()?,
                })
            }
            2 => {
                let (transport, zero) = (r.u8()?, r.u8()?);
                if zero != 0 || !transport.is_power_of_two() {
                    return malformed(format!("no transport has number {transport}"));
                }
                Frame::Offer {
                    transport,
                    port: r.u16()?,
                    token: r.token()?,
                }
            }
            3 => {
                magic(r)?;
                Frame::Attach(r.token()?)
            }
            4 => Frame::Open(Open {
                slot: r.u32()?,
                attempt: r.u64()?,
                from: Address(r.u32()?),
                to: Address(r.u32()?),
                source: r.uuid()?,
                nonce: r.u64()?,
                capacity: r.u64()?,
                head: r.cursor()?,
                tail: r.cursor()?,
            }),
            5 => Frame::Resume(Resume {
                slot: r.u32()?,
                attempt: r.u64()?,
                source: r.uuid()?,
                mirror: r.uuid()?,
                tail: r.cursor()?,
                head: r.cursor()?,
                epoch: r.u64()?,
                remote: (r.u64()?, r.u32()?),
            }),
            6 => Frame::Refuse {
                slot: r.u32()?,
                attempt: r.u64()?,
                why: {
                    let number = r.u16()?;
                    Refusal::from_number(number)
                        .ok_or_else(|| Malformed(format!("no refusal has number {number}")))?
                },
                text: r.text()?,
            },
            7 => Frame::Reject {
                slot: r.u32()?,
                epoch: r.u64()?,
                position: r.u64()?,
                text: r.text()?,
            },
            8 => Frame::Close {
                slot: r.u32()?,
                epoch: r.u64()?,
            },
            9 => Frame::Gap {
                slot: r.u32()?,
                from: r.cursor()?,
                to: r.cursor()?,
            },
            10 => Frame::Heartbeat {
                number: r.u64()?,
                echo: r.u64()?,
            },
            11 => Frame::Bye {
                why: {
                    let number = r.u16()?;
                    Goodbye::from_number(number)
                        .ok_or_else(|| Malformed(format!("no goodbye has number {number}")))?
                },
                text: r.text()?,
            },
            _ => Frame::Decline {
                token: r.token()?,
                text: r.text()?,
            },
        })
    }
}

/// How far a mirror has come; from its relay to the source's. Or, with `want`, the other way: room is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// As in OPEN: the number of the source's relay.
    pub slot: u32,
    /// As in RESUME.
    pub epoch: u64,
    /// True: from the source's relay, which has no room left; the rest is zeros.
    pub want: bool,
    /// Up to where the mirror is published.
    pub delivered: u64,
    /// Up to where its application has released.
    pub consumed: Cursor,
}

/// Bytes of a source ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data {
    /// As in OPEN.
    pub slot: u32,
    /// As in RESUME.
    pub epoch: u64,
    /// Where they belong.
    pub position: u64,
    /// How many follow, 1 to [`MAX_CHUNK`].
    pub length: u32,
}

/// The header of a chunk on a TCP link: bytes of a ring, or how far a mirror has come, or both.
///
/// ```text
///    0        4        8               16              24
///   ┌────────┬────────┬───────────────┬───────────────┐
///   │ parts  │ length │ data.epoch    │ data.position │
///   ├────────┼────────┼───────────────┼───────────────┤ 24
///   │ data.  │control.│ control.epoch │ delivered     │
///   │ slot   │ slot   │               │               │
///   ├────────┴────────┼───────────────┼───────────────┤ 48
///   │ consumed, pos.  │ consumed, seq.│               64
///   └─────────────────┴───────────────┘
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// Bytes of a ring follow.
    pub data: Option<Data>,
    /// How far a mirror has come.
    pub control: Option<Control>,
}

impl Chunk {
    const HAS_DATA: u32 = 1;
    const HAS_CONTROL: u32 = 2;
    const WANTS: u32 = 4;

    /// The header's bytes.
    pub fn encode(&self) -> [u8; CHUNK_HEADER] {
        let mut words = [0u64; CHUNK_HEADER / 8];
        let mut parts = 0;
        if let Some(data) = self.data {
            parts |= Self::HAS_DATA;
            words[0] |= u64::from(data.length) << 32;
            words[1] = data.epoch;
            words[2] = data.position;
            words[3] |= u64::from(data.slot);
        }
        if let Some(control) = self.control {
            parts |= Self::HAS_CONTROL | if control.want { Self::WANTS } else { 0 };
            words[3] |= u64::from(control.slot) << 32;
            words[4] = control.epoch;
            words[5] = control.delivered;
            words[6] = control.consumed.position;
            words[7] = control.consumed.sequence;
        }
        words[0] |= u64::from(parts);
        let mut bytes = [0; CHUNK_HEADER];
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// What a header's bytes say.
    pub fn decode(bytes: &[u8; CHUNK_HEADER]) -> Result<Chunk, Malformed> {
        let mut r = Reader(bytes);
        let (parts, length, data_epoch) = (r.u32()?, r.u32()?, r.u64()?);
        let position = r.u64()?;
        let (data_slot, control_slot) = (r.u32()?, r.u32()?);
        let control_epoch = r.u64()?;
        if parts == 0 || parts & !7 != 0 || parts & 6 == Self::WANTS {
            return malformed(format!("no chunk has parts {parts:#x}"));
        }
        let has_data = parts & Self::HAS_DATA != 0;
        let lengths = if has_data {
            1..=MAX_CHUNK as u32
        } else {
            0..=0
        };
        if !lengths.contains(&length) || position >= tbus::layout::MAX_POSITION {
            return malformed(format!("a chunk of {length} bytes at position {position}"));
        }
        let control = match parts & Self::HAS_CONTROL != 0 {
            false => None,
            true => Some(Control {
                slot: control_slot,
                epoch: control_epoch,
                want: parts & Self::WANTS != 0,
                delivered: r.position()?,
                consumed: r.cursor()?,
            }),
        };
        let data = has_data.then_some(Data {
            slot: data_slot,
            epoch: data_epoch,
            position,
            length,
        });
        Ok(Chunk { data, control })
    }
}

#[cfg(test)]
mod tests;
