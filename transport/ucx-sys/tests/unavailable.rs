//! On a host of any kind, also without the library or a device: it works, or it is said why not. `TBUS_TEST_UCX` names another
//! libucp than the loader finds.

use std::path::PathBuf;
use tbus_ucx_sys::{Context, Ucx};

/// What is missing, and a word of the mend.
const REASONS: &[(&str, &str)] = &[
    (" cannot be loaded (", "Debian: libucx0"),
    (" is no libucp, or too old (", "UCX 1.13"),
    (
        " finds no RDMA device that it can use (",
        "lists rc_verbs or rc_mlx5",
    ),
    (" does not take UCX_", "lists rc_verbs or rc_mlx5"),
];

/// A line of this process's status.
fn status(name: &str) -> String {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().trim().to_owned()
}

/// That nothing of it is linked: a program starts where it is not installed.
fn loaded() -> bool {
    std::fs::read_to_string("/proc/self/maps")
        .unwrap()
        .contains("libucp")
}

/// One test, for it is about the whole process.
#[test]
fn what_is_missing_is_said_with_the_mend_and_signals_stay() {
    assert!(!loaded());
    let path = std::env::var_os("TBUS_TEST_UCX").map(PathBuf::from);
    let environment = || std::env::vars_os().collect::<Vec<_>>();
    let before = (status("SigCgt:"), environment());
    let ucx = Ucx::load(path.as_deref());
    assert_eq!(ucx.is_ok(), loaded());
    // SIGHUP and SIGSEGV among them, which UCX would take.
    assert_eq!((status("SigCgt:"), environment()), before);
    if let Some(path) = &path {
        ucx.as_ref().expect("the library that was named");
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let directory = path.canonicalize().unwrap();
        assert!(maps.contains(directory.parent().unwrap().to_str().unwrap()));
    }
    if let Ok(ucx) = ucx {
        println!("{ucx:?}");
        assert!(ucx.version() >= (1, 13, 0));
        let again = Ucx::load(path.as_deref()).unwrap();
        assert!(std::ptr::eq(ucx, again));
        let other = Ucx::load(Some("libtbus-none.so.0".as_ref())).unwrap_err();
        assert!(other.to_string().contains(" is loaded already"), "{other}");
    }
    match ucx.and_then(Context::new) {
        Ok(context) => println!("{context:?}"),
        Err(unavailable) => {
            let text = unavailable.to_string();
            println!("{text}");
            assert!(text.starts_with("unavailable: "), "{text}");
            let known = |(what, mend): &(&str, &str)| text.contains(what) && text.contains(mend);
            assert!(REASONS.iter().any(known), "{text}");
        }
    }
    assert_eq!((status("SigCgt:"), environment()), before);
}
