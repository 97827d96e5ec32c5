//! Who listens for connections, by the address of a card's interface.

use crate::bindings::ucp::*;
use crate::endpoint::Endpoint;
use crate::error::{Error, Result, check};
use crate::library::Ucx;
use crate::worker::{Inner, Worker, locked};
use nix::sys::socket::{SockaddrLike, SockaddrStorage};
use std::collections::{HashMap, VecDeque};
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::net::{IpAddr, SocketAddr};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex};

/// So many requests wait to be taken: anybody can make some. Of more the oldest is refused, of the host that most of them come from.
const WAITING: usize = 64;

/// Who listens.
#[derive(Debug)]
pub struct Listener(Arc<Listening>);

#[derive(Debug)]
struct Listening {
    worker: Arc<Inner>,
    raw: NonNull<ucp_listener>,
    /// What UCX's callback reaches.
    requests: Box<Requests>,
}

#[derive(Debug)]
struct Requests {
    ucx: &'static Ucx,
    /// Null until it is made; nobody asks before.
    listener: AtomicPtr<ucp_listener>,
    waiting: Mutex<VecDeque<Asking>>,
}

#[derive(Clone, Copy, Debug)]
struct Asking {
    raw: NonNull<ucp_conn_request>,
    ip: Option<IpAddr>,
}

// SAFETY: a name of something of the worker, and used under its lock.
unsafe impl Send for Asking {}
// SAFETY: used under the worker's lock; the requests have a lock of their own.
unsafe impl Send for Listening {}
// SAFETY: as for Send.
unsafe impl Sync for Listening {}

/// Somebody who wants to connect: accept. To drop it is to refuse.
#[derive(Debug)]
pub struct Request {
    listening: Arc<Listening>,
    asking: Asking,
}

/// UCX calls it in the course of `ucp_worker_progress`, so the worker's lock is held.
unsafe extern "C" fn asked(request: ucp_conn_request_h, requests: *mut c_void) {
    // SAFETY: what the listener was made with, which lives as long as it.
    let requests = unsafe { &*requests.cast_const().cast::<Requests>() };
    let Some(raw) = NonNull::new(request) else {
        return;
    };
    let ip = requests.ip(raw);
    let mut waiting = locked(&requests.waiting);
    if waiting.len() >= WAITING
        && let Some(gone) = oldest_of_most(waiting.iter().map(|asking| asking.ip))
        && let Some(gone) = waiting.remove(gone)
    {
        requests.reject(gone);
    }
    waiting.push_back(Asking { raw, ip });
}

/// The first one of the host that has the most.
fn oldest_of_most(ips: impl Iterator<Item = Option<IpAddr>> + Clone) -> Option<usize> {
    let mut counts = HashMap::new();
    ips.clone()
        .for_each(|ip| *counts.entry(ip).or_insert(0) += 1);
    let most = counts.values().copied().max()?;
    ips.into_iter().position(|ip| counts[&ip] == most)
}

impl Requests {
    /// Where a request comes from. The worker's lock is held.
    fn ip(&self, raw: NonNull<ucp_conn_request>) -> Option<IpAddr> {
        // SAFETY: all zeros is valid for plain numbers.
        let mut attributes: ucp_conn_request_attr_t = unsafe { std::mem::zeroed() };
        attributes.field_mask =
            u64::from(ucp_conn_request_attr_field::UCP_CONN_REQUEST_ATTR_FIELD_CLIENT_ADDR.0);
        // SAFETY: live; the attributes are valid for writing.
        let status = unsafe {
            self.ucx
                .ucp
                .ucp_conn_request_query(raw.as_ptr(), &raw mut attributes)
        };
        check(self.ucx, "ucp_conn_request_query", status).ok()?;
        let address = (&raw const attributes.client_address).cast();
        // SAFETY: as long as any address, and of the family that it says.
        let storage = unsafe { SockaddrStorage::from_raw(address, None) }?;
        let v4 = storage.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    }

    /// Refuses. The worker's lock is held.
    fn reject(&self, asking: Asking) {
        // What cannot be refused hears nothing, and gives up.
        // SAFETY: both are live, for who asks has found the listener, and the request is not used after.
        let _ = unsafe {
            self.ucx
                .ucp
                .ucp_listener_reject(self.listener.load(Ordering::Relaxed), asking.raw.as_ptr())
        };
    }
}

impl Listener {
    /// Listens at an address of this host. Port 0 is any: [`Listener::port`] tells which.
    pub fn new(worker: &Worker, address: SocketAddr) -> Result<Listener> {
        const CALL: &str = "ucp_listener_create";
        let worker = worker.0.clone();
        let requests = Box::new(Requests {
            ucx: worker.ucx(),
            listener: AtomicPtr::new(null_mut()),
            waiting: Mutex::default(),
        });
        let address = SockaddrStorage::from(address);
        // SAFETY: all zeros is valid: null pointers.
        let mut params: ucp_listener_params_t = unsafe { std::mem::zeroed() };
        params.field_mask = u64::from(
            ucp_listener_params_field::UCP_LISTENER_PARAM_FIELD_SOCK_ADDR.0
                | ucp_listener_params_field::UCP_LISTENER_PARAM_FIELD_CONN_HANDLER.0,
        );
        params.sockaddr = ucs_sock_addr_t {
            addr: address.as_ptr().cast(),
            addrlen: address.len(),
        };
        params.conn_handler = ucp_listener_conn_handler_t {
            cb: Some(asked),
            arg: (&raw const *requests).cast_mut().cast(),
        };
        let mut raw = null_mut();
        let calls = worker.lock();
        // SAFETY: live; the address is valid for the call, the argument as long as the listener; raw is valid for writing.
        let status = unsafe {
            worker
                .ucx()
                .ucp
                .ucp_listener_create(worker.raw(), &raw const params, &raw mut raw)
        };
        // Before the lock is let go: from then on it may be asked.
        requests.listener.store(raw, Ordering::Relaxed);
        drop(calls);
        check(worker.ucx(), CALL, status)?;
        let raw = NonNull::new(raw).ok_or_else(|| Error::invalid(CALL, "it has made nothing"))?;
        Ok(Listener(Arc::new(Listening {
            worker,
            raw,
            requests,
        })))
    }

    /// The port that it has taken.
    pub fn port(&self) -> Result<u16> {
        let worker = &self.0.worker;
        // SAFETY: all zeros is valid for plain numbers.
        let mut attributes: ucp_listener_attr_t = unsafe { std::mem::zeroed() };
        attributes.field_mask =
            u64::from(ucp_listener_attr_field::UCP_LISTENER_ATTR_FIELD_SOCKADDR.0);
        let _calls = worker.lock();
        // SAFETY: live; the attributes are valid for writing.
        let status = unsafe {
            worker
                .ucx()
                .ucp
                .ucp_listener_query(self.0.raw.as_ptr(), &raw mut attributes)
        };
        check(worker.ucx(), "ucp_listener_query", status)?;
        // SAFETY: both kinds of address have the port behind the family.
        let address: libc::sockaddr_in = unsafe {
            (&raw const attributes.sockaddr)
                .cast::<libc::sockaddr_in>()
                .read()
        };
        Ok(u16::from_be(address.sin_port))
    }

    /// The next who wants to connect.
    pub fn request(&self) -> Option<Request> {
        self.request_first(|_| false)
    }

    /// The same, but first of those whose address is `preferred`.
    pub fn request_first(&self, preferred: impl Fn(Option<IpAddr>) -> bool) -> Option<Request> {
        let mut waiting = locked(&self.0.requests.waiting);
        let first = waiting.iter().position(|asking| preferred(asking.ip));
        let asking = waiting.remove(first.unwrap_or(0))?;
        let listening = self.0.clone();
        Some(Request { listening, asking })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if self.worker.ucx().is_own() {
            let _calls = self.worker.lock();
            for asking in locked(&self.requests.waiting).drain(..) {
                self.requests.reject(asking);
            }
            // SAFETY: live, and nobody uses it any more.
            unsafe {
                self.worker
                    .ucx()
                    .ucp
                    .ucp_listener_destroy(self.raw.as_ptr())
            };
        }
    }
}

impl Request {
    /// Where it comes from.
    pub fn peer_ip(&self) -> Option<IpAddr> {
        self.asking.ip
    }

    /// Agrees.
    pub fn accept(self) -> Result<Endpoint> {
        let this = ManuallyDrop::new(self);
        // SAFETY: moved out once, and not dropped.
        let listening = unsafe { std::ptr::read(&this.listening) };
        // SAFETY: all zeros is valid: null pointers.
        let mut params: ucp_ep_params_t = unsafe { std::mem::zeroed() };
        params.field_mask = u64::from(ucp_ep_params_field::UCP_EP_PARAM_FIELD_CONN_REQUEST.0);
        params.conn_request = this.asking.raw.as_ptr();
        // SAFETY: the request is live, of this worker, and used up by this.
        unsafe { Endpoint::create(&listening.worker, params) }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if self.listening.worker.ucx().is_own() {
            let _calls = self.listening.worker.lock();
            self.listening.requests.reject(self.asking);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crowd_makes_room() {
        let of = |ips: &[u8]| {
            let ip = |n: &u8| (*n > 0).then(|| IpAddr::from([10, 0, 0, *n]));
            oldest_of_most(ips.iter().map(ip))
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[1]), Some(0));
        assert_eq!(of(&[1, 2, 2, 3]), Some(1));
        assert_eq!(of(&[1, 2, 3]), Some(0));
        assert_eq!(of(&[1, 0, 0]), Some(1));
    }
}
