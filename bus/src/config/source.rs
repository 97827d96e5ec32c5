//! From bytes to a tree of named nodes with positions: XML in any encoding, or TOML.

use super::Problem;
use encoding_rs::{Encoding, UTF_8};

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
        let at = position(&text, text.find('\u{fffd}').unwrap_or(0));
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

/// Row and column of a byte offset.
fn position(text: &str, offset: usize) -> At {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or("");
    (
        before.matches('\n').count() as u32 + 1,
        line.chars().count() as u32 + 1,
    )
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
    element(document.root_element())
}

fn element(xml: roxmltree::Node<'_, '_>) -> Result<Node, Problem> {
    let document = xml.document();
    let at = |offset: usize| {
        let at = document.text_pos_at(offset);
        (at.row, at.col)
    };
    let mut node = Node {
        name: xml.tag_name().name().to_string(),
        at: at(xml.range().start),
        ..Node::default()
    };
    for child in xml.children() {
        if child.is_element() {
            node.children.push(element(child)?);
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
    let table = toml::de::DeTable::parse(text).map_err(|error| {
        let at = position(text, error.span().map_or(0, |span| span.start));
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
    add_table(text, table.get_ref(), &mut root)?;
    Ok(root)
}

fn add_table(text: &str, table: &toml::de::DeTable<'_>, into: &mut Node) -> Result<(), Problem> {
    for (key, value) in table {
        add_value(
            text,
            key.get_ref(),
            position(text, key.span().start),
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
    text: &str,
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
                add_value(text, name, position(text, value.span().start), value, into)?;
            }
            return Ok(());
        }
        DeValue::Table(table) => add_table(text, table, &mut node)?,
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
