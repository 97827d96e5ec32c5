use tbus::*;
use std::time::Instant;
fn main() {
    let p = std::path::PathBuf::from(format!("/dev/shm/tbus-spin-{}", std::process::id()));
    let d = Directory::create(&p).unwrap();
    let r = Ring::create(&d, &RingSpec::local(1<<20, Address(1), Address(2))).unwrap();
    r.prefault();
    let mut s = r.sender().unwrap();
    let mut c = r.receiver().unwrap();
    for size in [8usize, 64, 256] {
        let pay = vec![1u8; size];
        for chunk in [1u32, 100] {
        let t = Instant::now();
        let n = 20_000_000u32 / chunk;
        for _ in 0..n {
            for _ in 0..chunk { s.try_send(&pay).unwrap(); }
            for _ in 0..chunk { let m = c.peek().unwrap(); std::hint::black_box(m.len()); m.release(); }
        }
        println!("{size} chunk {chunk}: {:.2} ns", t.elapsed().as_nanos() as f64 / 20e6);
        let t = Instant::now();
        for _ in 0..20_000 {
            for _ in 0..1000 { s.try_send(&pay).unwrap(); }
            let mut b = c.recv_batch(1000); while let Some(m) = b.next() { std::hint::black_box(m.len()); }
        }
        println!("   batch: {:.2} ns", t.elapsed().as_nanos() as f64 / 20e6);
        }
        let mut ts=0; let mut tr=0;
        for _ in 0..20_000 {
            let t = Instant::now();
            for _ in 0..1000 { s.try_send(&pay).unwrap(); }
            ts += t.elapsed().as_nanos();
            let t = Instant::now();
            for _ in 0..1000 { let m = c.peek().unwrap(); std::hint::black_box(m.len()); m.release(); }
            tr += t.elapsed().as_nanos();
        }
        println!("  send {:.2} recv {:.2}", ts as f64/20e6, tr as f64/20e6);
    }
    std::fs::remove_dir_all(&p).unwrap();
}
