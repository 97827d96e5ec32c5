//! A snapshot as Prometheus reads it, in the text format of OpenMetrics. A metric is added here and nowhere else.

use super::alarms::Kind;
use super::snapshot::Snapshot;
use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::Arc;
use std::time::UNIX_EPOCH;
use tbus_transport::relay::status::{PeerState, PeerStatus, RingStatus};

/// What the text is, for a header.
pub(super) const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The page of a snapshot. With ten thousand channels the rings' part is some ten megabytes; it can be left out.
pub(super) fn page(snapshot: Arc<Snapshot>, with_rings: bool) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page {
        snapshot,
        with_rings,
    }));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Page {
    snapshot: Arc<Snapshot>,
    with_rings: bool,
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut out = Out(encoder);
        let alarms = self.snapshot.alarms();
        self.relay(&mut out)?;
        out.gauges(
            "tbus_alarm_count",
            "Alarms of a kind, as tbusd --status lists them",
            Kind::ALL.into_iter().map(|kind| {
                let count = alarms.iter().filter(|alarm| alarm.kind == kind).count();
                ([("alarm", kind.name())], count as f64)
            }),
        )?;
        self.peers(&mut out)?;
        match self.with_rings {
            true => self.rings(&mut out),
            false => Ok(()),
        }
    }
}

/// Writes one metric after the other.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn all<L: EncodeLabelSet, M: EncodeMetric>(
        &mut self,
        (name, help): (&str, &str),
        values: impl Iterator<Item = (L, M)>,
    ) -> fmt::Result {
        let mut values = values.peekable();
        let Some((_, first)) = values.peek() else {
            return Ok(());
        };
        let kind = first.metric_type();
        let mut encoder = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in values {
            value.encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = (L, f64)>,
    ) -> fmt::Result {
        let values = values.map(|(labels, value)| (labels, ConstGauge::new(value)));
        self.all((name, help), values)
    }

    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let values = values.map(|(labels, value)| (labels, ConstCounter::new(value)));
        self.all((name, help), values)
    }

    fn one(&mut self, name: &str, help: &str, value: &impl EncodeMetric) -> fmt::Result {
        let kind = value.metric_type();
        value.encode(self.0.encode_descriptor(name, help, None, kind)?)
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.one(name, help, &ConstGauge::new(value))
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.one(name, help, &ConstCounter::new(value))
    }
}

fn word(yes: bool) -> f64 {
    f64::from(u8::from(yes))
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// Labels of a ring: its ends, its direction, where its peer is.
type RingLabels = [(&'static str, String); 4];

impl Page {
    fn relay(&self, out: &mut Out<'_>) -> fmt::Result {
        let Snapshot { status, more, .. } = &*self.snapshot;
        let node = status.node.to_string();
        let labels = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("cluster", &status.cluster),
            ("node", &node),
        ];
        let help = "1; the labels say which relay this is";
        out.gauges("tbus_relay_info", help, [(labels, 1.0)].into_iter())?;
        let help = "1 from when the maps were read until the end begins";
        let ready = status.is_ready && !status.is_draining;
        out.gauge("tbus_relay_ready", help, word(ready))?;
        let t = &status.totals;
        let help = "Connections of strangers and of peers that came to nothing";
        out.counter("tbus_connection_refused", help, status.refused)?;
        let help = "Rings that were given up for bad records";
        out.counter("tbus_ring_given_up", help, t.rejected)?;
        let help = "Rings that got a next generation";
        out.counter("tbus_ring_generations", help, t.generations)?;
        let help = "Gaps that could not be healed";
        out.counter("tbus_gap_events", help, t.gaps)?;
        let help = "Messages in gaps, as far as known";
        out.counter("tbus_gap_messages", help, t.lost_messages)?;
        if let Some(until) = more.until.and_then(|at| at.duration_since(UNIX_EPOCH).ok()) {
            let help = "When the certificate ends, in seconds since 1970";
            out.gauge("tbus_certificate_end_seconds", help, until.as_secs_f64())?;
        }
        if let Some(reload) = &more.reload {
            let help = "1 if the file was taken when it was read anew last, 0 if it was refused";
            out.gauge("tbus_reload_success", help, word(reload.refused.is_none()))?;
        }
        if let Some(reload) = &more.certificates {
            let help = "1 if the certificates were taken when they were exchanged last, 0 if they were refused";
            out.gauge(
                "tbus_certificate_reload_success",
                help,
                word(reload.result.is_ok()),
            )?;
        }
        self.process(out)
    }

    fn process(&self, out: &mut Out<'_>) -> fmt::Result {
        if let Some([cpu, resident]) = process() {
            let help = "Processor time of the relay, user and system";
            out.one("tbus_process_cpu_seconds", help, &ConstCounter::new(cpu))?;
            let help = "Memory of the relay that is resident, rings among it";
            out.gauge("tbus_process_resident_bytes", help, resident)?;
        }
        if let Ok(all) = std::fs::read_dir("/proc/self/fd") {
            let help = "Descriptors that the relay has open";
            out.gauge("tbus_process_open_fds", help, all.count() as f64)?;
        }
        Ok(())
    }

    fn peers(&self, out: &mut Out<'_>) -> fmt::Result {
        let peers = &self.snapshot.status.peers;
        let labels = |peer: &PeerStatus| {
            let node = peer.node.map(|node| node.to_string()).unwrap_or_default();
            [("peer", peer.endpoint.clone()), ("node", node)]
        };
        let of = |value: fn(&PeerStatus) -> f64| {
            peers.iter().map(move |peer| (labels(peer), value(peer)))
        };
        let count = |value: fn(&PeerStatus) -> u64| {
            peers.iter().map(move |peer| (labels(peer), value(peer)))
        };
        let help = "1 while it is connected";
        let up = of(|peer| word(peer.state == PeerState::Connected));
        out.gauges("tbus_peer_up", help, up)?;
        let help =
            "1 while a channel leads there or comes from there, so that it should be connected";
        let wanted = of(|peer| word(peer.state != PeerState::Unused));
        out.gauges("tbus_peer_wanted", help, wanted)?;
        let help = "For how long it is connected, or not";
        let since = of(|peer| seconds(peer.since));
        out.gauges("tbus_peer_state_seconds", help, since)?;
        let help = "Shortest round trip of the last minutes, as the kernel measured it; while there is a connection";
        let round_trips = peers.iter().filter_map(|peer| {
            let time = peer.round_trip?;
            Some((labels(peer), seconds(time)))
        });
        out.gauges("tbus_peer_round_trip_seconds", help, round_trips)?;
        let help = "1; the label says which transport its data go by, while it is connected";
        let over = peers.iter().filter_map(|peer| {
            let [name, node] = labels(peer);
            let transport = ("transport", peer.transport?.to_string());
            Some(([name, node, transport], 1.0))
        });
        out.gauges("tbus_peer_transport", help, over)?;
        let help = "How often a transport has failed, and another one took its place";
        let failures = count(|peer| peer.transport_failures);
        out.counters("tbus_peer_transport_failures", help, failures)?;
        let help = "How often it was connected";
        out.counters("tbus_peer_connects", help, count(|peer| peer.ups))?;
        let help = "How often it was disconnected";
        out.counters("tbus_peer_disconnects", help, count(|peer| peer.downs))?;
        let help = "Messages sent there; those that went twice count twice";
        let sent = count(|peer| peer.traffic.sent_messages);
        out.counters("tbus_peer_sent_messages", help, sent)?;
        let help = "Their bytes with headers";
        let sent = count(|peer| peer.traffic.sent_bytes);
        out.counters("tbus_peer_sent_bytes", help, sent)?;
        let help = "Messages from there that were published";
        let received = count(|peer| peer.traffic.received_messages);
        out.counters("tbus_peer_received_messages", help, received)?;
        let help = "Their bytes with headers";
        let received = count(|peer| peer.traffic.received_bytes);
        out.counters("tbus_peer_received_bytes", help, received)
    }

    fn rings(&self, out: &mut Out<'_>) -> fmt::Result {
        let Snapshot {
            status, template, ..
        } = &*self.snapshot;
        let labels = |ring: &RingStatus| -> RingLabels {
            let [from, to] = ring.ends.map(|end| template.show(end).to_string());
            let direction = if ring.outbound { "out" } else { "in" };
            let peer = status.peers[ring.peer].endpoint.clone();
            [
                ("from", from),
                ("to", to),
                ("direction", direction.into()),
                ("peer", peer),
            ]
        };
        // Each is written seven times and more.
        let labels: Vec<_> = status.rings.iter().map(labels).collect();
        let all = || status.rings.iter().zip(&labels);
        let of = |value: fn(&RingStatus) -> f64| {
            all().map(move |(ring, labels)| (labels.as_slice(), value(ring)))
        };
        let count = |value: fn(&RingStatus) -> u64| {
            all().map(move |(ring, labels)| (labels.as_slice(), value(ring)))
        };
        let help = "1 while it is mirrored";
        let mirrored = of(|ring| word(ring.running));
        out.gauges("tbus_ring_mirrored", help, mirrored)?;
        let help = "Messages that this relay has sent or published";
        out.counters("tbus_ring_messages", help, count(|ring| ring.messages))?;
        let help = "Their bytes with headers";
        out.counters("tbus_ring_bytes", help, count(|ring| ring.bytes))?;
        let help = "Its room";
        let capacity = of(|ring| ring.capacity as f64);
        out.gauges("tbus_ring_capacity_bytes", help, capacity)?;
        let help = "What of its room is taken up";
        out.gauges("tbus_ring_used_bytes", help, of(|ring| ring.used as f64))?;
        let help =
            "Out: what the peer has not acknowledged. In: what the application has not released";
        out.gauges("tbus_ring_lag_bytes", help, of(|ring| ring.lag as f64))?;
        let help = "For how long the first byte of the lag was seen there; 0 if there is none";
        let oldest = of(|ring| seconds(ring.oldest.unwrap_or(0)));
        out.gauges("tbus_ring_oldest_seconds", help, oldest)?;
        // Few rings ever have one, and then it stays.
        let gaps = |value: fn(&RingStatus) -> u64| {
            let with = all().filter(|(ring, _)| ring.gaps > 0);
            with.map(move |(ring, labels)| (labels.as_slice(), value(ring)))
        };
        let help = "Gaps that could not be healed; of rings that have one";
        out.counters("tbus_ring_gaps", help, gaps(|ring| ring.gaps))?;
        let help = "Messages in its gaps, as far as known; of rings that have one";
        let lost = gaps(|ring| ring.lost_messages);
        out.counters("tbus_ring_lost_messages", help, lost)
    }
}

/// Seconds of processor time, and resident bytes.
fn process() -> Option<[f64; 2]> {
    let number = |name| sysconf(name).ok().flatten().map(|value| value as f64);
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in brackets may contain anything; the first field behind it is the third one.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |n: usize| fields.get(n - 3)?.parse::<f64>().ok();
    let cpu = (field(14)? + field(15)?) / number(SysconfVar::CLK_TCK)?;
    Some([cpu, field(24)? * number(SysconfVar::PAGE_SIZE)?])
}
