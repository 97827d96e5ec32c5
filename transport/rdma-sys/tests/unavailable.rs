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

#[test]
fn what_is_missing_is_said_with_the_mend() {
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
