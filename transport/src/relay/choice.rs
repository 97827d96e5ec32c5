//! Which transport carries the data of a peer: the first that the routes there name, that both relays have, and that has not
//! failed just now. One that has failed rests for a while, longer each time; [`super::trial`] finds out whether it works again.

use super::Nanos;
use crate::wire::{TRANSPORT_TCP, TRANSPORT_TLS, TRANSPORT_UCX, TRANSPORT_VERBS, Token};
use std::ops::Range;
use tbus::grm::Transport;

/// What has failed rests for so long: the first time, and at most.
pub const HOLD_DOWN: Range<Nanos> = 2_000_000_000..60_000_000_000;

/// A link that ends sooner has not served.
const SERVED: Nanos = 10_000_000_000;
/// So many of them in a row, whatever they ended by, and the transport has failed: a greeting may pass where data do not.
const SHORT: u32 = 3;

/// The bit of a transport in HELLO and OFFER, where data over TCP go by `tcp`.
pub(super) fn bit(transport: Transport, tcp: u8) -> u8 {
    match transport {
        Transport::Verbs => TRANSPORT_VERBS,
        Transport::Ucx => TRANSPORT_UCX,
        Transport::Tcp => tcp,
    }
}

/// The transport of a bit.
pub(super) fn of_bit(bit: u8) -> Option<Transport> {
    match bit {
        TRANSPORT_VERBS => Some(Transport::Verbs),
        TRANSPORT_UCX => Some(Transport::Ucx),
        TRANSPORT_TCP | TRANSPORT_TLS => Some(Transport::Tcp),
        _ => None,
    }
}

/// How it is with one transport to one peer.
#[derive(Clone, Debug, Default)]
struct Way {
    /// It rests until then.
    until: Nanos,
    /// How long it rests the next time; 0: as long as what fails for the first time.
    pause: Nanos,
    /// Why, if it rests, or is still to show that it works.
    why: Option<String>,
    /// The peer did not want it on this connection, so often; on the next one it may.
    declined: u32,
    /// What it failed by does not mend itself.
    lasting: bool,
    /// Links in a row that did not serve.
    short: u32,
}

/// The transports to one peer.
#[derive(Debug)]
pub(super) struct Choice {
    /// As the routes name them, best first.
    order: Vec<Transport>,
    /// What an operator wants instead of the first.
    by_hand: Option<Transport>,
    /// What data over TCP go by, as the peer was admitted.
    tcp: u8,
    /// Of the link that there is, or is being made.
    used: Option<Transport>,
    /// This relay offers the links; else it takes them.
    pub offers: bool,
    /// A link that is being made.
    pub dialled: Option<Token>,
    ways: [Way; Transport::ALL.len()],
    /// How often one has failed.
    pub failures: u64,
}

impl Default for Choice {
    fn default() -> Choice {
        Choice {
            order: Transport::ALL.to_vec(),
            by_hand: None,
            tcp: TRANSPORT_TCP,
            used: None,
            offers: false,
            dialled: None,
            ways: Default::default(),
            failures: 0,
        }
    }
}

impl Choice {
    fn way(&mut self, transport: Transport) -> &mut Way {
        &mut self.ways[transport as usize]
    }

    /// What the routes name. True if that has changed.
    pub fn set_order(&mut self, order: &[Transport]) -> bool {
        let changed = self.order != order;
        if changed {
            self.order = order.to_vec();
            // A name that the routes have no longer is nobody's wish.
            self.by_hand = self.by_hand.filter(|wanted| order.contains(wanted));
        }
        changed
    }

    /// What may be used, best first. What stands behind TCP, which always serves, is used only by hand.
    fn allowed(&self) -> impl Iterator<Item = Transport> {
        let by_hand = self.by_hand;
        let rest = self.order.iter().copied();
        let all = by_hand
            .into_iter()
            .chain(rest.filter(move |transport| Some(*transport) != by_hand));
        let mut over = false;
        all.take_while(move |transport| {
            let take = !over;
            over |= *transport == Transport::Tcp;
            take
        })
    }

    /// Lets an operator have `wanted`, or what the routes say again.
    pub fn set_by_hand(&mut self, wanted: Option<Transport>) -> Result<(), String> {
        if let Some(wanted) = wanted {
            if !self.order.contains(&wanted) {
                let names: Vec<_> = self.order.iter().map(|t| t.name()).collect();
                return Err(format!(
                    "the routes there name {}, not {}; see trelaymgr",
                    names.join(" "),
                    wanted.name()
                ));
            }
            *self.way(wanted) = Way::default();
        }
        self.by_hand = wanted;
        Ok(())
    }

    /// The transport in use.
    pub fn used(&self) -> Option<Transport> {
        self.used
    }

    /// Its bit.
    pub fn used_bit(&self) -> Option<u8> {
        self.used.map(|used| bit(used, self.tcp))
    }

    /// What data over TCP go by.
    pub fn tcp(&self) -> u8 {
        self.tcp
    }

    /// A connection begins. `reborn`: the peer is another process than the last time, so what has failed may work.
    pub fn begin(&mut self, tcp: u8, offers: bool, reborn: bool) {
        (self.tcp, self.offers, self.used, self.dialled) = (tcp, offers, None, None);
        for way in &mut self.ways {
            if reborn {
                *way = Way::default();
            } else if std::mem::take(&mut way.declined) > 0 {
                (way.until, way.why) = (0, None);
            }
        }
    }

    /// A link over `transport` is made.
    pub fn uses(&mut self, transport: Transport) {
        self.used = Some(transport);
    }

    /// Why a transport cannot be used, if so; `have`: the bits of those that this relay has.
    fn obstacle(&self, transport: Transport, have: u64, now: Nanos) -> Option<String> {
        let way = &self.ways[transport as usize];
        if transport != Transport::Tcp && self.tcp == TRANSPORT_TLS {
            return Some("data is encrypted, which only tcp does".into());
        }
        if have & u64::from(bit(transport, self.tcp)) == 0 {
            return Some("this relay has none".into());
        }
        match &way.why {
            Some(why) if now < way.until => {
                let seconds = (way.until - now).div_ceil(1_000_000_000);
                Some(format!("{why}; tried again in {seconds} s"))
            }
            _ => None,
        }
    }

    /// The transport to use now, and its bit; `None`: the peer has declined all that may be used.
    pub fn best(&self, have: u64, now: Nanos) -> Option<(Transport, u8)> {
        let free = |transport: &Transport| self.obstacle(*transport, have, now).is_none();
        // Where nothing else is allowed, what rests is better than nothing.
        let rests = |transport: &Transport| {
            let way = &self.ways[*transport as usize];
            way.declined == 0 && self.obstacle(*transport, have, Nanos::MAX).is_none()
        };
        let found = self.allowed().find(free).or_else(|| {
            self.allowed()
                .filter(rests)
                .min_by_key(|transport| self.ways[*transport as usize].until)
        });
        found.map(|transport| (transport, bit(transport, self.tcp)))
    }

    /// What is to be tried beside the link: better than what serves, and rested.
    pub fn better(&self, have: u64, now: Nanos) -> Option<(Transport, u8)> {
        let used = self.used?;
        self.allowed()
            .take_while(|transport| *transport != used)
            .find(|transport| self.obstacle(*transport, have, now).is_none())
            .map(|transport| (transport, bit(transport, self.tcp)))
    }

    /// True if the link is over what is not to be used any more, or worse than what could be.
    pub fn is_outdated(&self, have: u64, now: Nanos) -> bool {
        let best = self.best(have, now).map(|(best, _)| best);
        self.used.is_some() && best.is_some() && best != self.used
    }

    /// Whether what the peer offers is to be taken, else why not.
    pub fn judge(&self, transport: Transport, have: u64, now: Nanos) -> Result<(), String> {
        if let Some(obstacle) = self.obstacle(transport, have, now) {
            return Err(obstacle);
        }
        // Who offers does not know of it.
        let by_hand = self
            .by_hand
            .filter(|wanted| *wanted != transport && self.obstacle(*wanted, have, now).is_none());
        if self.allowed().any(|allowed| allowed == transport)
            && (by_hand.is_none() || transport == Transport::Tcp)
        {
            return Ok(());
        }
        Err(match self.by_hand {
            Some(wanted) => format!("switched to {} by hand", wanted.name()),
            None if self.order.contains(&transport) => {
                format!("its routes name tcp before {}", transport.name())
            }
            None => format!("its routes do not name {}", transport.name()),
        })
    }

    /// Lets a transport rest. How long, nanoseconds.
    pub fn rest(
        &mut self,
        transport: Transport,
        why: String,
        limits: &Range<Nanos>,
        now: Nanos,
    ) -> Nanos {
        if transport == Transport::Tcp {
            return 0; // what serves when nothing else does
        }
        let way = self.way(transport);
        let least = match std::mem::take(&mut way.lasting) {
            true => limits.end,
            false => limits.start,
        };
        let pause = way.pause.clamp(least, limits.end);
        (way.until, way.pause) = (now.saturating_add(pause), (2 * pause).min(limits.end));
        (way.why, way.short, way.declined) = (Some(why), 0, 0);
        pause
    }

    /// What fails the link in use does not mend itself: it rests as long as anything does.
    pub fn lasts(&mut self) {
        if let Some(used) = self.used {
            self.way(used).lasting = true;
        }
    }

    /// The peer does not want a transport on this connection, which says nothing of what it can do. It is asked again, ever more
    /// seldom.
    pub fn declined(
        &mut self,
        transport: Transport,
        why: String,
        limits: &Range<Nanos>,
        now: Nanos,
    ) {
        let way = self.way(transport);
        let pause = limits.start.saturating_mul(1 << way.declined.min(16));
        way.declined += 1;
        (way.until, way.why) = (now.saturating_add(pause.min(limits.end)), Some(why));
    }

    /// A transport has shown that it works. How long it rests the next time is forgotten only when it has served.
    pub fn works(&mut self, transport: Transport) {
        let way = self.way(transport);
        (way.until, way.why, way.declined) = (0, None, 0);
    }

    /// The link ends; it was up for so long, if it was, and is itself to `blame` or not. The transport that has failed with
    /// this, if one has.
    pub fn ended(&mut self, blame: bool, up: Option<Nanos>) -> Option<Transport> {
        let used = self.used?;
        if used == Transport::Tcp {
            return None; // what serves when nothing else does
        }
        let served = up.is_some_and(|up| up > SERVED);
        let way = self.way(used);
        match served {
            true => (way.short, way.pause) = (0, 0),
            false => way.short += 1,
        }
        (blame || way.short >= SHORT).then_some(used)
    }

    /// Why no better transport is used than the one that is; empty if it is the best.
    pub fn reasons(&self, have: u64, now: Nanos) -> String {
        let mut reasons: Vec<String> = self
            .allowed()
            .take_while(|transport| Some(*transport) != self.used)
            .map(|transport| {
                let why = self.obstacle(transport, have, now);
                let why = why.unwrap_or_else(|| match &self.ways[transport as usize].why {
                    Some(why) => format!("{why}; being tried"),
                    None => "being tried".into(),
                });
                format!("{}: {why}", transport.name())
            })
            .collect();
        if let Some(wanted) = self.by_hand {
            reasons.insert(0, format!("switched to {} by hand", wanted.name()));
        }
        reasons.join("; ")
    }

    /// Why the best allowed transport rests, if it has failed.
    pub fn trouble(&self) -> Option<String> {
        let used = self.used?;
        let first = self
            .allowed()
            .take_while(|transport| *transport != used)
            .find(|transport| {
                let way = &self.ways[*transport as usize];
                way.why.is_some() && way.declined == 0
            })?;
        let why = self.ways[first as usize].why.as_deref().unwrap_or_default();
        Some(format!(
            "over {}, for {} has failed: {why}",
            used.name(),
            first.name()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Transport::{Tcp, Ucx, Verbs};

    const ALL: u64 = (TRANSPORT_VERBS | TRANSPORT_UCX | TRANSPORT_TCP) as u64;
    const LIMITS: Range<Nanos> = 10..80;

    fn choice(order: &[Transport]) -> Choice {
        let mut choice = Choice::default();
        choice.set_order(order);
        choice.begin(TRANSPORT_TCP, true, true);
        choice
    }

    fn best(choice: &Choice, now: Nanos) -> Option<Transport> {
        choice.best(ALL, now).map(|(transport, _)| transport)
    }

    #[test]
    fn the_first_that_both_have_and_that_has_not_failed() {
        let mut choice = choice(&[Ucx, Verbs, Tcp]);
        assert_eq!(
            choice.best(TRANSPORT_TCP.into(), 0),
            Some((Tcp, TRANSPORT_TCP))
        );
        assert_eq!(best(&choice, 0), Some(Ucx));
        assert_eq!(choice.rest(Ucx, "lost".into(), &LIMITS, 100), 10);
        assert_eq!(best(&choice, 109), Some(Verbs));
        assert_eq!(best(&choice, 110), Some(Ucx));
        // Twice as long each time, until it has served.
        assert_eq!(choice.rest(Ucx, "lost".into(), &LIMITS, 100), 20);
        choice.works(Ucx);
        assert_eq!(best(&choice, 101), Some(Ucx));
        assert_eq!(choice.rest(Ucx, "lost".into(), &LIMITS, 100), 40);
        choice.uses(Ucx);
        assert_eq!(choice.ended(true, Some(SERVED + 1)), Some(Ucx));
        assert_eq!(choice.rest(Ucx, "lost".into(), &LIMITS, 100), 10);
        for pause in [20, 40, 80, 80] {
            assert_eq!(choice.rest(Ucx, "lost".into(), &LIMITS, 100), pause);
        }
        choice.begin(TRANSPORT_TCP, true, false);
        assert_eq!(best(&choice, 101), Some(Verbs));
        choice.begin(TRANSPORT_TCP, true, true);
        assert_eq!(
            best(&choice, 101),
            Some(Ucx),
            "another process is there now"
        );
    }

    #[test]
    fn what_is_encrypted_goes_by_tcp() {
        let mut choice = choice(&[Verbs, Tcp]);
        choice.begin(TRANSPORT_TLS, true, true);
        let have = ALL | u64::from(TRANSPORT_TLS);
        assert_eq!(choice.best(have, 0), Some((Tcp, TRANSPORT_TLS)));
        choice.uses(Tcp);
        assert_eq!(choice.better(have, 0), None);
        assert!(choice.reasons(have, 0).contains("encrypted"));
    }

    #[test]
    fn what_stands_behind_tcp_is_used_by_hand_only() {
        let mut choice = choice(&[Tcp, Verbs]);
        assert_eq!(best(&choice, 0), Some(Tcp));
        assert!(
            choice
                .judge(Verbs, ALL, 0)
                .unwrap_err()
                .contains("tcp before verbs")
        );
        choice.uses(Tcp);
        assert!(!choice.is_outdated(ALL, 0));
        choice.set_by_hand(Some(Verbs)).unwrap();
        assert_eq!(best(&choice, 0), Some(Verbs));
        assert!(choice.is_outdated(ALL, 0));
        assert_eq!(choice.judge(Verbs, ALL, 0), Ok(()));
        assert!(choice.set_by_hand(Some(Ucx)).is_err());
        choice.set_by_hand(None).unwrap();
        assert_eq!(best(&choice, 0), Some(Tcp));
    }

    #[test]
    fn where_only_one_is_allowed_it_does_not_rest() {
        let mut choice = choice(&[Verbs]);
        choice.rest(Verbs, "lost".into(), &LIMITS, 0);
        assert_eq!(best(&choice, 1), Some(Verbs));
        // But what the peer does not want is not offered again and again.
        choice.declined(Verbs, "no".into(), &LIMITS, 1);
        assert_eq!(best(&choice, 2), None);
        choice.begin(TRANSPORT_TCP, true, false);
        assert_eq!(best(&choice, 2), Some(Verbs));
    }

    #[test]
    fn what_does_not_mend_itself_rests_for_long() {
        let mut choice = choice(&[Verbs, Tcp]);
        choice.uses(Verbs);
        choice.lasts();
        assert_eq!(choice.ended(true, Some(SERVED + 1)), Some(Verbs));
        assert_eq!(choice.rest(Verbs, "no memory".into(), &LIMITS, 0), 80);
        choice.declined(Verbs, "no".into(), &LIMITS, 100);
        choice.begin(TRANSPORT_TCP, true, false);
        assert_eq!(best(&choice, 101), Some(Verbs), "declined before");
    }

    #[test]
    fn a_wish_by_hand_holds_on_either_side() {
        let mut choice = choice(&[Verbs, Ucx, Tcp]);
        choice.set_by_hand(Some(Ucx)).unwrap();
        assert!(choice.judge(Verbs, ALL, 0).unwrap_err().contains("by hand"));
        assert_eq!(choice.judge(Tcp, ALL, 0), Ok(()));
        choice.rest(Ucx, "lost".into(), &LIMITS, 0);
        assert_eq!(choice.judge(Verbs, ALL, 1), Ok(()), "it cannot be had");
        assert_eq!(choice.rest(Tcp, "lost".into(), &LIMITS, 0), 0);
    }

    #[test]
    fn links_that_do_not_serve() {
        let mut choice = choice(&[Verbs, Tcp]);
        choice.uses(Verbs);
        assert_eq!(choice.ended(true, Some(1)), Some(Verbs), "it is to blame");
        assert_eq!(choice.ended(false, Some(SERVED + 1)), None, "it has served");
        let ends = [1, 2, 3].map(|_| choice.ended(false, Some(1)));
        assert_eq!(ends, [None, None, Some(Verbs)]);
        choice.uses(Tcp);
        assert_eq!(choice.ended(true, None), None, "nothing else is left");
    }

    #[test]
    fn what_is_better_is_tried_when_it_has_rested() {
        let mut choice = choice(&[Verbs, Tcp]);
        assert_eq!(choice.better(ALL, 0), None, "there is no link");
        choice.uses(Tcp);
        choice.rest(Verbs, "lost".into(), &LIMITS, 0);
        assert_eq!(choice.better(ALL, 9), None);
        assert!(
            choice
                .reasons(ALL, 9)
                .starts_with("verbs: lost; tried again in")
        );
        assert_eq!(
            choice.trouble().unwrap(),
            "over tcp, for verbs has failed: lost"
        );
        assert_eq!(choice.better(ALL, 10), Some((Verbs, TRANSPORT_VERBS)));
        choice.uses(Verbs);
        assert_eq!(choice.better(ALL, 10), None);
        assert_eq!(
            (choice.reasons(ALL, 10), choice.trouble()),
            (String::new(), None)
        );
    }
}
