//! Gives libtbus.so its soname, and the build's directory a link of that name, so that programs linked there run there.

use std::path::PathBuf;

/// Changes when programs must be linked anew.
const SONAME: &str = "libtbus.so.1";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,{SONAME}");
    // It starts threads and registers fork handlers, which must not lose their code by dlclose.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    // OUT_DIR is PROFILE/build/PACKAGE/out. Without the link, LD_LIBRARY_PATH does not find the library there; no more.
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    if let Some(profile) = out.ancestors().nth(3) {
        let _ = std::os::unix::fs::symlink("libtbus.so", profile.join(SONAME));
    }
}
