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
            let of_tool = ["EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES"];
            if name.contains('-') && of_tool.contains(&section) {
                continue; // a subcommand's page says only what is its own
            }
            let there = [format!(".SH {section}\n"), format!(".SH \"{section}\"\n")];
            assert!(
                there.iter().any(|line| page.contains(line)),
                "{name} has no section {section}"
            );
        }
    }
}

/// What a page points to is there, or belongs to the system.
#[test]
fn every_page_that_is_named_is_there() {
    let pages = man::pages();
    for (name, page) in &pages {
        let words = page.split(|c: char| c.is_whitespace() || c == ',');
        for word in words.filter(|word| word.ends_with("(1)")) {
            let named = word.replace("\\-", "-").replace("(1)", ".1");
            assert!(
                pages.iter().any(|(page, _)| *page == named),
                "{name} names {word}, which is not there"
            );
        }
    }
}
