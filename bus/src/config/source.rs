//! From bytes to a tree of named nodes with positions: XML in any encoding, or TOML.

use super::Problem;
use encoding_rs::{Encoding, UTF_8};
use std::cell::Cell;

/// A row and a column, both from 1; columns count characters.
pub(super) type At = (u32, u32);

/// An element of XML, or a key of TOML.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub name: String,
    /// The text in it, without white space around; empty if it has children.
    pub text: String,
    pub at: At,
    pub children: Vec<Node>,
}

/// The root element. TOML has none: its name is empty there.
pub(super) fn read(bytes: &[u8], is_toml: bool) -> Result<Node, Problem> {
    let text = decode(bytes, is_toml)?;
    if is_toml {
        read_toml(&text)
    } else {
        read_xml(&text)
    }
}

/// Decodes by byte order mark, else by the XML declaration, else as UTF-8.
fn decode(bytes: &[u8], is_toml: bool) -> Result<String, Problem> {
    let declared = declared_encoding(bytes).filter(|_| !is_toml);
    let encoding = match (Encoding::for_bom(bytes), &declared) {
        (Some((encoding, _)), _) => encoding,
        (None, Some(label)) => Encoding::for_label(label.as_bytes()).ok_or_else(|| {
            Problem::new(
                (1, 1),
                format!("the encoding '{label}' is not known"),
                "declare UTF-8 or GBK, and save the file so",
            )
        })?,
        (None, None) => UTF_8,
    };
    let (text, _, malformed) = encoding.decode(bytes);
    if malformed {
        let at = Lines::of(&text).position(text.find('\u{fffd}').unwrap_or(0));
        let mend = "save it in that encoding, or declare the one that it has: <?xml version=\"1.0\" encoding=\"GBK\"?>";
        return Err(Problem::new(
            at,
            format!("the text is not {}", encoding.name()),
            mend,
        ));
    }
    Ok(text.into_owned())
}

/// The encoding that `<?xml … encoding="…"?>` names.
fn declared_encoding(bytes: &[u8]) -> Option<String> {
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]);
    let declaration = head.trim_start().strip_prefix("<?xml")?.split_once("?>")?.0;
    let value = declaration
        .split_once("encoding")?
        .1
        .trim_start()
        .strip_prefix('=')?
        .trim_start();
    let quote = value.chars().next().filter(|c| *c == '"' || *c == '\'')?;
    Some(value[1..].split_once(quote)?.0.to_string())
}

/// A text and where its lines begin: a file has many thousand elements, and each asks for its position.
struct Lines<'a> {
    text: &'a str,
    begins: Vec<usize>,
    /// The last offset asked for and the column there: all elements may stand in one line.
    last: Cell<(usize, u32)>,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Lines<'a> {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Lines {
            text,
            begins: [0].into_iter().chain(ends.map(|(at, _)| at + 1)).collect(),
            last: Cell::new((0, 1)),
        }
    }

    /// Row and column of a byte offset.
    fn position(&self, offset: usize) -> At {
        let row = self.begins.partition_point(|begin| *begin <= offset); // the first begins at 0
        let begin = self.begins[row - 1];
        let (from, column) = match self.last.get() {
            (last, column) if (begin..=offset).contains(&last) => (last, column),
            _ => (begin, 1),
        };
        let between = self.text.get(from..offset).unwrap_or("");
        let column = column + between.chars().count() as u32;
        self.last.set((offset, column));
        (row as u32, column)
    }
}

fn read_xml(text: &str) -> Result<Node, Problem> {
    let text = text.trim_start_matches('\u{feff}');
    let document = roxmltree::Document::parse(text).map_err(|error| {
        let at = (error.pos().row, error.pos().col);
        match error {
            roxmltree::Error::DtdDetected => Problem::new(
                at,
                "a DTD is not allowed",
                "remove the <!DOCTYPE …> declaration",
            ),
            error => {
                // The library's text ends with "at row:column", which stands before it already.
                let reason = error.to_string();
                let reason = reason
                    .rsplit_once(" at ")
                    .map_or(reason.as_str(), |(reason, _)| reason);
                Problem::new(
                    at,
                    format!("this is not well-formed XML: {reason}"),
                    "correct it",
                )
            }
        }
    })?;
    element(&Lines::of(text), document.root_element())
}

fn element(lines: &Lines<'_>, xml: roxmltree::Node<'_, '_>) -> Result<Node, Problem> {
    let mut node = Node {
        name: xml.tag_name().name().to_string(),
        at: lines.position(xml.range().start),
        ..Node::default()
    };
    for child in xml.children() {
        if child.is_element() {
            node.children.push(element(lines, child)?);
        } else if child.is_text() {
            node.text.push_str(child.text().unwrap_or(""));
        }
    }
    node.text = node.text.trim().to_string();
    if !node.children.is_empty() && !node.text.is_empty() {
        let stray: String = node.text.chars().take(40).collect();
        let reason = format!(
            "there is text between the elements of {}: '{stray}'",
            node.name
        );
        return Err(Problem::new(
            node.at,
            reason,
            "put it into an element, or into a comment",
        ));
    }
    Ok(node)
}

fn read_toml(text: &str) -> Result<Node, Problem> {
    let lines = &Lines::of(text);
    let table = toml::de::DeTable::parse(text).map_err(|error| {
        let at = lines.position(error.span().map_or(0, |span| span.start));
        Problem::new(
            at,
            format!("this is not TOML: {}", error.message()),
            "correct it",
        )
    })?;
    let mut root = Node {
        at: (1, 1),
        ..Node::default()
    };
    add_table(lines, table.get_ref(), &mut root)?;
    Ok(root)
}

fn add_table(
    lines: &Lines<'_>,
    table: &toml::de::DeTable<'_>,
    into: &mut Node,
) -> Result<(), Problem> {
    for (key, value) in table {
        add_value(
            lines,
            key.get_ref(),
            lines.position(key.span().start),
            value,
            into,
        )?;
    }
    // As they stand in the file; the table is sorted by key.
    into.children.sort_by_key(|child| child.at);
    Ok(())
}

/// An array is the same element several times, as in XML.
fn add_value(
    lines: &Lines<'_>,
    name: &str,
    at: At,
    value: &toml::Spanned<toml::de::DeValue<'_>>,
    into: &mut Node,
) -> Result<(), Problem> {
    use toml::de::DeValue;
    let mut node = Node {
        name: name.to_string(),
        at,
        ..Node::default()
    };
    match value.get_ref() {
        DeValue::Array(values) => {
            for value in values.iter() {
                add_value(lines, name, lines.position(value.span().start), value, into)?;
            }
            return Ok(());
        }
        DeValue::Table(table) => add_table(lines, table, &mut node)?,
        DeValue::String(value) => node.text = value.trim().to_string(),
        DeValue::Integer(value) => {
            node.text = match value.radix() {
                16 => format!("0x{}", value.as_str()),
                _ => value.as_str().to_string(),
            }
        }
        other => {
            let reason = format!("{name} is a {}", other.type_str());
            return Err(Problem::new(at, reason, "give a string or a whole number"));
        }
    }
    into.children.push(node);
    Ok(())
}
