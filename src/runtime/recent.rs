//! The last few of what is made for a key: what comes back soon is not made again, and memory stays bounded.

use crate::error::Result;

/// How many are kept.
const KEPT: usize = 4;

/// Values by their keys, the last that was asked for first.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    kept: Vec<(K, V)>,
}

impl<K: PartialEq, V> Recent<K, V> {
    pub fn new() -> Self {
        Recent { kept: Vec::new() }
    }

    /// The value of a key, made where it is not among those that are kept.
    ///
    /// # Errors
    /// Those of making it.
    pub fn get(&mut self, key: K, make: impl FnOnce(&K) -> Result<V>) -> Result<&mut V> {
        match self.kept.iter().position(|(own, _)| *own == key) {
            Some(at) => self.kept[..=at].rotate_right(1),
            None => {
                // The oldest goes first: two large ones do not lie side by side for longer than they must.
                self.kept.truncate(KEPT - 1);
                let value = make(&key)?;
                self.kept.insert(0, (key, value));
            }
        }
        Ok(&mut self.kept[0].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_soon_is_not_made_again() {
        let (mut recent, mut made) = (Recent::new(), Vec::new());
        for key in [24, 30, 24, 7, 8, 24, 9, 30, 24, 8] {
            let value = recent.get(key, |key| {
                made.push(*key);
                Ok(2 * key)
            });
            assert_eq!(*value.unwrap(), 2 * key);
        }
        // 30 had gone when it came back; 24 and 8 had not.
        assert_eq!(made, [24, 30, 7, 8, 9, 30]);
        assert_eq!(recent.kept.len(), KEPT);
        // What could not be made is not kept.
        let failed = recent.get(1, |_| bail!(Runtime, "no"));
        assert!(failed.is_err());
        assert_eq!(*recent.get(1, |_| Ok(3)).unwrap(), 3);
    }
}
