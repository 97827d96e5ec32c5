//! Writing the map of routes: what `trelaymgr` does.
//!
//! One manager at a time works on a directory; a manager of channels counts, should both maps lie in one. The map
//! changes at one store, and nothing else has to be made or removed: a killed manager leaves the map as it was, or
//! as it was to be. Relays notice the next version and turn the rings that a route concerns into a new generation;
//! the messages in the old one stay until they are received. So a route can be deleted without losing any.

use crate::config::{RouteConfig, RoutesConfig};
use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::grm::{Grm, Route, Snapshot};
use crate::locks::RoleLock;
use crate::manage::now;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

/// What a write would do, from comparing a configuration with the map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoutePlan {
    /// Routes that exist and are as configured.
    pub keep: Vec<Route>,
    /// Routes that exist and lead elsewhere: as they are, and as they are to be. Their creation time stays.
    pub update: Vec<(Route, Route)>,
    /// Routes to be made, in the order of the configuration.
    pub create: Vec<RouteConfig>,
    /// Routes to be deleted.
    pub delete: Vec<Route>,
}

/// Holds the manager's lock of a directory, and its map of routes.
#[derive(Debug)]
pub struct RouteManager {
    grm: Grm,
    _lock: RoleLock,
}

impl RouteManager {
    /// Takes the manager's lock; waits for another manager up to `patience`.
    pub fn open(directory: &Directory, patience: Duration) -> Result<RouteManager> {
        let lock = directory.take_manager(patience)?;
        Ok(RouteManager {
            grm: Grm::open_writable(directory)?,
            _lock: lock,
        })
    }

    /// The same; makes the directory and an empty map if there are none.
    pub fn create(config: &RoutesConfig, patience: Duration) -> Result<RouteManager> {
        Self::create_at(Directory::path_for_key(config.key), config, patience)
    }

    /// The same in a directory of another name.
    pub fn create_at(
        path: impl AsRef<Path>,
        config: &RoutesConfig,
        patience: Duration,
    ) -> Result<RouteManager> {
        let directory = Directory::create(path)?;
        let lock = directory.take_manager(patience)?;
        Ok(RouteManager {
            grm: Grm::open_or_create(&directory, config.key, config.template, now())?,
            _lock: lock,
        })
    }

    /// The map.
    pub fn grm(&self) -> &Grm {
        &self.grm
    }

    /// Makes the map what `config` says: creates what is missing, changes what leads elsewhere, deletes what is surplus,
    /// leaves alone what is as configured. On an error nothing has changed.
    pub fn apply(&self, config: &RoutesConfig) -> Result<RoutePlan> {
        let snapshot = self.grm.snapshot()?;
        let plan = compare(&snapshot, config);
        let changed: HashMap<_, _> = plan
            .update
            .iter()
            .map(|(_, route)| (route.address, route))
            .collect();
        let deleted: HashSet<_> = plan.delete.iter().map(|route| route.address).collect();
        let staying = snapshot
            .routes
            .iter()
            .filter(|route| !deleted.contains(&route.address))
            .map(|route| changed.get(&route.address).copied().unwrap_or(route));
        let now = now();
        let created = plan.create.iter().map(|config| configured(config, now));
        let routes: Vec<Route> = staying.cloned().chain(created).collect();
        for route in &routes {
            route.check().map_err(|why| Error::Invalid {
                what: "route",
                why: format!(
                    "the one to {} {why}",
                    self.grm.template().show(route.address)
                ),
            })?;
        }
        if routes != snapshot.routes {
            self.grm.publish(&routes)?;
        }
        Ok(plan)
    }

    /// Deletes route `number`, from 1 in the order of the list. Returns it.
    pub fn delete(&self, number: usize) -> Result<Route> {
        let mut routes = self.grm.snapshot()?.routes;
        let count = routes.len();
        let index = number
            .checked_sub(1)
            .filter(|index| *index < count)
            .ok_or(Error::NoSuchRoute { number, count })?;
        let route = routes.remove(index);
        self.grm.publish(&routes)?;
        Ok(route)
    }
}

/// A route as its entry will be.
fn configured(config: &RouteConfig, created: u64) -> Route {
    Route {
        address: config.address,
        created,
        endpoints: config.endpoints.clone(),
        transports: config.transports.clone(),
        description: Route::cut_description(&config.description).to_string(),
    }
}

/// Compares a configuration with the map; changes nothing.
pub fn plan(grm: &Grm, config: &RoutesConfig) -> Result<RoutePlan> {
    grm.check_template(config.template)?;
    Ok(compare(&grm.snapshot()?, config))
}

fn compare(snapshot: &Snapshot, config: &RoutesConfig) -> RoutePlan {
    let wanted: HashMap<_, _> = config.routes.iter().map(|r| (r.address, r)).collect();
    let existing: HashSet<_> = snapshot.routes.iter().map(|r| r.address).collect();
    let mut plan = RoutePlan::default();
    for route in &snapshot.routes {
        match wanted
            .get(&route.address)
            .map(|config| configured(config, route.created))
        {
            None => plan.delete.push(route.clone()),
            Some(new) if new == *route => plan.keep.push(new),
            Some(new) => plan.update.push((route.clone(), new)),
        }
    }
    let is_new = |route: &&RouteConfig| !existing.contains(&route.address);
    plan.create = config.routes.iter().filter(is_new).cloned().collect();
    plan
}
