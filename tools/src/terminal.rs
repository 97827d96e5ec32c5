//! What standard output is, if it is a terminal.

use std::io::IsTerminal;

/// A terminal that somebody looks at.
#[derive(Clone, Copy, Debug)]
pub struct Terminal {
    /// Characters a line.
    pub width: usize,
    /// True if colours are welcome: <https://no-color.org>, and a terminal that knows them.
    pub color: bool,
}

impl Terminal {
    /// That of standard output; `None` if it goes to a file or a pipe.
    pub fn of_output() -> Option<Terminal> {
        let output = std::io::stdout();
        if !output.is_terminal() {
            return None;
        }
        let width = terminal_size::terminal_size_of(&output).map_or(80, |(width, _)| width.0);
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        Some(Terminal {
            width: width.into(),
            color: !no_color && !dumb,
        })
    }
}
