//! One figure of several rounds.

use serde::{Deserialize, Serialize};

/// The values of one figure, one a round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct Series(Vec<f64>);

/// How it stands in files: with what a reader would have to work out.
#[derive(Serialize, Deserialize)]
struct Stored {
    median: Option<f64>,
    low: Option<f64>,
    high: Option<f64>,
    rounds: Vec<f64>,
}

impl From<Stored> for Series {
    fn from(stored: Stored) -> Series {
        Series(stored.rounds)
    }
}

impl From<Series> for Stored {
    fn from(series: Series) -> Stored {
        Stored {
            median: series.median(),
            low: series.low(),
            high: series.high(),
            rounds: series.0,
        }
    }
}

impl Series {
    /// Adds the value of one more round.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The values in the order of the rounds.
    pub fn rounds(&self) -> &[f64] {
        &self.0
    }

    /// The middle value; of an even number, the mean of the two in the middle.
    pub fn median(&self) -> Option<f64> {
        median(&self.0)
    }

    /// The lowest value.
    pub fn low(&self) -> Option<f64> {
        self.0.iter().copied().min_by(f64::total_cmp)
    }

    /// The highest value.
    pub fn high(&self) -> Option<f64> {
        self.0.iter().copied().max_by(f64::total_cmp)
    }

    /// The values times `factor`.
    pub fn scaled(&self, factor: f64) -> Series {
        Series(self.0.iter().map(|value| value * factor).collect())
    }

    /// "1.12 (1.08–1.15)": the median, the lowest and the highest; "–" without rounds. None has digits after the point
    /// if the lowest has four before it.
    pub fn spread(&self, digits: usize) -> String {
        let digits = if self.low() >= Some(1000.0) {
            0
        } else {
            digits
        };
        match (self.median(), self.low(), self.high()) {
            (Some(median), Some(low), Some(high)) if self.0.len() > 1 => {
                format!("{median:.digits$} ({low:.digits$}–{high:.digits$})")
            }
            (Some(median), ..) => format!("{median:.digits$}"),
            _ => "–".into(),
        }
    }
}

/// See [`Series::median`].
pub fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[n / 2]),
        n => Some((values[n / 2 - 1] + values[n / 2]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[f64]) -> Series {
        let mut series = Series::default();
        values.iter().for_each(|value| series.push(*value));
        series
    }

    #[test]
    fn the_median_is_the_middle_or_the_mean_of_two() {
        assert_eq!(series(&[]).median(), None);
        assert_eq!(series(&[3.0, 9.0, 1.0]).median(), Some(3.0));
        assert_eq!(series(&[3.0, 9.0, 1.0, 5.0]).median(), Some(4.0));
    }

    #[test]
    fn a_spread_shows_what_there_is() {
        assert_eq!(series(&[]).spread(1), "–");
        assert_eq!(series(&[1.25]).spread(1), "1.2");
        assert_eq!(series(&[2.0, 1.0, 4.0]).spread(2), "2.00 (1.00–4.00)");
        assert_eq!(series(&[2e3, 1e3, 4e3]).spread(2), "2000 (1000–4000)");
    }
}
