//! Queue pairs: what is posted, and what becomes of it.

use crate::bindings::verbs::*;
use crate::completion::{Outcome, Received, WorkId};
use crate::connection::{ConnectionId, Id};
use crate::error::{Error, Result, check, check_number, drop_it};
use crate::inline::DataPath;
use crate::memory::Domain;
use crate::{Access, Completion, CompletionQueue, ProtectionDomain, Region};
use memmap2::{MmapMut, MmapRaw};
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Tells the queue pairs of this process apart, also from those that are gone. (The device's numbers come again.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Name(pub(crate) u32);

impl Name {
    pub(crate) const MAX: u32 = (1 << 30) - 1;

    fn next() -> Name {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Relaxed: only to be another each time.
        Name(NEXT.fetch_add(1, Ordering::Relaxed) & Name::MAX)
    }
}

/// How large a queue pair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests to send that are not done: each write and each notice is one.
    pub sends: u32,
    /// Receive buffers. One is used up by each message of the peer, with immediate data too.
    pub receives: u32,
    /// Bytes of a receive buffer.
    pub receive_size: u32,
    /// Bytes of a notice at most, and of a write that is copied at once.
    pub inline: u32,
}

/// A range of this end's region that is to be made equal at the peer.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// Where the bytes are.
    pub source: &'a Region,
    /// From there on.
    pub offset: u64,
    /// So many.
    pub length: u32,
    /// Where they belong in the peer's region.
    pub remote_offset: u64,
    /// That region.
    pub remote_key: u32,
}

/// How the peer is told, after what was written before it.
#[derive(Clone, Copy, Debug)]
pub enum Notice<'a> {
    /// Not.
    None,
    /// By a message, at most [`Limits::inline`] bytes. They are copied at once.
    Send(&'a [u8]),
    /// By a number with the last of the writes. Not on every device: [`Device::has_immediate`](crate::Device::has_immediate).
    Immediate(u32),
}

/// One end of a connection's data path.
///
/// Its requests to send are counted from 1 on. A [`Completion`] tells up to which they are done, of those that were signalled; hand
/// it to [`QueuePair::done`], which makes room again.
pub struct QueuePair {
    raw: RawQueuePair,
    name: Name,
    limits: Limits,
    /// One for each request of a chain.
    work: Box<[ibv_send_wr]>,
    parts: Box<[ibv_sge]>,
    posted: u32,
    done: u32,
    signalled: u32,
    /// Something could not be posted, so what is and what is not there is not known.
    failed: bool,
    /// It was given up.
    ended: bool,
    buffers: Buffers,
    send_queue: CompletionQueue,
    receive_queue: CompletionQueue,
    _domain: Arc<Domain>,
}

// SAFETY: the library may be called from any thread. The pointers in `work` are to `work` and `parts` and set anew before use.
unsafe impl Send for QueuePair {}

impl fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuePair")
            .field("number", &self.number())
            .field("limits", &self.limits)
            .field("posted", &self.posted)
            .field("done", &self.done)
            .finish_non_exhaustive()
    }
}

/// Destroys it before anything that it needs, since it is the first field.
#[derive(Debug)]
struct RawQueuePair {
    raw: NonNull<ibv_qp>,
    /// Its destruction was not tried yet.
    live: bool,
    data_path: DataPath,
    id: Arc<Id>,
}

impl RawQueuePair {
    /// # Safety
    /// The domain and what the attributes name live as long as this.
    unsafe fn new(
        id: &Arc<Id>,
        domain: &Domain,
        mut attributes: ibv_qp_init_attr,
        data_path: DataPath,
    ) -> Result<RawQueuePair> {
        const CALL: &str = "rdma_create_qp";
        // SAFETY: the connection is live, and kept; for the others it is the caller's promise.
        let raw = id.between_events(|| unsafe {
            let cm = &id.verbs.cm;
            let result = cm.rdma_create_qp(id.raw(), domain.raw(), &raw mut attributes);
            check(CALL, result)?;
            NonNull::new((*id.raw()).qp).ok_or_else(|| Error::number(CALL, libc::EINVAL))
        });
        let raw = raw.map_err(|error| match error.errno() {
            Some(libc::EINVAL | libc::ENOMEM) => error.mend(
                "the connection has a queue pair already, or the device allows less: see its limits",
            ),
            _ => error,
        })?;
        Ok(RawQueuePair {
            raw,
            live: true,
            data_path,
            id: id.clone(),
        })
    }

    fn destroy(&mut self) -> Result<()> {
        self.live = false;
        // As rdma_destroy_qp, which keeps the result to itself.
        // SAFETY: live, this is called once, and nobody else sees it between destruction and the connection's forgetting it.
        let result = self.id.between_events(|| unsafe {
            let result = self.id.verbs.ib.ibv_destroy_qp(self.raw.as_ptr());
            if result == 0 {
                (*self.id.raw()).qp = null_mut();
            }
            result
        });
        check_number("ibv_destroy_qp", result)
    }
}

impl Drop for RawQueuePair {
    fn drop(&mut self) {
        if self.live {
            drop_it(self.id.verbs, "ibv_destroy_qp", || self.destroy());
        }
    }
}

/// Receive buffers, in pages of their own.
#[derive(Debug)]
struct Buffers {
    region: Region,
    base: NonNull<u8>,
    count: u32,
    size: u32,
}

impl Buffers {
    fn new(domain: &ProtectionDomain, count: u32, size: u32) -> Result<Buffers> {
        let length = (count as usize * size as usize).max(1);
        let memory = MmapMut::map_anon(length)
            .map(MmapRaw::from)
            .map_err(|error| Error::number("mmap", error.raw_os_error().unwrap_or(libc::ENOMEM)))?;
        let base =
            NonNull::new(memory.as_mut_ptr()).ok_or_else(|| Error::number("mmap", libc::ENOMEM))?;
        // SAFETY: mapped for as long as `memory` lives, and read only where the device has told that it is done.
        let region =
            unsafe { Region::register(domain, base, length, Access::Receive, Box::new(memory)) }?;
        Ok(Buffers {
            region,
            base,
            count,
            size,
        })
    }
}

impl QueuePair {
    /// Makes the queue pair of a connection, with all receive buffers posted. A connection has one at most.
    pub fn new(
        id: &ConnectionId,
        domain: &ProtectionDomain,
        send_queue: &CompletionQueue,
        receive_queue: &CompletionQueue,
        limits: Limits,
    ) -> Result<QueuePair> {
        const CALL: &str = "rdma_create_qp";
        let id = id.inner();
        let context = id.context(CALL)?;
        // Besides, each queue holds the request by which it is seen to be drained.
        let (sends, receives) = (
            limits.sends.saturating_add(1),
            limits.receives.saturating_add(1),
        );
        let room = send_queue
            .inner()
            .entries()
            .min(receive_queue.inner().entries());
        let needed = match Arc::ptr_eq(send_queue.inner(), receive_queue.inner()) {
            true => sends.saturating_add(receives),
            false => sends.max(receives),
        };
        let queues = [send_queue, receive_queue];
        if queues.map(|queue| queue.inner().context()) != [context.as_ptr(); 2] {
            let why = "the completion queues are of another device";
            return Err(Error::invalid(CALL, why));
        }
        if room < needed {
            let why = format!("a completion queue holds {room}, and {needed} can come at once");
            return Err(Error::invalid(CALL, why));
        }
        // SAFETY: the device is open.
        let data_path = unsafe { DataPath::of(context.as_ptr()) }
            .ok_or_else(|| Error::number("ibv_post_send", libc::EOPNOTSUPP))?;
        let buffers = Buffers::new(domain, limits.receives, limits.receive_size)?;
        // SAFETY: all zeros is valid: null pointers and numbers.
        let mut attributes: ibv_qp_init_attr = unsafe { std::mem::zeroed() };
        attributes.send_cq = send_queue.inner().raw();
        attributes.recv_cq = receive_queue.inner().raw();
        attributes.qp_type = ibv_qp_type::IBV_QPT_RC;
        attributes.cap = ibv_qp_cap {
            max_send_wr: sends,
            max_recv_wr: receives,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline_data: limits.inline,
        };
        // SAFETY: what the attributes name is live, and kept below.
        let raw = unsafe { RawQueuePair::new(id, domain.inner(), attributes, data_path) }?;
        // SAFETY: all zeros is valid: null pointers and numbers.
        let (work, part) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let mut this = QueuePair {
            raw,
            name: Name::next(),
            limits,
            work: vec![work; limits.sends as usize].into(),
            parts: vec![part; limits.sends as usize].into(),
            posted: 0,
            done: 0,
            signalled: 0,
            failed: false,
            ended: false,
            buffers,
            send_queue: send_queue.clone(),
            receive_queue: receive_queue.clone(),
            _domain: domain.inner().clone(),
        };
        // Both stay where they are.
        for (work, part) in this.work.iter_mut().zip(&mut this.parts) {
            work.sg_list = part;
        }
        let all: Vec<u32> = (0..limits.receives).collect();
        for buffers in all.chunks(Self::REPOSTED) {
            this.post_receives(buffers, false)?;
        }
        Ok(this)
    }

    /// What its completions bear.
    pub fn name(&self) -> Name {
        self.name
    }

    /// Its number at the device, as diagnostics of the system show it.
    pub fn number(&self) -> u32 {
        // SAFETY: live.
        unsafe { (*self.raw.raw.as_ptr()).qp_num }
    }

    /// How many requests can be posted now.
    pub fn room(&self) -> u32 {
        self.limits.sends - self.posted.wrapping_sub(self.done)
    }

    /// Requests up to `number` are done: from [`Outcome::Sent`].
    pub fn done(&mut self, number: u32) {
        // Counts come around. One of the past, or one that was never posted, is no news.
        if number.wrapping_sub(self.done) <= self.posted.wrapping_sub(self.done) {
            self.done = number;
        }
    }

    /// Posts writes, and after them a notice, with one ring of the doorbell. The peer sees the notice after what was written.
    ///
    /// `None` if there is no room for all of them, of which there should be no more than half a queue at once; else the count of the last, which is done when [`Outcome::Sent`] has come so far.
    /// That comes for certain if it is `signalled`, and else with one of the next; a quarter of the queue does not go without.
    pub fn post(
        &mut self,
        writes: &[Write<'_>],
        notice: Notice<'_>,
        signalled: bool,
    ) -> Result<Option<u32>> {
        let immediate_alone = writes.is_empty() && matches!(notice, Notice::Immediate(_));
        let own = matches!(notice, Notice::Send(_)) || immediate_alone;
        let count = writes.len() + usize::from(own);
        if self.ended || self.failed {
            return Err(Error::invalid(
                "ibv_post_send",
                "the queue pair was given up",
            ));
        }
        if count == 0 {
            return Ok(Some(self.posted));
        }
        if count > self.room() as usize {
            return Ok(None);
        }
        let copied = self.copies(writes);
        for (i, write) in writes.iter().enumerate() {
            self.set_write(i, write, copied)?;
        }
        let last = count - 1;
        match notice {
            Notice::None => {}
            Notice::Send(bytes) => self.set_send(last, bytes)?,
            Notice::Immediate(number) => {
                if immediate_alone {
                    // Of no bytes, so nothing of it is looked at.
                    self.request(last, ibv_wr_opcode::IBV_WR_RDMA_WRITE);
                }
                self.work[last].opcode = ibv_wr_opcode::IBV_WR_RDMA_WRITE_WITH_IMM;
                self.work[last].__bindgen_anon_1.imm_data = number.to_be();
            }
        }
        let number = self.posted.wrapping_add(count as u32);
        let quarter = number.wrapping_sub(self.signalled) >= (self.limits.sends / 4).max(1);
        if signalled || quarter {
            self.work[last].send_flags |= ibv_send_flags::IBV_SEND_SIGNALED.0;
            self.signalled = number;
        }
        // All of them the last's, for one that fails is told without being signalled.
        let id = self.work_id(false, number).encode();
        self.work[..count]
            .iter_mut()
            .for_each(|work| work.wr_id = id);
        self.post_chain(count)?;
        self.posted = number;
        Ok(Some(number))
    }

    /// True if such writes are copied when they are posted: their source is not looked at afterwards.
    pub fn copies(&self, writes: &[Write<'_>]) -> bool {
        matches!(writes, [one] if one.length <= self.limits.inline)
    }

    /// The last request that was signalled.
    pub fn signalled(&self) -> u32 {
        self.signalled
    }

    fn set_write(&mut self, i: usize, write: &Write<'_>, copied: bool) -> Result<()> {
        let end = write.offset.checked_add(u64::from(write.length));
        if end.is_none_or(|end| end > write.source.length() as u64) {
            let why = format!(
                "{} bytes at {} are not in a region of {}",
                write.length,
                write.offset,
                write.source.length()
            );
            return Err(Error::invalid("ibv_post_send", why));
        }
        let work = self.request(i, ibv_wr_opcode::IBV_WR_RDMA_WRITE);
        work.num_sge = 1;
        work.wr.rdma.remote_addr = write.remote_offset;
        work.wr.rdma.rkey = write.remote_key;
        if copied {
            work.send_flags = ibv_send_flags::IBV_SEND_INLINE.0;
        }
        self.parts[i] = ibv_sge {
            addr: write.offset,
            length: write.length,
            lkey: write.source.local_key(),
        };
        if copied {
            // The processor copies, so by its address.
            self.parts[i].addr += write.source.address();
        }
        Ok(())
    }

    /// Request `i`, of no data. What stands there of an earlier one and is not set is not looked at.
    fn request(&mut self, i: usize, opcode: ibv_wr_opcode) -> &mut ibv_send_wr {
        let work = &mut self.work[i];
        work.opcode = opcode;
        work.send_flags = 0;
        work.num_sge = 0;
        work
    }

    fn set_send(&mut self, i: usize, bytes: &[u8]) -> Result<()> {
        if bytes.len() > self.limits.inline as usize {
            let why = format!("a notice has at most {} bytes", self.limits.inline);
            return Err(Error::invalid("ibv_post_send", why));
        }
        self.parts[i] = ibv_sge {
            addr: bytes.as_ptr().addr() as u64,
            length: bytes.len() as u32,
            lkey: 0,
        };
        let work = self.request(i, ibv_wr_opcode::IBV_WR_SEND);
        work.num_sge = i32::from(!bytes.is_empty());
        work.send_flags = ibv_send_flags::IBV_SEND_INLINE.0;
        Ok(())
    }

    /// Posts the first `count` requests of `work`.
    fn post_chain(&mut self, count: usize) -> Result<()> {
        let base = self.work.as_mut_ptr();
        for i in 1..count {
            // SAFETY: both in `work`.
            unsafe { (*base.add(i - 1)).next = base.add(i) };
        }
        // SAFETY: in `work`.
        unsafe { (*base.add(count - 1)).next = null_mut() };
        let mut bad = null_mut();
        // SAFETY: live; a list within `work`, with parts within `parts`. Inline bytes are valid for the call, which copies
        // them: a caller's slice, or part of a region, whose owner keeps it mapped. The others lie in regions, named by keys.
        let result = unsafe {
            self.raw
                .data_path
                .post_send(self.raw.raw.as_ptr(), base, &mut bad)
        };
        check_number("ibv_post_send", result).inspect_err(|_| self.failed = true)
    }

    /// What has come into a receive buffer; empty if only a number has.
    ///
    /// # Panics
    /// If another queue pair received it; the same for [`QueuePair::repost`].
    pub fn bytes(&self, received: &Received) -> &[u8] {
        assert_eq!(received.queue_pair, self.name, "another queue pair's");
        let at = received.buffer as usize * self.buffers.size as usize;
        // A device that claims more than the buffer holds is not believed.
        let length = received.length.min(self.buffers.size) as usize;
        debug_assert!(received.buffer < self.buffers.count);
        // SAFETY: in the buffers. The device has told that it is done with this one, and does not get it again while the
        // token is there.
        unsafe { std::slice::from_raw_parts(self.buffers.base.as_ptr().add(at), length) }
    }

    /// Lets a receive buffer be used again.
    pub fn repost(&mut self, received: Received) -> Result<()> {
        self.repost_all(&mut vec![received])
    }

    /// So many receive buffers are posted with one call.
    pub const REPOSTED: usize = 16;

    /// Lets receive buffers be used again; none is left in `received`.
    pub fn repost_all(&mut self, received: &mut Vec<Received>) -> Result<()> {
        while !received.is_empty() {
            let mut buffers = [0; Self::REPOSTED];
            let count = received.len().min(Self::REPOSTED);
            for (buffer, received) in buffers.iter_mut().zip(received.drain(..count)) {
                assert_eq!(received.queue_pair, self.name, "another queue pair's");
                *buffer = received.buffer;
            }
            if !self.ended {
                self.post_receives(&buffers[..count], false)?;
            }
        }
        Ok(())
    }

    /// At most [`QueuePair::REPOSTED`] of them. `last`: without room for anything, to see the queue drained.
    fn post_receives(&mut self, buffers: &[u32], last: bool) -> Result<()> {
        assert!(!buffers.is_empty() && buffers.len() <= Self::REPOSTED);
        let mut works = [const { MaybeUninit::<(ibv_recv_wr, ibv_sge)>::uninit() }; Self::REPOSTED];
        // From now on they are only touched by way of this pointer, for they point to each other.
        let base = works.as_mut_ptr().cast::<(ibv_recv_wr, ibv_sge)>();
        for (i, buffer) in buffers.iter().enumerate() {
            let mut id = self.work_id(true, *buffer);
            id.last = last;
            // SAFETY: there are no more buffers than works.
            let (work, next) = unsafe { (base.add(i), base.wrapping_add(i + 1)) };
            let wanted = ibv_recv_wr {
                wr_id: id.encode(),
                next: match i + 1 < buffers.len() {
                    // SAFETY: as above.
                    true => unsafe { &raw mut (*next).0 },
                    false => null_mut(),
                },
                // SAFETY: as above.
                sg_list: unsafe { &raw mut (*work).1 },
                num_sge: i32::from(!last && self.buffers.size > 0),
            };
            let part = ibv_sge {
                addr: u64::from(*buffer) * u64::from(self.buffers.size),
                length: self.buffers.size,
                lkey: self.buffers.region.local_key(),
            };
            // SAFETY: as above.
            unsafe { work.write((wanted, part)) };
        }
        let mut bad = null_mut();
        // SAFETY: live; the requests and their parts were all written and are valid for the call. The parts lie in the buffers,
        // which outlive the queue pair, and nobody reads one before it is done.
        let result = unsafe {
            self.raw
                .data_path
                .post_recv(self.raw.raw.as_ptr(), &raw mut (*base).0, &mut bad)
        };
        check_number("ibv_post_recv", result)
    }

    fn work_id(&self, receive: bool, number: u32) -> WorkId {
        WorkId {
            queue_pair: self.name,
            receive,
            last: false,
            number,
        }
    }

    /// Gives it up: what is posted fails, and nothing of the peer is taken any more. Then come [`Outcome::SendsDrained`] and
    /// [`Outcome::ReceivesDrained`].
    pub fn end(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        // Each queue has room for one request more, which is the last to be done. That to receive is posted before: soft-RoCE
        // looks at receives when something comes or the state changes.
        self.post_receives(&[0], true)?;
        // SAFETY: all zeros is valid: numbers.
        let mut attributes: ibv_qp_attr = unsafe { std::mem::zeroed() };
        attributes.qp_state = ibv_qp_state::IBV_QPS_ERR;
        let mask = ibv_qp_attr_mask::IBV_QP_STATE.0 as i32;
        // SAFETY: live; attributes are valid for reading.
        let result = unsafe {
            let ib = &self.raw.id.verbs.ib;
            ib.ibv_modify_qp(self.raw.raw.as_ptr(), &raw mut attributes, mask)
        };
        check_number("ibv_modify_qp", result)?;
        // That to send is posted after: before, a queue pair that was never connected would not take it.
        let mut id = self.work_id(false, self.posted);
        id.last = true;
        // SAFETY: all zeros is valid: null pointers and numbers.
        let mut work: ibv_send_wr = unsafe { std::mem::zeroed() };
        work.opcode = ibv_wr_opcode::IBV_WR_RDMA_WRITE;
        work.wr_id = id.encode();
        work.send_flags = ibv_send_flags::IBV_SEND_SIGNALED.0;
        let mut bad = null_mut();
        // SAFETY: live; the request is valid for the call.
        let result = unsafe {
            let queue_pair = self.raw.raw.as_ptr();
            self.raw
                .data_path
                .post_send(queue_pair, &raw mut work, &mut bad)
        };
        check_number("ibv_post_send", result)
    }

    /// [Ends](QueuePair::end) it, and polls until nothing is left with the device, handing out what else is done, also of other
    /// queue pairs. False if that takes longer.
    pub fn drain(&mut self, within: Duration, mut each: impl FnMut(Completion)) -> Result<bool> {
        self.end()?;
        let (name, begun) = (self.name, Instant::now());
        let (mut sends, mut receives) = (false, false);
        loop {
            let mut see = |completion: Completion| match completion.outcome {
                Outcome::SendsDrained if completion.queue_pair == name => sends = true,
                Outcome::ReceivesDrained if completion.queue_pair == name => receives = true,
                _ => each(completion),
            };
            let some = self.send_queue.poll(&mut see)? + self.receive_queue.poll(&mut see)? > 0;
            if sends && receives {
                return Ok(true);
            }
            if !some && begun.elapsed() > within {
                return Ok(false);
            }
        }
    }

    /// Destroys it. Once this has returned, nothing of it can land on either side any more; without that, nobody may go on as if.
    pub fn destroy(mut self) -> Result<()> {
        self.raw.id.verbs.own("ibv_destroy_qp")?;
        self.raw.destroy()
    }
}
