//! What the headers have as inline functions and macros, over the function pointers of the device's context.

use crate::bindings::verbs::*;
use std::mem::MaybeUninit;
use std::os::raw::c_int;

/// The functions of the data path. They are the device's for as long as it is open.
#[derive(Clone, Copy, Debug)]
pub struct DataPath {
    post_send: unsafe extern "C" fn(*mut ibv_qp, *mut ibv_send_wr, *mut *mut ibv_send_wr) -> c_int,
    post_recv: unsafe extern "C" fn(*mut ibv_qp, *mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int,
    poll_cq: unsafe extern "C" fn(*mut ibv_cq, c_int, *mut ibv_wc) -> c_int,
    req_notify_cq: unsafe extern "C" fn(*mut ibv_cq, c_int) -> c_int,
}

impl DataPath {
    /// `None` if the device's driver has not all of them.
    ///
    /// # Safety
    /// `context` is an open device.
    pub unsafe fn of(context: *mut ibv_context) -> Option<DataPath> {
        // SAFETY: the caller's promise.
        let ops = unsafe { &(*context).ops };
        Some(DataPath {
            post_send: ops.post_send?,
            post_recv: ops.post_recv?,
            poll_cq: ops.poll_cq?,
            req_notify_cq: ops.req_notify_cq?,
        })
    }

    /// `ibv_post_send`. 0 or an error number.
    ///
    /// # Safety
    /// `queue_pair` is live and of the device; `work` a list of requests whose parts are valid for the call. `bad` is then the
    /// first that was not posted.
    #[inline]
    pub unsafe fn post_send(
        &self,
        queue_pair: *mut ibv_qp,
        work: *mut ibv_send_wr,
        bad: &mut *mut ibv_send_wr,
    ) -> c_int {
        // SAFETY: the caller's promise.
        unsafe { (self.post_send)(queue_pair, work, bad) }
    }

    /// `ibv_post_recv`. 0 or an error number.
    ///
    /// # Safety
    /// As for [`post_send`](DataPath::post_send), and the memory named stays until the request is done.
    #[inline]
    pub unsafe fn post_recv(
        &self,
        queue_pair: *mut ibv_qp,
        work: *mut ibv_recv_wr,
        bad: &mut *mut ibv_recv_wr,
    ) -> c_int {
        // SAFETY: the caller's promise.
        unsafe { (self.post_recv)(queue_pair, work, bad) }
    }

    /// `ibv_poll_cq`: how many of `entries` were filled, from the first on, or less than 0.
    ///
    /// # Safety
    /// `queue` is live and of the device.
    #[inline]
    pub unsafe fn poll_cq(&self, queue: *mut ibv_cq, entries: &mut [MaybeUninit<ibv_wc>]) -> c_int {
        // SAFETY: the caller's promise; entries are valid for writing.
        unsafe { (self.poll_cq)(queue, entries.len() as c_int, entries.as_mut_ptr().cast()) }
    }

    /// `ibv_req_notify_cq` for completions of every kind. 0 or an error number.
    ///
    /// # Safety
    /// `queue` is live and of the device.
    #[inline]
    pub unsafe fn req_notify_cq(&self, queue: *mut ibv_cq) -> c_int {
        // SAFETY: the caller's promise.
        unsafe { (self.req_notify_cq)(queue, 0) }
    }
}

type QueryPort = unsafe extern "C" fn(*mut ibv_context, u8, *mut verbs_port, usize) -> c_int;

/// `ibv_query_port`, which is a macro: the function of that name writes a shorter structure, for old programs. 0 or an error
/// number; `EOPNOTSUPP` if the library is older than the extended context that this needs.
///
/// # Safety
/// `context` is an open device.
pub unsafe fn query_port(context: *mut ibv_context, port: u8, into: &mut verbs_port) -> c_int {
    /// `__VERBS_ABI_IS_EXTENDED`
    const EXTENDED: usize = usize::MAX;
    let back = |distance: verbs_context_layout| {
        // SAFETY: used only where the context is the last field of a verbs_context, of at least that size.
        unsafe { context.cast::<u8>().sub(distance.0 as usize) }
    };
    // SAFETY: the caller's promise.
    if unsafe { (*context).abi_compat } as usize != EXTENDED {
        return libc::EOPNOTSUPP;
    }
    // SAFETY: an extended context has its size directly before it.
    let size = unsafe {
        back(verbs_context_layout::VERBS_CONTEXT_SZ)
            .cast::<usize>()
            .read()
    };
    if size < verbs_context_layout::VERBS_CONTEXT_TAIL.0 as usize {
        return libc::EOPNOTSUPP;
    }
    // SAFETY: the size says that it goes back so far.
    let function = unsafe {
        back(verbs_context_layout::VERBS_CONTEXT_QUERY_PORT)
            .cast::<Option<QueryPort>>()
            .read()
    };
    match function {
        // SAFETY: an ibv_port_attr begins like a verbs_port (xtask has it asserted), and no more than the size that is
        // given is written.
        Some(query) => unsafe { query(context, port, into, size_of::<verbs_port>()) },
        None => libc::EOPNOTSUPP,
    }
}
