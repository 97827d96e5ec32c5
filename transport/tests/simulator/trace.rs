//! What relays log, as far as tests look at it: gaps always, everything with `TBUS_SIM_TRACE=1`.

use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

/// A gap that a relay reported.
#[derive(Clone, Debug, Default)]
pub struct Reported {
    pub channel: String,
    pub from: u64,
    pub to: u64,
    pub messages: u64,
}

thread_local! {
    static LOUD: Cell<bool> = const { Cell::new(false) };
    static NOW: Cell<u64> = const { Cell::new(0) };
    static WHO: Cell<usize> = const { Cell::new(0) };
    static GAPS: RefCell<Vec<Reported>> = const { RefCell::new(Vec::new()) };
}

/// Prints everything from now on, or not.
pub fn set_loud(loud: bool) {
    LOUD.set(loud);
}

/// For the following lines: the time, and whose they are.
pub fn at(now: u64, host: usize) {
    NOW.set(now);
    WHO.set(host);
}

/// A line of the simulator's own.
pub fn note(text: impl FnOnce() -> String) {
    if LOUD.get() {
        println!("{:>13.6} -- {}", NOW.get() as f64 / 1e9, text());
    }
}

/// Gaps reported since the last call.
pub fn take_gaps() -> Vec<Reported> {
    GAPS.take()
}

struct Log;

#[derive(Default)]
struct Fields {
    gap: Reported,
    message: String,
    others: String,
}

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "from" => self.gap.from = value,
            "to" => self.gap.to = value,
            "messages" => self.gap.messages = value,
            _ => {}
        }
        self.record_debug(field, &value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "channel" {
            self.gap.channel = value.into();
        }
        self.record_debug(field, &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => self.others += &format!(" {name}={value:?}"),
        }
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        LOUD.get() || *metadata.level() == Level::ERROR
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if LOUD.get() {
            let (now, who) = (NOW.get() as f64 / 1e9, WHO.get() + 1);
            println!(
                "{now:>13.6} {who}  {}: {}{}",
                event.metadata().level(),
                fields.message,
                fields.others
            );
        }
        if fields.message.starts_with("a gap:") {
            GAPS.with_borrow_mut(|gaps| gaps.push(fields.gap));
        }
    }
}

/// Takes all log lines of this process.
pub fn install() {
    tracing::subscriber::set_global_default(Log).expect("the first one");
}
