//! Any bytes as frames and as headers of chunks: no panic, and what decodes comes back as it was when it is encoded.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tbus::layout::MAX_POSITION;
use tbus_transport::wire::{CHUNK_HEADER, Chunk, Frame, MAX_CHUNK, MAX_TEXT};

/// The texts of a frame.
fn texts(frame: &mut Frame) -> Vec<&mut String> {
    match frame {
        Frame::Hello(hello) => vec![&mut hello.cluster, &mut hello.endpoint],
        Frame::Refuse { text, .. }
        | Frame::Reject { text, .. }
        | Frame::Decline { text, .. }
        | Frame::Bye { text, .. } => vec![text],
        _ => Vec::new(),
    }
}

fn frames(mut bytes: &[u8]) {
    while let Ok(Some((mut frame, length))) = Frame::decode(bytes) {
        let (taken, rest) = bytes.split_at(length);
        bytes = rest;
        let mut encoded = Vec::new();
        frame.encode(&mut encoded);
        let (again, all) = Frame::decode(&encoded)
            .expect("what is encoded is well-formed")
            .expect("and complete");
        assert_eq!(all, encoded.len());
        // Only a replaced control character changes a frame's bytes. It makes the text longer, so that its end may be cut off.
        let mut replaced = false;
        for text in texts(&mut frame) {
            replaced |= text.contains('\u{fffd}');
            text.truncate(text.floor_char_boundary(MAX_TEXT));
        }
        assert_eq!(again, frame);
        assert!(replaced || encoded == taken);
    }
}

fn chunks(bytes: &[u8]) {
    for header in bytes.as_chunks::<CHUNK_HEADER>().0 {
        if let Ok(chunk) = Chunk::decode(header) {
            assert_eq!(Chunk::decode(&chunk.encode()), Ok(chunk));
            // A link computes with these without another look.
            if let Some(data) = chunk.data {
                assert!((1..=MAX_CHUNK).contains(&(data.length as usize)));
                assert!(data.position < MAX_POSITION);
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    frames(bytes);
    chunks(bytes);
});
