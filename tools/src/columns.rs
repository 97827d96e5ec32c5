//! Tables as plain aligned columns: quick for many rows, and easy to cut with other tools.

use unicode_width::UnicodeWidthStr;

/// On which side a column is filled up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Rows under a header.
#[derive(Debug)]
pub struct Columns {
    aligns: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Columns {
    /// A table with these columns.
    pub fn new(header: &[(&str, Align)]) -> Columns {
        let names = header.iter().map(|(name, _)| name.to_string()).collect();
        Columns {
            aligns: header.iter().map(|(_, align)| *align).collect(),
            rows: vec![names],
        }
    }

    /// Adds a row, with as many cells as the header.
    pub fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.aligns.len(), "a cell for each column");
        self.rows.push(cells);
    }
}

impl std::fmt::Display for Columns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut widths = vec![0; self.aligns.len()];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.width().max(*width);
            }
        }
        let mut line = String::new();
        for row in &self.rows {
            line.clear();
            for ((cell, width), align) in row.iter().zip(&widths).zip(&self.aligns) {
                let fill = " ".repeat(width - cell.width());
                match align {
                    Align::Left => line.extend([cell.as_str(), &fill, "  "]),
                    Align::Right => line.extend([fill.as_str(), cell, "  "]),
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligns_wide_characters_too() {
        let mut table = Columns::new(&[("name", Align::Left), ("n", Align::Right)]);
        table.row(vec!["通道".into(), "1".into()]);
        table.row(vec!["a".into(), "1000".into()]);
        assert_eq!(table.to_string(), "name     n\n通道     1\na     1000\n");
    }
}
