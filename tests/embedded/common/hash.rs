//! Pseudo-random numbers that Python makes too (scripts/golden/gradient.py).

/// A hash of position `i`.
pub fn hash(i: usize, seed: u32) -> u32 {
    let mut h = (i as u32).wrapping_add(seed.wrapping_mul(0x9e37_79b9));
    h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

/// Numbers from -1 to 1 that f32 holds exactly.
pub fn values(count: usize, seed: u32) -> Vec<f32> {
    (0..count).map(|i| (hash(i, seed) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}
