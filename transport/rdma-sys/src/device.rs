//! What a device can do, and how its port is.

use crate::bindings::verbs::*;
use crate::connection::{ConnectionId, Id};
use crate::error::{Error, Result, check_number};
use crate::inline;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// The device that a connection goes over, open for as long as this is there.
#[derive(Clone, Debug)]
pub struct Device(Arc<Id>);

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
        id.inner().context("the device")?;
        Ok(Device(id.inner().clone()))
    }

    fn context(&self) -> *mut ibv_context {
        // A connection that has a device keeps it.
        self.0.raw_context()
    }

    /// Its name.
    pub fn name(&self) -> String {
        // SAFETY: the device is open, and the name lives as long as it.
        unsafe {
            let device = (*self.context()).device;
            crate::library::text(self.0.verbs.ib.ibv_get_device_name(device))
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
            self.0
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
        let result = unsafe { inline::query_port(self.context(), self.0.port(), &mut port) };
        check_number("ibv_query_port", result)?;
        // SAFETY: any number will do; the text is static.
        let state = unsafe { self.0.verbs.ib.ibv_port_state_str(port.state) };
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

    /// The next of them, without waiting. It may be about a queue pair of another connection over the device.
    pub fn next_async_event(&self) -> Result<Option<AsyncEvent>> {
        let fd = self.async_fd();
        crate::connection::without_waiting(fd)?;
        // SAFETY: all zeros is valid: null pointers.
        let mut event: ibv_async_event = unsafe { std::mem::zeroed() };
        let ib = &self.0.verbs.ib;
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
        Ok(Some(AsyncEvent {
            text,
            queue_pair,
            fatal: is_fatal(kind),
        }))
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
