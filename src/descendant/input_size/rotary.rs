//! The frequencies of rotary tables.

/// How far a table may be from the sinusoid that it is taken for.
pub(super) const WAVE_TOLERANCE: f64 = 1e-5;

/// sin(phase + step x).
#[derive(Clone, Copy, Debug)]
pub(super) struct Wave {
    pub phase: f64,
    pub step: f64,
}

impl Wave {
    pub fn at(&self, x: f64) -> f64 {
        (self.phase + self.step * x).sin()
    }

    /// The slowest wave of amplitude one through equally spaced samples.
    pub fn fit(samples: &[f32]) -> Option<Wave> {
        let y: Vec<f64> = samples.iter().map(|&v| f64::from(v)).collect();
        if y.iter().any(|v| v.abs() > 1.0 + WAVE_TOLERANCE) {
            return None;
        }
        // y[x - 1] + y[x + 1] = 2 cos(step) y[x], which gives a start.
        let inner = || (1..y.len().saturating_sub(1)).map(|i| (y[i], y[i - 1] + y[i + 1]));
        let power: f64 = inner().map(|(v, _)| v * v).sum();
        let cosine = inner().map(|(v, s)| v * s).sum::<f64>() / (2.0 * power);
        let step = if cosine.is_finite() { cosine.clamp(-1.0, 1.0).acos() } else { 0.0 };
        let start = y.first()?.clamp(-1.0, 1.0).asin();
        let phases = [start, std::f64::consts::PI - start];
        let starts = phases.into_iter().flat_map(|phase| [step, -step].map(|step| Wave { phase, step }));
        let fitted = starts.map(|w| w.refined(&y)).min_by(|a, b| a.1.total_cmp(&b.1))?;
        (fitted.1 < WAVE_TOLERANCE).then_some(fitted.0)
    }

    /// Gauss-Newton steps towards the samples, and the largest distance that is left.
    fn refined(mut self, y: &[f64]) -> (Wave, f64) {
        for _ in 0..20 {
            // Normal equations of (phase, step).
            let (mut a, mut b, mut c, mut p, mut q) = (0.0, 0.0, 0.0, 0.0, 0.0);
            for (i, &v) in y.iter().enumerate() {
                let (x, slope) = (i as f64, (self.phase + self.step * i as f64).cos());
                let error = v - self.at(x);
                a += slope * slope;
                b += slope * slope * x;
                c += slope * slope * x * x;
                p += slope * error;
                q += slope * error * x;
            }
            let determinant = a * c - b * b;
            if determinant.abs() < 1e-18 {
                break;
            }
            self.phase += (c * p - b * q) / determinant;
            self.step += (a * q - b * p) / determinant;
        }
        let worst = y.iter().enumerate().map(|(i, &v)| (v - self.at(i as f64)).abs()).fold(0.0, f64::max);
        (self, if worst.is_nan() { f64::INFINITY } else { worst })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_are_read_off_their_samples() {
        for (phase, step, n) in
            [(0.0, 1.0, 14), (0.0, 1e-4, 14), (0.3, 0.4, 4), (std::f64::consts::FRAC_PI_2, 0.01, 16)]
        {
            let wave = Wave { phase, step };
            let samples: Vec<f32> = (0..n).map(|i| wave.at(i as f64) as f32).collect();
            let found = Wave::fit(&samples).unwrap();
            for i in 0..4 * n {
                let x = i as f64 / 4.0;
                assert!((found.at(x) - wave.at(x)).abs() < 1e-6, "{wave:?} {found:?}");
            }
        }
        assert!(Wave::fit(&[0.0, 0.9, -0.3, 0.2, 0.7]).is_none());
        assert!(Wave::fit(&[0.0, 1.5]).is_none());
    }
}
