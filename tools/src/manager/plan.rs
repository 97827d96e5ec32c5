//! What a write did, or would do.

use serde_json::json;
use std::fmt::Write as _;
use tbus::config::ChannelConfig;
use tbus::manage::{Plan, rounded};
use tbus::{Address, Template};

/// What was done, or would be.
pub(super) fn show(plan: &Plan, template: Template, json: bool, done: bool) -> String {
    let pair =
        |addresses: [Address; 2]| addresses.map(|address| template.show(address).to_string());
    let size = |channel: &ChannelConfig| [channel.send_size, channel.recv_size];
    if json {
        return show_json(plan, template, done);
    }
    let mut text = String::new();
    let verb = |past: &'static str, future: &'static str| if done { past } else { future };
    for channel in &plan.create {
        let [a, b] = pair(channel.addresses);
        let sizes = size(channel).map(|size| match rounded(size) {
            same if same == size => format!("{size}"),
            pages => format!("{pages} (rounded up to pages from {size})"),
        });
        _ = writeln!(
            text,
            "{} {a} – {b}  send {} bytes, receive {} bytes",
            verb("created", "create "),
            sizes[0],
            sizes[1]
        );
    }
    for (channel, unread) in &plan.delete {
        let [a, b] = pair(channel.addresses);
        let lost = match (unread, done) {
            (0, _) => String::new(),
            (n, true) => format!("  with {n} unread message(s)"),
            (n, false) => format!("  has {n} unread message(s): refused without --force"),
        };
        _ = writeln!(text, "{} {a} – {b}{lost}", verb("deleted", "delete "));
    }
    for (channel, sizes) in &plan.other_sizes {
        let [a, b] = pair(channel.addresses);
        _ = writeln!(
            text,
            "kept    {a} – {b} as it is, with {} and {} bytes: the file says {} and {}; delete it first to resize it",
            channel.sizes[0], channel.sizes[1], sizes[0], sizes[1]
        );
    }
    for (channel, settings) in &plan.other_settings {
        let [a, b] = pair(channel.addresses);
        _ = writeln!(
            text,
            "kept    {a} – {b} as it is, with {settings}; delete it first to change it"
        );
    }
    _ = writeln!(
        text,
        "{} {}, kept {}, {} {}",
        verb("created", "to create"),
        plan.create.len(),
        plan.keep.len(),
        verb("deleted", "to delete"),
        plan.delete.len()
    );
    text
}

fn show_json(plan: &Plan, template: Template, done: bool) -> String {
    let pair =
        |addresses: [Address; 2]| addresses.map(|address| template.show(address).to_string());
    let size = |channel: &ChannelConfig| [channel.send_size, channel.recv_size];
    let created = plan.create.iter().map(|c| {
        json!({"addresses": pair(c.addresses), "sizes": size(c).map(rounded), "configured": size(c)})
    });
    let kept = plan.keep.iter().map(|c| {
        let mut value = json!({"addresses": pair(c.addresses), "sizes": c.sizes});
        if let Some((_, sizes)) = plan
            .other_sizes
            .iter()
            .find(|(other, _)| other.slot == c.slot)
        {
            value["configured"] = json!(sizes);
        }
        let others = &plan.other_settings;
        if let Some((_, text)) = others.iter().find(|(other, _)| other.slot == c.slot) {
            value["differs"] = json!(text);
        }
        value
    });
    let deleted = plan
        .delete
        .iter()
        .map(|(c, unread)| json!({"addresses": pair(c.addresses), "unread": unread}));
    let text = json!({
        "done": done,
        "create": created.collect::<Vec<_>>(),
        "keep": kept.collect::<Vec<_>>(),
        "delete": deleted.collect::<Vec<_>>(),
    });
    format!("{text:#}\n")
}
