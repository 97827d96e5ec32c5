//! Runs one operation of the ring a number of times, for `benches/instructions` to count.

use std::hint::black_box;
use std::process::ExitCode;
use tbus::{Address, Directory, Ring, RingSpec};

fn run(operation: &str, count: usize, size: usize) -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::temp_dir().join(format!("tbus-ring-ops-{}", std::process::id()));
    let directory = Directory::create(&path)?;
    let ring = Ring::create(
        &directory,
        &RingSpec::local(1 << 20, Address(1), Address(2)),
    )?;
    let (mut sender, mut receiver) = (ring.sender()?, ring.receiver()?);
    std::fs::remove_dir_all(&path)?;
    let payload = vec![1u8; size];
    let mut buffer = vec![0u8; size];
    for _ in 0..count {
        match operation {
            "send-release" => {
                sender.try_send(black_box(&payload))?;
                receiver.peek()?.release();
            }
            "send-recv" => {
                sender.try_send(black_box(&payload))?;
                black_box(receiver.try_recv(black_box(&mut buffer))?);
            }
            "reserve-release" => {
                let mut room = sender.reserve(size)?;
                room.write_at(0, black_box(&payload));
                room.commit();
                receiver.peek()?.release();
            }
            "batch-8" => {
                sender.send_batch([black_box(&payload); 8])?;
                let mut batch = receiver.recv_batch(8);
                while let Some(message) = batch.next() {
                    black_box(message.len());
                }
            }
            "empty-poll" => drop(black_box(receiver.peek().is_err())),
            other => return Err(format!("no operation '{other}'").into()),
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize| words.get(index).and_then(|w| w.parse().ok());
    let (Some(operation), Some(count), Some(size)) = (words.first(), number(1), number(2)) else {
        eprintln!(
            "usage: ring-ops send-release|send-recv|reserve-release|batch-8|empty-poll COUNT BYTES"
        );
        return ExitCode::from(2);
    };
    match run(operation, count, size) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ring-ops: {error}");
            ExitCode::from(7)
        }
    }
}
