//! GRM: the global route map, which says where the relay of a remote address is reached, in shared memory.
//!
//! The file is `grm`, made and changed as `map.rs` says; [`crate::manage_routes`] writes it, relays read it. Before an
//! area's entries stands their count. An entry has 1,280 bytes, as 64-bit words:
//!
//! ```text
//!     0          address, count of endpoints      the low and the high half
//!     1          time of creation                 nanoseconds since 1970
//!     2          transports, a byte each          in order of preference; 1 verbs, 2 ucx, 3 tcp, 0 no more
//!     3          length of the description
//!     4 + 33 e   port, length of the host         endpoint e, 0 to 3, in order of preference: low and high half
//!     5 + 33 e   host                             32 words of ASCII
//!   136          description                      24 words of UTF-8
//! ```

use crate::address::{Address, Template};
use crate::directory::Directory;
use crate::error::Result;
use crate::map::{AREA_HEADER, Area, Kind, Map, cut, load_bytes, store_bytes};
pub use crate::route::{MAX_ENDPOINTS, MAX_HOST, RelayEndpoint, Transport};
use std::path::{Path, PathBuf};

/// Routes that a map can hold.
pub const MAX_ROUTES: usize = 65_536;
/// Word indices of an entry.
const ENDS: usize = 0;
const CREATED: usize = 1;
const TRANSPORTS: usize = 2;
const LENGTH: usize = 3;
const ENDPOINTS: usize = 4;
/// Words of an endpoint: port and length, then the host.
const ENDPOINT: usize = 1 + MAX_HOST.div_ceil(8);
const DESCRIPTION: usize = ENDPOINTS + MAX_ENDPOINTS * ENDPOINT;
/// Words of an entry.
const ENTRY: usize = 160;
/// The longest description that an entry holds, bytes; longer ones are cut.
pub const MAX_DESCRIPTION: usize = (ENTRY - DESCRIPTION) * 8;
/// The word before the entries.
const COUNT: usize = 0;

static KIND: Kind = Kind {
    name: "grm",
    magic: *b"TBUSGRM\0",
    major: 1,
    of: "routes",
    also: "",
    capacity: MAX_ROUTES,
    entry: ENTRY,
};

/// The way to an address on another host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The remote address.
    pub address: Address,
    /// When it was created, nanoseconds since 1970; a change of the rest leaves it.
    pub created: u64,
    /// Where its relay is reached, in order of preference: 1 to [`MAX_ENDPOINTS`], of different texts.
    pub endpoints: Vec<RelayEndpoint>,
    /// What may be used, in order of preference; at least one, none twice.
    pub transports: Vec<Transport>,
    /// Any text, at most [`MAX_DESCRIPTION`] bytes.
    pub description: String,
}

impl Route {
    /// A description as a route holds it.
    pub fn cut_description(text: &str) -> &str {
        cut(text, MAX_DESCRIPTION)
    }

    /// What an entry could not hold or a reader would refuse, in words that follow the route's name.
    pub(crate) fn check(&self) -> Result<(), String> {
        check_count(self.endpoints.len())?;
        if let Some(bad) = self.endpoints.iter().find(|e| !e.is_plausible()) {
            return Err(format!("has the endpoint '{bad}', which cannot be"));
        }
        let twice = |t| self.transports.iter().filter(|other| *other == t).count() > 1;
        if self.transports.is_empty() || self.transports.iter().any(twice) {
            return Err("does not name one or more transports, each once".into());
        }
        Ok(())
    }

    /// Of a route that passed the check.
    fn to_words(&self) -> [u64; ENTRY] {
        let pair = |low: u32, high: usize| u64::from(low) | (high as u64) << 32;
        let mut words = [0; ENTRY];
        words[ENDS] = pair(self.address.0, self.endpoints.len());
        words[CREATED] = self.created;
        for (place, transport) in self.transports.iter().enumerate() {
            let number = Transport::ALL.iter().position(|t| t == transport);
            words[TRANSPORTS] |= (number.map_or(0, |n| n as u64 + 1)) << (8 * place);
        }
        let places = words[ENDPOINTS..DESCRIPTION].chunks_exact_mut(ENDPOINT);
        for (place, endpoint) in places.zip(&self.endpoints) {
            let length = store_bytes(&mut place[1..], endpoint.host.as_bytes());
            place[0] = pair(endpoint.port.into(), length);
        }
        let description = Self::cut_description(&self.description);
        words[LENGTH] = store_bytes(&mut words[DESCRIPTION..], description.as_bytes()) as u64;
        words
    }

    /// Another process may have written anything: each word was read once. Where the way leads must be right; the
    /// description may be any bytes.
    fn from_words(words: &[u64; ENTRY]) -> Result<Route, String> {
        let (low, high) = (|w: u64| w as u32, |w: u64| (w >> 32) as usize);
        let count = high(words[ENDS]);
        check_count(count)?;
        let places = words[ENDPOINTS..DESCRIPTION].chunks_exact(ENDPOINT);
        let endpoint = |place: &[u64]| {
            let bad = || "has an endpoint that cannot be".to_string();
            let length = Some(high(place[0])).filter(|length| *length <= MAX_HOST);
            let host = load_bytes(&place[1..], length.ok_or_else(bad)?);
            let endpoint = RelayEndpoint {
                host: String::from_utf8(host).map_err(|_| bad())?,
                port: low(place[0]).try_into().map_err(|_| bad())?,
            };
            Some(endpoint)
                .filter(RelayEndpoint::is_plausible)
                .ok_or_else(bad)
        };
        let numbers = words[TRANSPORTS].to_le_bytes().into_iter();
        let transports = numbers.take_while(|number| *number != 0).map(|number| {
            Transport::ALL
                .get(usize::from(number) - 1)
                .copied()
                .ok_or_else(|| format!("has a transport number {number}"))
        });
        let length = (words[LENGTH] as usize).min(MAX_DESCRIPTION);
        let description = load_bytes(&words[DESCRIPTION..], length);
        let route = Route {
            address: Address(low(words[ENDS])),
            created: words[CREATED],
            endpoints: places.take(count).map(endpoint).collect::<Result<_, _>>()?,
            transports: transports.collect::<Result<_, _>>()?,
            description: String::from_utf8_lossy(&description).into_owned(),
        };
        route.check()?;
        Ok(route)
    }
}

fn check_count(endpoints: usize) -> Result<(), String> {
    match endpoints {
        1..=MAX_ENDPOINTS => Ok(()),
        n => Err(format!(
            "has {n} endpoints; a route has 1 to {MAX_ENDPOINTS}"
        )),
    }
}

/// All routes at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The map's version that this is.
    pub version: u64,
    /// The routes, in the order in which they are listed.
    pub routes: Vec<Route>,
}

/// The map of a directory.
#[derive(Debug)]
pub struct Grm {
    map: Map,
}

impl Grm {
    /// Where the map of a directory is.
    pub fn path(directory: &Directory) -> PathBuf {
        directory.path().join(KIND.name)
    }

    /// Opens the map of a directory, for reading.
    pub fn open(directory: &Directory) -> Result<Grm> {
        let map = Map::open(&KIND, directory, false)?;
        Ok(Grm { map })
    }

    /// Opens the map of a key, for reading.
    pub fn attach(key: u32) -> Result<Grm> {
        Self::open(&Directory::open(Directory::path_for_key(key))?)
    }

    /// Opens the map for writing.
    pub(crate) fn open_writable(directory: &Directory) -> Result<Grm> {
        let map = Map::open(&KIND, directory, true)?;
        Ok(Grm { map })
    }

    /// Opens the map for writing, or makes an empty one.
    pub(crate) fn open_or_create(
        directory: &Directory,
        key: u32,
        template: Template,
        created: u64,
    ) -> Result<Grm> {
        let map = Map::open_or_create(&KIND, directory, key, template, created)?;
        Ok(Grm { map })
    }

    /// How addresses are written.
    pub fn template(&self) -> Template {
        self.map.template()
    }

    pub(crate) fn check_template(&self, template: Template) -> Result<()> {
        self.map.check_template(template)
    }

    /// The key that the map was made for.
    pub fn key(&self) -> u32 {
        self.map.key()
    }

    /// When the map was made, nanoseconds since 1970.
    pub fn created(&self) -> u64 {
        self.map.created()
    }

    /// The file.
    pub fn file_path(&self) -> &Path {
        self.map.path()
    }

    /// How many times the map was written: whoever remembers it notices changes by one load.
    #[inline]
    pub fn version(&self) -> u64 {
        self.map.version()
    }

    /// All routes.
    pub fn snapshot(&self) -> Result<Snapshot> {
        self.map.consistent(|area| {
            let count = area.count(COUNT, MAX_ROUTES)?;
            let routes = (0..count).map(|index| entry(area, index));
            Ok(Snapshot {
                version: area.version,
                routes: routes.collect::<Result<_, _>>()?,
            })
        })
    }

    /// The route to an address, if there is one: then the address is on another host. Take the version before, to
    /// notice what changes after. It goes through the whole table, some milliseconds for 65,536 routes: whoever looks up
    /// many takes a snapshot.
    pub fn route_of(&self, address: Address) -> Result<Option<Route>> {
        self.map.consistent(|area| {
            let mut all = 0..area.count(COUNT, MAX_ROUTES)?;
            // The address is in the first word: the other routes cost one line each.
            all.find(|index| area.word(*index, ENDS) as u32 == address.0)
                .map(|index| entry(area, index))
                .transpose()
        })
    }

    /// Replaces the whole table by routes that passed the check. The caller holds the manager's lock. On an error
    /// nothing has changed.
    pub(crate) fn publish(&self, routes: &[Route]) -> Result<u64> {
        let mut header = [0; AREA_HEADER];
        header[COUNT] = routes.len() as u64;
        self.map
            .publish(header, routes.len(), routes.iter().map(Route::to_words))
    }
}

fn entry(area: &Area<'_>, index: usize) -> Result<Route, String> {
    Route::from_words(&area.entry(index))
        .map_err(|why| format!("is damaged: route {} {why}", index + 1))
}
