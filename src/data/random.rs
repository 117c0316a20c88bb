//! Random numbers that depend on nothing but what they are for, so that a run can be resumed anywhere and on any number
//! of threads.

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use sha2::{Digest, Sha256};

/// The generator of all random choices about data.
pub(super) type Generator = Xoshiro256PlusPlus;

/// What random numbers are for; each has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The split into training and validation.
    Split = 1,
    /// The order of an epoch.
    Order = 2,
    /// The transform of an image.
    Augment = 3,
    /// What a batch is mixed with.
    Mix = 4,
    /// Views for calibration.
    View = 5,
}

/// The random numbers of one purpose, epoch, and position in it.
pub(super) fn generator(seed: u64, purpose: Purpose, epoch: u64, position: u64) -> Generator {
    let mut hasher = Sha256::new();
    for word in [seed, purpose as u64, epoch, position] {
        hasher.update(word.to_le_bytes());
    }
    Generator::from_seed(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;

    #[test]
    fn every_argument_counts() {
        let first = |seed, purpose, epoch, position| generator(seed, purpose, epoch, position).next_u64();
        let all = [
            first(0, Purpose::Order, 0, 0),
            first(1, Purpose::Order, 0, 0),
            first(0, Purpose::Mix, 0, 0),
            first(0, Purpose::Order, 1, 0),
            first(0, Purpose::Order, 0, 1),
        ];
        assert_eq!(first(0, Purpose::Order, 0, 0), all[0]);
        let different: std::collections::HashSet<_> = all.into_iter().collect();
        assert_eq!(different.len(), 5);
    }
}
