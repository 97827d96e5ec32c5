//! On a host of any kind, also without the libraries, a device or the kernel's part: it works, or it is said why not.

use tbus_rdma_sys::Verbs;

/// What is missing, and a word of the mend.
const REASONS: &[(&str, &str)] = &[
    (" cannot be loaded (", "ibverbs-providers"),
    (" is too old (", "rdma-core 33"),
    ("this host has no RDMA device (", "modprobe rdma_rxe"),
    ("rdma_create_event_channel: ", "modprobe rdma_ucm"),
    ("bytes are to be registered", "LimitMEMLOCK=infinity"),
];

/// That nothing of them is linked: a program starts where they are not installed.
fn loaded() -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.contains("libibverbs") || maps.contains("librdmacm")
}

#[test]
fn what_is_missing_is_said_with_the_mend() {
    assert!(!loaded());
    assert_eq!(Verbs::load().is_ok(), loaded());
    match Verbs::load().and_then(|verbs| verbs.probe(4096)) {
        Ok(names) => assert!(names.iter().all(|name| !name.is_empty()), "{names:?}"),
        Err(unavailable) => {
            let text = unavailable.to_string();
            println!("{text}");
            assert!(text.starts_with("unavailable: "), "{text}");
            assert!(
                REASONS
                    .iter()
                    .any(|(what, mend)| text.contains(what) && text.contains(mend)),
                "{text}"
            );
        }
    }
}
