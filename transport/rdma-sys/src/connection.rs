//! The connection manager: how two hosts find each other, over InfiniBand, RoCE or iWARP.
//!
//! ```text
//!   dials:   resolve_address → AddressResolved → resolve_route → RouteResolved → (queue pair) connect ─┐
//!   listens: bind, listen ──────────────────────────────────→ ConnectRequest → (queue pair) accept ────┴→ Established
//! ```
//!
//! Nothing here waits: what is begun ends in an event of the channel.

use crate::bindings::rdmacm::*;
use crate::bindings::verbs::ibv_context;
use crate::error::{Error, Result, check, drop_it};
use crate::library::{Verbs, text};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockaddrLike, SockaddrStorage};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::os::raw::c_void;
use std::ptr::{NonNull, null_mut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The most bytes that a request to connect can carry, and an answer to it at least.
pub const PRIVATE_DATA: usize = 56;

/// What tells how connections come along.
#[derive(Clone, Debug)]
pub struct EventChannel(Arc<Channel>);

#[derive(Debug)]
struct Channel {
    verbs: &'static Verbs,
    raw: NonNull<rdma_event_channel>,
    /// Held while an event is taken: the library then changes the state of the queue pair that the event is about, which must
    /// not be destroyed meanwhile.
    taking: Mutex<()>,
}

// SAFETY: the library may be called from any thread; a channel is a file descriptor.
unsafe impl Send for Channel {}
// SAFETY: as for Send.
unsafe impl Sync for Channel {}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: live, and no connection uses it any more: each keeps its channel.
        unsafe {
            self.verbs.cm.rdma_destroy_event_channel(self.raw.as_ptr());
        }
    }
}

impl Channel {
    fn lock(&self) -> MutexGuard<'_, ()> {
        self.taking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel is live, and its descriptor open as long as it.
        unsafe { BorrowedFd::borrow_raw((*self.raw.as_ptr()).fd) }
    }
}

/// Which connection an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(usize);

/// What happened to a connection.
#[derive(Debug)]
pub struct Event {
    /// Which it is about; of [`EventKind::ConnectRequest`], who listened.
    pub key: Key,
    /// What.
    pub kind: EventKind,
    /// What the other side sent with it, followed by zeros up to what the transport sends.
    pub private_data: Vec<u8>,
}

/// See [`Event`].
#[derive(Debug)]
pub enum EventKind {
    /// [`ConnectionId::resolve_address`] has succeeded.
    AddressResolved,
    /// [`ConnectionId::resolve_route`] has succeeded.
    RouteResolved,
    /// Somebody wants to connect: accept or reject. To drop it is to reject it.
    ConnectRequest(ConnectionId),
    /// Data can flow.
    Established,
    /// The other side does not want to. Its words are in the private data.
    Rejected,
    /// The connection has ended, and no data can come.
    Disconnected,
    /// No packet of the connection can be under way any more.
    TimewaitExit,
    /// The device goes away, and with it the connection, or whoever listens at an address of it. Not before all that there is of
    /// it in this process is dropped: the kernel waits for that.
    DeviceRemoved,
    /// It came to nothing, and why.
    Failed(String),
}

impl EventChannel {
    /// Opens one, of whose events none is waited for.
    pub fn new(verbs: &'static Verbs) -> Result<EventChannel> {
        // SAFETY: takes nothing.
        let raw = unsafe { verbs.cm.rdma_create_event_channel() };
        let Some(raw) = NonNull::new(raw) else {
            return Err(Error::last("rdma_create_event_channel").mend(
                "the kernel's connection manager does not answer: modprobe rdma_ucm, and see that this user may open \
                 /dev/infiniband/rdma_cm",
            ));
        };
        let channel = Channel {
            verbs,
            raw,
            taking: Mutex::new(()),
        };
        without_waiting(channel.fd())?;
        Ok(EventChannel(Arc::new(channel)))
    }

    /// Readable when there is an event.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }

    /// The next event, without waiting.
    pub fn next_event(&self) -> Result<Option<Event>> {
        let cm = &self.0.verbs.cm;
        let taking = self.0.lock();
        let mut raw = null_mut();
        // SAFETY: the channel is live, raw is valid for writing.
        if unsafe { cm.rdma_get_cm_event(self.0.raw.as_ptr(), &raw mut raw) } != 0 {
            let error = Error::last("rdma_get_cm_event");
            return match error.errno() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(None),
                _ => Err(error),
            };
        }
        // SAFETY: an event, until it is acknowledged below.
        let event = unsafe { self.copy(&*raw) };
        // At once, for who destroys a connection waits for that.
        // SAFETY: acknowledged once, and not used after.
        let acknowledged = unsafe { cm.rdma_ack_cm_event(raw) };
        drop(taking);
        check("rdma_ack_cm_event", acknowledged)?;
        Ok(Some(event))
    }

    /// # Safety
    /// `raw` is an event of this channel that is not acknowledged yet.
    unsafe fn copy(&self, raw: &cm_event) -> Event {
        let private_data = match raw.conn.private_data.is_null() {
            true => Vec::new(),
            // SAFETY: the library has copied so many bytes into the event, or zeroed it where a kind has none.
            false => unsafe {
                let length = usize::from(raw.conn.private_data_len);
                std::slice::from_raw_parts(raw.conn.private_data.cast::<u8>(), length).to_vec()
            },
        };
        let mut key = Key(raw.id.addr());
        let kind = match raw.event {
            rdma_cm_event_type::RDMA_CM_EVENT_ADDR_RESOLVED => EventKind::AddressResolved,
            rdma_cm_event_type::RDMA_CM_EVENT_ROUTE_RESOLVED => EventKind::RouteResolved,
            rdma_cm_event_type::RDMA_CM_EVENT_ESTABLISHED => EventKind::Established,
            rdma_cm_event_type::RDMA_CM_EVENT_REJECTED => EventKind::Rejected,
            rdma_cm_event_type::RDMA_CM_EVENT_DISCONNECTED => EventKind::Disconnected,
            rdma_cm_event_type::RDMA_CM_EVENT_TIMEWAIT_EXIT => EventKind::TimewaitExit,
            rdma_cm_event_type::RDMA_CM_EVENT_DEVICE_REMOVAL => EventKind::DeviceRemoved,
            rdma_cm_event_type::RDMA_CM_EVENT_CONNECT_REQUEST => match NonNull::new(raw.id) {
                Some(id) => {
                    key = Key(raw.listen_id.addr());
                    EventKind::ConnectRequest(ConnectionId(Arc::new(Id {
                        verbs: self.0.verbs,
                        raw: id,
                        channel: Mutex::new(self.0.clone()),
                    })))
                }
                None => EventKind::Failed("a request to connect without a connection".to_owned()),
            },
            kind => {
                // SAFETY: any number will do.
                let what = unsafe { text(self.0.verbs.cm.rdma_event_str(kind)) };
                EventKind::Failed(match raw.status {
                    // Error numbers come negative, a transport's own reasons not.
                    status @ ..0 => {
                        let error = std::io::Error::from_raw_os_error(status.saturating_neg());
                        format!("{what}: {error}")
                    }
                    0 => what,
                    status => format!("{what}: reason {status}"),
                })
            }
        };
        Event {
            key,
            kind,
            private_data,
        }
    }
}

/// One end of a connection, or who listens for some.
#[derive(Debug)]
pub struct ConnectionId(Arc<Id>);

/// A `rdma_cm_id`. Whatever is made of a connection's device keeps it, for without it the device may be closed.
#[derive(Debug)]
pub(crate) struct Id {
    pub verbs: &'static Verbs,
    raw: NonNull<rdma_cm_id>,
    channel: Mutex<Arc<Channel>>,
}

// SAFETY: the library may be called from any thread, and locks what its threads share.
unsafe impl Send for Id {}
// SAFETY: as for Send.
unsafe impl Sync for Id {}

impl Drop for Id {
    fn drop(&mut self) {
        drop_it(self.verbs, "rdma_destroy_id", || {
            // SAFETY: live, and nobody uses it any more. No event of it is unacknowledged for longer than a copy takes.
            let result = unsafe { self.verbs.cm.rdma_destroy_id(self.raw()) };
            check("rdma_destroy_id", result)
        });
    }
}

impl Id {
    pub fn raw(&self) -> *mut rdma_cm_id {
        self.raw.as_ptr()
    }

    /// Null before a device is found.
    pub fn raw_context(&self) -> *mut ibv_context {
        // SAFETY: live; the field is set while an event is taken, and not changed after.
        unsafe { (*self.raw()).verbs }
    }

    pub fn context(&self, wanted_by: &'static str) -> Result<NonNull<ibv_context>> {
        NonNull::new(self.between_events(|| self.raw_context())).ok_or_else(|| {
            let why = "the connection has no device yet: resolve its address first";
            Error::invalid(wanted_by, why)
        })
    }

    pub fn port(&self) -> u8 {
        // SAFETY: live.
        unsafe { (*self.raw()).port_num }
    }

    /// Runs `change` while no event is taken from the connection's channel.
    pub fn between_events<T>(&self, change: impl FnOnce() -> T) -> T {
        let channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        let _taking = channel.lock();
        change()
    }
}

impl ConnectionId {
    /// A new one, whose events come from `channel`.
    pub fn new(channel: &EventChannel) -> Result<ConnectionId> {
        let verbs = channel.0.verbs;
        let mut raw = null_mut();
        // SAFETY: the channel is live, raw is valid for writing.
        let result = unsafe {
            verbs.cm.rdma_create_id(
                channel.0.raw.as_ptr(),
                &raw mut raw,
                null_mut(),
                rdma_port_space::RDMA_PS_TCP,
            )
        };
        check("rdma_create_id", result)?;
        let raw = NonNull::new(raw).ok_or_else(|| Error::number("rdma_create_id", libc::EINVAL))?;
        Ok(ConnectionId(Arc::new(Id {
            verbs,
            raw,
            channel: Mutex::new(channel.0.clone()),
        })))
    }

    pub(crate) fn inner(&self) -> &Arc<Id> {
        &self.0
    }

    fn cm(&self) -> &'static Rdmacm {
        &self.0.verbs.cm
    }

    /// What its events bear.
    pub fn key(&self) -> Key {
        Key(self.0.raw.addr().get())
    }

    /// Lets others bind the same address soon after this one.
    pub fn set_reuse_address(&self) -> Result<()> {
        self.set_option(cm_option::CM_REUSEADDR, &mut 1i32)
    }

    /// A packet that is not acknowledged within 4.096 µs · 2^`exponent` is sent again. To be called before the route is
    /// resolved; of whoever listens, it is for the accepted ones.
    pub fn set_ack_timeout(&self, exponent: u8) -> Result<()> {
        self.set_option(cm_option::CM_ACK_TIMEOUT, &mut { exponent })
    }

    fn set_option<T>(&self, option: cm_option, value: &mut T) -> Result<()> {
        // SAFETY: live; value is valid for reading, of the length given.
        let result = unsafe {
            self.cm().rdma_set_option(
                self.0.raw(),
                cm_option::CM_LEVEL_ID.0 as i32,
                option.0 as i32,
                (&raw mut *value).cast::<c_void>(),
                size_of::<T>(),
            )
        };
        check("rdma_set_option", result)
    }

    /// Takes an address of this host. Port 0 is any: [`ConnectionId::local_port`] tells which.
    pub fn bind(&self, address: SocketAddr) -> Result<()> {
        let address = SockaddrStorage::from(address);
        // SAFETY: live; the address is valid for reading, and not written.
        let result = unsafe {
            self.cm()
                .rdma_bind_addr(self.0.raw(), address.as_ptr().cast_mut().cast())
        };
        check("rdma_bind_addr", result).map_err(|error| {
            error.mend("the address must be one of this host, best of the interface of an RDMA device (`rdma link`)")
        })
    }

    /// Requests come as events from now on; at most `backlog` of them wait.
    pub fn listen(&self, backlog: u16) -> Result<()> {
        // SAFETY: live.
        let result = unsafe { self.cm().rdma_listen(self.0.raw(), i32::from(backlog)) };
        check("rdma_listen", result)
    }

    /// The port that it has taken, 0 before.
    pub fn local_port(&self) -> u16 {
        // SAFETY: live.
        u16::from_be(unsafe { self.cm().rdma_get_src_port(self.0.raw()) })
    }

    /// Whom a connection leads to, once that is known; where it was asked for, who asked.
    pub fn peer_ip(&self) -> Option<IpAddr> {
        // SAFETY: live; the address is set before anybody is told of the connection, and is of the family that it says.
        let storage = unsafe {
            let address = &raw const (*self.0.raw()).route.addr.__bindgen_anon_2.dst_storage;
            SockaddrStorage::from_raw(address.cast(), None)
        }?;
        let v4 = storage.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    }

    /// Looks for the device that leads to an address, from one of this host's if one is given.
    pub fn resolve_address(
        &self,
        from: Option<SocketAddr>,
        to: SocketAddr,
        within: Duration,
    ) -> Result<()> {
        let from = from.map(SockaddrStorage::from);
        let to = SockaddrStorage::from(to);
        // SAFETY: live; the addresses are valid for reading, and not written.
        let result = unsafe {
            self.cm().rdma_resolve_addr(
                self.0.raw(),
                from.as_ref()
                    .map_or(null_mut(), |from| from.as_ptr().cast_mut().cast()),
                to.as_ptr().cast_mut().cast(),
                milliseconds(within),
            )
        };
        check("rdma_resolve_addr", result)
    }

    /// Looks for the way to the address.
    pub fn resolve_route(&self, within: Duration) -> Result<()> {
        // SAFETY: live.
        let result = unsafe {
            self.cm()
                .rdma_resolve_route(self.0.raw(), milliseconds(within))
        };
        check("rdma_resolve_route", result)
    }

    /// Asks the other side for a connection. The queue pair is made before, so that it is ready for what comes at once.
    pub fn connect(&self, private_data: &[u8]) -> Result<()> {
        let mut parameters = parameters("rdma_connect", private_data)?;
        // SAFETY: live; the parameters and what they name are valid for the call.
        let result = unsafe { self.cm().rdma_connect(self.0.raw(), &raw mut parameters) };
        check("rdma_connect", result)
    }

    /// Agrees to a request. The queue pair is made before.
    pub fn accept(&self, private_data: &[u8]) -> Result<()> {
        let mut parameters = parameters("rdma_accept", private_data)?;
        // SAFETY: live; the parameters and what they name are valid for the call.
        let result = unsafe { self.cm().rdma_accept(self.0.raw(), &raw mut parameters) };
        check("rdma_accept", result)
    }

    /// Refuses a request.
    pub fn reject(&self, private_data: &[u8]) -> Result<()> {
        let parameters = parameters("rdma_reject", private_data)?;
        // SAFETY: live; the data are valid for the call.
        let result = unsafe {
            self.cm().rdma_reject(
                self.0.raw(),
                parameters.private_data,
                parameters.private_data_len,
            )
        };
        check("rdma_reject", result)
    }

    /// Tells the other side that the connection ends, and fails what is posted.
    pub fn disconnect(&self) -> Result<()> {
        // SAFETY: live.
        let result = unsafe { self.cm().rdma_disconnect(self.0.raw()) };
        check("rdma_disconnect", result)
    }

    /// From now on its events come from `channel`. For connections that another thread is to go on with.
    pub fn migrate(&self, channel: &EventChannel) -> Result<()> {
        let mut own = self
            .0
            .channel
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // SAFETY: both live. It waits for events to be acknowledged, which they are at once.
        let result = unsafe {
            self.cm()
                .rdma_migrate_id(self.0.raw(), channel.0.raw.as_ptr())
        };
        check("rdma_migrate_id", result)?;
        *own = channel.0.clone();
        Ok(())
    }
}

fn milliseconds(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX)
}

fn parameters(call: &'static str, private_data: &[u8]) -> Result<rdma_conn_param> {
    if private_data.len() > PRIVATE_DATA {
        let why = format!("at most {PRIVATE_DATA} bytes of private data");
        return Err(Error::invalid(call, why));
    }
    // SAFETY: all zeros is valid: no data, no RDMA READs in either direction, of which there are none.
    let mut parameters: rdma_conn_param = unsafe { std::mem::zeroed() };
    parameters.private_data = private_data.as_ptr().cast();
    parameters.private_data_len = private_data.len() as u8;
    parameters.retry_count = 7;
    // 7 would be for ever. Who keeps to the protocol always has room for what comes.
    parameters.rnr_retry_count = 6;
    Ok(parameters)
}

/// Makes calls on a descriptor of the libraries return instead of waiting.
pub(crate) fn without_waiting(fd: BorrowedFd<'_>) -> Result<()> {
    let result = fcntl(fd, FcntlArg::F_GETFL).and_then(|flags| {
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(fd, FcntlArg::F_SETFL(flags))
    });
    match result {
        Ok(_) => Ok(()),
        Err(errno) => Err(Error::number("fcntl", errno as i32)),
    }
}
