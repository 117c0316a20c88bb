//! Vectors of single-precision numbers, as wide as the processor has them: AVX-512, AVX2 with FMA, or plain arrays.
//!
//! A kernel is written once, over [`Lanes`], and [`dispatch!`] compiles it for every width and picks one when it is
//! called.

/// A vector of `N` numbers.
///
/// # Safety
/// The implementations for a processor's registers may only be instantiated where that processor was found:
/// [`dispatch!`] does so, and nothing else names them. Loads and stores want pointers to as many numbers as they touch.
pub(super) unsafe trait Lanes: Copy {
    /// The width that this type stands for.
    const WIDTH: Width;
    /// Numbers in a vector.
    const N: usize;
    /// Rows of a tile of a matrix product that is two vectors wide: as many as fill the registers.
    const ROWS: usize;

    fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    /// The first `n` < N numbers, zero behind them.
    unsafe fn load_first(p: *const f32, n: usize) -> Self;
    unsafe fn store_first(self, p: *mut f32, n: usize);
    fn add(self, b: Self) -> Self;
    fn sub(self, b: Self) -> Self;
    fn mul(self, b: Self) -> Self;
    fn div(self, b: Self) -> Self;
    /// self · b + c, rounded once where the processor can.
    fn fma(self, b: Self, c: Self) -> Self;
    /// The smaller one; `b` where one is not a number.
    fn min(self, b: Self) -> Self;
    /// The greater one; `b` where one is not a number.
    fn max(self, b: Self) -> Self;
    fn sqrt(self) -> Self;
    /// Where self < 0 the first, else the second.
    fn negative(self, a: Self, b: Self) -> Self;
    /// 2 to the power of a whole number from -126 to 127, given as 1.5 · 2^23 + that number.
    fn power_of_two(self) -> Self;

    #[inline(always)]
    fn sum(self) -> f32 {
        self.fold(0.0, |a, b| a + b)
    }
    #[inline(always)]
    fn maximum(self) -> f32 {
        self.fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    fn fold(self, start: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
        let mut all = [start; 16];
        // SAFETY: no vector is longer than 16.
        unsafe { self.store(all.as_mut_ptr()) };
        // By halves, which are vectors again.
        let mut half = 8;
        while half > 0 {
            for i in 0..half {
                all[i] = f(all[i], all[i + half]);
            }
            half /= 2;
        }
        all[0]
    }
}

/// Asks for `n` numbers that will be read or written soon.
#[inline(always)]
pub(super) fn prefetch(p: *const f32, n: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..n).step_by(16) {
        // SAFETY: a hint, which no address makes wrong.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(p.wrapping_add(at).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (p, n);
}

/// A number whose last bits are those of the whole number added to it.
const SHIFT: f32 = 12_582_912.0;

/// c0 + c1 x + ... + c5 x^5.
#[inline(always)]
fn polynomial<L: Lanes>(x: L, c: [f32; 6]) -> L {
    let mut p = L::splat(c[5]);
    for i in (0..5).rev() {
        p = p.fma(x, L::splat(c[i]));
    }
    p
}

/// e to the power of x, within 2e-7 of it relatively; at least 2^-126, at most 2^127.
#[inline(always)]
pub(super) fn exp<L: Lanes>(x: L) -> L {
    // Where one is not a number, the second operand is taken: what is not a number stays so.
    let x = L::splat(88.0).min(L::splat(-87.336_54).max(x));
    let shifted = x.fma(L::splat(std::f32::consts::LOG2_E), L::splat(SHIFT));
    let n = shifted.sub(L::splat(SHIFT));
    // ln 2 in two parts, so that the rest is exact.
    let r = n.fma(L::splat(-0.693_359_4), x);
    let r = n.fma(L::splat(2.121_944_4e-4), r);
    let p = polynomial(r, [0.5, 1.666_666_5e-1, 4.166_579_6e-2, 8.333_452e-3, 1.398_2e-3, 1.987_569_1e-4]);
    let p = p.fma(r.mul(r), r).add(L::splat(1.0));
    p.mul(shifted.power_of_two())
}

/// The normal distribution at x: its cumulative probability, within 1e-7, and its density.
///
/// With u = |x|/√2 and t = 1/(1 + 0.55 u), erfc(u) = exp(-u²) · t · P(t) for a polynomial of degree 5 that was fitted
/// to 2e-8 (the form of Abramowitz and Stegun 7.1.26).
#[inline(always)]
pub(super) fn normal<L: Lanes>(x: L) -> (L, L) {
    let u = x.mul(L::splat(-1.0)).max(x).mul(L::splat(std::f32::consts::FRAC_1_SQRT_2));
    let bell = exp(u.mul(u).mul(L::splat(-1.0)));
    let t = L::splat(1.0).div(u.fma(L::splat(0.55), L::splat(1.0)));
    let p = polynomial(t, [0.301_583_3, 0.390_843_12, -0.041_428_857, 0.759_717_94, -0.518_040_54, 0.107_325_06]);
    let tail = p.mul(t).mul(bell).mul(L::splat(0.5));
    (x.negative(tail, L::splat(1.0).sub(tail)), bell.mul(L::splat(0.398_942_3)))
}

/// Walks over `n` numbers in vectors of `L`: `each!(L, n, [a, b] body)` runs the body with vectors of the memory that
/// the pointers a and b point to, and `each!(L, n, [a, b] body => y)` writes its value to the memory of y, which may be
/// that of a or b. The last vector is filled up with zeros.
///
/// A macro, because a closure is a function of its own, and is not compiled for the width of the function that it
/// stands in.
macro_rules! each {
    ($L:ident, $n:expr, [$($x:ident),*] $body:expr) => {{
        let n: usize = $n;
        let whole = n - n % $L::N;
        let mut i = 0;
        while i < whole {
            $(let $x = $L::load($x.add(i));)*
            $body;
            i += $L::N;
        }
        if whole < n {
            $(let $x = $L::load_first($x.add(whole), n - whole);)*
            $body;
        }
    }};
    ($L:ident, $n:expr, [$($x:ident),*] $body:expr => $y:expr) => {{
        let n: usize = $n;
        let whole = n - n % $L::N;
        let mut i = 0;
        while i < whole {
            let value: $L = { $(let $x = $L::load($x.add(i));)* $body };
            value.store($y.add(i));
            i += $L::N;
        }
        if whole < n {
            let value: $L = { $(let $x = $L::load_first($x.add(whole), n - whole);)* $body };
            value.store_first($y.add(whole), n - whole);
        }
    }};
}
pub(super) use each;

unsafe impl Lanes for [f32; 8] {
    const WIDTH: Width = Width::Portable;
    const N: usize = 8;
    const ROWS: usize = 4;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<Self>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<Self>().write_unaligned(self) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        // SAFETY: the caller's promise.
        std::array::from_fn(|i| if i < n { unsafe { *p.add(i) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        // SAFETY: the caller's promise.
        (0..n).for_each(|i| unsafe { *p.add(i) = self[i] });
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        std::array::from_fn(|i| self[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        std::array::from_fn(|i| self[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        std::array::from_fn(|i| self[i] * b[i])
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        std::array::from_fn(|i| self[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        std::array::from_fn(|i| self[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        std::array::from_fn(|i| if self[i] < b[i] { self[i] } else { b[i] })
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        std::array::from_fn(|i| if self[i] > b[i] { self[i] } else { b[i] })
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.map(f32::sqrt)
    }
    #[inline(always)]
    fn negative(self, a: Self, b: Self) -> Self {
        std::array::from_fn(|i| if self[i] < 0.0 { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        self.map(|x| f32::from_bits((x.to_bits() << 23).wrapping_add(1.0f32.to_bits())))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Lanes, Width};
    use std::arch::x86_64::*;

    /// A vector at any address. Loads and stores through it need no call, which a large function would not inline.
    #[repr(C, packed)]
    #[derive(Clone, Copy)]
    struct Unaligned<T>(T);

    /// One method for each intrinsic of the same operands.
    macro_rules! operations {
        ($($name:ident($($x:ident),*) => $intrinsic:ident;)*) => {
            $(#[inline(always)]
            fn $name(self, $($x: Self),*) -> Self {
                // SAFETY: the type is only used where the processor has these registers.
                unsafe { $intrinsic(self, $($x),*) }
            })*
        };
    }

    // SAFETY of the blocks below: the type is only used where the processor has these registers, and the pointers are
    // valid for as many numbers as are touched by the caller's promise.
    unsafe impl Lanes for __m512 {
        const WIDTH: Width = Width::Avx512;
        const N: usize = 16;
        const ROWS: usize = 14;

        operations! {
            add(b) => _mm512_add_ps;
            sub(b) => _mm512_sub_ps;
            mul(b) => _mm512_mul_ps;
            div(b) => _mm512_div_ps;
            fma(b, c) => _mm512_fmadd_ps;
            min(b) => _mm512_min_ps;
            max(b) => _mm512_max_ps;
            sqrt() => _mm512_sqrt_ps;
        }
        #[inline(always)]
        fn splat(x: f32) -> Self {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            unsafe { (*p.cast::<Unaligned<Self>>()).0 }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            unsafe { *p.cast::<Unaligned<Self>>() = Unaligned(self) }
        }
        #[inline(always)]
        unsafe fn load_first(p: *const f32, n: usize) -> Self {
            unsafe { _mm512_maskz_loadu_ps((1u16 << n) - 1, p) }
        }
        #[inline(always)]
        unsafe fn store_first(self, p: *mut f32, n: usize) {
            unsafe { _mm512_mask_storeu_ps(p, (1u16 << n) - 1, self) }
        }
        #[inline(always)]
        fn negative(self, a: Self, b: Self) -> Self {
            unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self, _mm512_setzero_ps()), b, a) }
        }
        #[inline(always)]
        fn power_of_two(self) -> Self {
            unsafe {
                let one = _mm512_set1_epi32(1.0f32.to_bits() as i32);
                _mm512_castsi512_ps(_mm512_add_epi32(_mm512_slli_epi32::<23>(_mm512_castps_si512(self)), one))
            }
        }
    }

    unsafe impl Lanes for __m256 {
        const WIDTH: Width = Width::Avx2;
        const N: usize = 8;
        const ROWS: usize = 6;

        operations! {
            add(b) => _mm256_add_ps;
            sub(b) => _mm256_sub_ps;
            mul(b) => _mm256_mul_ps;
            div(b) => _mm256_div_ps;
            fma(b, c) => _mm256_fmadd_ps;
            min(b) => _mm256_min_ps;
            max(b) => _mm256_max_ps;
            sqrt() => _mm256_sqrt_ps;
        }
        #[inline(always)]
        fn splat(x: f32) -> Self {
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            unsafe { (*p.cast::<Unaligned<Self>>()).0 }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            unsafe { *p.cast::<Unaligned<Self>>() = Unaligned(self) }
        }
        #[inline(always)]
        unsafe fn load_first(p: *const f32, n: usize) -> Self {
            let first: [f32; 8] = unsafe { Lanes::load_first(p, n) };
            unsafe { _mm256_loadu_ps(first.as_ptr()) }
        }
        #[inline(always)]
        unsafe fn store_first(self, p: *mut f32, n: usize) {
            let mut all = [0.0; 8];
            unsafe {
                _mm256_storeu_ps(all.as_mut_ptr(), self);
                all.store_first(p, n);
            }
        }
        #[inline(always)]
        fn negative(self, a: Self, b: Self) -> Self {
            unsafe { _mm256_blendv_ps(b, a, _mm256_cmp_ps::<_CMP_LT_OQ>(self, _mm256_setzero_ps())) }
        }
        #[inline(always)]
        fn power_of_two(self) -> Self {
            unsafe {
                let one = _mm256_set1_epi32(1.0f32.to_bits() as i32);
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32::<23>(_mm256_castps_si256(self)), one))
            }
        }
    }
}

/// How wide the vectors of this processor are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

/// The widths that this processor has, the best first.
pub(super) fn widths() -> impl Iterator<Item = Width> {
    #[cfg(target_arch = "x86_64")]
    let special = [
        is_x86_feature_detected!("avx512f").then_some(Width::Avx512),
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Width::Avx2),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let special = [];
    special.into_iter().flatten().chain([Width::Portable])
}

/// Defines `unsafe fn name(width, arguments)`, which runs the generic `kernel` compiled for that width.
macro_rules! dispatch {
    ($(#[$doc:meta])* $name:ident($($x:ident: $t:ty),* $(,)?) = $kernel:ident) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        pub(super) unsafe fn $name(width: $crate::runtime::kernels::lanes::Width, $($x: $t),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                #[allow(clippy::too_many_arguments)]
                unsafe fn avx512($($x: $t),*) {
                    // SAFETY: the caller's promise.
                    unsafe { $kernel::<std::arch::x86_64::__m512>($($x),*) }
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                unsafe fn avx2($($x: $t),*) {
                    // SAFETY: the caller's promise.
                    unsafe { $kernel::<std::arch::x86_64::__m256>($($x),*) }
                }
                // SAFETY: a width is only named where the processor has it.
                match width {
                    $crate::runtime::kernels::lanes::Width::Avx512 => return unsafe { avx512($($x),*) },
                    $crate::runtime::kernels::lanes::Width::Avx2 => return unsafe { avx2($($x),*) },
                    $crate::runtime::kernels::lanes::Width::Portable => {}
                }
            }
            let _ = width;
            // SAFETY: the caller's promise.
            unsafe { $kernel::<[f32; 8]>($($x),*) }
        }
    };
}
pub(super) use dispatch;
