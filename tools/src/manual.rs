//! What the man pages and help texts of a tool have that its options do not say. `examples/man.rs` writes the pages.

/// Terms, and what each is.
pub type List = &'static [(&'static str, &'static str)];

/// One tool.
#[derive(Clone, Copy, Debug)]
pub struct Manual {
    /// Its command line.
    pub command: fn() -> clap::Command,
    /// How it is called, one line for each thing that it does.
    pub synopsis: &'static [&'static str],
    /// Key and meaning, of its own file.
    pub configuration: List,
    /// Signal and meaning.
    pub signals: List,
    /// Status and meaning.
    pub exit_status: List,
    /// Variable and meaning.
    pub environment: List,
    /// File and meaning.
    pub files: List,
    /// Commands, and what they are for.
    pub examples: List,
    /// The same for its subcommands, by name.
    pub examples_of: &'static [(&'static str, List)],
    /// Other pages, as "acl(5)".
    pub see_also: &'static [&'static str],
}

/// Every tool that has a page in docs/man. A tool is added here.
pub const ALL: &[Manual] = &[
    crate::daemon::cli::MANUAL,
    crate::manager::cli::MANUAL,
    crate::perf::cli::MANUAL,
    crate::routes::cli::MANUAL,
];

/// A command that is longer stands on a line of its own, in a help text.
const LONG: usize = 48;

impl Manual {
    /// Examples, environment and exit status, for the end of a help text.
    pub fn after_help(&self) -> String {
        let statuses = self.exit_status.iter();
        let statuses: Vec<_> = statuses
            .map(|(status, what)| format!("{status} {what}"))
            .collect();
        format!(
            "{}\n\n{}\n\nExit status: {}.",
            list("Examples", self.examples),
            list("Environment", self.environment),
            statuses.join("; ")
        )
    }

    /// The command line, each subcommand's help with its examples at the end.
    pub fn with_examples(&self, command: clap::Command) -> clap::Command {
        let named = self.examples_of.iter();
        named.fold(command, |command, (name, examples)| {
            command.mut_subcommand(name, |sub| sub.after_help(list("Examples", examples)))
        })
    }

    /// The examples of a subcommand.
    pub fn examples_of(&self, subcommand: &str) -> List {
        let mut all = self.examples_of.iter();
        all.find(|(name, _)| *name == subcommand)
            .map_or(&[], |(_, list)| list)
    }
}

fn list(title: &str, list: List) -> String {
    let width = list.iter().map(|(term, _)| term.len());
    let width = width.filter(|width| *width <= LONG).max().unwrap_or(0);
    let lines = list.iter().map(|(term, what)| match term.len() {
        length if length > LONG => format!("  {term}\n  {:width$}  {what}", ""),
        _ => format!("  {term:width$}  {what}"),
    });
    let lines: Vec<_> = lines.collect();
    format!("{title}:\n{}", lines.join("\n"))
}
