//! The channel under test: how the two processes of a measurement get its two ends. Everything else of a measurement
//! knows [`End`] only, so another way to connect them is written here.

use super::Result;
use super::scratch::Scratch;
use std::path::Path;
use tbus::{
    Address, Directory, Receiver, Ring, RingSpec, Sender, TryRecvError, TrySendError, Uuid,
};

/// One end of the channel under test.
#[derive(Debug)]
pub struct End {
    sender: Sender,
    receiver: Receiver,
}

/// What connects the two processes, for people and for files.
pub const NAME: &str = "local";

/// Makes the channel, two rings in the scratch directory. Returns the first process's end, and the arguments with
/// which the second one gets its own.
pub fn open_first(scratch: &Scratch, capacity: u64) -> Result<(End, Vec<String>)> {
    let make = |slot| {
        let spec = RingSpec {
            lock_slot: slot,
            ..RingSpec::local(capacity, Address(1), Address(2))
        };
        Ring::create(scratch.directory(), &spec)
    };
    let (there, back) = (make(0)?, make(1)?);
    let end = End::new(&there, &back)?;
    Ok((end, vec![there.uuid().to_string(), back.uuid().to_string()]))
}

/// The second process's end, by the arguments of [`open_first`].
pub fn open_second(directory: &Path, arguments: &[String]) -> Result<End> {
    let [incoming, outgoing] = arguments else {
        return Err("the two rings are missing".into());
    };
    let directory = Directory::open(directory)?;
    let open = |uuid: &str| -> Result<Ring> {
        let uuid: Uuid = uuid.parse()?;
        Ok(Ring::open(&directory, uuid)?)
    };
    End::new(&open(outgoing)?, &open(incoming)?)
}

impl End {
    fn new(outgoing: &Ring, incoming: &Ring) -> Result<End> {
        outgoing.prefault();
        incoming.prefault();
        Ok(End {
            sender: outgoing.sender()?,
            receiver: incoming.receiver()?,
        })
    }

    /// Sends a message if there is room.
    #[inline(always)]
    pub fn try_send(&mut self, payload: &[u8]) -> Result<bool> {
        match self.sender.try_send(payload) {
            Ok(()) => Ok(true),
            Err(TrySendError::Full) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a message, polling while there is no room.
    #[inline(always)]
    pub fn send(&mut self, payload: &[u8]) -> Result<()> {
        while !self.try_send(payload)? {
            for _ in 0..16 {
                std::hint::spin_loop();
            }
        }
        Ok(())
    }

    /// Takes a message if there is one: reads a byte of each of its lines in place, and releases it.
    #[inline(always)]
    pub fn try_take(&mut self) -> Result<bool> {
        match self.receiver.peek() {
            Ok(message) => {
                // SAFETY: the sender is our own process, which does not change what it sent.
                let bytes = unsafe { message.as_slice() };
                let sum = bytes
                    .chunks(64)
                    .fold(0u64, |sum, line| sum.wrapping_add(u64::from(line[0])));
                std::hint::black_box(sum);
                message.release();
                Ok(true)
            }
            Err(TryRecvError::Empty) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes a message, polling until there is one.
    #[inline(always)]
    pub fn take(&mut self) -> Result<()> {
        while !self.try_take()? {}
        Ok(())
    }
}
