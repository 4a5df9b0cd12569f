//! Many requests at once, over several connections.
//!
//! xenstored takes one message of each connection in a round, and sends a reply in two; in each it looks at every domain's
//! ring (`main` and `write_messages` in xen's `xenstored_core.c`). The more domains, the more a round costs: connections
//! share it.

use std::io;
use std::iter;

use super::stream::Stream;
use super::wire::{Answer, Request};

/// Connections at once: with eight a round is the lesser part of what a message costs.
const MOST: usize = 8;

/// The answers in the order of the requests, which are in no transaction: that belongs to a connection. There is another
/// one for each flight that one would have to wait for.
pub(super) fn exchange(stream: &mut Stream, requests: &[Request]) -> io::Result<Vec<Answer>> {
    let wanted = requests.len().div_ceil(stream.window()).min(MOST);
    // fewer do as well
    let mut others: Vec<Stream> = (1..wanted).map_while(|_| stream.beside()).collect();
    let mut streams: Vec<&mut Stream> = iter::once(&mut *stream).chain(&mut others).collect();
    // what is in flight on the first is not to be taken for the answers to come
    shared(&mut streams, requests).inspect_err(|_| stream.give_up())
}

fn shared(streams: &mut [&mut Stream], requests: &[Request]) -> io::Result<Vec<Answer>> {
    let most = streams.iter().map(|stream| stream.window()).sum();
    let mut answers = Vec::with_capacity(requests.len());
    for flight in requests.chunks(most) {
        let share = flight.len().div_ceil(streams.len());
        for (stream, share) in streams.iter_mut().zip(flight.chunks(share)) {
            stream.begin(0, share)?;
        }
        for (stream, share) in streams.iter_mut().zip(flight.chunks(share)) {
            answers.extend(stream.exchange(0, share)?);
        }
    }
    Ok(answers)
}
