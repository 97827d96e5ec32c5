//! Sends messages back to where they come from, their bytes in reverse: `echo KEY ADDRESS PEER COUNT`.

use std::time::Duration;
use tbus::{Bus, parse_key};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [key, address, peer, count] = &arguments[..] else {
        return Err("give a key, an address, its peer's, and how many messages".into());
    };
    let bus = Bus::attach(parse_key(key).ok_or("the key is no number")?)?;
    let endpoint = bus.bind(bus.template().parse(address)?)?;
    let peer = bus.template().parse(peer)?;
    let (mut sender, mut receiver) = (endpoint.sender(peer)?, endpoint.receiver(peer)?);
    for _ in 0..count.parse()? {
        receiver.wait(Duration::from_secs(60))?;
        let message = receiver.peek()?;
        let mut answer = vec![0; message.len()];
        message.copy_to(&mut answer)?;
        answer.reverse();
        sender.wait(answer.len(), Duration::from_secs(60))?;
        sender.try_send(&answer)?;
        message.release();
    }
    Ok(())
}
