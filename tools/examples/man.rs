//! Writes the man pages of all tools from their command lines: `cargo run --example man`, from anywhere in the
//! repository. A test compares them with what is checked in.

use clap_mangen::Man;
use std::fmt::Write as _;
use std::path::PathBuf;
use tbus_tools::manual::{ALL, List, Manual};

/// Where the pages are checked in.
pub fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/man")
}

/// File names and texts.
pub fn pages() -> Vec<(String, String)> {
    let mut pages = Vec::new();
    for manual in ALL {
        let mut command = (manual.command)().disable_help_subcommand(true);
        command.build();
        add(manual, &command, None, &mut pages);
    }
    pages
}

/// The page of a command and those of its subcommands, each its own: `man tbusperf lat` finds tbusperf-lat(1).
fn add(
    manual: &Manual,
    command: &clap::Command,
    parent: Option<&str>,
    pages: &mut Vec<(String, String)>,
) {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let name = name.replace(' ', "-");
    let version = env!("CARGO_PKG_VERSION");
    // clap keeps names for the life of the program.
    let kept: &'static str = name.clone().leak();
    let man = Man::new(with_sentence(command.clone()).name(kept))
        .title(name.to_uppercase())
        .section("1")
        .source(format!("tbus {version}"))
        .manual("tbus");
    let mut page = Vec::new();
    man.render_title(&mut page).expect(MEMORY);
    man.render_name_section(&mut page).expect(MEMORY);
    let synopsis = match parent {
        None => synopsis(&name, manual.synopsis),
        Some(parent) => synopsis(parent, &[&call(command)]),
    };
    page.extend(synopsis.into_bytes());
    man.render_description_section(&mut page).expect(MEMORY);
    man.render_options_section(&mut page).expect(MEMORY);
    let subcommands: Vec<_> = command
        .get_subcommands()
        .filter(|sub| !sub.is_hide_set())
        .collect();
    if !subcommands.is_empty() {
        man.render_subcommands_section(&mut page).expect(MEMORY);
    }
    let mut page = tidy(&String::from_utf8(page).expect("clap_mangen writes UTF-8"));
    match parent {
        None => add_sections(manual, &mut page),
        Some(parent) => {
            add_list(
                "EXAMPLES",
                manual.examples_of(command.get_name()),
                &mut page,
            );
            _ = writeln!(page, ".SH \"SEE ALSO\"\n{}(1)", escape(parent));
        }
    }
    pages.push((format!("{name}.1"), page));
    for subcommand in subcommands {
        add(manual, subcommand, Some(&name), pages);
    }
}

const MEMORY: &str = "memory takes everything";

/// Each call on a line of its own: options bold, what they take in italics, no break within brackets.
fn synopsis(name: &str, calls: &[&str]) -> String {
    let mut text = String::from(".SH SYNOPSIS\n");
    for call in calls {
        _ = writeln!(text, ".SY {}", escape(name));
        let mut depth = 0;
        for word in call.split(' ') {
            let bare = word.trim_matches(['[', ']', '{', '}', '.', '|']);
            let font = match bare.chars().all(|c| c.is_ascii_uppercase()) {
                true => 'I',
                false => 'B',
            };
            let set = format!("\\f{font}{}\\fR", escape(bare));
            text.push_str(&match bare {
                "" => word.to_string(),
                bare => word.replacen(bare, &set, 1),
            });
            depth += word.matches(['[', '{']).count();
            depth -= word.matches([']', '}']).count();
            text.push_str(if depth > 0 { "\\ " } else { " " });
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text + ".YS\n"
}

/// clap takes the period from the first line of a description, which has a section of its own here.
fn with_sentence(command: clap::Command) -> clap::Command {
    let long = command.get_long_about().or(command.get_about());
    let text = long.map(|text| text.to_string()).unwrap_or_default();
    let (first, rest) = text.split_at(text.find('\n').unwrap_or(text.len()));
    let end = if first.ends_with('.') { "" } else { "." };
    command.long_about(format!("{first}{end}{rest}"))
}

/// The call of a subcommand.
fn call(command: &clap::Command) -> String {
    let mut words = vec![command.get_name().to_string()];
    if command
        .get_arguments()
        .any(|option| !option.is_positional() && option.get_id() != "help")
    {
        words.push("[OPTION...]".into());
    }
    let positionals = command.get_positionals();
    words.extend(positionals.map(|argument| argument.get_id().as_str().to_uppercase()));
    words.join(" ")
}

/// clap_mangen begins each section with the same definitions: once is enough. Words of the computer are bold instead of in
/// backticks, and a percent sign stays with its number.
fn tidy(page: &str) -> String {
    let page = page.replace(" %", "\\ %");
    let mut tidy = String::new();
    for (number, line) in page.lines().enumerate() {
        if number > 1 && (line.starts_with(".ie ") || line.starts_with(".el ")) {
            continue;
        }
        let parts: Vec<_> = line.split('`').collect();
        for (index, part) in parts.iter().enumerate() {
            match index % 2 == 1 && parts.len() % 2 == 1 {
                true => _ = write!(tidy, "\\fB{part}\\fR"),
                false => tidy.push_str(part),
            }
        }
        tidy.push('\n');
    }
    tidy
}

fn add_sections(manual: &Manual, page: &mut String) {
    add_list("CONFIGURATION", manual.configuration, page);
    add_list("SIGNALS", manual.signals, page);
    add_list("EXIT STATUS", manual.exit_status, page);
    add_list("ENVIRONMENT", manual.environment, page);
    add_list("FILES", manual.files, page);
    add_list("EXAMPLES", manual.examples, page);
    if !manual.see_also.is_empty() {
        let pages: Vec<_> = manual.see_also.iter().map(|name| escape(name)).collect();
        _ = writeln!(page, ".SH \"SEE ALSO\"\n{}", pages.join(", "));
    }
}

fn add_list(title: &str, items: List, page: &mut String) {
    if items.is_empty() {
        return;
    }
    _ = writeln!(page, ".SH \"{title}\"");
    for (term, text) in items {
        _ = writeln!(page, ".TP\n\\fB{}\\fR\n{}", escape(term), escape(text));
    }
}

/// Text as troff takes it: hyphens and quotes stay such that can be copied, and no line begins with a request.
fn escape(text: &str) -> String {
    let text = text
        .replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('\'', "\\(aq");
    match text.starts_with('.') {
        true => format!("\\&{text}"),
        false => text,
    }
}

#[allow(dead_code)] // the test that includes this file has its own
fn main() -> std::io::Result<()> {
    let directory = directory();
    std::fs::create_dir_all(&directory)?;
    for (name, page) in pages() {
        std::fs::write(directory.join(&name), page)?;
        println!("docs/man/{name}");
    }
    Ok(())
}
