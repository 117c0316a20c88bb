//! Verification as commands ask for it: by default where it is quick, and what was left out is said.

use std::sync::Arc;

use crate::cli::common::{RuntimeFlags, VerifyFlags};
use crate::cli::output;
use crate::descendant::{Case, Outcome, Verification, Verifier, predicted_seconds};
use crate::error::{Error, Result};
use crate::runtime::Runtime;

/// Seconds below which models are verified without being asked to.
const LIMIT: f64 = 2.0;

/// Why nothing is run where that was asked for.
pub const NO_VERIFY: &str = "--no-verify";

/// Verifies models by the flags of a command.
pub struct Verifying<'a> {
    pub flags: VerifyFlags,
    pub runtime: &'a RuntimeFlags,
}

impl Verifying<'_> {
    /// True where so many operations are too many for a verification that nobody asked for.
    pub fn takes_long(&self, macs: u64) -> bool {
        !self.flags.verify && predicted_seconds(macs) >= LIMIT
    }

    /// Verifies a model, where so many operations are not too many or it was asked for; else it is run `once`, or not
    /// at all. The verifier is made once there is a runtime.
    ///
    /// # Errors
    /// Where verification was asked for: those of the runtime.
    pub fn verify(
        &self,
        case: &Case,
        macs: u64,
        once: bool,
        make: impl FnOnce(Arc<Runtime>) -> Verifier,
    ) -> Result<Verification> {
        if self.flags.no_verify {
            return Ok(Verification::not_run(NO_VERIFY));
        }
        let seconds = predicted_seconds(macs);
        let too_long =
            self.takes_long(macs).then(|| format!("it would take about {seconds:.0} s; --verify asks for it"));
        if let (Some(why), false) = (&too_long, once) {
            return Ok(Verification::not_run(why));
        }
        let run = || -> Result<Verification> {
            let verifier = make(Runtime::start(&self.runtime.options())?);
            match too_long {
                Some(why) => Ok(Verification { not_run: Some(why), ..verifier.run_once(case)? }),
                None => verifier.verify(case),
            }
        };
        match run() {
            Err(e) if !self.flags.verify => Ok(Verification::not_run(format!("nothing was run: {}", e.marked()))),
            result => result,
        }
    }

    /// The error of what failed; where verification was asked for, also of what nothing can be said of.
    pub fn check(&self, verification: &Verification) -> Result<()> {
        let unclear = verification.ended(Outcome::Unclear).next().filter(|_| self.flags.verify);
        let doubt = |e: Error| e.hint("compare it with its ancestor on real samples: `offshoot compare`");
        verification.failure().or(unclear.map(|c| doubt(c.fault()))).map_or(Ok(()), Err)
    }
}

/// Says what was verified, and what was not.
pub fn tell(verification: &Verification) {
    if verification.not_run.as_deref() != Some(NO_VERIFY) {
        verification.lines().iter().for_each(|line| output::note(line));
    }
}
