//! A bare connection over UCX between two processes, by the ways of handing bytes on that tbus's link over UCX has: messages with the
//! bytes, and for long ones put, flush, message. What the link is measured against.

use super::{Result, worker};
use memmap2::{MmapMut, MmapRaw};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tbus_ucx_sys::{
    Body, Context, Endpoint, How, Listener, Memory, Operation, Received, RemoteKey, Ucx, Worker,
};

/// Messages that are longer are put, as by the link.
const PUT: usize = 32 << 10;
/// Bytes of the memory at either end.
const MEMORY: usize = 1 << 20;
/// Bytes of the header of a message, as the link has them. Shorter: the end. Longer: by what memory is written.
const HEADER: usize = 20;
/// Bytes under way in a stream, and messages at most.
const WINDOW: usize = 1 << 20;
const MESSAGES: usize = 64;
/// The other process comes, and answers, within this time.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is measured, by whom.
#[derive(Clone, Debug)]
pub struct Task {
    /// The card's address; with a port the first process listens there, and this is the second.
    pub address: SocketAddr,
    /// A stream, else single messages there and back.
    pub stream: bool,
    /// Bytes of a message.
    pub bytes: usize,
    /// How long, about.
    pub time: Duration,
    /// The processors of both.
    pub cpus: Option<[usize; 2]>,
}

struct End {
    endpoint: Endpoint,
    source: Memory,
    mirror: (Memory, Arc<MmapRaw>),
    peer: Option<(RemoteKey, u64)>,
    under_way: VecDeque<Operation>,
    came: u64,
    over: bool,
    worker: Worker,
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn memory(context: &Context) -> Result<(Memory, Arc<MmapRaw>)> {
    let map = Arc::new(MmapRaw::from(MmapMut::map_anon(MEMORY)?));
    let address = NonNull::new(map.as_mut_ptr()).ok_or("memory at 0")?;
    // SAFETY: mapped as long as the owner lives, and touched by raw accesses only.
    let memory = unsafe { Memory::map(context, address, MEMORY, Box::new(map.clone()))? };
    Ok((memory, map))
}

impl End {
    fn new(context: &Context, worker: Worker, endpoint: Endpoint) -> Result<End> {
        let end = End {
            endpoint,
            source: memory(context)?.0,
            mirror: memory(context)?,
            peer: None,
            under_way: VecDeque::new(),
            came: 0,
            over: false,
            worker,
        };
        let mirror = &end.mirror.0;
        let mut key = vec![0; HEADER + 1];
        key[..8].copy_from_slice(&mirror.address().to_le_bytes());
        key.extend(mirror.key()?);
        drop(end.endpoint.send(&key, Body::None, How::Eager)?);
        Ok(end)
    }

    fn turn(&mut self) -> Result<()> {
        let (map, came, over) = (&self.mirror.1, &mut self.came, &mut self.over);
        let mut key = None;
        let any = self.worker.progress(&mut |arrival| {
            match (arrival.header.len(), arrival.data) {
                (HEADER, Received::Bytes(bytes)) => {
                    let length = bytes.len().min(MEMORY);
                    // SAFETY: the map is so long.
                    unsafe {
                        std::ptr::copy_nonoverlapping(bytes.as_ptr(), map.as_mut_ptr(), length);
                    }
                    *came += 1;
                }
                (length, _) if length > HEADER => key = Some(arrival.header.to_vec()),
                _ => *over = true,
            }
        });
        if let Some(key) = key {
            let mut address = [0; 8];
            address.copy_from_slice(&key[..8]);
            let remote = self.endpoint.remote_key(&key[HEADER + 1..])?;
            self.peer = Some((remote, u64::from_le_bytes(address)));
        }
        if let Some((_, error)) = self.worker.failures().into_iter().next()
            && !self.over
        {
            return Err(error.into());
        }
        while let Some(first) = self.under_way.front_mut()
            && let Some(outcome) = first.outcome()
        {
            outcome?;
            self.under_way.pop_front();
        }
        if !any {
            std::thread::yield_now();
        }
        Ok(())
    }

    fn until(&mut self, is: impl Fn(&End) -> bool) -> Result<()> {
        let begun = Instant::now();
        while !is(self) {
            self.turn()?;
            if begun.elapsed() > PATIENCE {
                return Err("the other process does not answer over UCX".into());
            }
        }
        Ok(())
    }

    fn done(&mut self, mut operation: Operation) -> Result<()> {
        loop {
            if let Some(outcome) = operation.outcome() {
                return Ok(outcome?);
            }
            self.turn()?;
        }
    }

    /// Puts, if that is how so many bytes go; what is done when they are written.
    fn put(&mut self, bytes: usize) -> Result<Option<Operation>> {
        let Some((key, address)) = self.peer.as_ref().filter(|_| bytes > PUT) else {
            return Ok(None);
        };
        let put = self.endpoint.put(&self.source, 0..bytes, key, *address)?;
        self.under_way.push_back(put);
        Ok(Some(self.endpoint.flush()?))
    }

    /// The message with the bytes, or for those that were put.
    fn tell(&mut self, bytes: usize) -> Result<()> {
        let body = match bytes > PUT {
            true => Body::None,
            false => Body::Memory(&self.source, (0, bytes)),
        };
        let sent = self.endpoint.send(&[0; HEADER], body, How::Eager)?;
        self.under_way.push_back(sent);
        Ok(())
    }

    fn send(&mut self, bytes: usize) -> Result<()> {
        if let Some(flush) = self.put(bytes)? {
            self.done(flush)?;
        }
        self.tell(bytes)
    }

    /// Median nanoseconds one way.
    fn ping(&mut self, task: &Task) -> Result<f64> {
        let mut times = Vec::new();
        let begun = Instant::now();
        while begun.elapsed() < task.time || times.len() < 20 {
            let (sent, next) = (Instant::now(), self.came + 1);
            self.send(task.bytes)?;
            self.until(|end| end.came >= next)?;
            times.push(sent.elapsed());
        }
        times.sort();
        Ok(times[times.len() / 2].as_secs_f64() * 1e9 / 2.0)
    }

    /// Messages a second.
    fn stream(&mut self, task: &Task) -> Result<f64> {
        let window = (WINDOW / task.bytes.max(1)).clamp(1, MESSAGES) as u64;
        let mut flushes = VecDeque::new();
        let (mut sent, first, begun) = (0, self.came, Instant::now());
        while begun.elapsed() < task.time || self.came - first < sent {
            while begun.elapsed() < task.time && sent - (self.came - first) < window {
                match self.put(task.bytes)? {
                    Some(flush) => flushes.push_back(flush),
                    None => self.tell(task.bytes)?,
                }
                sent += 1;
            }
            while let Some(flush) = flushes.front_mut()
                && let Some(outcome) = flush.outcome()
            {
                outcome?;
                flushes.pop_front();
                self.tell(task.bytes)?;
            }
            self.turn()?;
            if begun.elapsed() > task.time + PATIENCE {
                return Err("the other process does not answer over UCX".into());
            }
        }
        Ok(sent as f64 / begun.elapsed().as_secs_f64())
    }
}

/// The first process: prints nanoseconds one way, or messages a second.
pub fn run(task: &Task) -> Result<()> {
    if task.address.port() != 0 {
        return answer(task);
    }
    if let Some([cpu, _]) = task.cpus {
        worker::pin(cpu)?;
    }
    let context = Context::new(Ucx::load(None)?)?;
    let driver = Worker::new(&context)?;
    let listener = Listener::new(&driver, task.address)?;
    let to = SocketAddr::new(task.address.ip(), listener.port()?);
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("bare-ucx").args(task.arguments(to));
    let _second = Ended(command.stdout(Stdio::null()).spawn()?);
    let begun = Instant::now();
    let endpoint = loop {
        driver.progress(&mut |_| {});
        match listener.request() {
            Some(request) => break request.accept()?,
            None if begun.elapsed() > PATIENCE => return Err("nobody connects over UCX".into()),
            None => std::thread::yield_now(),
        }
    };
    let mut end = End::new(&context, driver, endpoint)?;
    end.until(|end| end.peer.is_some())?;
    end.endpoint.transports()?;
    let value = match task.stream {
        true => end.stream(task)?,
        false => end.ping(task)?,
    };
    let last = end.endpoint.send(&[0], Body::None, How::Eager)?;
    end.done(last)?;
    println!("{value}");
    Ok(())
}

/// The second process: answers until it is told that all is over.
fn answer(task: &Task) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    if let Some([_, cpu]) = task.cpus {
        worker::pin(cpu)?;
    }
    let context = Context::new(Ucx::load(None)?)?;
    let driver = Worker::new(&context)?;
    let endpoint = Endpoint::connect(&driver, task.address)?;
    let mut end = End::new(&context, driver, endpoint)?;
    end.until(|end| end.peer.is_some())?;
    let mut answered = 0;
    while !end.over {
        end.turn()?;
        while answered < end.came {
            answered += 1;
            // Of a stream a word is enough.
            match task.stream {
                true => end.tell(1)?,
                false => end.send(task.bytes)?,
            }
        }
    }
    Ok(())
}

impl Task {
    /// As on the command line of `bare-ucx`, with where it is to connect or to listen.
    pub fn arguments(&self, address: SocketAddr) -> Vec<String> {
        let mut all = vec![
            address.to_string(),
            self.bytes.to_string(),
            format!("{}ms", self.time.as_millis()),
        ];
        if self.stream {
            all.push("--stream".into());
        }
        if let Some([a, b]) = self.cpus {
            all.push(format!("--cpus={a},{b}"));
        }
        all
    }
}
