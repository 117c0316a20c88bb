//! What a file may ask for at most, so that a malicious one cannot exhaust the machine.

/// The memory that one picture may take, in bytes.
pub(super) const MAXIMAL_BYTES: u64 = 512 << 20;

/// The sides that a picture may have, in pixels.
pub(super) const MAXIMAL_SIDE: u32 = 65_535;

/// How many bytes a compressed file of the given length may unpack to. Pictures are seldom packed to a twentieth, and a
/// small file may still hold a large blank one; deflate's thousandth is a bomb.
pub(super) fn unpacked_limit(packed: u64) -> u64 {
    packed.saturating_mul(20).max(256 << 20)
}
