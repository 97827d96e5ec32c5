//! The one place that chooses the atomics: the processor's own, or loom's, which explore every
//! interleaving that the memory model allows (`RUSTFLAGS="--cfg loom" cargo test`).

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{
    AtomicU32, AtomicU64, Ordering, Ordering::*, compiler_fence, fence,
};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, Ordering::*, fence};

/// Keeps the compiler from moving loads above earlier stores. The processor's half of that order is
/// supplied by the other side's `membarrier` (see `wait.rs`); loom has no membarrier, so there a real
/// fence stands for the pair.
#[inline(always)]
pub(crate) fn compiler_barrier() {
    #[cfg(not(loom))]
    compiler_fence(Ordering::SeqCst);
    #[cfg(loom)]
    fence(Ordering::SeqCst);
}
