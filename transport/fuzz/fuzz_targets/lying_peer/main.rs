//! A peer that lies, as a program that the fuzzer writes: it greets as it should, and then says and sends what the input says,
//! to a relay over real TCP. The relay, its bus and the application there are made once; each input is a connection of its
//! own.

#![no_main]

mod host;
mod input;
mod liar;

use host::Host;
use input::Input;
use liar::Liar;
use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;

/// What a program may do at most: its length is the fuzzer's business, its time is not.
const ACTIONS: usize = 300;

thread_local! {
    static HOST: RefCell<Host> = RefCell::new(Host::new());
}

fuzz_target!(|bytes: &[u8]| {
    HOST.with_borrow_mut(|host| {
        let mut input = Input(bytes);
        host.begin();
        let mut liar = Liar::greet(host, input.u8());
        for _ in 0..ACTIONS {
            if input.0.is_empty() {
                break;
            }
            liar.act(host, &mut input);
            host.step();
            liar.listen(host);
        }
        liar.hang_up(host);
        host.check();
    });
});
