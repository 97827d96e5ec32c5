//! What the man page of a tool has that its command line does not say. `examples/man.rs` writes the pages.

/// One tool.
#[derive(Clone, Copy, Debug)]
pub struct Manual {
    /// Its command line.
    pub command: fn() -> clap::Command,
    /// Commands, and what they are for.
    pub examples: &'static [(&'static str, &'static str)],
    /// Status and meaning.
    pub exit_status: &'static [(&'static str, &'static str)],
    /// Variable and meaning.
    pub environment: &'static [(&'static str, &'static str)],
    /// File and meaning.
    pub files: &'static [(&'static str, &'static str)],
    /// Other pages, as "acl(5)".
    pub see_also: &'static [&'static str],
}

/// Every tool that has a page in docs/man. A tool is added here.
pub const ALL: &[Manual] = &[crate::manager::cli::MANUAL];

impl Manual {
    /// Examples and exit status, for the end of a help text.
    pub fn after_help(&self) -> String {
        let width = self.examples.iter().map(|(command, _)| command.len());
        let width = width.max().unwrap_or(0);
        let examples = self.examples.iter();
        let examples: Vec<_> = examples
            .map(|(command, what)| format!("  {command:width$}  {what}"))
            .collect();
        let statuses = self.exit_status.iter();
        let statuses: Vec<_> = statuses
            .map(|(status, what)| format!("{status} {what}"))
            .collect();
        let files = self.files.first().map_or("", |(file, _)| file);
        format!(
            "Examples:\n{}\n\nFiles: {files}, or where TBUS_SHM_DIR says.\nExit status: {}.",
            examples.join("\n"),
            statuses.join("; ")
        )
    }
}
