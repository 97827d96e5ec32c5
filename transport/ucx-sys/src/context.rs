//! What UCX may use, and memory that it reads and writes.

use crate::bindings::ucp::*;
use crate::error::{Error, Result, Unavailable, check};
use crate::library::Ucx;
use std::any::Any;
use std::ffi::CStr;
use std::ops::Range;
use std::ptr::{NonNull, null, null_mut};
use std::sync::Arc;
use tracing::error;

/// What is set, whatever the environment says: what a name begins with decides which part of UCX it is for.
///
/// Reliable connections of a card alone: UCX's own TCP writes where a packet tells it to, and its shared memory is for one host. One
/// rail, and no relaxed ordering, so that what is sent over one connection comes in its order wherever UCX keeps it. Its signs of
/// life go by datagrams, over a queue pair more, and show a dead peer after 20 s: relays have their own. Without the registration
/// cache the card lets go of memory when it is unmapped.
const SETTINGS: &[(&CStr, &CStr)] = &[
    (c"TLS", c"rc_verbs,rc_mlx5"),
    (c"SOCKADDR_TLS_PRIORITY", c"rdmacm"),
    (c"MAX_EAGER_RAILS", c"1"),
    (c"MAX_RNDV_RAILS", c"1"),
    (c"KEEPALIVE_INTERVAL", c"inf"),
    (c"RCACHE_ENABLE", c"n"),
    (c"IB_PCI_RELAXED_ORDERING", c"off"),
];

/// The transports that these allow.
pub(crate) const TRANSPORTS: &[&str] = &["rc_verbs", "rc_mlx5"];

/// What UCX may use: to be had once a process.
#[derive(Clone, Debug)]
pub struct Context(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub ucx: &'static Ucx,
    raw: NonNull<ucp_context>,
}

// SAFETY: made for several threads.
unsafe impl Send for Inner {}
// SAFETY: as for Send.
unsafe impl Sync for Inner {}

impl Inner {
    pub fn raw(&self) -> ucp_context_h {
        self.raw.as_ptr()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.ucx.is_own() {
            // SAFETY: live; workers and memory keep it, so there are none.
            unsafe { self.ucx.ucp.ucp_cleanup(self.raw()) };
        }
    }
}

impl Context {
    /// Looks for devices. Fails where there is none that [may be used](crate::context).
    pub fn new(ucx: &'static Ucx) -> std::result::Result<Context, Unavailable> {
        let ucp = &ucx.ucp;
        let unavailable = |error: Error| Unavailable(error.to_string());
        let mut config = null_mut();
        // SAFETY: config is valid for writing; without a prefix and a file.
        let status = unsafe { ucp.ucp_config_read(null(), null(), &raw mut config) };
        check(ucx, "ucp_config_read", status).map_err(unavailable)?;
        let set = SETTINGS.iter().try_for_each(|(name, value)| {
            // SAFETY: the configuration is live, the texts end with zero bytes.
            let status = unsafe { ucp.ucp_config_modify(config, name.as_ptr(), value.as_ptr()) };
            check(ucx, "ucp_config_modify", status)
                .map_err(|error| unsettable(ucx, name, value, &error))
        });
        let mut raw = null_mut();
        let made = set.and_then(|()| {
            // SAFETY: all zeros is valid: null pointers.
            let mut params: ucp_params_t = unsafe { std::mem::zeroed() };
            params.field_mask = u64::from(
                ucp_params_field::UCP_PARAM_FIELD_FEATURES.0
                    | ucp_params_field::UCP_PARAM_FIELD_MT_WORKERS_SHARED.0
                    | ucp_params_field::UCP_PARAM_FIELD_NAME.0,
            );
            params.features = u64::from(
                ucp_feature::UCP_FEATURE_AM.0
                    | ucp_feature::UCP_FEATURE_RMA.0
                    | ucp_feature::UCP_FEATURE_WAKEUP.0,
            );
            params.mt_workers_shared = 1;
            params.name = c"tbus".as_ptr();
            let (major, minor) = ucx.interface();
            // SAFETY: parameters and configuration are live, raw is valid for writing.
            let status = unsafe {
                ucp.ucp_init_version(major, minor, &raw const params, config, &raw mut raw)
            };
            check(ucx, "ucp_init", status).map_err(|error| no_device(ucx, &error))
        });
        // SAFETY: released once, and not used after.
        unsafe { ucp.ucp_config_release(config) };
        made?;
        match NonNull::new(raw) {
            Some(raw) => Ok(Context(Arc::new(Inner { ucx, raw }))),
            None => Err(Unavailable("ucp_init has made nothing".to_owned())),
        }
    }

    /// The library that it is of.
    pub fn ucx(&self) -> &'static Ucx {
        self.0.ucx
    }
}

/// A library without the part for cards knows nothing of that part's settings, in some versions.
fn unsettable(ucx: &Ucx, name: &CStr, value: &CStr, error: &Error) -> Unavailable {
    let (major, minor, release) = ucx.version();
    let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
    Unavailable(format!(
        "UCX {major}.{minor}.{release} does not take UCX_{name}={value}, without which it is not used ({error}). See that `ucx_info \
         -d` lists rc_verbs or rc_mlx5, which takes libuct_ib; if it does, install another version (Debian: libucx0)"
    ))
}

fn no_device(ucx: &Ucx, error: &Error) -> Unavailable {
    let (major, minor, release) = ucx.version();
    Unavailable(format!(
        "UCX {major}.{minor}.{release} finds no RDMA device that it can use ({error}). See that `ucx_info -d` lists rc_verbs or \
         rc_mlx5: a UCX without its libuct_ib and libuct_rdmacm has neither, nor has a host without a device in `rdma link`"
    ))
}

/// Memory that UCX reads from, and that peers write who have its key.
#[derive(Clone, Debug)]
pub struct Memory(pub(crate) Arc<Mapped>);

#[derive(Debug)]
pub(crate) struct Mapped {
    context: Arc<Inner>,
    pub raw: NonNull<ucp_mem>,
    live: bool,
    address: NonNull<u8>,
    length: usize,
    /// Whose memory it is. Dropped after the device has let go of it.
    _owner: Box<dyn Any + Send + Sync>,
}

// SAFETY: the context is made for several threads; the memory is not touched here, and its owner is Send and Sync.
unsafe impl Send for Mapped {}
// SAFETY: as for Send.
unsafe impl Sync for Mapped {}

impl Mapped {
    fn end(&mut self) -> Result<()> {
        self.live = false;
        let ucx = self.context.ucx;
        // SAFETY: live, and this is called once; what is under way with it keeps it.
        let status = unsafe { ucx.ucp.ucp_mem_unmap(self.context.raw(), self.raw.as_ptr()) };
        check(ucx, "ucp_mem_unmap", status)
    }

    /// Where a part of it begins.
    pub fn part(&self, call: &'static str, range: &Range<usize>) -> Result<*mut u8> {
        if range.start > range.end || range.end > self.length {
            let why = format!("{range:?} is not in memory of {} bytes", self.length);
            return Err(Error::invalid(call, why));
        }
        // SAFETY: within the mapping.
        Ok(unsafe { self.address.as_ptr().add(range.start) })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if self.live
            && self.context.ucx.is_own()
            && let Err(error) = self.end()
        {
            error!("left registered until this process ends: {error}");
        }
    }
}

impl Memory {
    /// Registers memory, and keeps its owner. UCX knows no rights: whoever has its [`key`](Memory::key) reads and writes all of it.
    ///
    /// # Safety
    /// The range is mapped for as long as `owner` lives. Others write there at any time, so nothing but raw accesses will do.
    pub unsafe fn map(
        context: &Context,
        address: NonNull<u8>,
        length: usize,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Result<Memory> {
        let ucx = context.ucx();
        let params = ucp_mem_map_params_t {
            field_mask: u64::from(
                ucp_mem_map_params_field::UCP_MEM_MAP_PARAM_FIELD_ADDRESS.0
                    | ucp_mem_map_params_field::UCP_MEM_MAP_PARAM_FIELD_LENGTH.0,
            ),
            address: address.as_ptr().cast(),
            length,
        };
        let mut raw = null_mut();
        // SAFETY: the range is mapped, by the caller's promise; raw is valid for writing.
        let status = unsafe {
            ucx.ucp
                .ucp_mem_map(context.0.raw(), &raw const params, &raw mut raw)
        };
        check(ucx, "ucp_mem_map", status)?;
        let raw = NonNull::new(raw)
            .ok_or_else(|| Error::invalid("ucp_mem_map", "it has made nothing"))?;
        Ok(Memory(Arc::new(Mapped {
            context: context.0.clone(),
            raw,
            live: true,
            address,
            length,
            _owner: owner,
        })))
    }

    /// Bytes.
    pub fn length(&self) -> usize {
        self.0.length
    }

    /// What remote keys' addresses are relative to: the address here, which the peer learns.
    pub fn address(&self) -> u64 {
        self.0.address.addr().get() as u64
    }

    /// What a peer needs besides, packed for the way.
    pub fn key(&self) -> Result<Vec<u8>> {
        let (ucx, context) = (self.0.context.ucx, self.0.context.raw());
        let (mut buffer, mut size) = (null_mut(), 0);
        // SAFETY: live; buffer and size are valid for writing.
        let status = unsafe {
            ucx.ucp
                .ucp_rkey_pack(context, self.0.raw.as_ptr(), &raw mut buffer, &raw mut size)
        };
        check(ucx, "ucp_rkey_pack", status)?;
        // SAFETY: the library has made so many bytes.
        let key = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), size) }.to_vec();
        // SAFETY: released once, and not used after.
        unsafe { ucx.ucp.ucp_rkey_buffer_release(buffer) };
        Ok(key)
    }

    /// Takes the memory away from the device. Once this has returned nobody's request reaches it any more. Fails, with no other
    /// effect than that, as long as something of this end is under way with it.
    pub fn unmap(self) -> std::result::Result<(), (Option<Memory>, Error)> {
        let busy = || Error::invalid("ucp_mem_unmap", "something is under way with the memory");
        match Arc::try_unwrap(self.0) {
            Ok(mut mapped) => match mapped.context.ucx.is_own() {
                true => mapped.end().map_err(|error| (None, error)),
                false => Ok(()),
            },
            Err(shared) => Err((Some(Memory(shared)), busy())),
        }
    }
}
