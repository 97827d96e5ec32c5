//! Time for measurements of nanoseconds: the processor's time stamp counter where there is one.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A moment, in ticks of the clock.
#[inline(always)]
pub fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: every x86-64 processor has the instruction.
        unsafe { core::arch::x86_64::_rdtsc() }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }
}

/// What a tick is worth and what reading the clock costs.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Nanoseconds a tick.
    pub ns_per_tick: f64,
    /// Ticks between two readings with nothing in between.
    pub overhead: u64,
}

impl Clock {
    /// Calibrates once in a process; takes 20 ms.
    pub fn get() -> Clock {
        static CLOCK: OnceLock<Clock> = OnceLock::new();
        *CLOCK.get_or_init(|| {
            let (instant, tick) = (Instant::now(), ticks());
            std::thread::sleep(Duration::from_millis(20));
            let (time, count) = (instant.elapsed(), ticks() - tick);
            let mut gaps: Vec<u64> = (0..1000)
                .map(|_| {
                    let begun = ticks();
                    ticks() - begun
                })
                .collect();
            gaps.sort_unstable();
            Clock {
                ns_per_tick: time.as_nanos() as f64 / count.max(1) as f64,
                overhead: gaps[gaps.len() / 2],
            }
        })
    }

    /// Nanoseconds of a span of ticks, less what reading the clock costs.
    pub fn ns(&self, ticks: u64) -> f64 {
        ticks.saturating_sub(self.overhead) as f64 * self.ns_per_tick
    }
}
