//! The man pages that are checked in are those of the code.

#[path = "../examples/man.rs"]
mod man;

#[test]
fn the_man_pages_are_those_of_the_code() {
    let again = "write them anew with: cargo run --example man";
    let pages = man::pages();
    for (name, page) in &pages {
        let found = std::fs::read_to_string(man::directory().join(name)).unwrap_or_default();
        assert!(found == *page, "docs/man/{name} is out of date; {again}");
    }
    for entry in std::fs::read_dir(man::directory()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            pages.iter().any(|(page, _)| *page == name),
            "docs/man/{name} is the page of no tool; remove it"
        );
    }
}

/// What a reader looks for is there, and there are no bytes that troff would take for a request.
#[test]
fn every_page_has_its_sections() {
    for (name, page) in man::pages() {
        if name.contains('-') {
            continue; // of a subcommand
        }
        for section in [
            "NAME",
            "SYNOPSIS",
            "DESCRIPTION",
            "OPTIONS",
            "EXIT STATUS",
            "ENVIRONMENT",
            "FILES",
            "EXAMPLES",
            "SEE ALSO",
        ] {
            let there = [format!(".SH {section}\n"), format!(".SH \"{section}\"\n")];
            assert!(
                there.iter().any(|line| page.contains(line)),
                "{name} has no section {section}"
            );
        }
    }
}
