//! An operator gives a peer another transport while the relay runs: asked for at the socket of `--status`, done between two
//! passes of the relay.

use super::snapshot::PATIENCE;
use std::sync::mpsc;
use std::time::Instant;
use tbus::grm::Transport;
use tbus_transport::network::Network;
use tbus_transport::relay::Relay;

/// What is wanted: the peer's node and a transport, or what its routes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Of the peer.
    pub node: u32,
    /// `None`: as the routes say.
    pub transport: Option<Transport>,
}

/// As on the command line: "7=verbs", "7=auto".
impl std::str::FromStr for Wish {
    type Err = String;

    fn from_str(text: &str) -> Result<Wish, String> {
        let (node, name) = text
            .split_once('=')
            .ok_or("give the peer's node and a transport, such as 7=verbs or 7=auto")?;
        let node = node
            .parse()
            .map_err(|_| format!("'{node}' is no node number"))?;
        let all = Transport::ALL;
        let found = all.into_iter().find(|transport| transport.name() == name);
        match (found, name) {
            (None, "auto") => Ok(Wish {
                node,
                transport: None,
            }),
            (None, _) => Err(format!(
                "'{name}' is no transport; there are verbs, ucx, tcp, and auto for what the routes say"
            )),
            (transport, _) => Ok(Wish { node, transport }),
        }
    }
}

impl std::fmt::Display for Wish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.transport.map_or("auto", Transport::name);
        write!(f, "{}={name}", self.node)
    }
}

/// What was done, or why not.
pub(super) type Outcome = Result<String, String>;

/// Where wishes are told.
#[derive(Clone)]
pub(super) struct Wishes(mpsc::Sender<Told>);

/// Where they are heard.
pub(super) struct Granter(mpsc::Receiver<Told>);

struct Told {
    wish: Wish,
    /// Nobody waits for the answer any more then, and it must not come true.
    until: Instant,
    answer: mpsc::Sender<Outcome>,
}

pub(super) fn channel() -> (Wishes, Granter) {
    let (sender, receiver) = mpsc::channel();
    (Wishes(sender), Granter(receiver))
}

impl Wishes {
    /// Waits for the relay's thread.
    pub fn tell(&self, wish: Wish) -> Outcome {
        let (answer, awaited) = mpsc::channel();
        let until = Instant::now() + PATIENCE;
        let told = Told {
            wish,
            until,
            answer,
        };
        let sent = self.0.send(told).ok();
        sent.and_then(|()| awaited.recv_timeout(PATIENCE).ok())
            .unwrap_or_else(|| Err("the relay does not answer; it may be stopped".into()))
    }
}

impl Granter {
    /// Does what was asked for.
    pub fn attend<N: Network>(&self, relay: &mut Relay<N>, now: u64) {
        while let Ok(told) = self.0.try_recv() {
            if Instant::now() < told.until {
                let Wish { node, transport } = told.wish;
                let _ = told.answer.send(relay.switch(node, transport, now));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_read_and_printed() {
        for text in ["7=verbs", "0=ucx", "4294967295=tcp", "7=auto"] {
            assert_eq!(text.parse::<Wish>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "7",
            "=tcp",
            "x=tcp",
            "-1=tcp",
            "7=",
            "7=rdma",
            "7=tcp=tcp",
        ] {
            assert!(bad.parse::<Wish>().is_err(), "{bad}");
        }
    }
}
