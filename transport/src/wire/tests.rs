//! Frames and chunks come back as they were, and nothing that is decoded panics.

use super::*;

fn cursor(position: u64, sequence: u64) -> Cursor {
    Cursor { position, sequence }
}

fn examples() -> Vec<Frame> {
    let uuid = |n| Uuid([n; 16]);
    vec![
        Frame::Hello(Hello {
            protocol: (1, 3),
            node: 7,
            lease: 0x1122_3344_5566_7788,
            capabilities: 3,
            cluster: "games".into(),
            endpoint: "tcp://10.1.44.61:1027".into(),
        }),
        Frame::Offer {
            transport: 1,
            port: 0,
            token: Token([9; 16]),
        },
        Frame::Attach(Token([9; 16])),
        Frame::Open(Open {
            slot: 3,
            attempt: 4,
            from: Address(0x101),
            to: Address(0x301),
            source: uuid(5),
            nonce: 6,
            capacity: 20480000,
            head: cursor(80, 1),
            tail: cursor(240, 3),
        }),
        Frame::Resume(Resume {
            slot: 3,
            attempt: 4,
            source: uuid(5),
            mirror: uuid(6),
            tail: cursor(160, 2),
            head: cursor(80, 1),
            epoch: 99,
            remote: (0, 0),
        }),
        Frame::Refuse {
            slot: 3,
            attempt: 4,
            why: Refusal::Capacity,
            text: "4096 here, 8192 there".into(),
        },
        Frame::Reject {
            slot: 3,
            epoch: 99,
            position: 160,
            text: "record length".into(),
        },
        Frame::Close { slot: 3, epoch: 99 },
        Frame::Gap {
            slot: 3,
            from: cursor(80, 1),
            to: cursor(160, 2),
        },
        Frame::Heartbeat {
            number: 12,
            echo: 11,
        },
        Frame::Bye {
            why: Goodbye::Ending,
            text: "stopped by SIGTERM".into(),
        },
        Frame::Decline {
            token: Token([9; 16]),
            text: "no RDMA here".into(),
        },
    ]
}

#[test]
fn frames_come_back_as_they_were() {
    let mut all = Vec::new();
    for frame in examples() {
        frame.encode(&mut all);
    }
    let mut rest = &all[..];
    for frame in examples() {
        for short in 0..FRAME_HEADER {
            assert_eq!(Frame::decode(&rest[..short]), Ok(None));
        }
        let (decoded, length) = Frame::decode(rest).unwrap().unwrap();
        assert_eq!(Frame::decode(&rest[..length - 1]), Ok(None));
        assert_eq!(decoded, frame);
        rest = &rest[length..];
    }
    assert!(rest.is_empty());
}

#[test]
fn every_cut_and_every_other_byte_is_an_error_or_a_frame_but_no_panic() {
    for frame in examples() {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut other = bytes.clone();
                other[at] = value;
                let _ = Frame::decode(&other);
            }
            // A body shorter or longer than its fields is never taken for the frame.
            if at >= FRAME_HEADER {
                let mut short = bytes[..at].to_vec();
                short[..4].copy_from_slice(&((at - FRAME_HEADER) as u32).to_le_bytes());
                assert!(Frame::decode(&short).is_err(), "{frame:?} cut at {at}");
            }
        }
        bytes.push(0);
        let length = (bytes.len() - FRAME_HEADER) as u32;
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        assert!(Frame::decode(&bytes).is_err(), "{frame:?} with a byte more");
    }
}

#[test]
fn a_length_beyond_the_limit_is_refused_before_the_bytes_come() {
    let header = [0xff, 0xff, 0xff, 0x7f, 1, 0, 0, 0];
    assert!(Frame::decode(&header).is_err());
}

#[test]
fn chunks_come_back_as_they_were() {
    let data = Data {
        slot: 1,
        epoch: 2,
        position: 72,
        length: 65536,
    };
    let control = Control {
        slot: 3,
        epoch: 4,
        want: false,
        delivered: 160,
        consumed: cursor(80, 9),
    };
    let want = Control {
        slot: 3,
        epoch: 4,
        want: true,
        delivered: 0,
        consumed: cursor(0, 0),
    };
    for (data, control) in [
        (Some(data), None),
        (None, Some(control)),
        (Some(data), Some(control)),
        (None, Some(want)),
    ] {
        let chunk = Chunk { data, control };
        assert_eq!(Chunk::decode(&chunk.encode()), Ok(chunk));
    }
    assert!(
        Chunk::decode(&Chunk::default().encode()).is_err(),
        "neither data nor control"
    );
    let long = Chunk {
        data: Some(Data {
            length: 65537,
            ..data
        }),
        control: None,
    };
    assert!(Chunk::decode(&long.encode()).is_err());
    let torn = Control {
        delivered: 161,
        ..control
    };
    assert!(
        Chunk::decode(
            &Chunk {
                data: None,
                control: Some(torn)
            }
            .encode()
        )
        .is_err()
    );
}

#[test]
fn texts_are_cut_and_cleaned() {
    let text = "é".repeat(200) + "\u{1b}[2J";
    let mut bytes = Vec::new();
    Frame::Bye {
        why: Goodbye::Link,
        text,
    }
    .encode(&mut bytes);
    let Some((Frame::Bye { text, .. }, _)) = Frame::decode(&bytes).unwrap() else {
        panic!()
    };
    assert_eq!(text, "é".repeat(127));
    bytes.clear();
    Frame::Bye {
        why: Goodbye::Link,
        text: "\u{1b}[2J".into(),
    }
    .encode(&mut bytes);
    let Some((Frame::Bye { text, .. }, _)) = Frame::decode(&bytes).unwrap() else {
        panic!()
    };
    assert_eq!(text, "\u{fffd}[2J");
}
