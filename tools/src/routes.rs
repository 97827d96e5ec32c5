//! `trelaymgr`: writes, lists and deletes routes to other hosts.

pub mod cli;

use crate::columns::{Align, Columns};
use crate::command::{Failure, PATIENCE, Result, Target, time};
use serde_json::{Value, json};
use std::fmt::Write as _;
use tbus::config::{self, RouteConfig};
use tbus::grm::{Grm, RelayEndpoint, Route, Transport};
use tbus::manage_routes::{self, RouteManager, RoutePlan};
use tbus::{Directory, Error, Template};

/// What is to be done, from the command line.
#[derive(Clone, Debug)]
pub enum Action {
    /// Make the map what the file says.
    Write,
    /// Show what a write would do.
    Plan,
    /// List the map.
    List,
    /// Delete route N, from 1 as listed.
    Delete(usize),
}

/// Does it; returns what is to be printed.
pub fn run(target: &Target<'_>, action: &Action, json: bool) -> Result<String> {
    let (key, config) = match target {
        Target::File(file) => {
            let config = config::read_routes(file)?;
            (config.key, Some(config))
        }
        Target::Key(key) => (*key, None),
    };
    let path = Directory::path_for_key(key);
    match (action, &config) {
        (Action::Write | Action::Plan, None) => Err(Failure::Usage(
            "name the configuration file with -C FILE".into(),
        )),
        (Action::Write, Some(config)) => {
            let plan = RouteManager::create(config, PATIENCE)?.apply(config)?;
            Ok(show_plan(&plan, config.template, json, true))
        }
        (Action::Plan, Some(config)) => {
            let plan = match Grm::attach(key) {
                Ok(grm) => manage_routes::plan(&grm, config)?,
                // Everything would be new.
                Err(Error::NotFound { .. }) => RoutePlan {
                    create: config.routes.clone(),
                    ..RoutePlan::default()
                },
                Err(error) => return Err(error.into()),
            };
            Ok(show_plan(&plan, config.template, json, false))
        }
        (Action::List, _) => list(&Grm::attach(key)?, json),
        (Action::Delete(number), _) => {
            let manager = RouteManager::open(&Directory::open(path)?, PATIENCE)?;
            let route = manager.delete(*number)?;
            let address = manager.grm().template().show(route.address);
            if json {
                let deleted = json!({"deleted": number, "route": route_json(&route, manager.grm().template())});
                return Ok(format!("{deleted:#}\n"));
            }
            let to = endpoints(&route.endpoints);
            Ok(format!("deleted route {number}, {address} → {to}\n"))
        }
    }
}

fn endpoints(endpoints: &[RelayEndpoint]) -> String {
    let texts: Vec<_> = endpoints.iter().map(RelayEndpoint::to_string).collect();
    texts.join(", ")
}

fn transports(transports: &[Transport]) -> String {
    let names: Vec<_> = transports.iter().map(|t| t.name()).collect();
    names.join(" ")
}

fn show_plan(plan: &RoutePlan, template: Template, json: bool, done: bool) -> String {
    if json {
        return plan_json(plan, template, done);
    }
    let show = |address| template.show(address);
    let verb = |past: &'static str, future: &'static str| if done { past } else { future };
    let mut text = String::new();
    for route in &plan.create {
        let RouteConfig { address, .. } = route;
        _ = writeln!(
            text,
            "{} {} → {}  over {}",
            verb("created", "create "),
            show(*address),
            endpoints(&route.endpoints),
            transports(&route.transports)
        );
    }
    for (old, new) in &plan.update {
        _ = writeln!(
            text,
            "{} {}  {}",
            verb("updated", "update "),
            show(old.address),
            changes(old, new)
        );
    }
    for route in &plan.delete {
        _ = writeln!(
            text,
            "{} {} → {}",
            verb("deleted", "delete "),
            show(route.address),
            endpoints(&route.endpoints)
        );
    }
    _ = writeln!(
        text,
        "{} {}, {} {}, kept {}, {} {}",
        verb("created", "to create"),
        plan.create.len(),
        verb("updated", "to update"),
        plan.update.len(),
        plan.keep.len(),
        verb("deleted", "to delete"),
        plan.delete.len()
    );
    text
}

/// What differs between two routes to one address: "endpoints … → …".
fn changes(old: &Route, new: &Route) -> String {
    let sides = [
        (
            "endpoints",
            [old, new].map(|route| endpoints(&route.endpoints)),
        ),
        (
            "transports",
            [old, new].map(|route| transports(&route.transports)),
        ),
        (
            "description",
            [old, new].map(|route| format!("'{}'", route.description)),
        ),
    ];
    let differing = sides.iter().filter(|(_, [old, new])| old != new);
    let texts: Vec<_> = differing
        .map(|(what, [old, new])| format!("{what} {old} → {new}"))
        .collect();
    texts.join("; ")
}

fn plan_json(plan: &RoutePlan, template: Template, done: bool) -> String {
    let all = |routes: &[Route]| -> Vec<Value> {
        routes.iter().map(|r| route_json(r, template)).collect()
    };
    let created: Vec<_> = plan
        .create
        .iter()
        .map(|r| {
            way_json(
                r.address,
                &r.endpoints,
                &r.transports,
                &r.description,
                template,
            )
        })
        .collect();
    let updated: Vec<_> = plan
        .update
        .iter()
        .map(|(old, new)| json!({"from": route_json(old, template), "to": route_json(new, template)}))
        .collect();
    let text = json!({
        "done": done,
        "create": created,
        "update": updated,
        "keep": all(&plan.keep),
        "delete": all(&plan.delete),
    });
    format!("{text:#}\n")
}

fn way_json(
    address: tbus::Address,
    endpoints: &[RelayEndpoint],
    transports: &[Transport],
    description: &str,
    template: Template,
) -> Value {
    json!({
        "address": template.show(address).to_string(),
        "endpoints": endpoints.iter().map(RelayEndpoint::to_string).collect::<Vec<_>>(),
        "transports": transports.iter().map(|t| t.name()).collect::<Vec<_>>(),
        "description": description,
    })
}

fn route_json(route: &Route, template: Template) -> Value {
    let mut value = way_json(
        route.address,
        &route.endpoints,
        &route.transports,
        &route.description,
        template,
    );
    value["created"] = route.created.into();
    value
}

fn list(grm: &Grm, json: bool) -> Result<String> {
    let snapshot = grm.snapshot()?;
    let template = grm.template();
    if json {
        let numbered = snapshot.routes.iter().enumerate().map(|(index, route)| {
            let mut value = route_json(route, template);
            value["number"] = (index + 1).into();
            value
        });
        let map = json!({
            "key": grm.key(),
            "template": template.to_string(),
            "created": grm.created(),
            "version": snapshot.version,
            "routes": numbered.collect::<Vec<_>>(),
        });
        return Ok(format!("{map:#}\n"));
    }
    let mut text = format!(
        "routes {} in {}: {} route(s), template {template}, written {} time(s), made {}\n",
        grm.key(),
        grm.file_path()
            .parent()
            .unwrap_or(grm.file_path())
            .display(),
        snapshot.routes.len(),
        snapshot.version,
        time(grm.created())
    );
    let mut table = Columns::new(&[
        ("No", Align::Right),
        ("address", Align::Left),
        ("endpoint", Align::Left),
        ("transports", Align::Left),
        ("created", Align::Left),
        ("description", Align::Left),
    ]);
    for (index, route) in snapshot.routes.iter().enumerate() {
        let mut others = route.endpoints.iter();
        table.row(vec![
            (index + 1).to_string(),
            template.show(route.address).to_string(),
            others
                .next()
                .map(RelayEndpoint::to_string)
                .unwrap_or_default(),
            transports(&route.transports),
            time(route.created),
            route.description.clone(),
        ]);
        // The next choices stand below the first.
        for endpoint in others {
            let mut row = vec![String::new(); 6];
            row[2] = endpoint.to_string();
            table.row(row);
        }
    }
    if !snapshot.routes.is_empty() {
        _ = write!(text, "{table}");
    }
    Ok(text)
}
