//! [`Hops`]: the way back of a message that was forwarded.

use crate::address::Address;
use crate::layout::{FLAG_HOPS_1, FLAG_HOPS_2, FLAG_HOPS_3, FLAG_HOPS_4};

/// The most hops that a message carries.
pub const MAX_HOPS: usize = 8;

/// Record flags of the pairs of hops.
const PAIRS: [u32; MAX_HOPS / 2] = [FLAG_HOPS_1, FLAG_HOPS_2, FLAG_HOPS_3, FLAG_HOPS_4];

/// The way back of a message that was forwarded: addresses, the next one last.
///
/// A message without hops came directly, so its way back is its sender. Who forwards it adds its own address to the way
/// that the message came with; who sends back takes the last one off and sends there.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hops {
    count: usize,
    addresses: [Address; MAX_HOPS],
}

impl PartialEq for Hops {
    fn eq(&self, other: &Hops) -> bool {
        self.addresses() == other.addresses()
    }
}

impl Eq for Hops {}

impl Hops {
    /// The addresses, the next one last.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses[..self.count]
    }

    /// Adds the next hop; false if there are [`MAX_HOPS`] already, or the address is none of an endpoint.
    pub fn push(&mut self, address: Address) -> bool {
        if self.count == MAX_HOPS || address.is_wildcard() {
            return false;
        }
        self.addresses[self.count] = address;
        self.count += 1;
        true
    }

    /// Takes the next hop off.
    pub fn pop(&mut self) -> Option<Address> {
        self.count = self.count.checked_sub(1)?;
        Some(std::mem::take(&mut self.addresses[self.count]))
    }

    /// The record flags that announce them.
    pub(crate) fn flags(&self) -> u32 {
        PAIRS[..self.count.div_ceil(2)].iter().sum()
    }

    /// The record extensions, in the order of their flags.
    pub(crate) fn words(&self) -> impl Iterator<Item = u64> {
        // What was taken off may still stand behind the last one.
        let at = |index: usize| self.addresses().get(index).map_or(0, |a| u64::from(a.0));
        (0..self.count.div_ceil(2)).map(move |pair| at(2 * pair) | at(2 * pair + 1) << 32)
    }

    /// Takes all off.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.count = 0;
    }

    /// Adds what the extensions say, which others wrote: up to the first that is no address.
    #[cold]
    pub(crate) fn read(&mut self, extension: impl Fn(u32) -> Option<u64>) {
        for word in PAIRS.into_iter().map_while(extension) {
            if !(self.push(Address(word as u32)) && self.push(Address((word >> 32) as u32))) {
                break;
            }
        }
    }
}
