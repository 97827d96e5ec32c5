//! Real processes, killed with SIGKILL at random moments under load, and every message accounted for.
//!
//! A sender process and a receiver process note in a shared page how far they know themselves to be. Whatever
//! moment a kill hits: the next sender must be at least where the last one knew messages accepted, the next
//! receiver must go on with the message after the last one noted, or with that one again if it had not been
//! released. `TBUS_KILLS` is the number of kills of each kind (default 200), `TBUS_SEED` the moments.

use memmap2::MmapRaw;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tbus::{Address, Directory, Ring, RingSpec, TryRecvError, TrySendError, Uuid};

const CAPACITY: u64 = 1 << 16;
const ROLE: &str = "TBUS_KILL_TEST_ROLE";
/// Where a child finds its directory and its ring.
const PLACE: &str = "TBUS_KILL_TEST_PLACE";

/// Words of the shared page.
const ACCEPTED: usize = 0;
const NOTED: usize = 1;
const REREAD: usize = 2;
const STOP: usize = 3;

struct Page(MmapRaw);

impl Page {
    fn open(directory: &Path) -> Page {
        let path = directory.join("page");
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .unwrap();
        file.set_len(4096).unwrap();
        Page(MmapRaw::map_raw(&file).unwrap())
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < 512);
        // SAFETY: inside the page, aligned, accessed as an atomic only.
        unsafe { AtomicU64::from_ptr(self.0.as_mut_ptr().add(8 * index).cast()) }
    }
}

fn scramble(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// The message with this sequence: any length, every byte known.
fn payload(sequence: u64, buffer: &mut Vec<u8>) {
    let random = scramble(sequence);
    let length = if random.is_multiple_of(50) {
        random >> 8 & 0x1fff
    } else {
        random >> 8 & 0xff
    };
    buffer.clear();
    buffer.extend((0..length).map(|i| (random >> (i & 31)) as u8 ^ i as u8));
}

/// Sends for ever, in all ways, until told to stop.
fn send(ring: &Ring, page: &Page) {
    let mut sender = ring.sender().unwrap();
    let known = page.word(ACCEPTED).load(SeqCst);
    let begin = sender.next().sequence;
    assert!(
        begin >= known,
        "messages {begin}..{known} were accepted and are gone"
    );
    let mut messages = vec![Vec::new(); 8];
    while page.word(STOP).load(SeqCst) == 0 {
        let next = sender.next().sequence;
        let count = if next.is_multiple_of(7) { 8 } else { 1 };
        for (index, message) in messages[..count].iter_mut().enumerate() {
            payload(next + index as u64, message);
        }
        let result = match next % 7 {
            0 => sender.send_batch(&messages).map(drop),
            1 => sender.reserve(messages[0].len()).map(|mut room| {
                room.write_at(0, &messages[0]);
                room.commit();
            }),
            _ => sender.try_send(&messages[0]),
        };
        match result {
            Ok(()) => page.word(ACCEPTED).store(sender.next().sequence, SeqCst),
            Err(TrySendError::Full) => {
                drop(sender.wait(messages[0].len(), Duration::from_millis(20)))
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Receives in all ways until the ring is closed and empty.
fn receive(ring: &Ring, page: &Page) {
    let mut receiver = ring.receiver().unwrap();
    let noted = page.word(NOTED).load(SeqCst);
    let begin = receiver.next().sequence;
    // One message, or one batch, may have been noted and not released.
    assert!(
        begin <= noted && begin + 8 >= noted,
        "the last receiver noted {noted}, this one begins at {begin}"
    );
    page.word(REREAD).fetch_add(noted - begin, SeqCst);
    let (mut expected, mut sequence) = (Vec::new(), begin);
    let mut check = |sequence: u64, message: &tbus::Message<'_>| {
        payload(sequence, &mut expected);
        let mut bytes = vec![0; message.len()];
        message.copy_to(&mut bytes).unwrap();
        assert_eq!((message.cursor().sequence, &bytes), (sequence, &expected));
        page.word(NOTED).store(sequence + 1, SeqCst);
    };
    loop {
        let result = if sequence % 5 == 0 {
            let mut batch = receiver.recv_batch(8);
            while let Some(message) = batch.next() {
                check(sequence, &message);
                sequence += 1;
            }
            drop(batch);
            receiver.wait(Duration::from_millis(20))
        } else {
            receiver.wait(Duration::from_millis(20)).map(|()| {
                let message = receiver.peek().unwrap();
                check(sequence, &message);
                message.release();
                sequence += 1;
            })
        };
        match result {
            Ok(()) | Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Closed) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Not a test: what the other processes run.
#[test]
fn child_process() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let place = PathBuf::from(std::env::var_os(PLACE).unwrap());
    let directory = Directory::open(place.parent().unwrap()).unwrap();
    let uuid: Uuid = place
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let ring = Ring::open(&directory, uuid).unwrap();
    let page = Page::open(directory.path());
    match role.as_str() {
        "send" => send(&ring, &page),
        _ => receive(&ring, &page),
    }
}

/// A child that is ended with this handle.
struct Process(Child);

impl Process {
    fn start(role: &str, ring: &Ring) -> Process {
        let place = ring.path().parent().unwrap().join(ring.uuid().to_string());
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "child_process", "--nocapture"])
            .env(ROLE, role)
            .env(PLACE, place);
        Process(command.stdout(Stdio::null()).spawn().unwrap())
    }

    /// SIGKILL; it must still have been alive.
    fn kill(&mut self) {
        use std::os::unix::process::ExitStatusExt;
        self.0.kill().unwrap();
        let status = self.0.wait().unwrap();
        assert_eq!(
            status.signal(),
            Some(9),
            "it ended by itself before: its reason stands above"
        );
    }

    fn end(&mut self) {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                assert!(status.success(), "{status}: its reason stands above");
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "it does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

/// Waits until the victims have attached.
fn await_attach(ring: &Ring, processes: &[Process; 2], victims: &[usize]) {
    let begun = Instant::now();
    while victims.iter().any(|victim| {
        let status = ring.status();
        [status.producer.pid, status.consumer.pid][*victim] != processes[*victim].0.id()
    }) {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "no attach: {:?}",
            ring.status()
        );
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// One at a time: they load both processors.
static TURN: Mutex<()> = Mutex::new(());

/// Kills one role, or both at once, and accounts for every message.
fn kill(name: &str, victims: &[usize]) {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    let shm = Path::new("/dev/shm");
    let base = if shm.is_dir() {
        shm.to_path_buf()
    } else {
        std::env::temp_dir()
    };
    let scratch = Scratch(base.join(format!("tbus-kill-{name}-{}", std::process::id())));
    let directory = Directory::create(&scratch.0).unwrap();
    let ring = Ring::create(
        &directory,
        &RingSpec::local(CAPACITY, Address(1), Address(2)),
    )
    .unwrap();
    let page = Page::open(&scratch.0);
    let roles = ["send", "receive"];
    let mut processes = roles.map(|role| Process::start(role, &ring));
    let (kills, seed) = (
        from_environment("TBUS_KILLS", 200),
        from_environment("TBUS_SEED", 1),
    );
    println!("{name}: TBUS_SEED={seed}");
    for kill in 0..kills {
        let random = scramble(seed << 32 ^ kill);
        if !random.is_multiple_of(8) {
            // In the midst of the stream; else while it starts, or attaches.
            await_attach(&ring, &processes, victims);
        }
        std::thread::sleep(Duration::from_micros((random >> 8) % 3000));
        for victim in victims {
            processes[*victim].kill();
        }
        for victim in victims {
            processes[*victim] = Process::start(roles[*victim], &ring);
        }
    }
    // The last ones live on, and what they exchange now proves that the ring is whole.
    let settled = page.word(NOTED).load(SeqCst) + 10_000;
    let begun = Instant::now();
    while page.word(NOTED).load(SeqCst) < settled {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "no progress after the kills: {:?}",
            ring.status()
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    page.word(STOP).store(1, SeqCst);
    processes[0].end();
    ring.close(Duration::from_secs(1)).unwrap();
    processes[1].end();
    let status = ring.status();
    let [accepted, noted, reread] = [ACCEPTED, NOTED, REREAD].map(|w| page.word(w).load(SeqCst));
    println!("{name}: {kills} kills, {noted} messages, {reread} read again, {status:?}");
    assert_eq!(
        (status.tail.sequence, status.released.sequence),
        (noted, noted)
    );
    assert_eq!((accepted, status.unread_messages), (noted, 0));
    let attaches = kills + 1;
    let expected = [0, 1].map(|role| if victims.contains(&role) { attaches } else { 1 });
    // A victim may die before it has attached.
    assert!(status.producer.attaches <= expected[0] && status.consumer.attaches <= expected[1]);
    assert!(
        status.producer.attaches + status.consumer.attaches > kills * 3 / 4,
        "hardly any attached: {status:?}"
    );
    if !victims.contains(&1) {
        assert_eq!(reread, 0, "the receiver was never killed");
    }
    assert!(reread <= 8 * kills);
}

#[test]
fn sender_is_killed() {
    kill("sender", &[0]);
}

#[test]
fn receiver_is_killed() {
    kill("receiver", &[1]);
}

#[test]
fn both_are_killed() {
    kill("both", &[0, 1]);
}
