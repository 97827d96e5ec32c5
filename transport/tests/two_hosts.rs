//! Two relays over TCP on loopback, real rings, real sockets; both stepped by the test, so that each moment is known.

mod common;

use common::Hosts;
use tbus::TryRecvError;

#[test]
fn messages_go_both_ways() {
    let mut hosts = Hosts::new("both", 3, 8192);
    hosts.connect();
    for n in 1..=3 {
        for host in 0..2 {
            let (mut sender, mut receiver) = hosts.pair(host, n);
            let mut buffer = [0; 2000];
            for round in 0..200u32 {
                let message = vec![round as u8; round as usize * 7 % 1500];
                sender.try_send(&message).unwrap();
                let mut length = None;
                hosts.until("the message", |_| match receiver.try_recv(&mut buffer) {
                    Ok(n) => {
                        length = Some(n);
                        true
                    }
                    Err(TryRecvError::Empty) => false,
                    Err(error) => panic!("{error}"),
                });
                assert_eq!(&buffer[..length.unwrap()], &message[..]);
            }
        }
    }
}
