//! What a service manager is told, if there is one: NOTIFY_SOCKET and WATCHDOG_USEC, see sd_notify(3). Without, nothing.

use sd_notify::{NotifyState, notify, watchdog_enabled};
use tbus_transport::network::Network;
use tbus_transport::relay::Relay;
use tbus_transport::relay::status::PeerState;
use tracing::warn;

const SECOND: u64 = 1_000_000_000;

/// It is spoken to from the relay's own loop alone, so that a loop that is stuck is noticed.
#[derive(Debug)]
pub(super) struct ServiceManager {
    /// Between two signs of life, nanoseconds.
    watchdog: Option<u64>,
    sign_due: u64,
    look_due: u64,
    told: String,
    is_ready: bool,
    has_failed: bool,
}

impl ServiceManager {
    pub fn new() -> ServiceManager {
        ServiceManager {
            // Half of what is allowed, as its manual asks for.
            watchdog: watchdog_enabled().map(|time| time.as_nanos() as u64 / 2),
            sign_due: 0,
            look_due: 0,
            told: String::new(),
            is_ready: false,
            has_failed: false,
        }
    }

    fn tell(&mut self, states: &[NotifyState<'_>]) {
        if let Err(error) = notify(states)
            && !std::mem::replace(&mut self.has_failed, true)
        {
            warn!(
                "the service manager cannot be told anything: {error}; it may take the relay for dead. See NOTIFY_SOCKET, and \
                 NotifyAccess= of the unit"
            );
        }
    }

    /// Tells what is due.
    pub fn attend<N: Network>(&mut self, relay: &Relay<N>, now: u64) {
        if let Some(period) = self.watchdog
            && now >= self.sign_due
        {
            self.sign_due = now + period;
            self.tell(&[NotifyState::Watchdog]);
        }
        if !self.is_ready && relay.is_ready() {
            self.is_ready = true;
            self.look_due = 0;
            self.tell(&[NotifyState::Ready]);
        }
        if now >= self.look_due {
            self.look_due = now + SECOND;
            let peers = relay.states();
            let of = |state| peers.iter().filter(|peer| **peer == state).count();
            let connected = of(PeerState::Connected);
            let all = peers.len() - of(PeerState::Unused);
            let text = format!("{connected} of {all} peers connected");
            if text != self.told {
                self.tell(&[NotifyState::Status(&text)]);
                self.told = text;
            }
        }
    }

    pub fn reloading(&mut self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(_) => self.tell(&[NotifyState::Reloading]),
        }
    }

    pub fn reloaded(&mut self) {
        self.told.clear();
        self.look_due = 0;
        if self.is_ready {
            self.tell(&[NotifyState::Ready]);
        }
    }

    pub fn stopping(&mut self) {
        let text = NotifyState::Status("ends: waits for its peers to take what is in the rings");
        self.tell(&[NotifyState::Stopping, text]);
        // Nothing else is told from here on, but signs of life.
        self.look_due = u64::MAX;
    }
}
