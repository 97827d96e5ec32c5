//! What a device can do, and how its port is.

use crate::bindings::verbs::*;
use crate::connection::{ConnectionId, Id};
use crate::error::{Error, Result, check_number};
use crate::inline;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The device that a connection goes over, open for as long as this is there.
#[derive(Clone, Debug)]
pub struct Device {
    id: Arc<Id>,
    failures: Arc<Failures>,
    /// Those before concern others.
    since: usize,
}

/// What an open device has said of failures that are not one queue pair's. It says so once, to whichever of this process's
/// connections over it asks first.
type Failures = Mutex<Vec<String>>;

/// Those of the device which is open at this address. While it is open, somebody has them.
fn failures_of(context: usize) -> Arc<Failures> {
    static ALL: Mutex<Vec<(usize, Weak<Failures>)>> = Mutex::new(Vec::new());
    let mut all = lock(&ALL);
    all.retain(|(_, failures)| failures.strong_count() > 0);
    let known = all.iter().find(|(other, _)| *other == context);
    if let Some(failures) = known.and_then(|(_, failures)| failures.upgrade()) {
        return failures;
    }
    let failures = Arc::new(Failures::default());
    all.push((context, Arc::downgrade(&failures)));
    failures
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a device allows at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceLimits {
    /// Requests in a queue.
    pub queue: u32,
    /// Entries of a completion queue.
    pub completions: u32,
    /// Regions.
    pub regions: u32,
    /// Bytes of a region.
    pub region: u64,
}

/// How a port is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// It can carry data.
    pub active: bool,
    /// That, in rdma-core's words.
    pub state: String,
    /// Bytes of a packet.
    pub mtu: u32,
    /// Bytes of one request at most.
    pub message: u32,
}

/// What a device tells without being asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AsyncEvent {
    /// In rdma-core's words.
    pub text: String,
    /// The number of the queue pair that it is about, if it is about one.
    pub queue_pair: Option<u32>,
    /// What it is about, or the whole device, is of no further use.
    pub fatal: bool,
}

impl Device {
    /// The device that a connection was found to go over: once its address is resolved, or it was asked for.
    pub fn of(id: &ConnectionId) -> Result<Device> {
        let context = id.inner().context("the device")?;
        let failures = failures_of(context.addr().get());
        let since = lock(&failures).len();
        Ok(Device {
            id: id.inner().clone(),
            failures,
            since,
        })
    }

    fn context(&self) -> *mut ibv_context {
        // A connection that has a device keeps it.
        self.id.raw_context()
    }

    /// Its name.
    pub fn name(&self) -> String {
        // SAFETY: the device is open, and the name lives as long as it.
        unsafe {
            let device = (*self.context()).device;
            crate::library::text(self.id.verbs.ib.ibv_get_device_name(device))
        }
    }

    /// True if requests can carry immediate data. iWARP has none: there [`Notice::Send`](crate::Notice::Send) serves.
    pub fn has_immediate(&self) -> bool {
        // SAFETY: the device is open.
        let transport = unsafe { (*(*self.context()).device).transport_type };
        transport == ibv_transport_type::IBV_TRANSPORT_IB
    }

    /// What it allows.
    pub fn limits(&self) -> Result<DeviceLimits> {
        // SAFETY: all zeros is valid for plain numbers.
        let mut attributes: ibv_device_attr = unsafe { std::mem::zeroed() };
        // SAFETY: the device is open, attributes are valid for writing.
        let result = unsafe {
            self.id
                .verbs
                .ib
                .ibv_query_device(self.context(), &raw mut attributes)
        };
        check_number("ibv_query_device", result)?;
        Ok(DeviceLimits {
            queue: attributes.max_qp_wr.max(0) as u32,
            completions: attributes.max_cqe.max(0) as u32,
            regions: attributes.max_mr.max(0) as u32,
            region: attributes.max_mr_size,
        })
    }

    /// How the connection's port is.
    pub fn port(&self) -> Result<Port> {
        // SAFETY: all zeros is valid for plain numbers.
        let mut port: verbs_port = unsafe { std::mem::zeroed() };
        // SAFETY: the device is open.
        let result = unsafe { inline::query_port(self.context(), self.id.port(), &mut port) };
        check_number("ibv_query_port", result)?;
        // SAFETY: any number will do; the text is static.
        let state = unsafe { self.id.verbs.ib.ibv_port_state_str(port.state) };
        Ok(Port {
            active: port.state == ibv_port_state::IBV_PORT_ACTIVE,
            // SAFETY: a text of the library.
            state: unsafe { crate::library::text(state) },
            // IBV_MTU_256 is 1, each further one twice as much, up to 4096.
            mtu: 128 << port.active_mtu.0.min(5),
            message: port.max_msg_sz,
        })
    }

    /// Readable when there is an [`AsyncEvent`]. One for all connections of this process over the device.
    pub fn async_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: open as long as the device.
        unsafe { BorrowedFd::borrow_raw((*self.context()).async_fd) }
    }

    /// Why what was made over the device is of no further use, if any connection of this process was told so since this is
    /// there.
    pub fn failure(&self) -> Option<String> {
        lock(&self.failures).get(self.since).cloned()
    }

    /// The next of them, without waiting. It may be about a queue pair of another connection over the device.
    pub fn next_async_event(&self) -> Result<Option<AsyncEvent>> {
        let fd = self.async_fd();
        crate::connection::without_waiting(fd)?;
        // SAFETY: all zeros is valid: null pointers.
        let mut event: ibv_async_event = unsafe { std::mem::zeroed() };
        let ib = &self.id.verbs.ib;
        // SAFETY: the device is open, event is valid for writing.
        if unsafe { ib.ibv_get_async_event(self.context(), &raw mut event) } != 0 {
            let error = Error::last("ibv_get_async_event");
            return match error.errno() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(None),
                _ => Err(error),
            };
        }
        let kind = event.event_type;
        // SAFETY: of such a kind it names a queue pair, which cannot be destroyed before the event is acknowledged.
        let queue_pair = about_queue_pair(kind).then(|| unsafe { (*event.element.qp).qp_num });
        // SAFETY: any number will do; the text is static.
        let text = unsafe { crate::library::text(ib.ibv_event_type_str(kind)) };
        // SAFETY: acknowledged once, and not used after.
        unsafe { ib.ibv_ack_async_event(&raw mut event) };
        let event = AsyncEvent {
            text,
            queue_pair,
            fatal: is_fatal(kind),
        };
        note(&self.failures, &event);
        Ok(Some(event))
    }
}

/// A queue pair fails alone. A completion queue that has lost something, or the device, fails everybody: who has that queue is not
/// told here, and the next connection is soon made.
fn note(failures: &Failures, event: &AsyncEvent) {
    if event.fatal && event.queue_pair.is_none() {
        lock(failures).push(event.text.clone());
    }
}

fn about_queue_pair(kind: ibv_event_type) -> bool {
    [
        ibv_event_type::IBV_EVENT_QP_FATAL,
        ibv_event_type::IBV_EVENT_QP_REQ_ERR,
        ibv_event_type::IBV_EVENT_QP_ACCESS_ERR,
        ibv_event_type::IBV_EVENT_COMM_EST,
        ibv_event_type::IBV_EVENT_SQ_DRAINED,
        ibv_event_type::IBV_EVENT_PATH_MIG,
        ibv_event_type::IBV_EVENT_PATH_MIG_ERR,
        ibv_event_type::IBV_EVENT_QP_LAST_WQE_REACHED,
    ]
    .contains(&kind)
}

fn is_fatal(kind: ibv_event_type) -> bool {
    [
        ibv_event_type::IBV_EVENT_CQ_ERR,
        ibv_event_type::IBV_EVENT_QP_FATAL,
        ibv_event_type::IBV_EVENT_QP_REQ_ERR,
        ibv_event_type::IBV_EVENT_QP_ACCESS_ERR,
        ibv_event_type::IBV_EVENT_DEVICE_FATAL,
    ]
    .contains(&kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_connection_hears_fails_all() {
        let event = |fatal, queue_pair| AsyncEvent {
            text: "local catastrophic error".to_owned(),
            queue_pair,
            fatal,
        };
        let [one, other, elsewhere] = [0x1000, 0x1000, 0x2000].map(failures_of);
        note(&one, &event(true, Some(17)));
        note(&one, &event(false, None));
        assert!(
            lock(&other).is_empty(),
            "a queue pair, or nothing of weight"
        );
        note(&one, &event(true, None));
        assert_eq!(*lock(&other), ["local catastrophic error"]);
        assert!(lock(&elsewhere).is_empty());
        // Closed and opened again, at the same place as it happens.
        drop((one, other));
        assert!(lock(&failures_of(0x1000)).is_empty());
    }
}
