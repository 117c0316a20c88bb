//! Scratch: arrays of many images, of which only some stay in memory. The others lie in a file that is mapped while
//! they are worked on, and that no folder names.

use std::fs::File;
use std::sync::{Mutex, PoisonError};

use memmap2::{MmapMut, MmapOptions};
use ndarray::{ArrayD, IxDyn};

use crate::error::{Error, Result};

/// Regions of the file begin at multiples of this, which every page size divides.
const ALIGNMENT: u64 = 64 << 10;

/// The file, and how much stays in memory.
pub struct Scratch {
    limit: u64,
    /// The file and its length; made when it is first needed.
    file: Mutex<Option<(File, u64)>>,
}

/// What an image's arrays are, in a fixed order.
pub trait Arrays: Default {
    /// Hands over all arrays, each with a name that finds it again.
    fn take(self) -> Vec<(String, ArrayD<f32>)>;
    /// Made again from what [`Self::take`] gave.
    fn put(arrays: Vec<(String, ArrayD<f32>)>) -> Self;
    /// Bytes of all arrays.
    fn bytes(&self) -> u64;
}

/// One image: here or in the file.
pub struct Slot<T> {
    index: u64,
    state: Stored<T>,
    /// Where its arrays go.
    region: Option<Region>,
}

enum Stored<T> {
    Here(T),
    Away(Vec<(String, Vec<usize>)>),
}

#[derive(Clone, Copy)]
struct Region {
    start: u64,
    capacity: u64,
}

impl Scratch {
    /// A scratch file behind `limit` bytes of memory.
    pub fn new(limit: u64) -> Scratch {
        Scratch { limit, file: Mutex::default() }
    }

    fn map(&self, region: Region) -> Result<MmapMut> {
        let guard = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((file, _)) = guard.as_ref() else { bail!(Internal, "there is no scratch file") };
        // SAFETY: the file is ours alone and has no name; a region belongs to one slot, which only its owner maps.
        unsafe { MmapOptions::new().offset(region.start).len(region.capacity as usize).map_mut(file) }
            .map_err(|e| Error::io("the scratch file", e).hint("give more memory with ⟦memory-limit⟧"))
    }

    fn region(&self, bytes: u64, old: Option<Region>) -> Result<Region> {
        if let Some(old) = old.filter(|r| r.capacity >= bytes) {
            return Ok(old);
        }
        let mut guard = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |e| {
            Error::io(std::env::temp_dir(), e)
                .hint("make room there, set TMPDIR, or give more memory with ⟦memory-limit⟧")
        };
        let (file, length) = match guard.as_mut() {
            Some(pair) => pair,
            None => guard.insert((tempfile::tempfile().map_err(failed)?, 0)),
        };
        let capacity = bytes.max(1).next_multiple_of(ALIGNMENT);
        let start = *length;
        file.set_len(start + capacity).map_err(failed)?;
        *length = start + capacity;
        Ok(Region { start, capacity })
    }
}

impl<T: Arrays> Slot<T> {
    /// The slot of image `index`. It stays in memory where all up to it, as large as it, would.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Io`] where the scratch file cannot be written.
    pub fn new(scratch: &Scratch, index: usize, value: T) -> Result<Slot<T>> {
        let mut slot = Slot { index: index as u64, state: Stored::Here(T::default()), region: None };
        slot.store(scratch, value)?;
        Ok(slot)
    }

    /// Works on the image, wherever it is.
    ///
    /// # Errors
    /// Those of `work`, and [`crate::error::ErrorKind::Io`].
    pub fn with<R>(&mut self, scratch: &Scratch, work: impl FnOnce(&mut T) -> Result<R>) -> Result<R> {
        let mut value = match std::mem::replace(&mut self.state, Stored::Away(Vec::new())) {
            Stored::Here(value) => value,
            Stored::Away(shapes) => self.load(scratch, &shapes)?,
        };
        let result = work(&mut value)?;
        self.store(scratch, value)?;
        Ok(result)
    }

    /// Looks at the image.
    ///
    /// # Errors
    /// Those of `work`, and [`crate::error::ErrorKind::Io`].
    pub fn look<R>(&self, scratch: &Scratch, work: impl FnOnce(&T) -> Result<R>) -> Result<R> {
        match &self.state {
            Stored::Here(value) => work(value),
            Stored::Away(shapes) => work(&self.load(scratch, shapes)?),
        }
    }

    fn store(&mut self, scratch: &Scratch, value: T) -> Result<()> {
        let bytes = value.bytes();
        if (self.index + 1).saturating_mul(bytes) <= scratch.limit {
            self.state = Stored::Here(value);
            return Ok(());
        }
        let region = scratch.region(bytes, self.region)?;
        self.region = Some(region);
        let mut map = scratch.map(region)?;
        let mut at = 0;
        let mut shapes = Vec::new();
        for (name, array) in value.take() {
            for (to, v) in map[at..].chunks_exact_mut(4).zip(array.iter()) {
                to.copy_from_slice(&v.to_ne_bytes());
            }
            at += 4 * array.len();
            shapes.push((name, array.shape().to_vec()));
        }
        self.state = Stored::Away(shapes);
        Ok(())
    }

    fn load(&self, scratch: &Scratch, shapes: &[(String, Vec<usize>)]) -> Result<T> {
        let Some(region) = self.region else { bail!(Internal, "an image has no place in the scratch file") };
        let map = scratch.map(region)?;
        let mut at = 0;
        let mut arrays = Vec::new();
        for (name, shape) in shapes {
            let length = 4 * shape.iter().product::<usize>();
            let data = map[at..at + length].chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
            match ArrayD::from_shape_vec(IxDyn(shape), data.collect()) {
                Ok(array) => arrays.push((name.clone(), array)),
                Err(e) => bail!(Internal, "the scratch file: {e}"),
            }
            at += length;
        }
        Ok(T::put(arrays))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, Default, PartialEq)]
    struct List(Vec<(String, ArrayD<f32>)>);

    impl Arrays for List {
        fn take(self) -> Vec<(String, ArrayD<f32>)> {
            self.0
        }
        fn put(arrays: Vec<(String, ArrayD<f32>)>) -> Self {
            List(arrays)
        }
        fn bytes(&self) -> u64 {
            self.0.iter().map(|a| 4 * a.1.len() as u64).sum()
        }
    }

    #[test]
    fn what_was_put_away_comes_back() {
        let image = |n: usize, fill: f32| {
            List(vec![
                ("a".into(), ArrayD::from_elem(IxDyn(&[n, 3]), fill)),
                ("b".into(), ArrayD::from_elem(IxDyn(&[]), -fill)),
            ])
        };
        let scratch = Scratch::new(2 * image(1000, 0.0).bytes());
        let mut slots: Vec<Slot<List>> =
            (0..5).map(|i| Slot::new(&scratch, i, image(1000, i as f32)).unwrap()).collect();
        let away = slots.iter().filter(|s| matches!(s.state, Stored::Away(_))).count();
        assert_eq!(away, 3);
        for (i, slot) in slots.iter_mut().enumerate() {
            slot.with(&scratch, |value| {
                assert_eq!(*value, image(1000, i as f32));
                *value = image(40_000, 10.0 + i as f32);
                Ok(())
            })
            .unwrap();
        }
        // All have grown, and none fits into memory any more.
        for (i, slot) in slots.iter().enumerate() {
            assert!(matches!(slot.state, Stored::Away(_)));
            slot.look(&scratch, |value| {
                assert_eq!(*value, image(40_000, 10.0 + i as f32));
                Ok(())
            })
            .unwrap();
        }
    }
}
