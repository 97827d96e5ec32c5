//! The little of a certificate that the TLS library does not tell: its dates, and its subject's common name. Certificates of
//! peers are judged by the library; these are for reading one's own.

use super::seconds;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const VERSION: u8 = 0xa0;
/// 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// Takes one element off the front: its tag and its content.
fn take<'a>(bytes: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (&[tag, first], mut rest) = bytes.split_first_chunk::<2>()?;
    let mut length = usize::from(first);
    if first >= 0x80 {
        let (digits, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if digits.is_empty() || digits.len() > 3 {
            return None;
        }
        length = digits
            .iter()
            .fold(0, |n, digit| n << 8 | usize::from(*digit));
        rest = after;
    }
    let (content, after) = rest.split_at_checked(length)?;
    *bytes = after;
    Some((tag, content))
}

fn expect<'a>(bytes: &mut &'a [u8], wanted: u8) -> Option<&'a [u8]> {
    take(bytes)
        .filter(|(tag, _)| *tag == wanted)
        .map(|(_, content)| content)
}

/// The fields of a certificate from its issuer on.
fn from_issuer(mut certificate: &[u8]) -> Option<&[u8]> {
    let mut certificate = expect(&mut certificate, SEQUENCE)?;
    let mut fields = expect(&mut certificate, SEQUENCE)?;
    if fields.first() == Some(&VERSION) {
        take(&mut fields)?;
    }
    take(&mut fields)?; // the serial number
    take(&mut fields)?; // the algorithm of the signature
    Some(fields)
}

/// From when until when a certificate is good.
pub fn validity(certificate: &[u8]) -> Option<(SystemTime, SystemTime)> {
    let mut fields = from_issuer(certificate)?;
    take(&mut fields)?;
    let mut dates = expect(&mut fields, SEQUENCE)?;
    Some((time(take(&mut dates)?)?, time(take(&mut dates)?)?))
}

/// The common name of a certificate's subject.
pub fn common_name(certificate: &[u8]) -> Option<String> {
    let mut fields = from_issuer(certificate)?;
    take(&mut fields)?; // the issuer
    take(&mut fields)?; // the dates
    let mut subject = expect(&mut fields, SEQUENCE)?;
    while let Some(mut set) = expect(&mut subject, SET) {
        let mut pair = expect(&mut set, SEQUENCE)?;
        if expect(&mut pair, OBJECT)? == COMMON_NAME {
            let (_, text) = take(&mut pair)?;
            return String::from_utf8(text.to_vec()).ok();
        }
    }
    None
}

/// YYMMDDhhmmssZ, or with four digits for the year.
fn time((tag, text): (u8, &[u8])) -> Option<SystemTime> {
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            let year = number(year)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = text.split_at_checked(4)?;
            (number(year)?, rest)
        }
        _ => return None,
    };
    let rest = rest.strip_suffix(b"Z").filter(|rest| rest.len() == 10)?;
    let part = |n: usize| number(&rest[n * 2..n * 2 + 2]);
    let (month, day, hour, minute, second) = (part(0)?, part(1)?, part(2)?, part(3)?, part(4)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let since = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    match u64::try_from(since) {
        Ok(since) => UNIX_EPOCH.checked_add(Duration::from_secs(since)),
        Err(_) => UNIX_EPOCH.checked_sub(Duration::from_secs(since.unsigned_abs())),
    }
}

fn number(digits: &[u8]) -> Option<i64> {
    let digit = |c: &u8| c.is_ascii_digit().then(|| i64::from(c - b'0'));
    digits.iter().try_fold(0, |n, c| Some(n * 10 + digit(c)?))
}

/// Days from 1970-01-01 to a date of the Gregorian calendar. Years are counted from March, so that the leap day is the last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month < 3 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let leaps = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leaps + (month * 153 + 2) / 5 + day - 719_469
}

/// The day of a time, as 2030-12-31.
pub fn date(time: SystemTime) -> String {
    let day = seconds(time).div_euclid(86_400);
    // At most a year off, then a month.
    let mut year = 1970 + day / 366;
    while days(year + 1, 1, 1) <= day {
        year += 1;
    }
    let month = (2..=12)
        .take_while(|month| days(year, *month, 1) <= day)
        .last()
        .unwrap_or(1);
    format!("{year:04}-{month:02}-{:02}", day - days(year, month, 1) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let of = |text: &str| time((GENERALIZED_TIME, text.as_bytes()));
        assert_eq!(of("19700101000000Z"), Some(UNIX_EPOCH));
        for (text, seconds, shown) in [
            ("20000229000000Z", 951_782_400, "2000-02-29"),
            ("20240301000000Z", 1_709_251_200, "2024-03-01"),
            ("20261231235959Z", 1_798_761_599, "2026-12-31"),
            ("21000228120000Z", 4_107_499_200, "2100-02-28"),
        ] {
            let expected = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(of(text), Some(expected), "{text}");
            assert_eq!(date(expected), shown);
        }
        let short = time((UTC_TIME, b"261231235959Z"));
        assert_eq!(short, of("20261231235959Z"));
        for bad in [
            "",
            "2026",
            "20261331235959Z",
            "2026123123595",
            "2026-231235959Z",
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn no_bytes_make_it_fail() {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec!["a.b".into()]).unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        let good = certificate.der().to_vec();
        assert!(validity(&good).is_some());
        assert_eq!(common_name(&good).unwrap(), "rcgen self signed cert");
        for end in 0..good.len() {
            let _ = (validity(&good[..end]), common_name(&good[..end]));
        }
        for at in 0..good.len().min(400) {
            for byte in [0, 1, 0x7f, 0x80, 0x81, 0x84, 0xff] {
                let mut bad = good.clone();
                bad[at] = byte;
                let _ = (validity(&bad), common_name(&bad));
            }
        }
    }
}
