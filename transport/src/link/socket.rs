//! Non-blocking TCP sockets that read and write ring memory: the only raw addresses of the TCP link. In clear the kernel copies
//! from and to the rings; with TLS bytes are copied between ring and cipher.

use crate::tls::Session;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};
use std::io::{self, IoSlice, Read, Write};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;
use tbus::Region;

/// Ranges of rings and of borrowed buffers, at most `N`, for one system call.
#[derive(Debug)]
struct Parts<const N: usize> {
    parts: [libc::iovec; N],
    count: usize,
}

impl<const N: usize> Default for Parts<N> {
    fn default() -> Self {
        let nothing = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Parts {
            parts: [nothing; N],
            count: 0,
        }
    }
}

impl<const N: usize> Parts<N> {
    fn push(&mut self, base: *mut u8, length: usize) {
        if length > 0 {
            self.parts[self.count] = libc::iovec {
                iov_base: base.cast(),
                iov_len: length,
            };
            self.count += 1;
        }
    }

    fn ring(&mut self, region: &Region, position: u64, length: usize) {
        let at = region.at(position, length);
        // What the whole design is about: no staging copy, so every such address lies in a ring.
        debug_assert!(region.contains(at, length));
        self.push(at, length);
    }

    fn header(&self) -> libc::msghdr {
        // SAFETY: all zeros is a valid msghdr: no name, no control data.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = self.parts.as_ptr().cast_mut();
        header.msg_iovlen = self.count as _;
        header
    }
}

/// The most parts of one write.
pub const MAX_GATHER: usize = 64;
/// The most parts of one read.
pub const MAX_SCATTER: usize = 3;

/// What one write gathers.
#[derive(Debug, Default)]
pub struct Gather<'a>(Parts<MAX_GATHER>, PhantomData<&'a [u8]>);

impl<'a> Gather<'a> {
    /// Adds bytes of a buffer.
    ///
    /// # Panics
    /// If there are [`MAX_GATHER`] parts already; the same for [`Gather::ring`].
    pub fn bytes(&mut self, bytes: &'a [u8]) {
        self.0.push(bytes.as_ptr().cast_mut(), bytes.len());
    }

    /// Adds `length` bytes of a ring at `position`.
    pub fn ring(&mut self, region: &'a Region, position: u64, length: usize) {
        self.0.ring(region, position, length);
    }
}

/// Where one read puts what has come.
#[derive(Debug, Default)]
pub struct Scatter<'a>(Parts<MAX_SCATTER>, PhantomData<&'a mut [u8]>);

impl<'a> Scatter<'a> {
    /// Adds a buffer.
    ///
    /// # Panics
    /// If there are [`MAX_SCATTER`] parts already; the same for [`Scatter::ring`].
    pub fn bytes(&mut self, bytes: &'a mut [u8]) {
        self.0.push(bytes.as_mut_ptr(), bytes.len());
    }

    /// Adds `length` bytes of a ring at `position`, which belong to the link until they are published.
    pub fn ring(&mut self, region: &'a Region, position: u64, length: usize) {
        self.0.ring(region, position, length);
    }
}

/// The most bytes of one write that are taken for TLS.
const MAX_STAGED: usize = 1 << 18;
/// Bytes that are ciphered or deciphered at a time: a record of TLS.
const STAGE: usize = 1 << 14;

/// A connected, connecting or broken socket.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    tls: Option<Box<Session>>,
}

/// The socket below TLS.
struct Raw<'a>(&'a TcpStream);

impl Read for Raw<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut gather = Gather::default();
        for part in parts.iter().take(MAX_GATHER) {
            gather.bytes(part);
        }
        send_message(self.0, &gather)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// When the other end's kernel has acknowledged nothing for so long, the connection ends. Heartbeats may pass where long packets
/// are lost, and the kernel would try again for minutes, ever more seldom. Sooner than a peer is dead: it first waits in vain.
const UNACKNOWLEDGED: Duration = Duration::from_millis(2000);

fn prepare(socket: &impl AsFd) -> io::Result<()> {
    setsockopt(socket, sockopt::TcpNoDelay, &true)?;
    setsockopt(
        socket,
        sockopt::TcpUserTimeout,
        &(UNACKNOWLEDGED.as_millis() as u32),
    )?;
    Ok(())
}

/// Writes some of what `gather` names. No signal if the other end is gone.
fn send_message(stream: &TcpStream, gather: &Gather<'_>) -> io::Result<usize> {
    let header = gather.0.header();
    // SAFETY: every range is valid for reading while `gather` lives: borrowed buffers, and ring memory kept by
    // the regions that it borrows. Others may write the ring meanwhile; the kernel copies bytes and believes none.
    check(unsafe { libc::sendmsg(stream.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) })
}

fn check(result: isize) -> io::Result<usize> {
    match result {
        n if n >= 0 => Ok(n as usize),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Socket {
    /// Begins to connect.
    pub fn connect(address: SocketAddr) -> io::Result<Socket> {
        let family = if address.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(family, SockType::Stream, flags, None)?;
        prepare(&fd)?;
        match connect(fd.as_raw_fd(), &SockaddrStorage::from(address)) {
            Ok(()) | Err(nix::Error::EINPROGRESS) => Ok(Self::plain(fd.into())),
            Err(e) => Err(e.into()),
        }
    }

    /// Takes the next connection off a listener that does not block.
    pub fn accept(listener: &TcpListener) -> io::Result<(Socket, SocketAddr)> {
        let (stream, address) = listener.accept()?;
        stream.set_nonblocking(true)?;
        prepare(&stream)?;
        Ok((Self::plain(stream), address))
    }

    /// Any stream socket that does not block: the simulator's.
    #[cfg(feature = "sim")]
    pub(crate) fn of(stream: std::os::unix::net::UnixStream) -> Socket {
        Self::plain(std::os::fd::OwnedFd::from(stream).into())
    }

    fn plain(stream: TcpStream) -> Socket {
        Socket { stream, tls: None }
    }

    /// Speaks TLS from now on.
    pub(crate) fn secure(&mut self, session: Session) {
        self.tls = Some(Box::new(session));
    }

    /// Its TLS, if it has that.
    pub fn tls(&self) -> Option<&Session> {
        self.tls.as_deref()
    }

    /// True if there is a reason to wait until it can be written, when its owner has something to send or not.
    pub fn waits_to_write(&self, has_unsent: bool) -> bool {
        match &self.tls {
            None => has_unsent,
            // As long as TLS is not agreed, it is the other side that is waited for.
            Some(tls) => tls.has_unsent() || (has_unsent && tls.is_established()),
        }
    }

    /// True if bytes have come that nobody waits for at the socket any more.
    pub fn has_received(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.has_received())
    }

    /// The first bytes that have come, which stay there.
    pub(crate) fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.peek(bytes)
    }

    /// Says that nothing more will be sent.
    pub(crate) fn finish(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// Takes what has come off the socket and forgets it.
    pub(crate) fn discard(&self) -> io::Result<usize> {
        Raw(&self.stream).read(&mut [0; 4096])
    }

    /// The other end.
    pub fn peer(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }

    /// How long it is there and back: the shortest that the kernel has measured lately. Its mean has the time in it for which
    /// acknowledgements of a quiet connection wait for company.
    pub fn round_trip(&self) -> Option<Duration> {
        // SAFETY: all bytes 0 is a value of this struct, which has numbers only.
        let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
        let mut length = size_of_val(&info) as libc::socklen_t;
        let (level, name) = (libc::IPPROTO_TCP, libc::TCP_INFO);
        // SAFETY: the descriptor is open, and the kernel writes at most `length` bytes of numbers into `info`.
        let got = unsafe {
            let to = (&raw mut info).cast();
            libc::getsockopt(self.stream.as_raw_fd(), level, name, to, &raw mut length)
        };
        let shortest = info.tcpi_min_rtt;
        let measured = got == 0 && (1..u32::MAX).contains(&shortest);
        measured.then(|| Duration::from_micros(shortest.into()))
    }

    /// This end.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// Sends some of `bytes`.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut gather = Gather::default();
        gather.bytes(bytes);
        self.send_gather(&gather)
    }

    /// Receives some bytes; the end of the stream is an error.
    pub fn receive(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut scatter = Scatter::default();
        scatter.bytes(bytes);
        self.receive_scatter(&scatter)
    }

    /// Writes some of what `gather` names.
    pub fn send_gather(&mut self, gather: &Gather<'_>) -> io::Result<usize> {
        match &mut self.tls {
            None => send_message(&self.stream, gather),
            Some(tls) => send_ciphered(tls, &self.stream, gather),
        }
    }

    /// Reads some bytes to where `scatter` says; the end of the stream is an error.
    pub fn receive_scatter(&mut self, scatter: &Scatter<'_>) -> io::Result<usize> {
        if let Some(tls) = &mut self.tls {
            return receive_ciphered(tls, &self.stream, scatter);
        }
        let fd = self.stream.as_raw_fd();
        let parts = &scatter.0;
        let result = if parts.count == 1 {
            let libc::iovec { iov_base, iov_len } = parts.parts[0];
            // SAFETY: as below. Apart, since it takes a third less time, and a poll is mostly in vain.
            unsafe { libc::recv(fd, iov_base, iov_len, 0) }
        } else {
            // SAFETY: every range is valid for writing while `scatter` lives, exclusively so for the borrowed buffers; the
            // ring memory is raw, and its owner gave this part of it to the link.
            unsafe { libc::readv(fd, parts.parts.as_ptr(), parts.count as i32) }
        };
        match check(result)? {
            0 => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the peer closed the connection",
            )),
            n => Ok(n),
        }
    }
}

/// Copies what `gather` names for TLS: the cipher works on bytes that nobody else can change meanwhile.
fn send_ciphered(tls: &mut Session, stream: &TcpStream, gather: &Gather<'_>) -> io::Result<usize> {
    let mut socket = Raw(stream);
    tls.takes(&mut socket)?;
    let mut stage = [const { MaybeUninit::<u8>::uninit() }; STAGE];
    let mut filled = 0;
    let mut taken = 0;
    let mut send = |stage: &[MaybeUninit<u8>]| {
        // SAFETY: so many were filled.
        let bytes = unsafe { std::slice::from_raw_parts(stage.as_ptr().cast::<u8>(), stage.len()) };
        tls.send(bytes, &mut socket)
    };
    for part in &gather.0.parts[..gather.0.count] {
        let mut done = 0;
        while done < part.iov_len && taken < MAX_STAGED {
            let n = (part.iov_len - done).min(STAGE - filled);
            // SAFETY: valid for reading, as in `send_message`; if somebody writes the ring meanwhile, the copy is a mixture.
            unsafe {
                let from = part.iov_base.cast::<u8>().add(done);
                std::ptr::copy_nonoverlapping(from, stage[filled..].as_mut_ptr().cast(), n);
            }
            (done, filled, taken) = (done + n, filled + n, taken + n);
            if filled == STAGE {
                send(&stage)?;
                filled = 0;
            }
        }
    }
    if filled > 0 {
        send(&stage[..filled])?;
    }
    Ok(taken)
}

/// Copies deciphered bytes to where `scatter` says: as many as there are, since nobody waits for those that the socket has given
/// already.
fn receive_ciphered(
    tls: &mut Session,
    stream: &TcpStream,
    scatter: &Scatter<'_>,
) -> io::Result<usize> {
    let mut socket = Raw(stream);
    // Mostly in vain, so before the stage is made.
    tls.look(&mut socket)?;
    let mut stage = [0; STAGE];
    let mut got = 0;
    for part in &scatter.0.parts[..scatter.0.count] {
        let mut done = 0;
        while done < part.iov_len {
            let wanted = (part.iov_len - done).min(STAGE);
            let n = match tls.receive(&mut stage[..wanted], &mut socket) {
                Ok(n) => n,
                // What came before the end is heard first.
                Err(_) if got > 0 => return Ok(got),
                Err(e) => return Err(e),
            };
            // SAFETY: valid for writing, as in `receive_scatter`, and `n` is at most what is left of the part.
            unsafe {
                let to = part.iov_base.cast::<u8>().add(done);
                std::ptr::copy_nonoverlapping(stage.as_ptr(), to, n);
            }
            (done, got) = (done + n, got + n);
            if n < wanted {
                return Ok(got);
            }
        }
    }
    Ok(got)
}

/// Copies bytes out of the part of a ring that a link may write.
pub fn copy_out(region: &Region, position: u64, bytes: &mut [u8]) {
    let from = region.at(position, bytes.len());
    // SAFETY: in the ring by `at`; nobody else writes there now, and if somebody does, the copy is a mixture.
    unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
}

/// Copies bytes into the part of a ring that a link may write.
pub fn copy_in(region: &Region, position: u64, bytes: &[u8]) {
    let to = region.at(position, bytes.len());
    // SAFETY: in the ring by `at`; the ring's owner gave this part to the link.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
