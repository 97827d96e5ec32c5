//! The peer: what it says, and what it knows to say the truth now and then.

use crate::host::{CAPACITY, CLUSTER, ENDS, Host, LIAR};
use crate::input::Input;
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use tbus::layout::commit_word;
use tbus::{Address, Cursor, Uuid};
use tbus_transport::relay::status::PeerState;
use tbus_transport::wire::{
    CHUNK_HEADER, Chunk, Control, Data, Frame, Goodbye, Hello, Open, PROTOCOL_MAX, PROTOCOL_MIN,
    Refusal, Resume, Token,
};

const NODE: u32 = 1;
/// The rings that it pretends to have.
const SOURCE: Uuid = Uuid([5; 16]);
const MIRROR: Uuid = Uuid([6; 16]);
const NONCE: u64 = 7;
/// Passes of the relay within which an answer comes that must come. Loopback is quick, but not always.
const PATIENCE: usize = 100_000;
/// The same for an answer that may not come.
const A_WHILE: usize = 100;

const TEXT: &str = "a lie";

pub struct Liar {
    control: Option<TcpStream>,
    link: Option<TcpStream>,
    /// Bytes that are not a whole frame or chunk yet.
    said: Vec<u8>,
    brought: Vec<u8>,
    token: Option<Token>,
    /// The relay's ring, and what was answered.
    open: Option<Open>,
    epoch: u64,
    got: Cursor,
    /// The relay's mirror, and where its next record belongs.
    opened: u64,
    resume: Option<Resume>,
    next: Cursor,
    beat: u64,
    /// Sessions that have gone down since the relay was made, when this one came up.
    downs: u64,
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the relay listens");
    prepare(&stream);
    stream
}

fn prepare(stream: &TcpStream) {
    stream.set_nonblocking(true).expect("it is a socket");
    stream.set_nodelay(true).expect("it is a TCP socket");
    // A reset leaves nothing behind in the kernel: a thousand connections a second would use up the ports.
    let at_once = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(stream, sockopt::Linger, &at_once).expect("it is a TCP socket");
}

/// What does not fit is lost: the liar need not be whole.
fn write(stream: &mut Option<TcpStream>, bytes: &[u8]) {
    if let Some(open) = stream
        && let Err(error) = open.write_all(bytes)
        && error.kind() != ErrorKind::WouldBlock
    {
        *stream = None;
    }
}

/// Appends what there is. At the end the stream goes.
fn read(stream: &mut Option<TcpStream>, to: &mut Vec<u8>) {
    let mut buffer = [0; 4096];
    while let Some(open) = stream {
        match open.read(&mut buffer) {
            Ok(n) if n > 0 => to.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            _ => *stream = None,
        }
    }
}

fn hello() -> Hello {
    Hello {
        protocol: (PROTOCOL_MIN, PROTOCOL_MAX),
        node: NODE,
        lease: 1,
        capabilities: 1,
        cluster: CLUSTER.into(),
        endpoint: LIAR.into(),
    }
}

impl Liar {
    /// Connects and greets. The bits of `how` say how far it behaves before the program begins.
    pub fn greet(host: &mut Host, how: u8) -> Liar {
        let mut liar = Liar {
            control: None,
            link: None,
            said: Vec::new(),
            brought: Vec::new(),
            token: None,
            open: None,
            epoch: 0,
            got: Cursor::default(),
            opened: 0,
            resume: None,
            next: Cursor::default(),
            beat: 0,
            downs: 0,
        };
        liar.connect(host);
        if how & 1 != 0 {
            return liar;
        }
        liar.attach(host, None);
        if !liar.until(host, A_WHILE, |liar| liar.open.is_some()) {
            // Only a ring that was given up is not offered, and only until the relay is another one.
            host.restart();
            liar.connect(host);
            liar.attach(host, None);
            let opened = liar.until(host, PATIENCE, |liar| liar.open.is_some());
            assert!(opened, "the relay does not open its ring");
        }
        if how & 2 == 0 {
            liar.say(&Frame::Resume(liar.honest_resume()));
        }
        if how & 4 == 0 {
            liar.say(&Frame::Open(liar.honest_open()));
            host.pass(10_000_000); // a mirror that must be made waits for others
            liar.until(host, A_WHILE, |liar| liar.resume.is_some());
        }
        liar
    }

    /// A new control connection, up to the relay's OFFER.
    fn connect(&mut self, host: &mut Host) {
        let mut bytes = Vec::new();
        Frame::Hello(hello()).encode(&mut bytes);
        // A process that was paused meanwhile finds that the relay has lost patience.
        loop {
            (self.token, self.open, self.resume) = (None, None, None);
            (self.said, self.brought) = (Vec::new(), Vec::new());
            self.link = None;
            self.control = Some(connect(host.address()));
            write(&mut self.control, &bytes);
            if self.until(host, PATIENCE, |liar| liar.token.is_some()) {
                break;
            }
        }
        self.downs = host.relay.totals().downs;
    }

    /// A new link. Of all connections that the relay takes for links, one may be the right one.
    fn attach(&mut self, host: &mut Host, token: Option<Token>) {
        let Some(token) = token.or(self.token) else {
            return;
        };
        let mut bytes = Vec::new();
        Frame::Attach(token).encode(&mut bytes);
        self.link = Some(connect(host.address()));
        self.brought.clear();
        write(&mut self.link, &bytes);
    }

    /// Steps the relay until something has come; false if the relay has hung up, or nothing comes for so many passes.
    fn until(&mut self, host: &mut Host, rounds: usize, come: impl Fn(&Liar) -> bool) -> bool {
        for round in 0..rounds {
            self.listen(host);
            if come(self) {
                return true;
            }
            if self.control.is_none() {
                return false;
            }
            host.step();
            if round > 10 {
                std::thread::yield_now();
            }
        }
        false
    }

    fn honest_open(&self) -> Open {
        Open {
            slot: 0,
            attempt: 1,
            from: ENDS[0],
            to: ENDS[1],
            source: SOURCE,
            nonce: NONCE,
            capacity: CAPACITY,
            head: Cursor::default(),
            tail: Cursor::default(),
        }
    }

    fn honest_resume(&self) -> Resume {
        let open = self.open.as_ref();
        let head = open.map_or(Cursor::default(), |open| open.head);
        Resume {
            slot: open.map_or(0, |open| open.slot),
            attempt: open.map_or(0, |open| open.attempt),
            source: open.map_or(SOURCE, |open| open.source),
            mirror: MIRROR,
            tail: head,
            head,
            epoch: 9,
            remote: (0, 0),
        }
    }

    fn say(&mut self, frame: &Frame) {
        // What is said is remembered, to be the truth later.
        match frame {
            Frame::Open(open) => self.opened = open.nonce,
            Frame::Resume(resume) => (self.epoch, self.got) = (resume.epoch, resume.head),
            _ => {}
        }
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        write(&mut self.control, &bytes);
    }

    /// Hears what the relay says. A relay always says something well-formed.
    pub fn listen(&mut self, host: &mut Host) {
        while let Ok((stream, _)) = host.listener.accept() {
            prepare(&stream); // the link after an OFFER of the liar's
            (self.link, self.brought) = (Some(stream), Vec::new());
        }
        read(&mut self.control, &mut self.said);
        let mut taken = 0;
        while let Some((frame, length)) =
            Frame::decode(&self.said[taken..]).expect("the relay's frames are well-formed")
        {
            taken += length;
            match frame {
                Frame::Offer { token, .. } => self.token = Some(token),
                Frame::Open(open) => self.open = Some(open),
                Frame::Resume(resume) => {
                    self.next = resume.tail;
                    self.resume = Some(resume);
                }
                Frame::Heartbeat { number, .. } => self.beat = number,
                _ => {}
            }
        }
        self.said.drain(..taken);
        read(&mut self.link, &mut self.brought);
        // The relay shows its token first where it has made the link.
        if let Ok(Some((Frame::Attach(_), length))) = Frame::decode(&self.brought) {
            self.brought.drain(..length);
        }
        while let Some(header) = self.brought.first_chunk::<CHUNK_HEADER>() {
            let chunk = Chunk::decode(header).expect("the relay's chunks are well-formed");
            let length = chunk.data.map_or(0, |data| data.length as usize);
            if self.brought.len() < CHUNK_HEADER + length {
                break;
            }
            self.brought.drain(..CHUNK_HEADER + length);
            if let Some(data) = chunk.data {
                self.got.position = data.position + u64::from(data.length);
                self.got.sequence += 1;
            }
        }
    }

    // ---- what is said ----

    fn slot(&self, input: &mut Input) -> u32 {
        input.pick(&[0, 0, 1], Input::u32)
    }

    /// One of the secrets that the relay has told, or that were told to it.
    fn secret(&self, input: &mut Input) -> u64 {
        let attempt = self.open.as_ref().map_or(0, |open| open.attempt);
        let epoch = self.resume.as_ref().map_or(0, |resume| resume.epoch);
        input.pick(&[attempt, epoch, self.epoch], Input::u64)
    }

    fn uuid(&self, input: &mut Input) -> Uuid {
        let theirs = self.open.as_ref().map_or(SOURCE, |open| open.source);
        let mirror = self.resume.as_ref().map_or(MIRROR, |resume| resume.mirror);
        input.pick(&[SOURCE, MIRROR, theirs, mirror], |input| {
            Uuid([input.u8() | 1; 16])
        })
    }

    fn cursor(&self, input: &mut Input) -> Cursor {
        let [head, tail] = self
            .open
            .as_ref()
            .map_or([Cursor::default(); 2], |open| [open.head, open.tail]);
        let zero = Cursor::default();
        input.pick(&[head, tail, self.got, self.next, zero], |input| {
            let position = input.pick(&[head.position, self.next.position], |_| 0);
            Cursor {
                position: position.wrapping_add(input.u64()) & !7,
                sequence: input.u64(),
            }
        })
    }

    fn open(&self, input: &mut Input) -> Open {
        let honest = self.honest_open();
        Open {
            slot: self.slot(input),
            attempt: self.secret(input),
            from: input.pick(&[ENDS[0]; 3], |input| Address(input.u32())),
            to: input.pick(&[ENDS[1]; 3], |input| Address(input.u32())),
            source: self.uuid(input),
            nonce: input.pick(&[NONCE; 2], Input::u64),
            capacity: input.pick(&[CAPACITY; 3], Input::u64),
            head: self.cursor(input),
            tail: input.pick(&[honest.tail], |input| self.cursor(input)),
        }
    }

    fn resume(&self, input: &mut Input) -> Resume {
        Resume {
            slot: self.slot(input),
            attempt: self.secret(input),
            source: self.uuid(input),
            mirror: self.uuid(input),
            tail: self.cursor(input),
            head: self.cursor(input),
            epoch: self.secret(input),
            remote: (0, 0),
        }
    }

    /// How far the relay's ring has come, or that the liar's wants room.
    fn progress(&self, input: &mut Input) -> Control {
        Control {
            slot: self.slot(input),
            epoch: self.secret(input),
            want: input.u8() & 1 != 0,
            delivered: self.cursor(input).position,
            consumed: self.cursor(input),
        }
    }

    fn position(&self, input: &mut Input) -> u64 {
        input.pick(&[self.next.position; 3], |input| {
            input
                .pick(&[self.next.position], |_| 0)
                .wrapping_add(input.u64())
        })
    }

    fn chunk(&mut self, data: Option<Data>, control: Option<Control>, payload: &[u8]) {
        let chunk = Chunk { data, control };
        write(&mut self.link, &[&chunk.encode()[..], payload].concat());
    }

    /// A record where the next one belongs; with `spoil` a byte of it is another one.
    fn record(&mut self, length: usize, input: &mut Input) {
        let flags = input.pick(&[0; 3], |input| u32::from(input.u8()));
        let extensions = 8 * flags.count_ones() as usize;
        let size = (16 + extensions + length).next_multiple_of(8);
        let mut record = vec![input.u8(); size];
        let word = commit_word(self.next.position, self.opened);
        record[..8].copy_from_slice(&word.to_le_bytes());
        record[8..12].copy_from_slice(&(length as u32).to_le_bytes());
        record[12..16].copy_from_slice(&flags.to_le_bytes());
        let spoil = input.u8();
        if spoil >= 0xf0 {
            record[usize::from(spoil & 15)] ^= input.u8();
        }
        let (slot, epoch) = self
            .resume
            .as_ref()
            .map_or((0, 0), |resume| (resume.slot, resume.epoch));
        let control = match input.u8() {
            0xf0.. => Some(self.progress(input)),
            _ => None,
        };
        // In two chunks, or as one.
        let cut = usize::from(input.u8()) * 8 % size;
        for part in [&record[..cut], &record[cut..]] {
            if part.is_empty() {
                continue;
            }
            let data = Data {
                slot,
                epoch,
                position: self.next.position,
                length: part.len() as u32,
            };
            self.chunk(Some(data), control, part);
            self.next.position = self.next.position.wrapping_add(part.len() as u64);
        }
        self.next.sequence = self.next.sequence.wrapping_add(1);
    }

    /// One action of the program.
    pub fn act(&mut self, host: &mut Host, input: &mut Input) {
        match input.u8() % 30 {
            0 => {
                let length = usize::from(input.u8());
                write(&mut self.control, input.bytes(length));
            }
            1 => {
                let node = input.pick(&[NODE, 2], Input::u32);
                let lease = input.u64();
                self.say(&Frame::Hello(Hello {
                    node,
                    lease,
                    ..hello()
                }));
            }
            2 => {
                let frame = Frame::Offer {
                    transport: 1 << (input.u8() & 7),
                    port: input.u16(),
                    token: Token([input.u8(); 16]),
                };
                self.say(&frame);
            }
            3 => self.say(&Frame::Attach(self.token.unwrap_or(Token([0; 16])))),
            4 => self.say(&Frame::Open(self.honest_open())),
            5 | 6 => {
                let open = self.open(input);
                self.say(&Frame::Open(open));
            }
            7 => self.say(&Frame::Resume(self.honest_resume())),
            8 | 9 => {
                let resume = self.resume(input);
                self.say(&Frame::Resume(resume));
            }
            10 => {
                use Refusal::*;
                let all = [NoChannel, Capacity, NotDrained, Positions, Ring];
                let frame = Frame::Refuse {
                    slot: self.slot(input),
                    attempt: self.secret(input),
                    why: all[usize::from(input.u8()) % all.len()],
                    text: TEXT.into(),
                };
                self.say(&frame);
            }
            11 => {
                let frame = Frame::Reject {
                    slot: self.slot(input),
                    epoch: self.secret(input),
                    position: input.u64(),
                    text: TEXT.into(),
                };
                self.say(&frame);
            }
            12 => {
                let (slot, epoch) = (self.slot(input), self.secret(input));
                self.say(&Frame::Close { slot, epoch });
            }
            13 => {
                let frame = Frame::Gap {
                    slot: self.slot(input),
                    from: self.cursor(input),
                    to: self.cursor(input),
                };
                self.say(&frame);
            }
            14 => {
                let frame = Frame::Heartbeat {
                    number: input.u64(),
                    echo: input.pick(&[self.beat; 3], Input::u64),
                };
                self.say(&frame);
            }
            15 => {
                let frame = Frame::Bye {
                    why: [Goodbye::Ending, Goodbye::NotYours][usize::from(input.u8() & 1)],
                    text: TEXT.into(),
                };
                self.say(&frame);
            }
            16 | 17 => {
                let length = input.pick(&[8, 64, 4096], |input| input.u32() % 0x1_0010);
                let data = Data {
                    slot: self.slot(input),
                    epoch: self.secret(input),
                    position: self.position(input),
                    length,
                };
                let control = (input.u8() >= 0x80).then(|| self.progress(input));
                // Filled up, or not.
                let given = usize::from(input.u8());
                let mut payload = input.bytes(given.min(length as usize)).to_vec();
                if input.u8() & 1 != 0 {
                    payload.resize(length as usize, 0xee);
                }
                self.next.position = data.position.wrapping_add(u64::from(length));
                self.chunk(Some(data), control, &payload);
            }
            18 => {
                let length = usize::from(input.u8());
                write(&mut self.link, input.bytes(length));
            }
            19..=21 => {
                let length = usize::from(input.u8());
                self.record(length, input);
            }
            22 => {
                let length = usize::from(input.u16());
                self.record(length % 5000, input);
            }
            23 => {
                let control = self.progress(input);
                self.chunk(None, Some(control), &[]);
            }
            24 => {
                // The truth: all that came is there, and received.
                let control = Control {
                    slot: self.open.as_ref().map_or(0, |open| open.slot),
                    epoch: self.epoch,
                    want: false,
                    delivered: self.got.position,
                    consumed: self.got,
                };
                self.chunk(None, Some(control), &[]);
            }
            25 => match input.u8() % 6 {
                0 => self.control = None,
                1 => self.link = None,
                which @ 2..=3 => {
                    let stream = [&self.control, &self.link][usize::from(which & 1)];
                    if let Some(stream) = stream {
                        let _ = stream.shutdown(Shutdown::Write);
                    }
                }
                4 => self.connect(host),
                _ => {
                    let token = match input.u8() {
                        0 => Some(Token([0; 16])),
                        _ => None,
                    };
                    self.attach(host, token);
                }
            },
            26 => host.pass(u64::from(input.u16()) * 50_000),
            27 => {
                let length = input.pick(&[8, 100, 2048], |input| u32::from(input.u16()));
                host.send(length as usize, input.u8());
            }
            28 => {
                host.receive();
            }
            _ => host.drain(),
        }
    }

    /// Closes everything; the relay notices.
    pub fn hang_up(mut self, host: &mut Host) {
        (self.control, self.link) = (None, None);
        for _ in 0..PATIENCE {
            // A connection without a link is not counted when it goes.
            let is_gone = host.relay.states().contains(&PeerState::Disconnected);
            if is_gone || host.relay.totals().downs > self.downs {
                return;
            }
            host.step();
        }
        panic!("the relay does not notice that its peer has gone");
    }
}
