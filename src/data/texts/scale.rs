//! Which cosines the scores of pairs of texts stand for, where a model is to learn them.

use serde::Serialize;

/// The scores that stand for a cosine of 0 and for one of 1, for JSON.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Scale {
    /// That of 0.
    pub low: f64,
    /// That of 1.
    pub high: f64,
    /// Who says so: a flag, or that scores are cosines already.
    pub from: &'static str,
}

impl Scale {
    /// Scores that are cosines as they are.
    pub const COSINES: Scale = Scale { low: 0.0, high: 1.0, from: "as they are" };

    /// Scores from `low` to `high`, as a flag has it.
    pub fn asked([low, high]: [f64; 2]) -> Scale {
        Scale { low, high, from: "⟦score-range⟧" }
    }

    /// The least score and the largest.
    fn range(&self) -> [f64; 2] {
        if *self == Scale::COSINES { [-1.0, 1.0] } else { [self.low, self.high] }
    }

    /// The cosine that a score stands for.
    pub fn cosine(&self, score: f64) -> f64 {
        (score - self.low) / (self.high - self.low)
    }

    /// What is wrong with a score, and what helps, where it is none of the scale.
    pub(super) fn refuses(&self, score: f64) -> Option<(String, &'static str)> {
        let [least, most] = self.range();
        let (what, hint) = match *self == Scale::COSINES {
            true => (
                "a cosine is".to_owned(),
                "say which scores stand for cosines of 0 and of 1: ⟦score-range⟧ LOW,HIGH, such as 0,5",
            ),
            false => (format!("{} is", self.from), "give a range that holds all scores, those of ⟦val⟧ too"),
        };
        (!(least..=most).contains(&score)).then(|| (format!("{what} from {least} to {most}"), hint))
    }
}

/// Scores that a model learns, for JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScoresReport {
    /// The column that they stand in.
    pub column: String,
    /// Their scale.
    pub scale: Scale,
    /// The least of them.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

impl ScoresReport {
    /// Of the scores in a column.
    pub fn new(column: &str, scale: Scale, scores: &[f64]) -> ScoresReport {
        let (least, most) = scores.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &v| (a.min(v), b.max(v)));
        ScoresReport { column: column.to_owned(), scale, least, most }
    }

    /// What is assumed of them.
    pub fn line(&self) -> String {
        let ScoresReport { column, scale, least, most } = self;
        let says = match *scale == Scale::COSINES {
            true => "are taken for cosines as they are; ⟦score-range⟧ LOW,HIGH names another scale".to_owned(),
            false => format!("stand for cosines: {} for 0 and {} for 1 ({})", scale.low, scale.high, scale.from),
        };
        format!("the scores in the column `{column}`, from {least} to {most}, {says}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_cosines_or_have_a_range() {
        let five = Scale::asked([0.0, 5.0]);
        assert_eq!([0.0, 2.5, 5.0].map(|score| five.cosine(score)), [0.0, 0.5, 1.0]);
        assert_eq!([-1.0, 0.25].map(|score| Scale::COSINES.cosine(score)), [-1.0, 0.25]);
        assert!([0.0, 5.0].iter().all(|&score| five.refuses(score).is_none()));
        assert_eq!(five.refuses(-0.5).unwrap().0, "⟦score-range⟧ is from 0 to 5");
        assert_eq!(Scale::COSINES.refuses(1.5).unwrap().0, "a cosine is from -1 to 1");
        // A range that is asked for is one, even where it is that of cosines.
        assert!(Scale::asked([0.0, 1.0]).refuses(-0.5).is_some() && Scale::COSINES.refuses(-0.5).is_none());
    }
}
