//! Who moves things along: nothing is sent or received but in [`Worker::progress`].

use crate::bindings::ucp::*;
use crate::context::{self, Context, Mapped, Memory};
use crate::endpoint::{Key, MESSAGES, Unpacked};
use crate::error::{Error, Result, check};
use crate::library::Ucx;
use std::ffi::c_void;
use std::fmt;
use std::ops::Range;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracing::error;

/// What is closed gets so long to end, where nobody else drives the worker any more.
const PATIENCE: Duration = Duration::from_secs(1);

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who moves things along, for all endpoints that are made of it.
#[derive(Debug)]
pub struct Worker(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub context: Arc<context::Inner>,
    raw: NonNull<ucp_worker>,
    fd: RawFd,
    /// Held during each call on the worker or an endpoint of it.
    calls: Mutex<Spare>,
    /// Something may be in `left`: looked at with each turn, for which a lock is too dear.
    has_left: AtomicBool,
    /// What UCX's callbacks reach.
    pub told: Box<Told>,
    /// What its owners have dropped, and UCX is not done with.
    left: Mutex<Vec<Left>>,
    pub keys: Arc<Keys>,
}

/// A place for the next header: one that UCX was done with at once, which is the rule.
pub(crate) type Spare = Box<[u8]>;

/// Remote keys that UCX has for a worker.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    counted: Mutex<Counted>,
    /// As [`Inner::has_left`].
    has_over: AtomicBool,
}

#[derive(Debug, Default)]
struct Counted {
    count: usize,
    /// Those that nobody can use any more, to be destroyed under the worker's lock.
    over: Vec<Over>,
}

#[derive(Debug)]
struct Over(NonNull<ucp_rkey>);

// SAFETY: a name of something of the worker, and used under its lock.
unsafe impl Send for Over {}

impl Keys {
    /// There is another one.
    pub fn count(&self) {
        locked(&self.counted).count += 1;
    }

    /// Nobody has this one any more.
    pub fn give_back(&self, raw: NonNull<ucp_rkey>) {
        locked(&self.counted).over.push(Over(raw));
        // Relaxed, as wherever this is used: the lock orders what it tells of, and a turn that misses it is not the last.
        self.has_over.store(true, Ordering::Relaxed);
    }
}

/// What UCX tells in the course of a call.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// A [`Turn`], while there is one.
    turn: AtomicPtr<c_void>,
    /// Endpoints that have failed, and with which `ucs_status_t`.
    failures: Mutex<Vec<(Key, i8)>>,
    /// As [`Inner::has_left`].
    has_failures: AtomicBool,
}

impl Told {
    /// An endpoint has failed.
    pub fn failed(&self, key: Key, status: i8) {
        locked(&self.failures).push((key, status));
        self.has_failures.store(true, Ordering::Relaxed);
    }

    /// What was told of an endpoint is of no interest any more.
    pub fn forget(&self, key: Key) {
        locked(&self.failures).retain(|(failed, _)| *failed != key);
    }
}

/// A [`Worker::progress`], to which messages go.
struct Turn<'a> {
    worker: &'a Arc<Inner>,
    sink: &'a mut dyn FnMut(Arrival<'_>),
}

#[derive(Debug, Default)]
pub(crate) struct Left {
    /// Whose it is, if an endpoint's.
    pub of: Option<Key>,
    pub request: Option<NonNull<c_void>>,
    #[expect(dead_code, reason = "kept, not read")]
    pub keeps: Keeps,
    /// Of data that nobody wants.
    pub description: Option<NonNull<c_void>>,
}

// SAFETY: the pointers are names of things of the worker, and used under its lock.
unsafe impl Send for Left {}

// SAFETY: calls take turns by the lock, which is what the worker is made for; what the callbacks reach has locks of its own.
unsafe impl Send for Inner {}
// SAFETY: as for Send.
unsafe impl Sync for Inner {}

/// What UCX reads for as long as an operation is under way.
#[derive(Debug, Default)]
#[expect(dead_code, reason = "kept, not read")]
pub(crate) struct Keeps {
    pub memory: Option<Arc<Mapped>>,
    pub key: Option<Arc<Unpacked>>,
    pub header: Box<[u8]>,
}

/// Something that has come. What it refers to is gone when the sink returns.
#[derive(Debug)]
pub struct Arrival<'a> {
    /// From which endpoint of this worker's.
    pub from: Key,
    /// What goes before the data.
    pub header: &'a [u8],
    /// The data.
    pub data: Received<'a>,
}

/// See [`Arrival`].
#[derive(Debug)]
pub enum Received<'a> {
    /// Here they are.
    Bytes(&'a [u8]),
    /// They are to be fetched.
    Announced(Announced),
}

/// Data that the sender has announced. To drop it is to do without.
pub struct Announced {
    worker: Arc<Inner>,
    description: NonNull<c_void>,
    length: usize,
}

// SAFETY: a name of something of the worker, and used under its lock.
unsafe impl Send for Announced {}

impl fmt::Debug for Announced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Announced {}", self.length)
    }
}

impl Inner {
    pub fn ucx(&self) -> &'static Ucx {
        self.context.ucx
    }

    /// For a call on the worker or an endpoint of it.
    pub fn lock(&self) -> MutexGuard<'_, Spare> {
        locked(&self.calls)
    }

    pub fn raw(&self) -> ucp_worker_h {
        self.raw.as_ptr()
    }

    pub fn leave(&self, left: Left) {
        locked(&self.left).push(left);
        self.has_left.store(true, Ordering::Relaxed);
    }

    fn progress_once(&self) -> bool {
        // SAFETY: live, and the caller holds the lock, or is the last.
        unsafe { self.ucx().ucp.ucp_worker_progress(self.raw()) != 0 }
    }

    /// Lets go of what UCX is done with. How much is left then.
    fn tidy(&self) -> usize {
        let ucp = &self.ucx().ucp;
        let mut left = locked(&self.left);
        left.retain_mut(|left| {
            if let Some(request) = left.request {
                // SAFETY: a request of this worker that is not freed yet.
                if unsafe { ucp.ucp_request_check_status(request.as_ptr()) }
                    == ucs_status_t::UCS_INPROGRESS
                {
                    return true;
                }
                // SAFETY: the same, and freed once.
                unsafe { ucp.ucp_request_free(request.as_ptr()) };
            }
            if let Some(description) = left.description {
                // SAFETY: live, released once.
                unsafe { ucp.ucp_am_data_release(self.raw(), description.as_ptr()) };
            }
            false
        });
        self.has_left.store(!left.is_empty(), Ordering::Relaxed);
        // What was done with kept some.
        let mut keys = locked(&self.keys.counted);
        self.keys.has_over.store(false, Ordering::Relaxed);
        keys.count -= keys.over.len();
        for key in keys.over.drain(..) {
            // SAFETY: live, destroyed once, and nothing is under way with it, for that would keep it.
            unsafe { ucp.ucp_rkey_destroy(key.0.as_ptr()) };
        }
        left.len()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if !self.ucx().is_own() {
            return;
        }
        // Endpoints keep the worker, so they are closed, or about to be.
        let begun = Instant::now();
        while self.tidy() > 0 {
            if begun.elapsed() > PATIENCE {
                error!("UCX does not end a connection: its worker stays until this process ends");
                // Nor may the memory go that it reads.
                std::mem::take(&mut *locked(&self.left))
                    .into_iter()
                    .for_each(std::mem::forget);
                std::mem::forget(self.context.clone());
                return;
            }
            self.progress_once();
        }
        // SAFETY: live, and nothing of it is left.
        unsafe { self.ucx().ucp.ucp_worker_destroy(self.raw()) };
    }
}

impl Worker {
    /// A new one.
    pub fn new(context: &Context) -> Result<Worker> {
        let (ucx, context) = (context.ucx(), context.0.clone());
        // SAFETY: all zeros is valid: null pointers.
        let mut params: ucp_worker_params_t = unsafe { std::mem::zeroed() };
        params.field_mask =
            u64::from(ucp_worker_params_field::UCP_WORKER_PARAM_FIELD_THREAD_MODE.0);
        params.thread_mode = ucs_thread_mode_t::UCS_THREAD_MODE_SERIALIZED;
        let mut raw = null_mut();
        // SAFETY: the context is live, raw is valid for writing.
        let status = unsafe {
            ucx.ucp
                .ucp_worker_create(context.raw(), &raw const params, &raw mut raw)
        };
        check(ucx, "ucp_worker_create", status)?;
        let raw = NonNull::new(raw)
            .ok_or_else(|| Error::invalid("ucp_worker_create", "it has made nothing"))?;
        let mut worker = Inner {
            context,
            raw,
            fd: -1,
            calls: Mutex::default(),
            has_left: AtomicBool::new(false),
            told: Box::default(),
            left: Mutex::default(),
            keys: Arc::default(),
        };
        // SAFETY: live; fd is valid for writing.
        let status = unsafe { ucx.ucp.ucp_worker_get_efd(raw.as_ptr(), &raw mut worker.fd) };
        check(ucx, "ucp_worker_get_efd", status)?;
        let params = ucp_am_handler_param_t {
            field_mask: u64::from(
                ucp_am_handler_param_field::UCP_AM_HANDLER_PARAM_FIELD_ID.0
                    | ucp_am_handler_param_field::UCP_AM_HANDLER_PARAM_FIELD_CB.0
                    | ucp_am_handler_param_field::UCP_AM_HANDLER_PARAM_FIELD_ARG.0,
            ),
            id: MESSAGES,
            flags: 0,
            cb: Some(message),
            arg: (&raw const *worker.told).cast_mut().cast(),
        };
        // SAFETY: live; what the argument points to lives as long as the worker, and does not move.
        let status = unsafe {
            ucx.ucp
                .ucp_worker_set_am_recv_handler(raw.as_ptr(), &raw const params)
        };
        check(ucx, "ucp_worker_set_am_recv_handler", status)?;
        Ok(Worker(Arc::new(worker)))
    }

    /// Moves things along, and hands each message to `sink`, in which nothing of this worker may be called. A panic there ends the
    /// process. True if there was anything to do.
    pub fn progress(&self, sink: &mut dyn FnMut(Arrival<'_>)) -> bool {
        let mut turn = Turn {
            worker: &self.0,
            sink,
        };
        let calls = self.0.lock();
        self.0
            .told
            .turn
            .store((&raw mut turn).cast(), Ordering::Relaxed);
        let progressed = self.0.progress_once();
        self.0.told.turn.store(null_mut(), Ordering::Relaxed);
        let is_set = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        if is_set(&self.0.has_left) || is_set(&self.0.keys.has_over) {
            self.0.tidy();
        }
        drop(calls);
        progressed
    }

    /// True if UCX is not done yet with an endpoint that was dropped, or with what was under way on it. What is left of others does
    /// not count.
    pub fn is_ending(&self, endpoint: Key) -> bool {
        locked(&self.0.left)
            .iter()
            .any(|left| left.of == Some(endpoint))
    }

    /// Remote keys that UCX has. Those that are not needed any more go with the next [`progress`](Worker::progress).
    pub fn remote_keys(&self) -> usize {
        locked(&self.0.keys.counted).count
    }

    /// Makes the [descriptor](Worker::fd) tell of what comes from now on. False if there is something already: call
    /// [`progress`](Worker::progress), and do not sleep.
    pub fn arm(&self) -> Result<bool> {
        let _calls = self.0.lock();
        // SAFETY: live.
        match unsafe { self.0.ucx().ucp.ucp_worker_arm(self.0.raw()) } {
            ucs_status_t::UCS_ERR_BUSY => Ok(false),
            status => check(self.0.ucx(), "ucp_worker_arm", status).map(|()| true),
        }
    }

    /// Readable when something has come since it was armed.
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the worker's, open as long as it.
        unsafe { BorrowedFd::borrow_raw(self.0.fd) }
    }

    /// The endpoints that are of no further use since the last look, and why.
    pub fn failures(&self) -> Vec<(Key, Error)> {
        let told = &self.0.told;
        if !told.has_failures.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let mut failures = locked(&told.failures);
        told.has_failures.store(false, Ordering::Relaxed);
        let failures = std::mem::take(&mut *failures);
        let why = |(key, status)| {
            let status = ucs_status_t(status);
            (key, Error::status(self.0.ucx(), "the connection", status))
        };
        failures.into_iter().map(why).collect()
    }
}

/// UCX calls it for each message, in the course of `ucp_worker_progress` and of nothing else.
unsafe extern "C" fn message(
    told: *mut c_void,
    header: *const c_void,
    header_length: usize,
    data: *mut c_void,
    length: usize,
    param: *const ucp_am_recv_param_t,
) -> ucs_status_t {
    // SAFETY: what the handler was set with, and the parameters, which live until this returns.
    let (told, param) = unsafe { (&*told.cast_const().cast::<Told>(), &*param) };
    let has = |bit: ucp_am_recv_attr_t| param.recv_attr & u64::from(bit.0) != 0;
    let turn: *mut Turn<'_> = told.turn.load(Ordering::Relaxed).cast();
    // SAFETY: what `progress` stored is there as long as it is stored, and this thread is in it.
    let Some(turn) = (unsafe { turn.as_mut() }) else {
        return ucs_status_t::UCS_OK; // a worker that ends: nobody listens
    };
    let bytes = |begin: *const c_void, length: usize| match begin.is_null() {
        true => &[][..],
        // SAFETY: the library has received so many bytes, which stay until this returns.
        false => unsafe { std::slice::from_raw_parts(begin.cast::<u8>(), length) },
    };
    let from = match has(ucp_am_recv_attr_t::UCP_AM_RECV_ATTR_FIELD_REPLY_EP) {
        true => Key::of(param.reply_ep),
        false => Key::NONE,
    };
    let announced =
        NonNull::new(data).filter(|_| has(ucp_am_recv_attr_t::UCP_AM_RECV_ATTR_FLAG_RNDV));
    let (data, status) = match announced {
        Some(description) => {
            let worker = turn.worker.clone();
            let announced = Announced {
                worker,
                description,
                length,
            };
            // It stays until it is received or released.
            (Received::Announced(announced), ucs_status_t::UCS_INPROGRESS)
        }
        None => (
            Received::Bytes(bytes(data.cast_const(), length)),
            ucs_status_t::UCS_OK,
        ),
    };
    (turn.sink)(Arrival {
        from,
        header: bytes(header, header_length),
        data,
    });
    status
}

impl Announced {
    /// Bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Fetches the data to a part of memory, which is to be as long as they are. Not to be called in the sink that it came to.
    pub fn fetch(self, memory: &Memory, range: Range<usize>) -> Result<Operation> {
        const CALL: &str = "ucp_am_recv_data_nbx";
        let place = memory.0.part(CALL, &range)?;
        if range.len() != self.length {
            let why = format!("{} bytes are announced, not {}", self.length, range.len());
            return Err(Error::invalid(CALL, why));
        }
        let worker = self.worker.clone();
        // SAFETY: all zeros is valid: null pointers.
        let mut params: ucp_request_param_t = unsafe { std::mem::zeroed() };
        params.op_attr_mask = ucp_op_attr_t::UCP_OP_ATTR_FIELD_MEMH.0;
        params.memh = memory.0.raw.as_ptr();
        let calls = worker.lock();
        // SAFETY: live; the place is in memory that the operation keeps. The description is used up by this.
        let result = unsafe {
            let this = std::mem::ManuallyDrop::new(self);
            let result = worker.ucx().ucp.ucp_am_recv_data_nbx(
                worker.raw(),
                this.description.as_ptr(),
                place.cast(),
                range.len(),
                &raw const params,
            );
            drop(std::ptr::read(&this.worker));
            result
        };
        drop(calls);
        let keeps = || Keeps {
            memory: Some(memory.0.clone()),
            ..Keeps::default()
        };
        Operation::new(CALL, None, &worker, result, keeps)
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.worker.leave(Left {
            description: Some(self.description),
            ..Left::default()
        });
    }
}

/// Something under way. To drop it is to let it go on unseen.
///
/// Nearly all are done at once, so what is not has a place of its own, and the others are handed on at no cost.
#[derive(Debug)]
pub struct Operation(Option<Box<UnderWay>>);

#[derive(Debug)]
struct UnderWay {
    call: &'static str,
    of: Option<Key>,
    worker: Arc<Inner>,
    /// None: it was freed, for all is done.
    request: Option<NonNull<c_void>>,
    keeps: Keeps,
}

// SAFETY: the request is a name of something of the worker, and used under its lock.
unsafe impl Send for UnderWay {}

impl Operation {
    /// One that was done at once.
    pub(crate) fn done() -> Operation {
        Operation(None)
    }

    /// Of what a call has returned, for an endpoint if it is one's; and what that is to keep if it is under way.
    pub(crate) fn new(
        call: &'static str,
        of: Option<Key>,
        worker: &Arc<Inner>,
        result: ucs_status_ptr_t,
        keeps: impl FnOnce() -> Keeps,
    ) -> Result<Operation> {
        let status = result.addr() as isize;
        match NonNull::new(result) {
            None => Ok(Operation::done()),
            // As UCS_PTR_IS_ERR has it.
            Some(_) if (-100..0).contains(&status) => Err(Error::status(
                worker.ucx(),
                call,
                ucs_status_t(status as i8),
            )),
            request => Ok(Operation(Some(Box::new(UnderWay {
                call,
                of,
                worker: worker.clone(),
                request,
                keeps: keeps(),
            })))),
        }
    }

    /// True if there is an [`outcome`](Self::outcome).
    pub fn is_done(&self) -> bool {
        self.0.as_ref().is_none_or(|under_way| under_way.is_done())
    }

    /// None as long as it is under way. An error may come once, and `Ok` after it.
    #[inline]
    pub fn outcome(&mut self) -> Option<Result<()>> {
        match &mut self.0 {
            None => Some(Ok(())),
            Some(under_way) => {
                let result = under_way.outcome()?;
                self.0 = None;
                Some(result)
            }
        }
    }
}

impl UnderWay {
    fn is_done(&self) -> bool {
        let Some(request) = self.request else {
            return true;
        };
        let _calls = self.worker.lock();
        // SAFETY: a request of the worker that is not freed yet.
        let status = unsafe {
            let ucp = &self.worker.ucx().ucp;
            ucp.ucp_request_check_status(request.as_ptr())
        };
        status != ucs_status_t::UCS_INPROGRESS
    }

    fn outcome(&mut self) -> Option<Result<()>> {
        let Some(request) = self.request else {
            return Some(Ok(()));
        };
        let ucx = self.worker.ucx();
        let _calls = self.worker.lock();
        // SAFETY: a request of the worker that is not freed yet.
        let status = unsafe { ucx.ucp.ucp_request_check_status(request.as_ptr()) };
        if status == ucs_status_t::UCS_INPROGRESS {
            return None;
        }
        // SAFETY: the same, and freed once.
        unsafe { ucx.ucp.ucp_request_free(request.as_ptr()) };
        self.request = None;
        Some(check(ucx, self.call, status))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(request) = self.request {
            self.worker.leave(Left {
                of: self.of,
                request: Some(request),
                keeps: std::mem::take(&mut self.keeps),
                ..Left::default()
            });
        }
    }
}
