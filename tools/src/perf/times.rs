//! Distributions of times: HDR histograms, and the two formats in which others read them.

use base64::{Engine, engine::general_purpose::STANDARD};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// The histogram counts tenths of a nanosecond.
const PER_NS: f64 = 10.0;
/// Times above are counted as this: an hour.
const LONGEST_NS: f64 = 3.6e12;
/// The percentiles that are printed and stored.
pub const PERCENTILES: [f64; 7] = [25.0, 50.0, 75.0, 90.0, 99.0, 99.9, 99.99];

/// A distribution of times, three significant digits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Times {
        let highest = (LONGEST_NS * PER_NS) as u64;
        Times(Histogram::new_with_bounds(1, highest, 3).expect("bounds that are legal"))
    }
}

impl Times {
    /// Counts one time, in nanoseconds.
    #[inline(always)]
    pub fn record(&mut self, ns: f64) {
        self.0.saturating_record((ns * PER_NS) as u64);
    }

    /// Counts those of another distribution as well.
    pub fn add(&mut self, other: &Times) {
        self.0.add(&other.0).expect("the same bounds");
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The time that `percent` of all do not exceed, ns.
    pub fn percentile(&self, percent: f64) -> f64 {
        // Bounded: a bucket's upper end may lie above the largest value in it.
        self.0.value_at_percentile(percent).min(self.0.max()) as f64 / PER_NS
    }

    /// The shortest, ns.
    pub fn min(&self) -> f64 {
        self.0.min() as f64 / PER_NS
    }

    /// The longest, ns.
    pub fn max(&self) -> f64 {
        self.0.max() as f64 / PER_NS
    }

    /// The mean, ns.
    pub fn mean(&self) -> f64 {
        self.0.mean() / PER_NS
    }

    /// The standard deviation, ns.
    pub fn stdev(&self) -> f64 {
        self.0.stdev() / PER_NS
    }

    /// HdrHistogram's percentile text, in nanoseconds, to the letter of its Java original, which plotters read.
    pub fn percentile_text(&self) -> String {
        let mut text = format!(
            "{:>12} {:>14} {:>10} {:>14}\n\n",
            "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
        );
        let mut seen = 0;
        for step in self.0.iter_quantiles(5) {
            seen += step.count_since_last_iteration();
            let (value, quantile) = (
                step.value_iterated_to().min(self.0.max()) as f64 / PER_NS,
                step.quantile_iterated_to(),
            );
            // Writing to a String cannot fail.
            let _ = match quantile < 1.0 {
                true => writeln!(
                    text,
                    "{value:12.3} {quantile:2.12} {seen:10} {:14.2}",
                    1.0 / (1.0 - quantile)
                ),
                false => writeln!(text, "{value:12.3} {quantile:2.12} {seen:10}"),
            };
        }
        let _ = write!(
            text,
            "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]\n\
             #[Max     = {:12.3}, Total count    = {:12}]\n\
             #[Buckets = {:12}, SubBuckets     = {:12}]\n",
            self.mean(),
            self.stdev(),
            self.max(),
            self.count(),
            self.0.buckets(),
            2048, // those of three digits
        );
        text
    }
}

/// How it stands in files: HdrHistogram's compressed format, and what a reader without a library for that wants.
#[derive(Serialize, Deserialize)]
struct Stored {
    count: u64,
    min: f64,
    max: f64,
    mean: f64,
    stdev: f64,
    percentiles: std::collections::BTreeMap<String, f64>,
    histogram_unit_ns: f64,
    histogram: String,
}

impl From<Times> for Stored {
    fn from(times: Times) -> Stored {
        let mut bytes = Vec::new();
        V2DeflateSerializer::new()
            .serialize(&times.0, &mut bytes)
            .expect("counts fit, and memory takes everything");
        let percentiles = PERCENTILES.map(|p| (p.to_string(), times.percentile(p)));
        Stored {
            count: times.count(),
            min: times.min(),
            max: times.max(),
            mean: times.mean(),
            stdev: times.stdev(),
            percentiles: percentiles.into(),
            histogram_unit_ns: 1.0 / PER_NS,
            histogram: STANDARD.encode(bytes),
        }
    }
}

impl TryFrom<Stored> for Times {
    type Error = String;

    fn try_from(stored: Stored) -> std::result::Result<Times, String> {
        let bytes = STANDARD
            .decode(&stored.histogram)
            .map_err(|e| format!("the histogram is not base64: {e}"))?;
        let histogram = Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .map_err(|e| format!("the histogram is not one: {e}"))?;
        Ok(Times(histogram))
    }
}
