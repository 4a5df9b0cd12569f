//! Rounds of contestants in turn, and what they come to.

/// One contestant: runs once, and returns its own time in microseconds.
pub(crate) type Contestant<'a> = &'a mut dyn FnMut() -> f64;

/// Each contestant's times: all of them in every round, each round beginning with another, after one that does not
/// count.
#[allow(clippy::needless_pass_by_value)] // the contestants run by it, and their captures end with it
pub(crate) fn interleave<const N: usize>(rounds: usize, contestants: [Contestant<'_>; N]) -> [Times; N] {
    let mut times = [const { Times(Vec::new()) }; N];
    for round in 0..=rounds {
        for turn in 0..N {
            let at = (round + turn) % N;
            let took = contestants[at]();
            if round > 0 {
                times[at].0.push(took);
            }
        }
    }
    times
}

/// The times of one contestant, by round.
pub(crate) struct Times(Vec<f64>);

impl Times {
    pub(crate) fn median(&self) -> f64 {
        median(self.0.clone())
    }

    /// The median of the ratios of each round: what slows a round down slows both.
    pub(crate) fn over(&self, other: &Self) -> f64 {
        median(self.0.iter().zip(&other.0).map(|(mine, others)| mine / others).collect())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
