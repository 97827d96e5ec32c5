//! What a relay tells of itself, and how other threads ask for it: they get a copy, and do with it what takes time.

use super::alarms::{Alarm, Limits, alarms};
use super::reload::Reload;
use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime};
use tbus::Template;
use tbus_transport::network::Network;
use tbus_transport::relay::Relay;
use tbus_transport::relay::status::{Status, Survey};
use tbus_transport::tls;

/// A relay that does not answer for so long is stopped or busy without end.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Rings that are looked at between two passes of the relay: some tens of microseconds.
const TURN: usize = 256;
/// A copy may be so old for who does not ask for a fresh one.
const FRESH: u64 = 200_000_000;

/// A relay at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub status: Status,
    pub template: Template,
    pub more: More,
}

/// What the relay itself does not know.
#[derive(Clone, Debug)]
pub(super) struct More {
    pub limits: Limits,
    pub reload: Option<Reload>,
    pub certificates: Option<tls::Reload>,
    /// When the certificate ends.
    pub until: Option<SystemTime>,
    /// Where metrics are served, or why they are not.
    pub metrics: Result<String, String>,
}

impl Snapshot {
    pub fn alarms(&self) -> Vec<Alarm> {
        alarms(&self.status, &self.template, &self.more.limits)
    }
}

struct Question {
    fresh: bool,
    answer: mpsc::Sender<Arc<Snapshot>>,
}

/// Who may ask.
#[derive(Clone)]
pub(super) struct Asker(mpsc::Sender<Question>);

impl Asker {
    /// Asks the relay's thread; `None` if it does not answer in time. It is not fresh: not older than a fifth of a second.
    pub fn ask(&self, fresh: bool, patience: Duration) -> Option<Arc<Snapshot>> {
        let (answer, awaited) = mpsc::channel();
        self.0.send(Question { fresh, answer }).ok()?;
        awaited.recv_timeout(patience).ok()
    }
}

/// The relay's side.
pub(super) struct Answers {
    questions: mpsc::Receiver<Question>,
    waiting: Vec<Question>,
    survey: Survey,
    last: Option<(u64, Arc<Snapshot>)>,
}

pub(super) fn channel() -> (Asker, Answers) {
    let (sender, questions) = mpsc::channel();
    let answers = Answers {
        questions,
        waiting: Vec::new(),
        survey: Survey::default(),
        last: None,
    };
    (Asker(sender), answers)
}

impl Answers {
    /// Goes on with what was asked. True if there is more to do, after a pass of the relay.
    pub fn attend<N: Network>(
        &mut self,
        relay: &Relay<N>,
        now: u64,
        more: impl FnOnce() -> More,
    ) -> bool {
        while let Ok(question) = self.questions.try_recv() {
            match &self.last {
                Some((at, last)) if !question.fresh && now < at + FRESH => {
                    let _ = question.answer.send(last.clone());
                }
                _ => self.waiting.push(question),
            }
        }
        if self.waiting.is_empty() {
            return false;
        }
        let Some(status) = relay.survey(&mut self.survey, TURN, now) else {
            return true;
        };
        self.survey = Survey::default();
        let snapshot = Arc::new(Snapshot {
            status,
            template: relay.bus().template(),
            more: more(),
        });
        for question in self.waiting.drain(..) {
            let _ = question.answer.send(snapshot.clone());
        }
        self.last = Some((now, snapshot));
        false
    }
}
