//! The libraries, and whether there is RDMA on this host.

use crate::bindings::rdmacm::Rdmacm;
use crate::bindings::verbs::Ibverbs;
use crate::connection::EventChannel;
use crate::error::{Error, Unavailable};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use std::error::Error as _;
use std::ffi::CStr;
use std::sync::OnceLock;

/// What the libraries export. They stay loaded until the process ends.
pub struct Verbs {
    pub(crate) ib: Ibverbs,
    pub(crate) cm: Rdmacm,
    process: u32,
}

impl std::fmt::Debug for Verbs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verbs")
    }
}

impl Verbs {
    /// Opens the libraries, unless they are open already. Where that fails it can be tried again later: somebody may have
    /// installed them.
    pub fn load() -> Result<&'static Verbs, Unavailable> {
        static LOADED: OnceLock<Verbs> = OnceLock::new();
        if let Some(verbs) = LOADED.get() {
            // What the libraries remember is the parent's.
            return verbs.own("RDMA").map(|()| verbs).map_err(|_| {
                let why = "this process was forked from one that uses RDMA; start a program in it";
                Unavailable(why.to_owned())
            });
        }
        let verbs = Verbs::open("libibverbs.so.1", "librdmacm.so.1")?;
        Ok(LOADED.get_or_init(|| verbs))
    }

    fn open(ibverbs: &str, rdmacm: &str) -> Result<Verbs, Unavailable> {
        let (ib, cm) = (library(ibverbs)?, library(rdmacm)?);
        // SAFETY: the libraries of these names have functions of these types; xtask took them from their headers.
        let ib = unsafe { Ibverbs::from_library(ib) }.map_err(|error| too_old(ibverbs, &error))?;
        // SAFETY: the same.
        let cm = unsafe { Rdmacm::from_library(cm) }.map_err(|error| too_old(rdmacm, &error))?;
        let verbs = Verbs {
            ib,
            cm,
            process: std::process::id(),
        };
        // Kernels before 5.12 would give the pages of queues to whichever of parent and child writes first, and cards would go
        // on with the other copy. On later ones it does nothing. To be called before anything is registered.
        // SAFETY: takes nothing.
        match unsafe { verbs.ib.ibv_fork_init() } {
            0 => Ok(verbs),
            number => Err(Unavailable(format!(
                "ibv_fork_init: {}: this process may already use RDMA in another way",
                std::io::Error::from_raw_os_error(number)
            ))),
        }
    }

    /// For whoever destroys `call`'s part: a forked child has its parent's descriptors, and would destroy what the parent uses.
    pub(crate) fn own(&self, call: &'static str) -> Result<(), Error> {
        match self.process == std::process::id() {
            true => Ok(()),
            false => Err(Error::invalid(
                call,
                "it is the process's that this one was forked from",
            )),
        }
    }

    /// The names of the RDMA devices of this host, at least one.
    pub fn devices(&self) -> Result<Vec<String>, Unavailable> {
        let mut count = 0;
        // SAFETY: count is valid for writing.
        let list = unsafe { self.ib.ibv_get_device_list(&raw mut count) };
        if list.is_null() {
            return Err(no_device(&std::io::Error::last_os_error().to_string()));
        }
        let mut names = Vec::new();
        for i in 0..count.max(0) as usize {
            // SAFETY: the list has `count` entries, which live until it is freed, and their names with them.
            names.push(unsafe { text(self.ib.ibv_get_device_name(*list.add(i))) });
        }
        // SAFETY: freed once.
        unsafe { self.ib.ibv_free_device_list(list) };
        match names.is_empty() {
            true => Err(no_device("the kernel lists none")),
            false => Ok(names),
        }
    }

    /// Closes devices that have gone and of which nothing is left here, if there are others. librdmacm keeps a device open once it
    /// was used, and looks only now and then whether it is still there; drivers such as soft-RoCE's wait for that. Where it
    /// finds no device at all it does not look further (rdma-core 44).
    pub fn forget_gone_devices(&self) {
        let mut count = 0;
        // SAFETY: count is valid for writing.
        let all = unsafe { self.cm.rdma_get_devices(&raw mut count) };
        if !all.is_null() {
            // SAFETY: the library's list, given back once.
            unsafe { self.cm.rdma_free_devices(all) };
        }
    }

    /// Whether RDMA can be used now: there is a device, the connection manager answers, and `bytes` of memory can be
    /// registered. The devices' names.
    pub fn probe(&'static self, bytes: u64) -> Result<Vec<String>, Unavailable> {
        let names = self.devices()?;
        EventChannel::new(self).map_err(|error| Unavailable(error.to_string()))?;
        memlock(bytes)?;
        Ok(names)
    }
}

fn library(name: &str) -> Result<Library, Unavailable> {
    // SAFETY: its initialisers are those of rdma-core, which have no demands.
    unsafe { Library::open(Some(name), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| {
        Unavailable(format!(
            "{name} cannot be loaded ({}). Install rdma-core's libraries (Debian: ibverbs-providers, librdmacm1)",
            cause(&error)
        ))
    })
}

/// A text of the libraries.
///
/// # Safety
/// `text` is null or ends with a zero byte.
pub(crate) unsafe fn text(text: *const std::os::raw::c_char) -> String {
    match text.is_null() {
        true => "unknown".to_owned(),
        // SAFETY: the caller's promise.
        false => unsafe { CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned(),
    }
}

fn too_old(name: &str, error: &libloading::Error) -> Unavailable {
    Unavailable(format!(
        "{name} is too old ({}). Install rdma-core 33 or later",
        cause(error)
    ))
}

/// What the loader says, which libloading keeps behind its own words.
fn cause(error: &libloading::Error) -> String {
    error.source().unwrap_or(error).to_string()
}

fn no_device(why: &str) -> Unavailable {
    Unavailable(format!(
        "this host has no RDMA device ({why}). Load the driver of its card, so that `rdma link` shows it; or make a device of \
         any network interface: modprobe rdma_rxe && rdma link add rxe0 type rxe netdev INTERFACE"
    ))
}

/// Whether the limit of this process lets it register so many bytes. What is registered already counts too, so this can say
/// yes and the registration fail, which then says the same.
pub fn memlock(bytes: u64) -> Result<(), Unavailable> {
    let limit = match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((soft, _)) if soft != RLIM_INFINITY => soft,
        _ => return Ok(()),
    };
    if bytes <= limit || may_lock(&std::fs::read_to_string("/proc/thread-self/status")) {
        return Ok(());
    }
    Err(Unavailable(locked_memory(bytes, 0, limit)))
}

/// What to say of it, and the mend. `registered` bytes are the device's already.
pub(crate) fn locked_memory(bytes: u64, registered: u64, limit: u64) -> String {
    let missing = (registered + bytes).saturating_sub(limit);
    let besides = match registered {
        0 => String::new(),
        _ => format!(" besides {registered} that are"),
    };
    format!(
        "{bytes} bytes are to be registered{besides}, and this process may lock {limit} bytes of memory (RLIMIT_MEMLOCK), \
         {missing} too few. Allow more: LimitMEMLOCK=infinity in its systemd unit, or `ulimit -l unlimited` in the shell that \
         starts it"
    )
}

/// Bytes that devices have of this process.
pub(crate) fn registered() -> u64 {
    pinned(&std::fs::read_to_string("/proc/thread-self/status"))
}

fn pinned(status: &std::io::Result<String>) -> u64 {
    let kib = status.as_deref().ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("VmPin:"))?;
        line.trim().strip_suffix(" kB")?.parse().ok()
    });
    kib.map_or(0, |kib: u64| kib << 10)
}

/// True with CAP_IPC_LOCK, for which the kernel knows no limit.
fn may_lock(status: &std::io::Result<String>) -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    let effective = status.as_deref().ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(line.trim(), 16).ok()
    });
    effective.is_some_and(|capabilities| capabilities >> CAP_IPC_LOCK & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_libraries() {
        let text = Verbs::open("libtbus-none.so.1", "librdmacm.so.1")
            .unwrap_err()
            .to_string();
        assert!(
            text.starts_with("unavailable: libtbus-none.so.1 cannot be loaded ("),
            "{text}"
        );
        assert!(text.contains("No such file"), "{text}");
        assert!(text.contains("Debian: ibverbs-providers"), "{text}");
    }

    #[test]
    fn of_an_old_version() {
        // A library that is everywhere and has none of the functions.
        let text = Verbs::open("libc.so.6", "libc.so.6")
            .unwrap_err()
            .to_string();
        assert!(
            text.starts_with("unavailable: libc.so.6 is too old ("),
            "{text}"
        );
        assert!(text.contains("ibv_"), "{text}");
    }

    #[test]
    fn memory_that_may_not_be_locked() {
        let text = Unavailable(locked_memory(20_000_000, 0, 8_388_608)).to_string();
        assert!(
            text.starts_with("unavailable: 20000000 bytes are to be registered, and this process may lock 8388608"),
            "{text}"
        );
        assert!(text.contains(" 11611392 too few"), "{text}");
        assert!(text.contains("LimitMEMLOCK=infinity"), "{text}");
        let text = locked_memory(8192, 1_044_480, 1_048_576);
        assert!(
            text.starts_with("8192 bytes are to be registered besides 1044480 that are, and"),
            "{text}"
        );
        assert!(text.contains(" 4096 too few"), "{text}");
    }

    #[test]
    fn memory_that_devices_have() {
        let status = |text: &str| pinned(&Ok(text.to_owned()));
        assert_eq!(
            status("VmLck:\t       0 kB\nVmPin:\t    1020 kB\nVmHWM:\t1 kB\n"),
            1_044_480
        );
        assert_eq!(status("VmPin:\twhat\n"), 0);
        assert_eq!(status(""), 0);
    }

    #[test]
    fn who_may_lock_memory() {
        let status = |text: &str| may_lock(&Ok(text.to_owned()));
        assert!(status("CapPrm:\t0\nCapEff:\t000001ffffffffff\n"));
        assert!(status("CapEff:\t0000000000004000\n"));
        assert!(!status("CapEff:\t0000000000003fff\n"));
        assert!(!status("CapEff:\twhat\n"));
        assert!(!status(""));
        assert!(!may_lock(&Err(std::io::ErrorKind::NotFound.into())));
    }
}
