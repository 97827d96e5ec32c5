//! Addresses: 32-bit names of endpoints, printed as four dotted numbers.
//!
//! How many bits each of the four numbers has is the [`Template`]; the first number is the most
//! significant. `8.8.8.8` is the default, others such as `6.8.8.10` are in use.

use core::fmt;
use core::str::FromStr;

/// The 32-bit name of an endpoint.
///
/// 0 and all ones are the wildcards of the C API ("the first that matches", "all"): they are never a
/// channel's end, see [`Address::is_wildcard`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Address(pub u32);

impl Address {
    /// True for 0 and 0xffff_ffff, which name no endpoint.
    pub fn is_wildcard(self) -> bool {
        self.0 == 0 || self.0 == u32::MAX
    }
}

/// Prints with the default template 8.8.8.8; use [`Template::show`] for any other.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Template::default().show(*self))
    }
}

/// How many bits each of an address's four numbers has; together at most 32, each at least 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Template([u8; 4]);

impl Default for Template {
    /// 8.8.8.8
    fn default() -> Self {
        Template([8; 4])
    }
}

/// Why a text is no address or no template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressError {
    /// Not four numbers between dots.
    Segments {
        /// The text that was given.
        text: String,
        /// How many segments it has.
        found: usize,
    },
    /// A segment is not a plain decimal number (no sign, no space, not empty).
    NotDecimal {
        /// The text that was given.
        text: String,
        /// The offending segment.
        segment: String,
    },
    /// A number does not fit the bits that the template gives it.
    TooLarge {
        /// The text that was given.
        text: String,
        /// Which number, 1 to 4.
        index: usize,
        /// The largest value that the template allows there.
        max: u32,
        /// The template, as text.
        template: String,
    },
    /// A template whose numbers add up to more than 32 bits, or with a segment of 0 bits.
    TemplateBits {
        /// The text that was given.
        text: String,
        /// What the four numbers add up to.
        bits: u64,
    },
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segments { text, found } => write!(
                f,
                "'{text}' has {found} number(s) between dots; give four, for example 0.0.3.1"
            ),
            Self::NotDecimal { text, segment } => write!(
                f,
                "'{segment}' in '{text}' is not a decimal number; use the digits 0 to 9 only, without sign or space"
            ),
            Self::TooLarge {
                text,
                index,
                max,
                template,
            } => write!(
                f,
                "number {index} of '{text}' is above {max}, the most that template {template} allows there; use a smaller number or a template with more bits in that place"
            ),
            Self::TemplateBits { text, bits } => write!(
                f,
                "template '{text}' is not usable: its numbers must each be at least 1 and add up to at most 32 bits (they add up to {bits}); the usual one is 8.8.8.8"
            ),
        }
    }
}

impl std::error::Error for AddressError {}

/// Splits at dots and reads four plain decimal numbers; a number above 64 bits reads as `u64::MAX`.
fn four_numbers(text: &str) -> Result<[u64; 4], AddressError> {
    let found = text.split('.').count();
    if found != 4 {
        return Err(AddressError::Segments {
            text: text.into(),
            found,
        });
    }
    let mut numbers = [0; 4];
    for (number, segment) in numbers.iter_mut().zip(text.split('.')) {
        if segment.is_empty() || !segment.bytes().all(|b| b.is_ascii_digit()) {
            return Err(AddressError::NotDecimal {
                text: text.into(),
                segment: segment.into(),
            });
        }
        *number = segment.parse().unwrap_or(u64::MAX);
    }
    Ok(numbers)
}

impl FromStr for Template {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let numbers = four_numbers(text)?;
        let bits = numbers.iter().fold(0u64, |sum, n| sum.saturating_add(*n));
        if bits > 32 || numbers.contains(&0) {
            return Err(AddressError::TemplateBits {
                text: text.into(),
                bits,
            });
        }
        Ok(Template(numbers.map(|n| n as u8)))
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = self.0;
        write!(f, "{a}.{b}.{c}.{d}")
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Template {
    /// Reads an address: four decimal numbers, leading zeros allowed, each within its bits.
    pub fn parse(&self, text: &str) -> Result<Address, AddressError> {
        let numbers = four_numbers(text)?;
        let mut value = 0u64;
        for (index, (number, bits)) in numbers.into_iter().zip(self.0).enumerate() {
            let max = (1u64 << bits) - 1;
            if number > max {
                return Err(AddressError::TooLarge {
                    text: text.into(),
                    index: index + 1,
                    max: max as u32,
                    template: self.to_string(),
                });
            }
            value = value << bits | number;
        }
        Ok(Address(value as u32))
    }

    /// The four numbers, one a byte from the lowest: how maps store a template.
    pub(crate) fn to_bits(self) -> u64 {
        u32::from_le_bytes(self.0).into()
    }

    /// The template that [`Template::to_bits`] gave; `None` for anything else.
    pub(crate) fn from_bits(bits: u64) -> Option<Template> {
        let numbers = u32::try_from(bits).ok()?.to_le_bytes();
        let sum: u32 = numbers.iter().map(|n| u32::from(*n)).sum();
        (sum <= 32 && !numbers.contains(&0)).then_some(Template(numbers))
    }

    /// True if the address has no bit outside this template. Wildcards always do.
    pub fn contains(&self, address: Address) -> bool {
        let bits: u32 = self.0.iter().map(|b| u32::from(*b)).sum();
        u64::from(address.0) < 1u64 << bits
    }

    /// The address as four dotted numbers. An address outside the template (see
    /// [`Template::contains`]) shows its surplus high bits in the first number.
    pub fn show(&self, address: Address) -> ShownAddress {
        let [_, b, c, d] = self.0.map(u32::from);
        let cut = |shift: u32, bits: u32| (u64::from(address.0) >> shift) & ((1u64 << bits) - 1);
        let first = u64::from(address.0) >> (b + c + d);
        ShownAddress([first, cut(c + d, b), cut(d, c), cut(0, d)])
    }
}

/// An address in the form of its template, see [`Template::show`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ShownAddress([u64; 4]);

impl fmt::Display for ShownAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = self.0;
        write!(f, "{a}.{b}.{c}.{d}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_prints_by_template() {
        let t = Template::default();
        assert_eq!(t.parse("0.0.3.1"), Ok(Address(0x301)));
        assert_eq!(t.parse("001.002.003.004"), Ok(Address(0x01020304)));
        assert_eq!(t.show(Address(0x01020304)).to_string(), "1.2.3.4");
        let t: Template = "6.8.8.10".parse().unwrap();
        assert_eq!(t.parse("63.255.255.1023"), Ok(Address(u32::MAX)));
        assert_eq!(
            t.parse("1.2.3.1023"),
            Ok(Address(1 << 26 | 2 << 18 | 3 << 10 | 1023))
        );
        assert_eq!(
            t.show(Address(1 << 26 | 2 << 18 | 3 << 10 | 1023))
                .to_string(),
            "1.2.3.1023"
        );
        let short: Template = "1.1.1.1".parse().unwrap();
        assert_eq!(short.parse("1.0.1.1"), Ok(Address(0b1011)));
        assert!(short.contains(Address(15)) && !short.contains(Address(16)));
    }

    #[test]
    fn refuses_what_is_no_address() {
        let t = Template::default();
        for text in [
            "",
            "1",
            "1.2.3",
            "1.2.3.4.5",
            "a.b.c.d",
            "1.2.3.",
            " 1.2.3.4",
            "1.2.3.4 ",
            "+1.2.3.4",
            "-1.2.3.4",
            "0x1.2.3.4",
            "1.2.3.256",
            "1.2.3.99999999999999999999999",
            "١.2.3.4",
        ] {
            let error = t.parse(text).unwrap_err().to_string();
            assert!(error.contains(text.trim_end_matches('.')), "{error}");
        }
        for text in [
            "8.8.8.9",
            "0.8.8.8",
            "8.8.8",
            "32.1.1.1",
            "99999999999999999999.1.1.1",
        ] {
            assert!(text.parse::<Template>().is_err(), "{text}");
        }
    }
}
