//! The header, which C compilers read, says what this library is.

use crate::codes;
use std::collections::BTreeMap;

const HEADER: &str = include_str!("../include/tbus/tbus.h");
const SOURCE: &str = include_str!("lib.rs");

/// The header without comments, all space single.
fn header() -> String {
    let mut text = String::new();
    let mut rest = HEADER;
    while let Some((before, after)) = rest.split_once("/*") {
        text += before;
        rest = after.split_once("*/").expect("comments end").1;
    }
    text + rest
}

fn single_spaced(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_header_has_the_codes() {
    let header = header();
    let defined = header.lines().filter_map(|line| {
        let (name, value) = line.strip_prefix("#define ")?.split_once(' ')?;
        let value = value.trim().strip_prefix("0x")?.strip_suffix('u')?;
        Some((name, u32::from_str_radix(value, 16).unwrap()))
    });
    let defined: BTreeMap<_, _> = defined.collect();
    let ours: BTreeMap<_, _> = codes::ALL.iter().copied().collect();
    assert_eq!(defined, ours);
    assert_eq!(ours.len(), codes::ALL.len(), "each has a name of its own");
    let numbers: Vec<_> = ours.values().map(|code| code & 0xffff).collect();
    for (name, code) in ours {
        let number = code & 0xffff;
        assert!((code >> 31, code >> 16 & 0xff) == (1, 1), "{name}");
        assert!((1..=3).contains(&(code >> 24 & 0x7f)), "{name}");
        assert!(number > 1024, "{name}");
        assert_eq!(
            numbers.iter().filter(|n| **n == number).count(),
            1,
            "{name}"
        );
        assert_ne!(codes::text(code as i32), codes::text(-1), "{name}");
    }
}

/// A parameter or result as the header writes it.
fn c_type(rust: &str) -> String {
    let (pointer, inner) = match rust.split_once(' ') {
        Some(("*mut", inner)) => (" *", inner),
        Some(("*const", inner)) => (" *", inner),
        _ => ("", rust),
    };
    if let Some(("*const", inner)) = inner.split_once(' ') {
        return format!("const {} *{}", c_type(inner), pointer.trim());
    }
    let name = match inner {
        "c_int" => "int",
        "c_char" => "char",
        "c_void" => "void",
        "u32" => "TBUSADDR",
        "usize" => "size_t",
        "Flux" => "TBUSFLUX",
        "libc::iovec" => "struct iovec",
        other => panic!("no C type for {other}"),
    };
    let constant = if rust.starts_with("*const") {
        "const "
    } else {
        ""
    };
    format!("{constant}{name}{pointer}")
}

/// The prototypes of the exported functions, without names of parameters, by the functions' names.
fn exported() -> BTreeMap<String, String> {
    let functions = SOURCE.split("#[unsafe(no_mangle)]").skip(1);
    let prototypes = functions.map(|function| {
        let (_, function) = function.split_once("extern \"C\" fn ").unwrap();
        let (name, function) = function.split_once('(').unwrap();
        let (parameters, function) = function.split_once(')').unwrap();
        let result = function.split_once('{').unwrap().0.trim();
        let parameters: Vec<_> = parameters
            .split(',')
            .filter_map(|parameter| Some(c_type(parameter.split_once(':')?.1.trim())))
            .collect();
        let result = result.strip_prefix("-> ").map_or("void".into(), c_type);
        let parameters = match parameters.is_empty() {
            true => "void".into(),
            false => parameters.join(", "),
        };
        (name.to_string(), format!("{result} ({parameters})"))
    });
    prototypes.collect()
}

/// The same from the header.
fn declared() -> BTreeMap<String, String> {
    let header = header();
    let statements = header.split(';').map(single_spaced);
    let prototypes = statements.filter_map(|statement| {
        let (head, parameters) = statement.split_once('(')?;
        let at = head.rfind("tbus_")?;
        let (result, name) = head.split_at(at);
        // Before the first one stands the preprocessor's text.
        let result = result
            .rsplit_once("{ ")
            .map_or(result, |(_, result)| result);
        let result = result
            .trim()
            .rsplit_once('}')
            .map_or(result, |(_, r)| r)
            .trim();
        let parameters = parameters.strip_suffix(')')?;
        let parameters: Vec<_> = parameters
            .split(',')
            .map(|parameter| {
                // Without its name, if it has one; a const of the parameter itself changes nothing.
                let parameter = parameter.trim();
                let end = parameter
                    .rfind([' ', '*'])
                    .map_or(parameter.len(), |at| at + 1);
                let kind = parameter[..end].trim();
                match kind.contains('*') {
                    true => kind.to_string(),
                    false => kind.trim_start_matches("const ").to_string(),
                }
            })
            .collect();
        Some((
            name.to_string(),
            format!("{result} ({})", parameters.join(", ")),
        ))
    });
    prototypes.collect()
}

#[test]
fn the_header_has_the_functions() {
    let (exported, declared) = (exported(), declared());
    assert!(exported.len() > 20, "{exported:#?}");
    assert_eq!(exported, declared);
}
