//! One connection's TLS. It has no socket: bytes go out and come in by what the caller lends.

use super::{in_words, names_in};
use crate::wire::Frame;
use rustls::{Connection, ProtocolVersion};
use std::io::{self, ErrorKind, Read, Write};

/// Bytes that may come before it is known who is there.
const BEFORE: usize = 1 << 16;
/// Bytes that are read at a time before that.
const READ_BEFORE: usize = 1 << 12;
/// Bytes that are read at a time after it.
const READ: usize = 1 << 16;

/// See the module.
#[derive(Debug)]
pub struct Session {
    connection: Connection,
    /// What came and is not deciphered yet is `raw[at..end]`.
    raw: Vec<u8>,
    at: usize,
    end: usize,
    /// Bytes that came in all, as long as it is not known who is there.
    before: usize,
    /// Deciphered bytes that wait.
    plain: usize,
    /// The names that the other side must have.
    expected: Option<Vec<String>>,
    names: Vec<String>,
    /// Of a dialled side that answers in clear: what it says.
    clear: Option<Vec<u8>>,
    established: bool,
    failure: Option<(ErrorKind, String)>,
}

impl Session {
    const CLOSED: &'static str = "the peer closed the connection";
    const NOT_TLS: &'static str = "it does not speak TLS; give both relays the same security";

    pub(super) fn new(connection: Connection, expected: Option<Vec<String>>) -> Session {
        let mut session = Session {
            connection,
            raw: Vec::new(),
            at: 0,
            end: 0,
            before: 0,
            plain: 0,
            expected,
            names: Vec::new(),
            clear: None,
            established: false,
            failure: None,
        };
        // How much is sent is decided before it comes here.
        session.connection.set_buffer_limit(None);
        session
    }

    /// True once both sides have shown who they are.
    pub fn is_established(&self) -> bool {
        self.established
    }

    /// The DNS names in the other side's certificate.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// True if bytes that were read from the socket wait here.
    pub fn has_received(&self) -> bool {
        self.plain > 0 || self.at < self.end
    }

    /// True if ciphered bytes wait for the socket.
    pub fn has_unsent(&self) -> bool {
        self.connection.wants_write()
    }

    fn fail<T>(&mut self, kind: ErrorKind, text: String) -> io::Result<T> {
        self.failure = Some((kind, text.clone()));
        self.plain = 0;
        Err(io::Error::new(kind, text))
    }

    fn failed(&self) -> io::Result<()> {
        match &self.failure {
            Some((kind, text)) => Err(io::Error::new(*kind, text.clone())),
            None => Ok(()),
        }
    }

    /// Sends ciphered bytes that wait.
    pub fn flush(&mut self, socket: &mut impl Write) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(socket)?;
        }
        Ok(())
    }

    /// True if bytes to send are taken now.
    pub fn takes(&mut self, socket: &mut (impl Read + Write)) -> io::Result<()> {
        self.failed()?;
        self.flush(socket)?;
        match self.established {
            true => Ok(()),
            false => Err(ErrorKind::WouldBlock.into()),
        }
    }

    /// Takes all of `bytes`, and sends what the socket takes.
    pub fn send(&mut self, bytes: &[u8], socket: &mut impl Write) -> io::Result<()> {
        self.connection.writer().write_all(bytes)?;
        match self.flush(socket) {
            Err(e) if e.kind() != ErrorKind::WouldBlock => Err(e),
            _ => Ok(()),
        }
    }

    /// Reads from the socket if nothing else is there. What is there may be nothing to [`receive`](Self::receive).
    pub fn look(&mut self, socket: &mut (impl Read + Write)) -> io::Result<()> {
        match self.has_received() {
            true => Ok(()),
            false => self.more(socket),
        }
    }

    /// Deciphered bytes, as many as there are room for; reads from the socket what is missing.
    pub fn receive(
        &mut self,
        bytes: &mut [u8],
        socket: &mut (impl Read + Write),
    ) -> io::Result<usize> {
        let mut got = 0;
        let mut has_read = false;
        while got < bytes.len() {
            if self.plain > 0 {
                let n = self.connection.reader().read(&mut bytes[got..])?;
                self.plain -= n.min(self.plain);
                got += n;
                continue;
            }
            // Once: records may carry nothing, and a peer that sends only such must not keep everybody else waiting.
            if self.at == self.end && std::mem::replace(&mut has_read, true) {
                return match got {
                    0 => Err(ErrorKind::WouldBlock.into()),
                    got => Ok(got),
                };
            }
            match self.more(socket) {
                Ok(()) => {}
                // What came before the end is heard first.
                Err(_) if got > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(got)
    }

    /// Reads, or deciphers what was read.
    fn more(&mut self, socket: &mut (impl Read + Write)) -> io::Result<()> {
        self.failed()?;
        // Why sending fails is told to who sends; here it is more important what came.
        let _ = self.flush(socket);
        if self.at == self.end {
            self.read(socket)?;
        }
        if let Some(text) = self.in_clear() {
            return self.fail(ErrorKind::InvalidData, text);
        }
        if self.clear.is_some() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let mut rest = &self.raw[self.at..self.end];
        self.connection.read_tls(&mut rest)?;
        self.at = self.end - rest.len();
        let state = match self.connection.process_new_packets() {
            Ok(state) => state,
            Err(error) => {
                // An alert tells the other side.
                let _ = self.flush(socket);
                return self.fail(ErrorKind::InvalidData, in_words(&error));
            }
        };
        self.plain = state.plaintext_bytes_to_read();
        if !self.established && !self.connection.is_handshaking() {
            self.establish()?;
        }
        let _ = self.flush(socket);
        if state.peer_has_closed() && self.plain == 0 {
            return self.fail(ErrorKind::UnexpectedEof, Self::CLOSED.into());
        }
        Ok(())
    }

    fn read(&mut self, socket: &mut impl Read) -> io::Result<()> {
        let room = if self.established { READ } else { READ_BEFORE };
        self.raw.resize(room, 0);
        let n = socket.read(&mut self.raw)?;
        (self.at, self.end) = (0, n);
        if n == 0 {
            let text = match (self.established, self.clear.is_some()) {
                (true, _) => Self::CLOSED,
                (_, true) => Self::NOT_TLS,
                _ => "the peer closed the connection before TLS was agreed; its log may say why",
            };
            return self.fail(ErrorKind::UnexpectedEof, text.into());
        }
        if !self.established {
            self.before += n;
            if self.before > BEFORE {
                let text = format!("more than {BEFORE} bytes before it was known who is there");
                return self.fail(ErrorKind::InvalidData, text);
            }
        }
        Ok(())
    }

    /// Looks whether who was dialled answers in clear, as a relay without TLS does; then what it says, once it is there.
    fn in_clear(&mut self) -> Option<String> {
        if self.clear.is_none() {
            let first = self.before == self.end && self.at == 0 && !self.established;
            let dialled = matches!(self.connection, Connection::Client(_));
            if !first || !dialled || is_record(&self.raw[..self.end]) {
                return None;
            }
            self.clear = Some(Vec::new());
        }
        let clear = self.clear.as_mut()?;
        clear.extend_from_slice(&self.raw[self.at..self.end]);
        self.at = self.end;
        match Frame::decode(clear) {
            Ok(None) => None,
            Ok(Some((Frame::Bye { text, .. }, _))) => Some(format!("it answers in clear: {text}")),
            _ => Some(Self::NOT_TLS.into()),
        }
    }

    fn establish(&mut self) -> io::Result<()> {
        debug_assert_eq!(
            self.connection.protocol_version(),
            Some(ProtocolVersion::TLSv1_3)
        );
        let shown = self.connection.peer_certificates().unwrap_or_default();
        self.names = shown.first().map(names_in).unwrap_or_default();
        if let Some(expected) = &self.expected
            && *expected != self.names
        {
            let text = format!(
                "the link's certificate is for {}, and that of the control connection for {}",
                self.names.join(", "),
                expected.join(", ")
            );
            return self.fail(ErrorKind::PermissionDenied, text);
        }
        self.established = true;
        Ok(())
    }
}

/// True if a connection that begins so speaks TLS.
pub fn is_record(first: &[u8]) -> bool {
    let version = first.get(1).is_none_or(|byte| *byte == 3);
    first.first().is_some_and(|byte| (20..=23).contains(byte)) && version
}
