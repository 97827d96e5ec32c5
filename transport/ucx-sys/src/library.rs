//! The library, and whether there is UCX on this host.

use crate::bindings::ucp::Ucp;
use crate::error::Unavailable;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::error::Error as _;
use std::ffi::{CStr, CString, OsStr};
use std::os::raw::c_char;
use std::path::{Path, PathBuf};
use std::ptr::null;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// What is opened if nothing else is said.
const NAME: &str = "libucp.so.0";

/// The version whose headers the bindings were made from: the oldest that serves.
pub(crate) const HEADERS: (u32, u32) = (1, 13);

/// What UCX is told by its environment while it is loaded, for it looks there and nowhere else. Left to itself it catches SIGSEGV and
/// its like, and SIGHUP, starts a thread for a debugging file system, and rewrites the process's mmap and munmap.
const FORCED: &[&CStr] = &[
    c"UCX_ERROR_SIGNALS=",
    c"UCX_DEBUG_SIGNO=0",
    c"UCX_HANDLE_ERRORS=none",
    c"UCX_VFS_ENABLE=n",
    c"UCX_MEM_EVENTS=n",
    c"UCX_MEM_MMAP_HOOK_MODE=none",
    c"UCX_MEM_MALLOC_HOOKS=n",
];

/// The same, unless the user says otherwise: what fails is returned, and need not be written to the standard output as well.
const UNLESS_SET: &CStr = c"UCX_LOG_LEVEL=fatal";

/// What the library exports. It stays loaded until the process ends.
pub struct Ucx {
    pub(crate) ucp: Ucp,
    version: (u32, u32, u32),
    path: PathBuf,
    process: u32,
}

impl std::fmt::Debug for Ucx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (major, minor, release) = self.version;
        write!(f, "Ucx {major}.{minor}.{release}")
    }
}

impl Ucx {
    /// Opens the library, unless it is open already: the one at `path`, or else whichever the loader finds. Where that fails it can
    /// be tried again later: somebody may have installed it.
    pub fn load(path: Option<&Path>) -> Result<&'static Ucx, Unavailable> {
        static LOADED: Mutex<Option<&'static Ucx>> = Mutex::new(None);
        let path = path.unwrap_or(Path::new(NAME));
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ucx) = *loaded {
            if !ucx.is_own() {
                // What the library remembers is the parent's.
                let why = "this process was forked from one that uses UCX; start a program in it";
                return Err(Unavailable(why.to_owned()));
            }
            // Both would be given the libraries below that the first one brought.
            if ucx.path != path {
                return Err(Unavailable(format!(
                    "{} is loaded already, so {} cannot be; start anew to change it",
                    ucx.path.display(),
                    path.display()
                )));
            }
            return Ok(ucx);
        }
        let ucx = &*Box::leak(Box::new(Ucx::open(path)?));
        *loaded = Some(ucx);
        Ok(ucx)
    }

    fn open(path: &Path) -> Result<Ucx, Unavailable> {
        let library = with_environment(|| library(path))?;
        // SAFETY: the library of this name has functions of these types; xtask took them from its headers.
        let ucp = unsafe { Ucp::from_library(library) }.map_err(|error| too_old(path, &error))?;
        let (mut major, mut minor, mut release) = (0, 0, 0);
        // SAFETY: all are valid for writing.
        unsafe { ucp.ucp_get_version(&raw mut major, &raw mut minor, &raw mut release) };
        if (major, minor) < HEADERS || major > HEADERS.0 {
            return Err(Unavailable(format!(
                "{} is UCX {major}.{minor}.{release}; install 1.13 or a later 1.x",
                path.display()
            )));
        }
        Ok(Ucx {
            ucp,
            version: (major, minor, release),
            path: path.to_owned(),
            process: std::process::id(),
        })
    }

    /// Major, minor, release.
    pub fn version(&self) -> (u32, u32, u32) {
        self.version
    }

    /// The version of the interface that is asked for: the headers', for what is newer is not used. [`Ucx::load`] has seen that
    /// the library is no older.
    pub(crate) fn interface(&self) -> (u32, u32) {
        HEADERS.min((self.version.0, self.version.1))
    }

    /// False in a forked child, which must destroy nothing: what it would destroy is its parent's.
    pub(crate) fn is_own(&self) -> bool {
        self.process == std::process::id()
    }
}

fn library(path: &Path) -> Result<Library, Unavailable> {
    // SAFETY: its initialisers are those of UCX, which have no demands.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| {
        Unavailable(format!(
            "{} cannot be loaded ({}). Install UCX 1.13 or later (Debian: libucx0)",
            path.display(),
            cause(&error)
        ))
    })
}

fn too_old(path: &Path, error: &libloading::Error) -> Unavailable {
    Unavailable(format!(
        "{} is no libucp, or too old ({}). Install UCX 1.13 or later (Debian: libucx0)",
        path.display(),
        cause(error)
    ))
}

/// What the loader says, which libloading keeps behind its own words.
fn cause(error: &libloading::Error) -> String {
    error.source().unwrap_or(error).to_string()
}

/// A text of the library.
///
/// # Safety
/// `text` is null or ends with a zero byte.
pub(crate) unsafe fn text(text: *const c_char) -> String {
    match text.is_null() {
        true => "unknown".to_owned(),
        // SAFETY: the caller's promise.
        false => unsafe { CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned(),
    }
}

type Environment = *mut *const c_char;

/// An environment that is never freed or changed.
struct Pointers(Environment);

// SAFETY: the texts stay as they are.
unsafe impl Send for Pointers {}
// SAFETY: as for Send.
unsafe impl Sync for Pointers {}

unsafe extern "C" {
    static mut environ: Environment;
}

/// Runs `load` with what UCX is to find in the environment, and with what is there besides.
///
/// `setenv` may move what another thread is just reading with `getenv`. So the process gets a whole other environment, which is never
/// freed, and then the old one again, unless somebody has replaced it meanwhile: readers find one or the other.
fn with_environment<T>(load: impl FnOnce() -> T) -> T {
    // SAFETY: a variable of the C library, as large and aligned as a pointer. That others read it without an atomic access is how C
    // programs do it, and a load of a pointer that is stored whole.
    let variable = unsafe { AtomicPtr::from_ptr(&raw mut environ) };
    let before = variable.load(Ordering::Acquire);
    // Made once, for who finds no library may try again and again.
    static DURING: OnceLock<Pointers> = OnceLock::new();
    let during = DURING.get_or_init(|| Pointers(Vec::leak(other_environment()).as_mut_ptr()));
    variable.store(during.0, Ordering::Release);
    let result = load();
    // If it fails, somebody has set a variable, and its environment has ours in it: no more than a UCX_ variable or two.
    let _ = variable.compare_exchange(during.0, before, Ordering::AcqRel, Ordering::Relaxed);
    result
}

fn other_environment() -> Vec<*const c_char> {
    let name_of = |text: &CStr| {
        text.to_bytes()
            .split(|byte| *byte == b'=')
            .next()
            .map(<[u8]>::to_vec)
    };
    let forced: Vec<_> = FORCED.iter().filter_map(|text| name_of(text)).collect();
    let mut pointers: Vec<*const c_char> = Vec::new();
    for (name, value) in std::env::vars_os() {
        let name = OsStr::as_encoded_bytes(&name);
        if forced.iter().any(|forced| forced == name) {
            continue;
        }
        let text = [name, b"=", OsStr::as_encoded_bytes(&value)].concat();
        // None has a zero byte inside, for it was ended by one.
        pointers.extend(CString::new(text).map(|text| text.into_raw().cast_const()));
    }
    if std::env::var_os("UCX_LOG_LEVEL").is_none() {
        pointers.push(UNLESS_SET.as_ptr());
    }
    pointers.extend(FORCED.iter().map(|text| text.as_ptr()));
    pointers.push(null());
    pointers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_library() {
        let text = Ucx::open(Path::new("libtbus-none.so.0"))
            .unwrap_err()
            .to_string();
        assert!(
            text.starts_with("unavailable: libtbus-none.so.0 cannot be loaded ("),
            "{text}"
        );
        assert!(text.contains("No such file"), "{text}");
        assert!(text.contains("Debian: libucx0"), "{text}");
    }

    #[test]
    fn of_something_else() {
        // A library that is everywhere and has none of the functions.
        let text = Ucx::open(Path::new("libc.so.6")).unwrap_err().to_string();
        assert!(
            text.starts_with("unavailable: libc.so.6 is no libucp, or too old ("),
            "{text}"
        );
    }

    #[test]
    fn what_is_in_the_environment_while_it_is_loaded() {
        // As C sees it.
        let read = |name: &CStr| {
            // SAFETY: a name; what is found lives as long as the environment, which is not changed here meanwhile.
            let found = unsafe { libc::getenv(name.as_ptr()) };
            // SAFETY: null, or a text.
            (!found.is_null()).then(|| unsafe { text(found) })
        };
        let path = read(c"PATH");
        assert!(path.is_some());
        let (signals, signal, path_then) = with_environment(|| {
            (
                read(c"UCX_ERROR_SIGNALS"),
                read(c"UCX_DEBUG_SIGNO"),
                read(c"PATH"),
            )
        });
        assert_eq!(signals.as_deref(), Some(""));
        assert_eq!(signal.as_deref(), Some("0"));
        assert_eq!(path_then, path);
        assert_eq!(read(c"UCX_DEBUG_SIGNO"), None);
        assert_eq!(read(c"PATH"), path);
    }
}
