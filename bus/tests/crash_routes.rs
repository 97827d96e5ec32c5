//! Crash at every instruction of a manager of routes: while it applies configurations and deletes a route, the directory
//! that a kill at this point would leave has one map or the next, whole; a route that stays keeps its creation time; and
//! the next manager goes on from there.
//!
//! A failure prints the point; the run is the same every time.

use crate::directory::{MapFile, crash_at_every_instruction};
use std::path::Path;
use std::time::Duration;
use tbus::config::{RoutesConfig, parse_routes};
use tbus::grm::{Grm, MAX_ROUTES, Route};
use tbus::manage_routes::RouteManager;
use tbus::{Directory, Error};

#[path = "stepping/directory.rs"]
mod directory;
mod stepping;

const MAP: MapFile = MapFile {
    name: "grm",
    entry: 1280,
    capacity: MAX_ROUTES,
    used: 3,
};

/// Last number of a remote address, and of the relay's host there.
type Ways = &'static [(u32, u32)];

/// What the manager makes of the directory, one after the other; before the first there is no map.
const STATES: [Ways; 5] = [
    &[],
    &[(1, 7), (2, 7)],
    &[(2, 8), (3, 7)], // one deleted, one elsewhere, one new
    &[(3, 7)],
    &[],
];

fn config(ways: &[(u32, u32)]) -> RoutesConfig {
    let routes: String = ways
        .iter()
        .map(|(address, host)| {
            format!(
                "<Relays><Addr>0.0.2.{address}</Addr><MConn>tcp://10.0.0.{host}:1027</MConn></Relays>"
            )
        })
        .collect();
    let text = format!("<RelayMnger><RelayShmKey>1</RelayShmKey>{routes}</RelayMnger>");
    parse_routes(text.as_bytes(), false).expect("a good configuration")
}

/// The manager's work: states 0 to 2 by writing, 3 by deleting the first route, 4 by writing.
fn work(path: &Path) {
    let manager =
        RouteManager::create_at(path, &config(STATES[0]), Duration::ZERO).expect("a manager");
    manager.apply(&config(STATES[1])).expect("state 1");
    manager.apply(&config(STATES[2])).expect("state 2");
    manager.delete(1).expect("state 3");
    manager.apply(&config(STATES[4])).expect("state 4");
}

fn way(route: &Route) -> (u32, u32) {
    let host = &route.endpoints[0].host;
    let last = host.rsplit('.').next().and_then(|n| n.parse().ok());
    (route.address.0 & 0xff, last.unwrap_or(0))
}

/// What was left must be state `at` or the next one; returns which. Then the next manager makes a state of its own.
/// `created` is when the route of two states was created, once it was seen.
fn recover(copy: &Path, at: usize, created: &mut Option<u64>) -> Result<usize, String> {
    let text = |error: Error| error.to_string();
    let directory = Directory::open(copy).map_err(text)?;
    let mut now = at;
    match Grm::open(&directory) {
        Err(Error::NotFound { .. }) if at == 0 => {}
        Err(error) => return Err(error.to_string()),
        Ok(grm) => {
            let routes = grm.snapshot().map_err(text)?.routes;
            let found: Vec<_> = routes.iter().map(way).collect();
            now = (at..(at + 2).min(STATES.len()))
                .find(|state| found == STATES[*state])
                .ok_or_else(|| format!("after state {at} the map has {found:?}"))?;
            if let Some(route) = routes.iter().find(|route| way(route).0 == 2)
                && *created.get_or_insert(route.created) != route.created
            {
                return Err("the creation time of a route that stayed has changed".into());
            }
        }
    }
    let manager = RouteManager::create_at(copy, &config(&[]), Duration::ZERO).map_err(text)?;
    manager.apply(&config(&[(2, 9), (9, 9)])).map_err(text)?;
    let routes = Grm::open(&directory).and_then(|grm| grm.snapshot());
    let mut found: Vec<_> = routes.map_err(text)?.routes.iter().map(way).collect();
    found.sort();
    match found.as_slice() {
        [(2, 9), (9, 9)] => Ok(now),
        _ => Err(format!("the next manager left {found:?}")),
    }
}

fn main() {
    let mut created = None;
    crash_at_every_instruction(
        "crash_at_every_instruction_of_a_manager_of_routes",
        &MAP,
        STATES.len() - 1,
        work,
        |copy, at| recover(copy, at, &mut created),
    );
}
