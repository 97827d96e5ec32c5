//! Tables as plain aligned columns: quick for many rows, and easy to cut with other tools.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// On which side a column is filled up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Colours of a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Color {
    /// The terminal's own.
    #[default]
    Plain,
    /// All is well.
    Green,
    /// Look here.
    Yellow,
    /// Look here first.
    Red,
    /// Nothing to see.
    Dim,
    /// A heading.
    Bold,
}

impl Color {
    /// What switches it on; "" for none.
    fn code(self) -> &'static str {
        match self {
            Color::Plain => "",
            Color::Green => "\x1b[32m",
            Color::Yellow => "\x1b[33m",
            Color::Red => "\x1b[31m",
            Color::Dim => "\x1b[2m",
            Color::Bold => "\x1b[1m",
        }
    }
}

/// One field of a table.
#[derive(Clone, Debug)]
pub struct Cell {
    text: String,
    color: Color,
}

impl Cell {
    /// In a colour, where there are colours. Control characters, which could move the cursor, are shown as `·`.
    pub fn colored(text: impl Into<String>, color: Color) -> Cell {
        let mut text = text.into();
        if text.contains(char::is_control) {
            text = text.replace(char::is_control, "·");
        }
        Cell { text, color }
    }

    /// Cuts it, with a mark, to so many columns of the screen.
    fn cut(&mut self, width: usize) {
        if self.text.width() <= width {
            return;
        }
        let (mut used, mut end) = (1, 0); // the mark takes one
        for (at, character) in self.text.char_indices() {
            used += character.width().unwrap_or(0);
            if used > width {
                break;
            }
            end = at + character.len_utf8();
        }
        self.text.truncate(end);
        self.text.push('…');
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Cell {
        Cell::colored(text, Color::Plain)
    }
}

/// Rows under a header.
#[derive(Debug)]
pub struct Columns {
    aligns: Vec<Align>,
    rows: Vec<Vec<Cell>>,
    color: bool,
}

impl Columns {
    /// A table with these columns.
    pub fn new(header: &[(&str, Align)]) -> Columns {
        let names = header
            .iter()
            .map(|(name, _)| Cell::colored(*name, Color::Bold));
        Columns {
            aligns: header.iter().map(|(_, align)| *align).collect(),
            rows: vec![names.collect()],
            color: false,
        }
    }

    /// Adds a row, with as many cells as the header.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<Cell>>) {
        let cells: Vec<Cell> = cells.into_iter().map(Into::into).collect();
        assert_eq!(cells.len(), self.aligns.len(), "a cell for each column");
        self.rows.push(cells);
    }

    /// Colours or none; none if this was not called.
    pub fn set_color(&mut self, color: bool) {
        self.color = color;
    }

    /// Cuts the last column so that lines have at most `width` characters, but not to less than `least`. False if that
    /// is not enough; nothing is cut then.
    pub fn fit(&mut self, width: usize, least: usize) -> bool {
        let widths = self.widths();
        let Some((last, others)) = widths.split_last() else {
            return true;
        };
        let before: usize = others.iter().map(|width| width + 2).sum();
        if before + last.min(&least) > width {
            return false;
        }
        for row in &mut self.rows {
            if let Some(cell) = row.last_mut() {
                cell.cut(width - before);
            }
        }
        true
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths = vec![0; self.aligns.len()];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.text.width().max(*width);
            }
        }
        widths
    }
}

impl std::fmt::Display for Columns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let widths = self.widths();
        let mut line = String::new();
        for row in &self.rows {
            line.clear();
            // Blanks that stand before a later cell only: nothing trails.
            let mut fill = 0;
            for ((cell, width), align) in row.iter().zip(&widths).zip(&self.aligns) {
                let short = width - cell.text.width();
                let (before, after) = match align {
                    Align::Left => (0, short),
                    Align::Right => (short, 0),
                };
                if !cell.text.is_empty() {
                    line.extend(std::iter::repeat_n(' ', fill + before));
                    fill = 0;
                    match cell.color.code() {
                        code if self.color && !code.is_empty() => {
                            line.extend([code, &cell.text, "\x1b[0m"]);
                        }
                        _ => line.push_str(&cell.text),
                    }
                } else {
                    fill += before;
                }
                fill += after + 2;
            }
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}

/// 20.5 MB, in powers of 1000.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.95 && unit < UNITS.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Columns {
        let mut table = Columns::new(&[("n", Align::Right), ("name", Align::Left)]);
        table.row(["1", "通道通道"]);
        table.row([Cell::from("1000"), Cell::colored("a\nb", Color::Red)]);
        table.row(["2", ""]);
        table
    }

    #[test]
    fn aligns_wide_characters_too() {
        assert_eq!(
            table().to_string(),
            "   n  name\n   1  通道通道\n1000  a·b\n   2\n"
        );
    }

    #[test]
    fn cuts_the_last_column_only() {
        let mut table = table();
        assert!(!table.fit(10, 5), "8 wide, 5 at least, 4 have room");
        assert!(table.fit(14, 5));
        assert_eq!(table.to_string(), self::table().to_string());
        assert!(table.fit(12, 5));
        assert_eq!(
            table.to_string(),
            "   n  name\n   1  通道…\n1000  a·b\n   2\n"
        );
    }

    #[test]
    fn colors_do_not_count() {
        let mut table = table();
        table.set_color(true);
        let text = table.to_string();
        assert!(text.contains("1000  \x1b[31ma·b\x1b[0m\n"), "{text:?}");
        assert!(text.starts_with("   \x1b[1mn\x1b[0m  \x1b[1mname\x1b[0m\n"));
    }

    #[test]
    fn sizes_are_human() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_949, "999.9 kB"),
            (999_950, "1.0 MB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(human(bytes), text);
        }
    }
}
