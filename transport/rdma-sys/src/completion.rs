//! Queues that tell what is done.

use crate::bindings::verbs::*;
use crate::connection::{ConnectionId, Id, without_waiting};
use crate::error::{Error, Result, check_number, drop_it};
use crate::inline::DataPath;
use crate::library::text;
use crate::queue_pair::Name;
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

/// Tells what is done of what was posted to the queue pairs that use it.
#[derive(Clone, Debug)]
pub struct CompletionQueue(Arc<Queue>);

#[derive(Debug)]
pub(crate) struct Queue {
    raw: NonNull<ibv_cq>,
    wakeups: Wakeups,
    data_path: DataPath,
}

/// A completion channel. A type of its own, so that it goes when the queue cannot be made.
#[derive(Debug)]
struct Wakeups {
    raw: NonNull<ibv_comp_channel>,
    id: Arc<Id>,
}

// SAFETY: the library may be called from any thread.
unsafe impl Send for Queue {}
// SAFETY: as for Send.
unsafe impl Sync for Queue {}

impl Drop for Queue {
    fn drop(&mut self) {
        let verbs = self.wakeups.id.verbs;
        drop_it(verbs, "ibv_destroy_cq", || {
            // SAFETY: live; queue pairs that use it keep it, so there are none. No event of it is unacknowledged.
            let result = unsafe { verbs.ib.ibv_destroy_cq(self.raw()) };
            check_number("ibv_destroy_cq", result)
        });
    }
}

impl Drop for Wakeups {
    fn drop(&mut self) {
        let verbs = self.id.verbs;
        drop_it(verbs, "ibv_destroy_comp_channel", || {
            // SAFETY: live, and its queue is gone.
            let result = unsafe { verbs.ib.ibv_destroy_comp_channel(self.raw.as_ptr()) };
            check_number("ibv_destroy_comp_channel", result)
        });
    }
}

impl Queue {
    pub fn raw(&self) -> *mut ibv_cq {
        self.raw.as_ptr()
    }

    /// Whose it is.
    pub fn context(&self) -> *mut ibv_context {
        // SAFETY: live.
        unsafe { (*self.raw()).context }
    }

    /// How many completions it holds.
    pub fn entries(&self) -> u32 {
        // SAFETY: live.
        unsafe { (*self.raw()).cqe }.max(0) as u32
    }
}

/// Room for what is done: [`CompletionQueue::take`].
pub struct Taken {
    entries: [MaybeUninit<ibv_wc>; Taken::ROOM],
    /// So many are filled, and so many of those handed out.
    count: usize,
    given: usize,
}

impl Taken {
    const ROOM: usize = 16;
}

impl Default for Taken {
    fn default() -> Taken {
        Taken {
            entries: [const { MaybeUninit::uninit() }; Taken::ROOM],
            count: 0,
            given: 0,
        }
    }
}

impl fmt::Debug for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Taken")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

/// Something is done.
#[derive(Debug)]
pub struct Completion {
    /// Whose.
    pub queue_pair: Name,
    /// What.
    pub outcome: Outcome,
}

/// See [`Completion`].
#[derive(Debug)]
pub enum Outcome {
    /// What was posted up to there, as [`QueuePair::post`](crate::QueuePair::post) counts.
    Sent(u32),
    /// Something has come. What the peer wrote before it is visible from now on.
    Received(Received),
    /// Something posted was not done, nor is anything after it: the queue pair is of no further use.
    Failed(Status),
    /// None of the requests to send is left.
    SendsDrained,
    /// No receive buffer is left with the device.
    ReceivesDrained,
}

/// A receive buffer that is with its queue pair again: [`QueuePair::bytes`](crate::QueuePair::bytes),
/// [`QueuePair::repost`](crate::QueuePair::repost).
#[derive(Debug)]
pub struct Received {
    pub(crate) queue_pair: Name,
    pub(crate) buffer: u32,
    pub(crate) length: u32,
    /// What came with it, if the peer wrote with immediate data.
    pub immediate: Option<u32>,
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    number: u32,
    vendor: u32,
    text: String,
}

impl Status {
    /// True if the queue pair had been given up before, by whatever failed first or on purpose: says nothing new.
    pub fn is_flush(&self) -> bool {
        self.number == ibv_wc_status::IBV_WC_WR_FLUSH_ERR.0
    }

    /// True if the peer did not answer: it, its host or the way to it is gone.
    pub fn is_silence(&self) -> bool {
        self.number == ibv_wc_status::IBV_WC_RETRY_EXC_ERR.0
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (status {}, vendor's {})",
            self.text, self.number, self.vendor
        )
    }
}

/// What a request is known by when it is done, since nothing else of a failed one is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WorkId {
    pub queue_pair: Name,
    pub receive: bool,
    /// The last request to be flushed.
    pub last: bool,
    /// Of a receive, its buffer; else how many requests to send had been posted, with it.
    pub number: u32,
}

impl WorkId {
    const RECEIVE: u64 = 1 << 63;
    const LAST: u64 = 1 << 62;

    pub fn encode(self) -> u64 {
        let receive = if self.receive { WorkId::RECEIVE } else { 0 };
        let last = if self.last { WorkId::LAST } else { 0 };
        receive | last | u64::from(self.queue_pair.0) << 32 | u64::from(self.number)
    }

    pub fn decode(id: u64) -> WorkId {
        WorkId {
            queue_pair: Name((id >> 32) as u32 & Name::MAX),
            receive: id & WorkId::RECEIVE != 0,
            last: id & WorkId::LAST != 0,
            number: id as u32,
        }
    }
}

impl CompletionQueue {
    /// A new one, of the connection's device. It must hold all that can be posted to its queue pairs, and two more for each.
    pub fn new(id: &ConnectionId, entries: u32) -> Result<CompletionQueue> {
        let id = id.inner();
        let context = id.context("ibv_create_cq")?;
        // SAFETY: the device is open.
        let data_path = unsafe { DataPath::of(context.as_ptr()) }
            .ok_or_else(|| Error::number("ibv_poll_cq", libc::EOPNOTSUPP))?;
        // SAFETY: the device is open, and kept.
        let channel = unsafe { id.verbs.ib.ibv_create_comp_channel(context.as_ptr()) };
        let wakeups = Wakeups {
            raw: NonNull::new(channel).ok_or_else(|| Error::last("ibv_create_comp_channel"))?,
            id: id.clone(),
        };
        without_waiting(wakeups.fd())?;
        let count = i32::try_from(entries).unwrap_or(i32::MAX);
        // SAFETY: the device is open; the channel lives longer than the queue.
        let raw = unsafe {
            let ib = &id.verbs.ib;
            ib.ibv_create_cq(context.as_ptr(), count, null_mut(), channel, 0)
        };
        let raw = NonNull::new(raw).ok_or_else(|| Error::last("ibv_create_cq"))?;
        Ok(CompletionQueue(Arc::new(Queue {
            raw,
            wakeups,
            data_path,
        })))
    }

    pub(crate) fn inner(&self) -> &Arc<Queue> {
        &self.0
    }

    /// Readable after a completion, if the queue was armed before it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.wakeups.fd()
    }

    /// Has the next completion wake. What came before does not, so poll once more before sleeping.
    pub fn arm(&self) -> Result<()> {
        // SAFETY: live, and of this device.
        let result = unsafe { self.0.data_path.req_notify_cq(self.0.raw()) };
        check_number("ibv_req_notify_cq", result)
    }

    /// Takes what made the descriptor readable. True if there was anything.
    pub fn take_wakeups(&self) -> Result<bool> {
        let ib = &self.0.wakeups.id.verbs.ib;
        let mut taken = 0;
        let error = loop {
            let (mut queue, mut context) = (null_mut(), null_mut());
            // SAFETY: the channel is live; queue and context are valid for writing.
            let result = unsafe {
                ib.ibv_get_cq_event(
                    self.0.wakeups.raw.as_ptr(),
                    &raw mut queue,
                    &raw mut context,
                )
            };
            match result {
                0 => taken += 1,
                _ => break Error::last("ibv_get_cq_event"),
            }
        };
        if taken > 0 {
            // SAFETY: live, and so many of its events were taken: the channel has no other queue.
            unsafe { ib.ibv_ack_cq_events(self.0.raw(), taken) };
        }
        match error.errno() {
            Some(libc::EAGAIN | libc::EINTR) => Ok(taken > 0),
            _ => Err(error),
        }
    }

    /// So many completions are taken at a time: if it was fewer, there are no more now.
    pub const AT_ONCE: usize = Taken::ROOM;

    /// Takes some of what is done, in order for each queue pair, in place of what was taken before. How many.
    #[inline]
    pub fn take(&self, into: &mut Taken) -> Result<usize> {
        (into.count, into.given) = (0, 0);
        // SAFETY: live, and of this device.
        let count = unsafe { self.0.data_path.poll_cq(self.0.raw(), &mut into.entries) };
        match usize::try_from(count) {
            Ok(count) => {
                into.count = count.min(Taken::ROOM);
                Ok(into.count)
            }
            Err(_) => Err(Error::number("ibv_poll_cq", libc::EIO)
                .mend("completions were lost: the queue held too few, or the device failed")),
        }
    }

    /// The next of what was taken. Each comes once, since it may be a receive buffer.
    #[inline]
    pub fn next(&self, taken: &mut Taken) -> Option<Completion> {
        let index = taken.given;
        if index >= taken.count {
            return None;
        }
        taken.given += 1;
        // SAFETY: so many were filled.
        Some(self.completion(unsafe { taken.entries[index].assume_init_ref() }))
    }

    /// Takes some of what is done and hands it out. How many.
    pub fn poll(&self, mut each: impl FnMut(Completion)) -> Result<usize> {
        let mut taken = Taken::default();
        let count = self.take(&mut taken)?;
        while let Some(completion) = self.next(&mut taken) {
            each(completion);
        }
        Ok(count)
    }

    fn completion(&self, entry: &ibv_wc) -> Completion {
        let work = WorkId::decode(entry.wr_id);
        let outcome = match (work.receive, entry.status == ibv_wc_status::IBV_WC_SUCCESS) {
            (receive, _) if work.last => match receive {
                true => Outcome::ReceivesDrained,
                false => Outcome::SendsDrained,
            },
            (false, true) => Outcome::Sent(work.number),
            (true, true) => {
                let with_immediate = entry.wc_flags & ibv_wc_flags::IBV_WC_WITH_IMM.0 != 0;
                Outcome::Received(Received {
                    queue_pair: work.queue_pair,
                    buffer: work.number,
                    // Of a write with immediate data the count is what was written, and that elsewhere.
                    length: match entry.opcode == ibv_wc_opcode::IBV_WC_RECV {
                        true => entry.byte_len,
                        false => 0,
                    },
                    // SAFETY: any four bytes are a number; with the flag they are this one.
                    immediate: with_immediate
                        .then(|| u32::from_be(unsafe { entry.__bindgen_anon_1.imm_data })),
                })
            }
            (_, false) => Outcome::Failed(self.status(entry)),
        };
        Completion {
            queue_pair: work.queue_pair,
            outcome,
        }
    }

    #[cold]
    fn status(&self, entry: &ibv_wc) -> Status {
        Status {
            number: entry.status.0,
            vendor: entry.vendor_err,
            // SAFETY: any number will do; the text is static.
            text: unsafe { text(self.0.wakeups.id.verbs.ib.ibv_wc_status_str(entry.status)) },
        }
    }
}

impl Wakeups {
    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel is live, and its descriptor open as long as it.
        unsafe { BorrowedFd::borrow_raw((*self.raw.as_ptr()).fd) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_is_known_by() {
        let flags = [false, true];
        for (receive, last) in flags.iter().flat_map(|a| flags.map(|b| (*a, b))) {
            for (name, number) in [(0, 0), (1, u32::MAX), (Name::MAX, 7)] {
                let id = WorkId {
                    queue_pair: Name(name),
                    receive,
                    last,
                    number,
                };
                assert_eq!(WorkId::decode(id.encode()), id);
            }
        }
    }
}
