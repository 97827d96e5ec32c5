//! One end of a connection.

use crate::bindings::ucp::*;
use crate::context::{Memory, TRANSPORTS};
use crate::error::{Error, Result, check};
use crate::library::text;
use crate::worker::{Inner, Keeps, Keys, Left, Operation, Worker};
use nix::sys::socket::{SockaddrLike, SockaddrStorage};
use std::ffi::c_void;
use std::net::SocketAddr;
use std::ops::Range;
use std::ptr::{NonNull, null, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The only kind of message.
pub(crate) const MESSAGES: u32 = 0;

/// Bytes of a packed key that are read at most: one for each of 64 domains, of up to 255 bytes, and what goes before.
const LARGEST_KEY: usize = 1 << 16;

/// Which endpoint of a worker something is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(usize);

impl Key {
    /// Of a message that does not tell.
    pub(crate) const NONE: Key = Key(0);

    pub(crate) fn of(raw: ucp_ep_h) -> Key {
        Key(raw.addr())
    }
}

/// One end of a connection. It is closed when it is dropped: what is under way is then dropped too.
#[derive(Debug)]
pub struct Endpoint {
    worker: Arc<Inner>,
    raw: NonNull<ucp_ep>,
    /// No other one of this process has it, unlike its [`Key`].
    number: u64,
}

// SAFETY: used under the worker's lock.
unsafe impl Send for Endpoint {}
// SAFETY: as for Send.
unsafe impl Sync for Endpoint {}

/// What the peer has packed with [`Memory::key`], for one endpoint. UCX gets it back when it is dropped and nothing that was put by it
/// is under way any more.
#[derive(Debug)]
pub struct RemoteKey {
    unpacked: Arc<Unpacked>,
    /// After the key, which its worker destroys.
    _worker: Arc<Inner>,
}

/// The key, kept by what is under way too. That is kept by the worker when nobody else wants it, so this does not keep the worker.
#[derive(Debug)]
pub(crate) struct Unpacked {
    raw: NonNull<ucp_rkey>,
    /// Of which endpoint.
    of: u64,
    keys: Arc<Keys>,
}

// SAFETY: a name of something of the worker, and used under its lock.
unsafe impl Send for Unpacked {}
// SAFETY: as for Send.
unsafe impl Sync for Unpacked {}

impl Drop for Unpacked {
    fn drop(&mut self) {
        self.keys.give_back(self.raw);
    }
}

/// What a message carries.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    /// Nothing but the header.
    None,
    /// A part of memory.
    Memory(&'a Memory, (usize, usize)),
}

/// How a message's body goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// With it.
    Eager,
    /// It is announced, and the receiver fetches it.
    Announced,
}

unsafe extern "C" fn failed(told: *mut c_void, endpoint: ucp_ep_h, status: ucs_status_t) {
    // SAFETY: what the endpoint was made with, which lives as long as its worker.
    let told = unsafe { &*told.cast_const().cast::<crate::worker::Told>() };
    told.failed(Key::of(endpoint), status.0);
}

impl Endpoint {
    /// Asks who listens at an address for a connection. What is sent goes out when it agrees; if it does not, the endpoint fails.
    pub fn connect(worker: &Worker, to: SocketAddr) -> Result<Endpoint> {
        let address = SockaddrStorage::from(to);
        // SAFETY: all zeros is valid: null pointers.
        let mut params: ucp_ep_params_t = unsafe { std::mem::zeroed() };
        params.field_mask = u64::from(
            ucp_ep_params_field::UCP_EP_PARAM_FIELD_FLAGS.0
                | ucp_ep_params_field::UCP_EP_PARAM_FIELD_SOCK_ADDR.0,
        );
        params.flags = ucp_ep_params_flags_field::UCP_EP_PARAMS_FLAGS_CLIENT_SERVER.0;
        params.sockaddr = ucs_sock_addr_t {
            addr: address.as_ptr().cast(),
            addrlen: address.len(),
        };
        // SAFETY: the address is valid for the call.
        unsafe { Endpoint::create(&worker.0, params) }
    }

    /// # Safety
    /// What the parameters name is live, and this worker's if it is a worker's.
    pub(crate) unsafe fn create(
        worker: &Arc<Inner>,
        mut params: ucp_ep_params_t,
    ) -> Result<Endpoint> {
        const CALL: &str = "ucp_ep_create";
        params.field_mask |= u64::from(
            ucp_ep_params_field::UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE.0
                | ucp_ep_params_field::UCP_EP_PARAM_FIELD_ERR_HANDLER.0,
        );
        params.err_mode = ucp_err_handling_mode_t::UCP_ERR_HANDLING_MODE_PEER;
        params.err_handler = ucp_err_handler_t {
            cb: Some(failed),
            arg: (&raw const *worker.told).cast_mut().cast(),
        };
        let mut raw = null_mut();
        let calls = worker.lock();
        // SAFETY: the caller's promise; what the handler is given lives as long as the worker; raw is valid for writing.
        let status = unsafe {
            worker
                .ucx()
                .ucp
                .ucp_ep_create(worker.raw(), &raw const params, &raw mut raw)
        };
        drop(calls);
        check(worker.ucx(), CALL, status)?;
        let raw = NonNull::new(raw).ok_or_else(|| Error::invalid(CALL, "it has made nothing"))?;
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        Ok(Endpoint {
            worker: worker.clone(),
            raw,
            // Relaxed: that each is given out once is all.
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// What tells of it bears.
    pub fn key(&self) -> Key {
        Key(self.raw.addr().get())
    }

    /// Unpacks a key of the peer's.
    pub fn remote_key(&self, packed: &[u8]) -> Result<RemoteKey> {
        const CALL: &str = "ucp_ep_rkey_unpack";
        if packed.is_empty() || packed.len() > LARGEST_KEY / 2 {
            let why = format!("a packed key of {} bytes", packed.len());
            return Err(Error::invalid(CALL, why));
        }
        // It is not told where it ends, and believes the lengths in it.
        let mut bytes = vec![0; LARGEST_KEY];
        bytes[..packed.len()].copy_from_slice(packed);
        let mut raw = null_mut();
        let calls = self.worker.lock();
        // SAFETY: live; the bytes are more than it can read, raw is valid for writing.
        let status = unsafe {
            self.worker.ucx().ucp.ucp_ep_rkey_unpack(
                self.raw.as_ptr(),
                bytes.as_ptr().cast(),
                &raw mut raw,
            )
        };
        drop(calls);
        check(self.worker.ucx(), CALL, status)?;
        let raw = NonNull::new(raw).ok_or_else(|| Error::invalid(CALL, "it has made nothing"))?;
        let keys = self.worker.keys.clone();
        keys.count();
        Ok(RemoteKey {
            unpacked: Arc::new(Unpacked {
                raw,
                of: self.number,
                keys,
            }),
            _worker: self.worker.clone(),
        })
    }

    /// Writes a part of memory into the peer's, at an address there. That it is done says that the part is read; that it is written,
    /// only that a [`flush`](Endpoint::flush) after it is done.
    pub fn put(
        &self,
        memory: &Memory,
        range: Range<usize>,
        key: &RemoteKey,
        address: u64,
    ) -> Result<Operation> {
        const CALL: &str = "ucp_put_nbx";
        let place = memory.0.part(CALL, &range)?;
        let remote = &key.unpacked;
        if remote.of != self.number {
            return Err(Error::invalid(CALL, "the key is another endpoint's"));
        }
        // SAFETY: all zeros is valid: null pointers.
        let mut params: ucp_request_param_t = unsafe { std::mem::zeroed() };
        params.op_attr_mask = ucp_op_attr_t::UCP_OP_ATTR_FIELD_MEMH.0;
        params.memh = memory.0.raw.as_ptr();
        let calls = self.worker.lock();
        // SAFETY: live; the place is in memory that the operation keeps, and so it does the key.
        let result = unsafe {
            self.worker.ucx().ucp.ucp_put_nbx(
                self.raw.as_ptr(),
                place.cast_const().cast(),
                range.len(),
                address,
                remote.raw.as_ptr(),
                &raw const params,
            )
        };
        drop(calls);
        let keeps = || Keeps {
            memory: Some(memory.0.clone()),
            key: Some(remote.clone()),
            ..Keeps::default()
        };
        Operation::new(CALL, Some(self.key()), &self.worker, result, keeps)
    }

    /// Is done when all that was put before is written.
    pub fn flush(&self) -> Result<Operation> {
        const CALL: &str = "ucp_ep_flush_nbx";
        // SAFETY: all zeros is valid: null pointers.
        let params: ucp_request_param_t = unsafe { std::mem::zeroed() };
        let calls = self.worker.lock();
        // SAFETY: live.
        let result = unsafe {
            self.worker
                .ucx()
                .ucp
                .ucp_ep_flush_nbx(self.raw.as_ptr(), &raw const params)
        };
        drop(calls);
        Operation::new(CALL, Some(self.key()), &self.worker, result, Keeps::default)
    }

    /// Sends a message. That it is done says that its body is read.
    pub fn send(&self, header: &[u8], body: Body<'_>, how: How) -> Result<Operation> {
        const CALL: &str = "ucp_am_send_nbx";
        // SAFETY: all zeros is valid: null pointers.
        let mut params: ucp_request_param_t = unsafe { std::mem::zeroed() };
        params.op_attr_mask = ucp_op_attr_t::UCP_OP_ATTR_FIELD_FLAGS.0;
        params.flags = ucp_send_am_flags::UCP_AM_SEND_FLAG_REPLY.0;
        let (mut place, mut length, mut memory) = (null(), 0, None);
        if let Body::Memory(of, (from, to)) = body {
            place = of.0.part(CALL, &(from..to))?.cast_const();
            length = to - from;
            memory = Some(&of.0);
            params.op_attr_mask |= ucp_op_attr_t::UCP_OP_ATTR_FIELD_MEMH.0;
            params.memh = of.0.raw.as_ptr();
        }
        params.flags |= match how {
            How::Eager => ucp_send_am_flags::UCP_AM_SEND_FLAG_EAGER.0,
            How::Announced => ucp_send_am_flags::UCP_AM_SEND_FLAG_RNDV.0,
        };
        let mut calls = self.worker.lock();
        let mut kept = std::mem::take(&mut *calls);
        if kept.len() < header.len() {
            kept = vec![0; header.len()].into();
        }
        kept[..header.len()].copy_from_slice(header);
        // SAFETY: live; header and body are in what the operation keeps, if it goes on.
        let result = unsafe {
            self.worker.ucx().ucp.ucp_am_send_nbx(
                self.raw.as_ptr(),
                MESSAGES,
                kept.as_ptr().cast(),
                header.len(),
                place.cast(),
                length,
                &raw const params,
            )
        };
        if result.is_null() {
            *calls = kept;
            return Ok(Operation::done());
        }
        drop(calls);
        let keeps = || Keeps {
            memory: memory.cloned(),
            header: kept,
            ..Keeps::default()
        };
        Operation::new(CALL, Some(self.key()), &self.worker, result, keeps)
    }

    /// What carries it, once it is connected, as in `rc_verbs/rxe0:1`: transport, device and port, once each. An error if that is
    /// something else than reliable connections of a card.
    pub fn transports(&self) -> Result<Vec<String>> {
        transports(&self.description())
    }

    /// What UCX says of it, which is made for people; there is nothing else in UCX 1.13.
    fn description(&self) -> String {
        let (mut text_at, mut length) = (null_mut(), 0);
        // SAFETY: both are valid for writing until the stream is closed.
        let stream = unsafe { libc::open_memstream(&raw mut text_at, &raw mut length) };
        if stream.is_null() {
            return String::new();
        }
        let calls = self.worker.lock();
        // SAFETY: live, and the stream is open.
        unsafe {
            self.worker
                .ucx()
                .ucp
                .ucp_ep_print_info(self.raw.as_ptr(), stream.cast());
        }
        drop(calls);
        // SAFETY: closed once, after which the text ends with a zero byte, and is freed once.
        unsafe {
            libc::fclose(stream);
            let result = text(text_at);
            libc::free(text_at.cast());
            result
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if !self.worker.ucx().is_own() {
            return;
        }
        // SAFETY: all zeros is valid: null pointers.
        let mut params: ucp_request_param_t = unsafe { std::mem::zeroed() };
        params.op_attr_mask = ucp_op_attr_t::UCP_OP_ATTR_FIELD_FLAGS.0;
        params.flags = ucp_ep_close_flags_t::UCP_EP_CLOSE_FLAG_FORCE.0;
        let calls = self.worker.lock();
        // SAFETY: live, and not used after.
        let result = unsafe {
            self.worker
                .ucx()
                .ucp
                .ucp_ep_close_nbx(self.raw.as_ptr(), &raw const params)
        };
        drop(calls);
        // Another endpoint may come to bear the same name.
        self.worker.told.forget(self.key());
        let is_request = !(-100..=0).contains(&(result.addr() as isize));
        self.worker.leave(Left {
            of: Some(self.key()),
            request: NonNull::new(result).filter(|_| is_request),
            ..Left::default()
        });
    }
}

/// Those of the lines `lane[1]:  0:rc_verbs/rxe0:1.0 md[0] …`; who connects has a lane too, `lane[0]: cm rdmacm`.
fn transports(description: &str) -> Result<Vec<String>> {
    const CALL: &str = "ucp_ep_print_info";
    let mut found = Vec::new();
    for line in description.lines() {
        let Some((_, lane)) = line.split_once(" lane[") else {
            continue;
        };
        let mut words = lane.split_whitespace().skip(1);
        let resource = match words.next() {
            Some("cm") => continue,
            Some(word) => word.split_once(':').map_or(word, |(_, name)| name),
            None => "",
        };
        let transport = resource.split('/').next().unwrap_or(resource);
        if !TRANSPORTS.contains(&transport) {
            let why = format!("the connection goes over {resource:?}, which is not allowed");
            return Err(Error::invalid(CALL, why));
        }
        // The path, behind the last dot, is no matter.
        let name = resource.rsplit_once('.').map_or(resource, |(name, _)| name);
        if !found.iter().any(|known| known == name) {
            found.push(name.to_owned());
        }
    }
    match found.is_empty() {
        true => Err(Error::invalid(CALL, "the connection goes over nothing yet")),
        false => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_carries_a_connection() {
        let text = "#\n# UCP endpoint \n#\n#               peer: <no debug data>
#                 lane[0]: cm rdmacm
#                 lane[1]:  0:rc_verbs/rxe0:1.0 md[0]       -> md[0]/ib/sysdev[255] rma_bw#0 am am_bw#0 wireup
#                 lane[2]:  0:rc_verbs/rxe0:1.1 md[0]       -> md[0]/ib/sysdev[255] rma_bw#1
#
#                 am_send: 0..<egr/short>..72..<egr/bcopy>..193365..<rndv>..(inf)\n";
        assert_eq!(transports(text).unwrap(), ["rc_verbs/rxe0:1"]);
        let two = text.replace("0:rc_verbs/rxe0:1.1", "1:rc_mlx5/mlx5_0:1.0");
        assert_eq!(
            transports(&two).unwrap(),
            ["rc_verbs/rxe0:1", "rc_mlx5/mlx5_0:1"]
        );
        for other in [
            "2:tcp/eth0.0",
            "3:sysv/memory.0",
            "1:ud_verbs/rxe0:1.0",
            "<proxy>",
        ] {
            let error = transports(&text.replace("0:rc_verbs/rxe0:1.1", other)).unwrap_err();
            assert!(error.to_string().contains("not allowed"), "{error}");
        }
        assert!(transports("#  lane[0]: cm rdmacm").is_err());
    }
}
