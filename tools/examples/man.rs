//! Writes the man pages of all tools from their command lines: `cargo run --example man`, from anywhere in the
//! repository. A test compares them with what is checked in.

use clap_mangen::Man;
use std::fmt::Write as _;
use std::path::PathBuf;
use tbus_tools::manual::{ALL, Manual};

/// Where the pages are checked in.
pub fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/man")
}

/// File names and texts.
pub fn pages() -> Vec<(String, String)> {
    let mut pages = Vec::new();
    for manual in ALL {
        let mut command = (manual.command)().after_help(""); // the page has sections of its own for that
        command.build();
        add(manual, &command, &mut pages);
    }
    pages
}

/// The page of a command and those of its subcommands.
fn add(manual: &Manual, command: &clap::Command, pages: &mut Vec<(String, String)>) {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let name = name.replace(' ', "-");
    let version = env!("CARGO_PKG_VERSION");
    // clap keeps names for the life of the program.
    let kept: &'static str = name.clone().leak();
    let man = Man::new(command.clone().name(kept))
        .title(name.to_uppercase())
        .section("1")
        .source(format!("tbus {version}"))
        .manual("tbus");
    let mut page = Vec::new();
    let render = [
        Man::render_title,
        Man::render_name_section,
        Man::render_synopsis_section,
        Man::render_description_section,
        Man::render_options_section,
    ];
    for section in render {
        section(&man, &mut page).expect("memory takes everything");
    }
    let subcommands: Vec<_> = command
        .get_subcommands()
        .filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
        .collect();
    if !subcommands.is_empty() {
        man.render_subcommands_section(&mut page)
            .expect("memory takes everything");
    }
    let mut page = String::from_utf8(page).expect("clap_mangen writes UTF-8");
    if !name.contains('-') {
        add_sections(manual, &mut page);
    }
    pages.push((format!("{name}.1"), page));
    for subcommand in subcommands {
        add(manual, subcommand, pages);
    }
}

fn add_sections(manual: &Manual, page: &mut String) {
    for (title, items) in [
        ("EXIT STATUS", manual.exit_status),
        ("ENVIRONMENT", manual.environment),
        ("FILES", manual.files),
        ("EXAMPLES", manual.examples),
    ] {
        if items.is_empty() {
            continue;
        }
        _ = writeln!(page, ".SH \"{title}\"");
        for (term, text) in items {
            _ = writeln!(page, ".TP\n\\fB{}\\fR\n{}", escape(term), escape(text));
        }
    }
    if !manual.see_also.is_empty() {
        let pages: Vec<_> = manual.see_also.iter().map(|name| escape(name)).collect();
        _ = writeln!(page, ".SH \"SEE ALSO\"\n{}", pages.join(", "));
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
