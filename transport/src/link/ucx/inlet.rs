//! What comes over UCX: one worker moves all links of a relay along, and what it brings is sorted here by who sent it.

use super::super::Event;
use crate::link::socket::copy_in;
use crate::slots::{BySlot, Hashed};
use crate::wire::{CHUNK_HEADER, Chunk, Control, Data, MAX_CHUNK, Token};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tbus::Region;
use tbus_ucx_sys::{Body, Context, Endpoint, Error, How, Key, Operation, Received, Worker};

/// What is told and not taken yet, at most: a link on trial is not looked at all the time.
const EVENTS: usize = 1 << 16;
/// Bytes that a message counts as at least.
const MESSAGE: usize = 512;
/// Ranges of a mirror that have come before others that belong in front of them; an honest peer's are fewer.
const EARLY: usize = 1024;
/// Keys that have come and are not asked for yet.
const KEYS: usize = 4096;
/// Bytes of the header of a message of ring bytes alone: slot, epoch and position. They are as many as follow.
const HEADER: usize = 20;
/// The same and how many, of a message of ring bytes that were put.
const PUT_HEADER: usize = HEADER + 4;
/// Bytes in front of a packed key: slot, epoch and address, and zeros so that it is longer than any other header.
const KEY_HEADER: usize = 64;
/// A packed key has so many bytes at most.
const KEY: usize = 512;
/// What is missing in front of them is there within this time, or will never be.
const MISSING: Duration = Duration::from_millis(2500);

/// The worker of a relay, and what has come over its endpoints.
#[derive(Debug)]
pub(crate) struct Hub {
    pub context: Context,
    pub worker: Worker,
    inlets: Mutex<Inlets>,
}

/// What the worker found to do, for whichever line.
#[derive(Clone, Copy, Debug)]
pub(super) enum Turn {
    /// Nothing.
    Idle,
    /// Something else than to bring messages.
    Done,
    /// It has brought messages.
    Brought,
}

/// An endpoint whose messages are kept until somebody takes them. It is closed when it is dropped.
#[derive(Debug)]
pub(crate) struct Line {
    pub hub: Arc<Hub>,
    pub endpoint: Endpoint,
    /// Of its inlet.
    number: usize,
}

/// What has come, of all lines.
#[derive(Debug, Default)]
struct Inlets {
    /// By the lines' numbers; those of lines that are gone are used again.
    all: Vec<Inlet>,
    unused: Vec<usize>,
    by_key: HashMap<Key, usize, foldhash::fast::RandomState>,
    /// Whose message came last, for the next one's is the same as a rule: one look less at each.
    last: Option<(Key, usize)>,
}

/// A mirror ring, as far as it is the link's.
#[derive(Debug)]
pub(super) struct Mirror {
    /// None: what comes is dropped.
    pub region: Option<Region>,
    pub epoch: u64,
    /// All bytes below are there.
    pub next: u64,
    /// Bytes may land below.
    pub room: u64,
    /// The peer writes there by itself, and only tells.
    is_written: bool,
    /// What has come beyond: UCX promises no order between messages.
    early: BTreeMap<u64, u64>,
    /// Since when something is missing in front of that.
    missing: Option<Instant>,
}

/// What a peer's mirror can be written by.
#[derive(Debug)]
pub(super) struct PeerKey {
    pub epoch: u64,
    pub address: u64,
    pub packed: Vec<u8>,
}

/// What has come from one endpoint.
#[derive(Debug, Default)]
pub(super) struct Inlet {
    mirrors: BySlot<Mirror>,
    /// The furthest progress of each of our rings.
    progress: BySlot<Control>,
    token: Option<Token>,
    /// Of the peer's mirrors, until somebody asks for them.
    keys: Hashed<PeerKey>,
    /// Slots that are over: nobody will ask for their keys. They are not used again.
    over: Hashed<()>,
    events: Vec<Event>,
    /// Bytes that the events stand for, at least so many each.
    taken: usize,
    down: Option<String>,
}

/// The header of a message of ring bytes alone.
pub(super) fn header(data: &Data) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&data.slot.to_le_bytes());
    header[4..12].copy_from_slice(&data.epoch.to_le_bytes());
    header[12..].copy_from_slice(&data.position.to_le_bytes());
    header
}

/// The header of a message of ring bytes that were put.
pub(super) fn put_header(data: &Data) -> [u8; PUT_HEADER] {
    let mut all = [0; PUT_HEADER];
    all[..HEADER].copy_from_slice(&header(data));
    all[HEADER..].copy_from_slice(&data.length.to_le_bytes());
    all
}

/// What the first of those says of so many bytes.
fn data_of(header: &[u8; HEADER], length: usize) -> Result<Data, String> {
    let word = |at: usize| {
        let bytes = header[at..at + 8].try_into();
        u64::from_le_bytes(bytes.expect("they are so many"))
    };
    let position = word(12);
    if length == 0 || position >= tbus::layout::MAX_POSITION {
        return Err(format!("{length} bytes at position {position}"));
    }
    Ok(Data {
        slot: word(0) as u32,
        epoch: word(4),
        position,
        length: length as u32,
    })
}

/// What the second says.
fn put_of(header: &[u8; PUT_HEADER]) -> Result<Data, String> {
    let (data, length) = header.split_first_chunk().expect("it is longer");
    let length = length.try_into().expect("the rest is four bytes");
    data_of(data, u32::from_le_bytes(length) as usize)
}

impl Hub {
    pub fn new(context: Context) -> Result<Arc<Hub>, Error> {
        let worker = Worker::new(&context)?;
        Ok(Arc::new(Hub {
            context,
            worker,
            inlets: Mutex::default(),
        }))
    }

    fn inlets(&self) -> MutexGuard<'_, Inlets> {
        self.inlets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves things along. True if there was anything to do.
    pub fn progress(&self) -> bool {
        !matches!(self.turn(&mut self.inlets()), Turn::Idle)
    }

    fn turn(&self, inlets: &mut Inlets) -> Turn {
        let mut brought = false;
        let any = self.worker.progress(&mut |arrival| {
            brought = true;
            // Of an endpoint that has just ended: nobody's.
            if let Some(inlet) = inlets.of(arrival.from) {
                inlet.take(arrival.header, &arrival.data);
            }
        });
        for (key, error) in self.worker.failures() {
            if let Some(inlet) = inlets.of(key) {
                inlet.fail(format!("the UCX connection has ended: {error}"));
            }
        }
        match (any, brought) {
            (_, true) => Turn::Brought,
            (true, false) => Turn::Done,
            (false, false) => Turn::Idle,
        }
    }

    /// Has whatever comes next wake who waits for the worker's descriptor. False if something is there already.
    pub fn arm(&self) -> bool {
        // Of some cards completions that came before, and were not seen yet, do not wake.
        matches!(self.worker.arm(), Ok(true)) && !self.progress()
    }
}

impl Inlets {
    fn add(&mut self, key: Key) -> usize {
        let number = self.unused.pop().unwrap_or_else(|| {
            self.all.push(Inlet::default());
            self.all.len() - 1
        });
        self.by_key.insert(key, number);
        number
    }

    fn remove(&mut self, key: Key, number: usize) {
        self.by_key.remove(&key);
        self.last = None;
        self.all[number] = Inlet::default();
        self.unused.push(number);
    }

    /// Where what comes from an endpoint belongs.
    #[inline]
    fn of(&mut self, key: Key) -> Option<&mut Inlet> {
        let number = match self.last {
            Some((last, number)) if last == key => number,
            _ => {
                let number = *self.by_key.get(&key)?;
                self.last = Some((key, number));
                number
            }
        };
        self.all.get_mut(number)
    }
}

impl Line {
    pub fn new(hub: &Arc<Hub>, endpoint: Endpoint) -> Line {
        let number = hub.inlets().add(endpoint.key());
        Line {
            hub: hub.clone(),
            endpoint,
            number,
        }
    }

    /// Does something with what has come.
    pub(super) fn inlet<T>(&self, act: impl FnOnce(&mut Inlet) -> T) -> T {
        act(&mut self.hub.inlets().all[self.number])
    }

    /// Shows the token, which is the first message each way.
    pub fn show(&self, token: Token) -> Result<Operation, Error> {
        self.endpoint.send(&token.0, Body::None, How::Eager)
    }

    /// The token that was shown; or why none will be.
    pub fn shown(&self) -> Option<Result<Token, String>> {
        self.inlet(|inlet| match (inlet.token, &inlet.down) {
            (_, Some(why)) => Some(Err(why.clone())),
            (token, None) => token.map(Ok),
        })
    }

    /// Tells the peer by what a mirror can be written.
    pub(super) fn tell(&self, slot: u32, key: &PeerKey) -> Result<Operation, Error> {
        let mut header = vec![0; KEY_HEADER];
        for (at, word) in [(0, u64::from(slot)), (8, key.epoch), (16, key.address)] {
            header[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        header.extend_from_slice(&key.packed);
        self.endpoint.send(&header, Body::None, How::Eager)
    }

    /// Moves things along, and takes the events of this line, and the bytes that they stand for; or why there will be no more.
    pub(super) fn turn(&self, events: &mut Vec<Event>) -> (Turn, Result<usize, String>) {
        let mut inlets = self.hub.inlets();
        let turn = self.hub.turn(&mut inlets);
        (turn, inlets.all[self.number].taken(events))
    }

    /// True if there is anything to take.
    pub(super) fn has_any(&self) -> bool {
        self.inlet(|inlet| !inlet.events.is_empty() || inlet.down.is_some())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Before the endpoint is closed, for another one may come to bear its key.
        self.hub.inlets().remove(self.endpoint.key(), self.number);
    }
}

impl Mirror {
    pub fn new(region: Region, epoch: u64, tail: u64, room: u64, is_written: bool) -> Mirror {
        Mirror {
            region: Some(region),
            epoch,
            next: tail,
            room,
            is_written,
            early: BTreeMap::new(),
            missing: None,
        }
    }

    /// [from, to) has come. True if `next` has moved; an error if that cannot be.
    fn came(&mut self, from: u64, to: u64) -> Result<bool, ()> {
        let twice = |(_, end): (&u64, &u64)| *end > from;
        if from < self.next
            || to > self.room
            || self.early.range(..to).next_back().is_some_and(twice)
        {
            return Err(());
        }
        if from > self.next {
            // What follows on what is early too is one with it.
            let before = self.early.range_mut(..from).next_back();
            match before.filter(|(_, end)| **end == from) {
                Some((_, end)) => *end = to,
                None => drop(self.early.insert(from, to)),
            }
            self.missing.get_or_insert_with(Instant::now);
            return if self.early.len() > EARLY {
                Err(())
            } else {
                Ok(false)
            };
        }
        self.next = to;
        while let Some(to) = self.early.remove(&self.next) {
            self.next = to;
        }
        self.missing = (!self.early.is_empty()).then(Instant::now);
        Ok(true)
    }
}

impl Inlet {
    fn fail(&mut self, why: String) {
        self.down.get_or_insert(why);
    }

    /// The events so far, see [`Line::turn`].
    fn taken(&mut self, events: &mut Vec<Event>) -> Result<usize, String> {
        events.append(&mut self.events);
        match &self.down {
            Some(why) => Err(why.clone()),
            None => Ok(std::mem::take(&mut self.taken)),
        }
    }

    fn take(&mut self, header: &[u8], data: &Received<'_>) {
        if self.down.is_some() {
            return;
        }
        if let Err(why) = self.message(header, data) {
            self.fail(why);
        }
    }

    fn message(&mut self, header: &[u8], data: &Received<'_>) -> Result<(), String> {
        let bytes = match data {
            Received::Bytes(bytes) => *bytes,
            Received::Announced(data) => {
                return Err(format!("the peer announces {data:?}, which is not agreed"));
            }
        };
        self.taken += bytes.len().max(MESSAGE);
        if self.events.len() > EVENTS {
            return Err(format!("more than {EVENTS} things were told in one go"));
        }
        if self.token.is_none() {
            // Nothing else is heard of who has not shown one.
            return match (header.try_into(), bytes) {
                (Ok(token), []) => {
                    self.token = Some(Token(token));
                    Ok(())
                }
                _ => Err("the first message is no token".into()),
            };
        }
        if let Ok(header) = header.try_into() {
            let data = data_of(header, bytes.len())?;
            return match bytes.len() > MAX_CHUNK {
                true => Err(format!("a message of {} bytes", bytes.len())),
                false => self.arrived(&data, Some(bytes)),
            };
        }
        if header.len() > KEY_HEADER {
            return self.key(header);
        }
        if let Ok(header) = header.try_into()
            && bytes.is_empty()
        {
            return self.arrived(&put_of(header)?, None);
        }
        let header: &[u8; CHUNK_HEADER] = header
            .try_into()
            .map_err(|_| format!("a message with a header of {} bytes", header.len()))?;
        let chunk = Chunk::decode(header).map_err(|error| error.to_string())?;
        match chunk.data {
            Some(data) => self.arrived(&data, Some(bytes))?,
            None if bytes.is_empty() => {}
            None => return Err(format!("{} bytes that belong nowhere", bytes.len())),
        }
        if let Some(control) = chunk.control {
            self.progressed(control);
        }
        Ok(())
    }

    /// Bytes of a mirror have come. None: they were put.
    fn arrived(&mut self, data: &Data, bytes: Option<&[u8]>) -> Result<(), String> {
        let (slot, from) = (data.slot, data.position);
        let to = from + u64::from(data.length);
        let Some(mirror) = self.mirrors.get_mut(&slot) else {
            return Err(format!("bytes for slot {slot}, which is not open"));
        };
        if data.epoch != mirror.epoch {
            return Err(format!("bytes for slot {slot} in another epoch"));
        }
        match bytes {
            Some(bytes) if bytes.len() != data.length as usize => {
                return Err(format!(
                    "{} bytes for slot {slot}, and {} are said to come",
                    bytes.len(),
                    data.length
                ));
            }
            None if !mirror.is_written => {
                return Err(format!("bytes put for slot {slot}, where nobody may"));
            }
            _ => {}
        }
        if mirror.region.is_none() {
            return Ok(());
        }
        let Ok(moved) = mirror.came(from, to) else {
            return Err(format!(
                "bytes [{from}, {to}) for slot {slot}, where [{}, {}) is free",
                mirror.next, mirror.room
            ));
        };
        if let Some(region) = &mirror.region
            && let Some(bytes) = bytes
        {
            copy_in(region, from, bytes);
        }
        if !moved {
            return Ok(());
        }
        let to = mirror.next;
        match self.events.last_mut() {
            Some(Event::Arrived {
                slot: last,
                to: up_to,
            }) if *last == slot => *up_to = to,
            _ => self.events.push(Event::Arrived { slot, to }),
        }
        Ok(())
    }

    /// The next bytes of a mirror belong at `tail`.
    pub fn attach(&mut self, slot: u32, mirror: Mirror) {
        self.mirrors.insert(slot, mirror);
    }

    pub fn set_room(&mut self, slot: u32, room: u64) {
        if let Some(mirror) = self.mirrors.get_mut(&slot) {
            mirror.room = mirror.room.max(room);
        }
    }

    /// What comes for it from now on is dropped. False if it was so before.
    pub fn detach(&mut self, slot: u32) -> bool {
        let Some(mirror) = self.mirrors.get_mut(&slot) else {
            return false;
        };
        (mirror.early, mirror.missing) = (BTreeMap::new(), None);
        mirror.region.take().is_some()
    }

    /// The peer tells by what a mirror of its can be written.
    fn key(&mut self, header: &[u8]) -> Result<(), String> {
        let (fields, packed) = header.split_at(KEY_HEADER);
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&fields[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let Ok(slot) = u32::try_from(word(0)) else {
            return Err(format!("a key for slot {}", word(0)));
        };
        if packed.len() > KEY {
            return Err(format!("a key of {} bytes for slot {slot}", packed.len()));
        }
        // Without it the ring's bytes go in messages.
        if self.keys.len() >= KEYS || self.over.contains_key(&slot) {
            return Ok(());
        }
        let key = PeerKey {
            epoch: word(8),
            address: word(16),
            packed: packed.to_vec(),
        };
        self.keys.insert(slot, key);
        Ok(())
    }

    /// By what the peer's mirror of our ring can be written, if it has told.
    pub fn take_key(&mut self, slot: u32) -> Option<PeerKey> {
        self.keys.remove(&slot)
    }

    /// Nothing more is sent of our ring: a key that has come or comes for it is nobody's.
    pub fn end_keys(&mut self, slot: u32) {
        self.keys.remove(&slot);
        self.over.insert(slot, ());
    }

    #[cfg(any(test, feature = "sim"))]
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Looks for what is missing for too long.
    pub fn look(&mut self, now: Instant) {
        let is_lost = |(_, mirror): &(u32, &Mirror)| {
            mirror.missing.is_some_and(|since| now - since > MISSING)
        };
        let lost = self.mirrors.iter().find(is_lost);
        if let Some((slot, next)) = lost.map(|(slot, mirror)| (slot, mirror.next)) {
            self.fail(format!(
                "bytes at {next} for slot {slot} are missing, and later ones are there for {MISSING:?}"
            ));
        }
    }

    /// A relay takes progress that goes back for a lie; here it may only be late, and then a later one has said more.
    fn progressed(&mut self, control: Control) {
        if !control.want {
            if let Some(known) = self.progress.get(&control.slot)
                && known.epoch == control.epoch
                && (control.delivered < known.delivered
                    || control.consumed.position < known.consumed.position)
            {
                return;
            }
            self.progress.insert(control.slot, control);
        }
        self.events.push(Event::Remote(control));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tbus::Cursor;

    fn mirror(next: u64, room: u64) -> Mirror {
        Mirror {
            region: None,
            epoch: 7,
            next,
            room,
            is_written: false,
            early: BTreeMap::new(),
            missing: None,
        }
    }

    #[test]
    fn bytes_count_as_far_as_none_are_missing() {
        let mut mirror = mirror(64, 1000);
        assert_eq!(mirror.came(128, 192), Ok(false));
        assert_eq!(mirror.came(256, 320), Ok(false));
        assert!(mirror.missing.is_some());
        assert_eq!(mirror.came(64, 128), Ok(true));
        assert_eq!(mirror.next, 192);
        assert!(mirror.missing.is_some());
        assert_eq!(mirror.came(192, 256), Ok(true));
        assert_eq!((mirror.next, mirror.missing), (320, None));
    }

    #[test]
    fn bytes_that_come_twice_or_too_far_are_refused() {
        let mut mirror = mirror(64, 512);
        assert_eq!(mirror.came(128, 192), Ok(false));
        for (from, to) in [
            (0, 64),
            (56, 72),
            (64, 136),
            (120, 136),
            (128, 192),
            (136, 144),
            (184, 256),
            (72, 256),
            (448, 520),
        ] {
            assert_eq!(mirror.came(from, to), Err(()), "[{from}, {to})");
        }
        assert_eq!(mirror.came(192, 512), Ok(false));
        assert_eq!(mirror.came(64, 128), Ok(true));
        assert_eq!(mirror.next, 512);
    }

    #[test]
    fn what_is_missing_for_long_ends_the_link() {
        let mut inlet = Inlet::default();
        inlet.attach(3, mirror(0, 1000));
        assert_eq!(inlet.mirrors.get_mut(&3).unwrap().came(64, 128), Ok(false));
        inlet.look(Instant::now());
        assert_eq!(inlet.down, None);
        inlet.look(Instant::now() + MISSING + MISSING);
        let why = inlet.down.unwrap();
        assert!(
            why.starts_with("bytes at 0 for slot 3 are missing"),
            "{why}"
        );
    }

    fn says(inlet: &mut Inlet, header: &[u8], bytes: &[u8]) -> Result<(), String> {
        inlet.message(header, &Received::Bytes(bytes))
    }

    #[test]
    fn who_has_shown_no_token_is_not_heard() {
        let header = Chunk::default().encode();
        for (header, bytes) in [(&header[..], &[][..]), (&[7; 15], &[]), (&[7; 16], &[1])] {
            let mut inlet = Inlet::default();
            let why = says(&mut inlet, header, bytes).unwrap_err();
            assert_eq!(why, "the first message is no token");
        }
        let mut inlet = Inlet::default();
        says(&mut inlet, &[7; 16], &[]).unwrap();
        assert_eq!(inlet.token, Some(Token([7; 16])));
        assert!(says(&mut inlet, &[7; 16], &[]).is_err(), "a second one");
    }

    #[test]
    fn a_message_has_the_bytes_that_it_tells_of() {
        let mut inlet = Inlet {
            token: Some(Token([7; 16])),
            ..Inlet::default()
        };
        inlet.attach(3, mirror(0, 1 << 20));
        let of = |slot, epoch, length| {
            let data = Data {
                slot,
                epoch,
                position: 0,
                length,
            };
            let data = Some(data);
            Chunk {
                data,
                control: None,
            }
            .encode()
        };
        says(&mut inlet, &of(3, 7, 8), &[0; 8]).unwrap();
        for (header, bytes, expected) in [
            (of(3, 7, 8), &[0; 9][..], "9 bytes for slot 3, and 8 are"),
            (of(3, 7, 8), &[], "0 bytes for slot 3, and 8 are"),
            (of(3, 6, 8), &[0; 8], "in another epoch"),
            (of(4, 7, 8), &[0; 8], "not open"),
        ] {
            let why = says(&mut inlet, &header, bytes).unwrap_err();
            assert!(why.contains(expected), "{why}");
        }
        let short = |position| {
            let data = Data {
                slot: 3,
                epoch: 7,
                position,
                length: 0,
            };
            super::header(&data)
        };
        let decoded = data_of(&short(8), 24).unwrap();
        let all = (
            decoded.slot,
            decoded.epoch,
            decoded.position,
            decoded.length,
        );
        assert_eq!(all, (3, 7, 8, 24));
        says(&mut inlet, &short(8), &[0; 24]).unwrap();
        let too_long = vec![0; MAX_CHUNK + 1];
        for (position, bytes, expected) in [
            (32, &[][..], "0 bytes at position 32"),
            (32, &too_long, "a message of 65537 bytes"),
            (1 << 63, &[0; 8], "8 bytes at position 9223372036854775808"),
        ] {
            let why = says(&mut inlet, &short(position), bytes).unwrap_err();
            assert_eq!(why, expected);
        }
        says(&mut inlet, &short(32), &too_long[1..]).unwrap();
        let mut control = control(0);
        control.want = true;
        let chunk = Chunk {
            data: None,
            control: Some(control),
        };
        assert!(says(&mut inlet, &chunk.encode(), &[0]).is_err());
    }

    fn control(delivered: u64) -> Control {
        Control {
            slot: 1,
            epoch: 7,
            want: false,
            delivered,
            consumed: Cursor::default(),
        }
    }

    #[test]
    fn keys_are_kept_until_they_are_asked_for() {
        let mut inlet = Inlet {
            token: Some(Token([7; 16])),
            ..Inlet::default()
        };
        let of = |slot: u64, packed: usize| {
            let mut header = vec![0; KEY_HEADER + packed];
            header[..8].copy_from_slice(&slot.to_le_bytes());
            header[8] = 7;
            header[16] = 9;
            header
        };
        says(&mut inlet, &of(3, 40), &[]).unwrap();
        assert!(inlet.take_key(2).is_none());
        let key = inlet.take_key(3).unwrap();
        assert_eq!((key.epoch, key.address, key.packed.len()), (7, 9, 40));
        assert!(inlet.take_key(3).is_none());
        assert!(says(&mut inlet, &of(1 << 32, 40), &[]).is_err());
        assert!(says(&mut inlet, &of(3, KEY + 1), &[]).is_err());
        for slot in 0..2 * KEYS as u64 {
            says(&mut inlet, &of(slot, 40), &[]).unwrap();
        }
        assert_eq!(inlet.keys.len(), KEYS);
        // Of rings that are over, whether the key came before or comes after.
        inlet.end_keys(0);
        inlet.end_keys(KEYS as u32 + 7);
        assert_eq!(inlet.keys.len(), KEYS - 1);
        says(&mut inlet, &of(KEYS as u64 + 7, 40), &[]).unwrap();
        assert_eq!(inlet.keys.len(), KEYS - 1);
        says(&mut inlet, &of(KEYS as u64 + 8, 40), &[]).unwrap();
        assert!(inlet.take_key(KEYS as u32 + 8).is_some());
    }

    #[test]
    fn bytes_that_were_put_are_only_told_of() {
        let mut inlet = Inlet {
            token: Some(Token([7; 16])),
            ..Inlet::default()
        };
        inlet.attach(2, mirror(0, 1000));
        let mut written = mirror(0, 1000);
        written.is_written = true;
        inlet.attach(3, written);
        let put = |slot, position, length| {
            put_header(&Data {
                slot,
                epoch: 7,
                position,
                length,
            })
        };
        let decoded = put_of(&put(3, 8, 64)).unwrap();
        let all = (decoded.slot, decoded.epoch);
        assert_eq!(all, (3, 7));
        assert_eq!((decoded.position, decoded.length), (8, 64));
        says(&mut inlet, &put(3, 0, 64), &[]).unwrap();
        for (header, bytes, expected) in [
            (
                put(3, 64, 64),
                &[0][..],
                "a message with a header of 24 bytes",
            ),
            (put(3, 64, 0), &[], "0 bytes at position 64"),
            (
                put(3, 1 << 63, 8),
                &[],
                "8 bytes at position 9223372036854775808",
            ),
            (
                put(2, 64, 64),
                &[],
                "bytes put for slot 2, where nobody may",
            ),
        ] {
            let why = says(&mut inlet, &header, bytes).unwrap_err();
            assert_eq!(why, expected);
        }
    }

    #[test]
    fn progress_that_is_late_is_dropped() {
        let mut inlet = Inlet::default();
        for delivered in [64, 128, 96, 128, 192] {
            inlet.progressed(control(delivered));
        }
        // Another epoch begins anew.
        let other = Control {
            epoch: 8,
            ..control(8)
        };
        inlet.progressed(other);
        let expected = [64, 128, 128, 192].map(|delivered| Event::Remote(control(delivered)));
        assert_eq!(inlet.events[..4], expected);
        assert_eq!(inlet.events[4..], [Event::Remote(other)]);
    }
}
