//! The fuzzer's bytes, as whatever is wanted of them. Behind their end are zeros.

pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// Up to `length` bytes.
    pub fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let bytes = self.bytes(N);
        let mut array = [0; N];
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// One of these, or what `other` takes from the input.
    pub fn pick<T: Copy>(&mut self, known: &[T], other: impl FnOnce(&mut Self) -> T) -> T {
        match known.get(usize::from(self.u8()) % (known.len() + 1)) {
            Some(known) => *known,
            None => other(self),
        }
    }
}
