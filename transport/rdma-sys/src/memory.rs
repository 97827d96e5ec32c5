//! Memory that a device reads and writes by itself.

use crate::bindings::verbs::*;
use crate::connection::{ConnectionId, Id};
use crate::error::{Error, Result, check_number, drop_it};
use crate::library::{locked_memory, registered};
use nix::sys::resource::{Resource, getrlimit};
use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;

/// What may work together: a queue pair reaches the regions of its own domain only, so each peer gets its own.
#[derive(Clone, Debug)]
pub struct ProtectionDomain(Arc<Domain>);

#[derive(Debug)]
pub(crate) struct Domain {
    raw: NonNull<ibv_pd>,
    pub id: Arc<Id>,
}

// SAFETY: the library may be called from any thread.
unsafe impl Send for Domain {}
// SAFETY: as for Send.
unsafe impl Sync for Domain {}

impl Drop for Domain {
    fn drop(&mut self) {
        let verbs = self.id.verbs;
        drop_it(verbs, "ibv_dealloc_pd", || {
            // SAFETY: live; regions and queue pairs of it keep it, so there are none.
            let result = unsafe { verbs.ib.ibv_dealloc_pd(self.raw()) };
            check_number("ibv_dealloc_pd", result)
        });
    }
}

impl Domain {
    pub fn raw(&self) -> *mut ibv_pd {
        self.raw.as_ptr()
    }
}

impl ProtectionDomain {
    /// A new one, of the connection's device.
    pub fn new(id: &ConnectionId) -> Result<ProtectionDomain> {
        let id = id.inner();
        let context = id.context("ibv_alloc_pd")?;
        // SAFETY: the device is open, and kept.
        let raw = unsafe { id.verbs.ib.ibv_alloc_pd(context.as_ptr()) };
        let raw = NonNull::new(raw).ok_or_else(|| Error::last("ibv_alloc_pd"))?;
        let id = id.clone();
        Ok(ProtectionDomain(Arc::new(Domain { raw, id })))
    }

    pub(crate) fn inner(&self) -> &Arc<Domain> {
        &self.0
    }
}

/// What may be done with a region. Whoever registers it can always send from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing else: a source ring.
    Source,
    /// What comes for this end's receives may be put into it.
    Receive,
    /// The peer may write into it: a mirror ring.
    Mirror,
}

/// A registered range of memory. Places in it are named by their distance from its begin, on the wire too.
#[derive(Debug)]
pub struct Region {
    raw: NonNull<ibv_mr>,
    /// Its end was not tried yet.
    live: bool,
    length: usize,
    domain: Arc<Domain>,
    /// Whose memory it is. Dropped after the device has let go of it.
    _owner: Box<dyn Any + Send + Sync>,
}

// SAFETY: the library may be called from any thread; the memory is not touched here, and its owner is Send and Sync.
unsafe impl Send for Region {}
// SAFETY: as for Send.
unsafe impl Sync for Region {}

impl Region {
    /// Registers memory, and keeps its owner. Its pages stay in memory from now on, and count for RLIMIT_MEMLOCK.
    ///
    /// # Safety
    /// The range is mapped for as long as `owner` lives. Others write there at any time, so nothing but raw accesses will do, and
    /// with [`Access::Source`] the device reads there.
    pub unsafe fn register(
        domain: &ProtectionDomain,
        address: NonNull<u8>,
        length: usize,
        access: Access,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Result<Region> {
        let domain = domain.inner().clone();
        let access = match access {
            Access::Source => ibv_access_flags(0),
            Access::Receive => ibv_access_flags::IBV_ACCESS_LOCAL_WRITE,
            // No card lets others write where its own host may not.
            Access::Mirror => {
                ibv_access_flags::IBV_ACCESS_LOCAL_WRITE | ibv_access_flags::IBV_ACCESS_REMOTE_WRITE
            }
        };
        // ibv_reg_mr_iova of the headers is a macro over this one.
        // SAFETY: the domain is live, and the range mapped, by the caller's promise. Addresses of requests begin at 0.
        let raw = unsafe {
            domain.id.verbs.ib.ibv_reg_mr_iova2(
                domain.raw(),
                address.as_ptr().cast(),
                length,
                0,
                access.0,
            )
        };
        match NonNull::new(raw) {
            Some(raw) => Ok(Region {
                raw,
                live: true,
                length,
                domain,
                _owner: owner,
            }),
            None => Err(refused(Error::last("ibv_reg_mr_iova"), length)),
        }
    }

    /// What requests of this end name it by.
    pub fn local_key(&self) -> u32 {
        // SAFETY: live.
        unsafe { (*self.raw.as_ptr()).lkey }
    }

    /// What the peer's requests name it by.
    pub fn remote_key(&self) -> u32 {
        // SAFETY: live.
        unsafe { (*self.raw.as_ptr()).rkey }
    }

    /// Where it is here.
    pub(crate) fn address(&self) -> u64 {
        // SAFETY: live.
        unsafe { (*self.raw.as_ptr()).addr }.addr() as u64
    }

    /// Bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Takes the memory away from the device. Once this has returned, nobody's request reaches it any more.
    pub fn deregister(mut self) -> Result<()> {
        self.domain.id.verbs.own("ibv_dereg_mr")?;
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.live = false;
        // SAFETY: live, and this is called once.
        let result = unsafe { self.domain.id.verbs.ib.ibv_dereg_mr(self.raw.as_ptr()) };
        check_number("ibv_dereg_mr", result)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.live {
            drop_it(self.domain.id.verbs, "ibv_dereg_mr", || self.end());
        }
    }
}

/// Why memory was not registered, as far as the number tells.
fn refused(error: Error, length: usize) -> Error {
    match error.errno() {
        Some(libc::ENOMEM) => {
            let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
            error.mend(locked_memory(length as u64, registered(), limit))
        }
        Some(libc::EFAULT | libc::EOPNOTSUPP) => {
            error.mend("files of a disk cannot be registered: rings must lie in tmpfs or hugetlbfs")
        }
        _ => error,
    }
}
