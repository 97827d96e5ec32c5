//! Who listens for connections, by the address of a card's interface.

use crate::bindings::ucp::*;
use crate::endpoint::Endpoint;
use crate::error::{Error, Result, check};
use crate::worker::{Inner, Worker, locked};
use nix::sys::socket::{SockaddrLike, SockaddrStorage};
use std::collections::VecDeque;
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::net::{IpAddr, SocketAddr};
use std::ptr::{NonNull, null_mut};
use std::sync::{Arc, Mutex};

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

type Requests = Mutex<VecDeque<Asking>>;

#[derive(Clone, Copy, Debug)]
struct Asking(NonNull<ucp_conn_request>);

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

unsafe extern "C" fn asked(request: ucp_conn_request_h, requests: *mut c_void) {
    // SAFETY: what the listener was made with, which lives as long as it.
    let requests = unsafe { &*requests.cast_const().cast::<Requests>() };
    locked(requests).extend(NonNull::new(request).map(Asking));
}

impl Listener {
    /// Listens at an address of this host. Port 0 is any: [`Listener::port`] tells which.
    pub fn new(worker: &Worker, address: SocketAddr) -> Result<Listener> {
        const CALL: &str = "ucp_listener_create";
        let worker = worker.0.clone();
        let requests: Box<Requests> = Box::default();
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
        let asking = locked(&self.0.requests).pop_front()?;
        let listening = self.0.clone();
        Some(Request { listening, asking })
    }
}

impl Listening {
    fn reject(&self, asking: Asking) {
        // What cannot be refused hears nothing, and gives up.
        // SAFETY: both are live, and the request is not used after.
        let _ = unsafe {
            self.worker
                .ucx()
                .ucp
                .ucp_listener_reject(self.raw.as_ptr(), asking.0.as_ptr())
        };
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if self.worker.ucx().is_own() {
            let _calls = self.worker.lock();
            for asking in locked(&self.requests).drain(..) {
                self.reject(asking);
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
        let worker = &self.listening.worker;
        // SAFETY: all zeros is valid for plain numbers.
        let mut attributes: ucp_conn_request_attr_t = unsafe { std::mem::zeroed() };
        attributes.field_mask =
            u64::from(ucp_conn_request_attr_field::UCP_CONN_REQUEST_ATTR_FIELD_CLIENT_ADDR.0);
        let calls = worker.lock();
        // SAFETY: live; the attributes are valid for writing.
        let status = unsafe {
            worker
                .ucx()
                .ucp
                .ucp_conn_request_query(self.asking.0.as_ptr(), &raw mut attributes)
        };
        drop(calls);
        check(worker.ucx(), "ucp_conn_request_query", status).ok()?;
        let address = (&raw const attributes.client_address).cast();
        // SAFETY: as long as any address, and of the family that it says.
        let storage = unsafe { SockaddrStorage::from_raw(address, None) }?;
        let v4 = storage.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    }

    /// Agrees.
    pub fn accept(self) -> Result<Endpoint> {
        let this = ManuallyDrop::new(self);
        // SAFETY: moved out once, and not dropped.
        let listening = unsafe { std::ptr::read(&this.listening) };
        // SAFETY: all zeros is valid: null pointers.
        let mut params: ucp_ep_params_t = unsafe { std::mem::zeroed() };
        params.field_mask = u64::from(ucp_ep_params_field::UCP_EP_PARAM_FIELD_CONN_REQUEST.0);
        params.conn_request = this.asking.0.as_ptr();
        // SAFETY: the request is live, of this worker, and used up by this.
        unsafe { Endpoint::create(&listening.worker, params) }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if self.listening.worker.ucx().is_own() {
            let _calls = self.listening.worker.lock();
            self.listening.reject(self.asking);
        }
    }
}
