//! What cells come to: rows of means over seeds, as Markdown, CSV and JSON, and as plots.

use std::collections::BTreeMap;

use serde::Serialize;

use super::cell::{Cell, CellRecord};
use super::file::Follows;
use super::materials::CellSamples;
use crate::error::{Error, ErrorKind, Result};
use crate::metadata::schema;
use crate::report::{Series, series_plot};

/// A mean over seeds, and how much they deviate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Statistic {
    /// The mean.
    pub mean: f64,
    /// The standard deviation (of a sample); only of two or more.
    pub deviation: Option<f64>,
}

impl Statistic {
    /// Of some numbers; `None` of none.
    pub fn of(values: &[f64]) -> Option<Statistic> {
        let n = values.len() as f64;
        if values.is_empty() {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        Some(Statistic { mean, deviation: (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt()) })
    }

    fn percent(&self) -> String {
        let mean = format!("{:.2}", 100.0 * self.mean);
        self.deviation.map_or(mean.clone(), |d| format!("{mean} ± {:.2}", 100.0 * d))
    }
}

/// A row: the cells that differ in their seed alone.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The ancestor.
    pub ancestor: String,
    /// The data set.
    pub data: String,
    /// The shape.
    pub shape: String,
    /// The method.
    pub method: String,
    /// Share of the training images.
    pub fraction: f64,
    /// Epochs.
    pub epochs: u32,
    /// The paper's w, where the shape gives one.
    pub width: Option<f64>,
    /// Which of the two it follows.
    pub follows: Follows,
    /// Seeds that are there, and all that there will be.
    pub seeds: [usize; 2],
    /// Accuracy after the last epoch.
    pub last: Option<Statistic>,
    /// The best accuracy of any epoch, which the paper reports.
    pub best: Option<Statistic>,
    /// Parameters that are inherited.
    pub inherited: Option<Statistic>,
    /// I-Params of the whole learngene.
    pub learngene: Option<Statistic>,
    /// Parameters.
    pub parameters: Option<Statistic>,
    /// Multiply-accumulate operations for one image.
    pub macs: Option<Statistic>,
    /// Seconds of a cell.
    pub seconds: Option<Statistic>,
    /// Mean accuracy by epoch; the first may be epoch 0.
    pub curve: Vec<(u64, f64)>,
    /// The first epoch whose mean accuracy is the reference's last or more.
    pub reach: Option<u64>,
}

/// The tables of a study.
#[derive(Clone, Debug, Serialize)]
pub struct Tables {
    /// [`schema::STUDY`].
    pub schema: &'static str,
    /// What it is called.
    pub title: String,
    /// Cells that are there, and all.
    pub cells: [usize; 2],
    /// Minutes that those took.
    pub minutes: f64,
    /// Rows, in the order of the study.
    pub rows: Vec<Row>,
    /// What every model is fed with, by the ancestor's name or the file.
    pub inputs: BTreeMap<String, CellSamples>,
}

impl Tables {
    /// Of the cells of a study and their records.
    pub fn new(title: &str, reference: Option<&str>, records: &[(&Cell, Option<CellRecord>)]) -> Tables {
        let mut groups: Vec<Vec<&(&Cell, Option<CellRecord>)>> = Vec::new();
        for entry in records {
            match groups.iter_mut().find(|g| g[0].0.row() == entry.0.row()) {
                Some(group) => group.push(entry),
                None => groups.push(vec![entry]),
            }
        }
        let mut rows: Vec<Row> = groups.iter().map(|g| row(g)).collect();
        if let Some(reference) = reference {
            let same = |a: &Row, b: &Row| {
                (&a.ancestor, &a.data, &a.shape, a.fraction, a.epochs)
                    == (&b.ancestor, &b.data, &b.shape, b.fraction, b.epochs)
            };
            let all = rows.clone();
            for row in &mut rows {
                let goal = all.iter().find(|r| r.method == reference && same(r, row)).and_then(|r| r.last);
                row.reach = goal.and_then(|g| row.curve.iter().find(|(e, a)| *e > 0 && *a >= g.mean).map(|(e, _)| *e));
            }
        }
        let there: Vec<&CellRecord> = records.iter().filter_map(|r| r.1.as_ref()).collect();
        Tables {
            schema: schema::STUDY,
            title: title.into(),
            cells: [there.len(), records.len()],
            minutes: there.iter().map(|r| r.seconds[0] + r.seconds[1]).sum::<f64>() / 60.0,
            rows,
            inputs: BTreeMap::new(),
        }
    }

    /// The header of the table.
    pub fn header(&self) -> Vec<&'static str> {
        let mut header =
            vec!["shape", "method", "follows", "seeds", "last %", "best %", "inherited", "parameters", "MACs"];
        header.push("seconds");
        if self.rows.iter().any(|r| r.reach.is_some()) {
            header.push("epochs to the reference");
        }
        header
    }

    /// Rows by what stands above them: ancestor, data, share of the images and epochs.
    pub fn parts(&self) -> Vec<(String, Vec<Vec<String>>)> {
        let mut parts: Vec<(String, Vec<Vec<String>>)> = Vec::new();
        let reach = self.rows.iter().any(|r| r.reach.is_some());
        for row in &self.rows {
            let share =
                if row.fraction < 1.0 { format!(", {} % of the images", 100.0 * row.fraction) } else { String::new() };
            let above = format!("{} on {}{share}, {} epochs", row.ancestor, row.data, row.epochs);
            let count = |s: &Option<Statistic>| s.map_or("-".into(), |s| thousands(s.mean));
            let percent = |s: &Option<Statistic>| s.map_or("-".into(), |s| s.percent());
            let mut cells = vec![
                row.shape.clone(),
                row.method.clone(),
                row.follows.name().to_string(),
                format!("{} of {}", row.seeds[0], row.seeds[1]),
                percent(&row.last),
                percent(&row.best),
                count(&row.inherited),
                count(&row.parameters),
                count(&row.macs),
                row.seconds.map_or("-".into(), |s| format!("{:.0}", s.mean)),
            ];
            if reach {
                cells.push(row.reach.map_or("-".into(), |e| e.to_string()));
            }
            match parts.iter_mut().find(|p| p.0 == above) {
                Some(part) => part.1.push(cells),
                None => parts.push((above, vec![cells])),
            }
        }
        parts
    }

    /// What stands above the tables.
    pub fn summary(&self) -> String {
        let [there, all] = self.cells;
        format!("{there} of {all} cells are there; they took {:.1} minutes.", self.minutes)
    }

    /// The tables as Markdown.
    pub fn markdown(&self, note: &str) -> String {
        let mut out = format!("# {}\n\n", self.title);
        if !note.is_empty() {
            out += &format!("{}\n\n", note.trim());
        }
        out += &format!("{}\n", self.summary());
        let header = self.header();
        for (above, rows) in self.parts() {
            out += &format!("\n## {above}\n\n| {} |\n|{}\n", header.join(" | "), "---|".repeat(header.len()));
            for row in rows {
                out += &format!("| {} |\n", row.join(" | ").replace('\n', " "));
            }
        }
        out
    }

    /// All rows as CSV, with full precision.
    pub fn csv(&self) -> String {
        let mut out =
            "ancestor,data,shape,method,fraction,epochs,width,follows,seeds,last,last_deviation,best,best_deviation,\
                       inherited,learngene,parameters,macs,seconds,epochs_to_reference\n"
                .to_string();
        let quoted = |t: &str| match t.contains([',', '"', '\n']) {
            true => format!("\"{}\"", t.replace('"', "\"\"")),
            false => t.to_string(),
        };
        let mean = |s: &Option<Statistic>| s.map_or(String::new(), |s| s.mean.to_string());
        let deviation = |s: &Option<Statistic>| s.and_then(|s| s.deviation).map_or(String::new(), |d| d.to_string());
        for r in &self.rows {
            let fields = [
                quoted(&r.ancestor),
                quoted(&r.data),
                quoted(&r.shape),
                quoted(&r.method),
                r.fraction.to_string(),
                r.epochs.to_string(),
                r.width.map_or(String::new(), |w| w.to_string()),
                r.follows.name().to_string(),
                r.seeds[0].to_string(),
                mean(&r.last),
                deviation(&r.last),
                mean(&r.best),
                deviation(&r.best),
                mean(&r.inherited),
                mean(&r.learngene),
                mean(&r.parameters),
                mean(&r.macs),
                mean(&r.seconds),
                r.reach.map_or(String::new(), |e| e.to_string()),
            ];
            out += &format!("{}\n", fields.join(","));
        }
        out
    }

    /// The tables as JSON.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`].
    pub fn json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?;
        Ok(format!("{text}\n"))
    }

    /// Plots with their names: accuracy against epochs, against parameters and against w, where there are two points to
    /// join.
    ///
    /// # Errors
    /// Those of [`series_plot`].
    pub fn plots(&self) -> Result<Vec<(String, String)>> {
        let mut plots = Vec::new();
        let there: Vec<&Row> = self.rows.iter().filter(|r| r.last.is_some()).collect();
        let percent = |r: &Row| 100.0 * r.last.map_or(f64::NAN, |s| s.mean);
        // What the plots of a kind have in common, and what tells their lines apart.
        let mut by_epoch: BTreeMap<String, Vec<Series>> = BTreeMap::new();
        let mut by_size: BTreeMap<String, BTreeMap<String, Vec<(f64, f64)>>> = BTreeMap::new();
        let mut by_width: BTreeMap<String, BTreeMap<String, Vec<(f64, f64)>>> = BTreeMap::new();
        for r in &there {
            let share = if r.fraction < 1.0 { format!(" {} %", 100.0 * r.fraction) } else { String::new() };
            let set = format!("{} on {}{share}", r.ancestor, r.data);
            if r.curve.len() > 1 {
                let points = r.curve.iter().map(|(e, a)| (*e as f64, 100.0 * a)).collect();
                by_epoch
                    .entry(format!("{set}, {}", r.shape))
                    .or_default()
                    .push(Series { name: r.method.clone(), points });
            }
            let line = format!("{}, {} epochs", r.method, r.epochs);
            let size = r.parameters.map_or(f64::NAN, |p| p.mean);
            by_size.entry(set.clone()).or_default().entry(line.clone()).or_default().push((size, percent(r)));
            if let Some(w) = r.width {
                // Shapes of one depth are one line: the text before their w.
                let depth = r.shape.split(" w").next().unwrap_or(&r.shape);
                let line = format!("{}, {depth}", r.method);
                by_width.entry(set).or_default().entry(line).or_default().push((w, percent(r)));
            }
        }
        for (what, series) in by_epoch {
            plots.push((format!("epochs: {what}"), series_plot(&what, ["epoch", "accuracy (%)"], &series, false)?));
        }
        for (kind, label, table, log) in [
            ("parameters", "parameters", by_size, false),
            ("w", "w (ancestor heads / descendant heads)", by_width, true),
        ] {
            for (what, lines) in table {
                let mut series: Vec<Series> = lines.into_iter().map(|(name, points)| Series { name, points }).collect();
                series.iter_mut().for_each(|s| s.points.sort_by(|a, b| a.0.total_cmp(&b.0)));
                if series.iter().map(|s| s.points.len()).sum::<usize>() > 1 {
                    plots.push((format!("{kind}: {what}"), series_plot(&what, [label, "accuracy (%)"], &series, log)?));
                }
            }
        }
        Ok(plots)
    }
}

fn row(group: &[&(&Cell, Option<CellRecord>)]) -> Row {
    let cell = group[0].0;
    let there: Vec<&CellRecord> = group.iter().filter_map(|g| g.1.as_ref()).collect();
    let of = |f: &dyn Fn(&CellRecord) -> f64| Statistic::of(&there.iter().map(|r| f(r)).collect::<Vec<f64>>());
    let mut curve = Vec::new();
    for epoch in there.first().map_or(&[][..], |r| &r.epochs) {
        let values: Vec<f64> =
            there.iter().filter_map(|r| r.epochs.iter().find(|e| e.epoch == epoch.epoch)).map(|e| e.top1).collect();
        curve.extend(Statistic::of(&values).map(|s| (epoch.epoch, s.mean)));
    }
    let learngene: Vec<f64> = there.iter().filter_map(|r| r.learngene).map(|n| n as f64).collect();
    Row {
        ancestor: cell.ancestor.clone(),
        data: cell.data.clone(),
        shape: cell.shape.clone(),
        method: cell.method.clone(),
        fraction: cell.fraction,
        epochs: cell.training.epochs,
        width: cell.size.width,
        follows: cell.follows(),
        seeds: [there.len(), group.len()],
        last: of(&CellRecord::last),
        best: of(&CellRecord::best),
        inherited: of(&|r| r.inherited as f64),
        learngene: Statistic::of(&learngene),
        parameters: of(&|r| r.parameters as f64),
        macs: of(&|r| r.macs as f64),
        seconds: of(&|r| r.seconds[0] + r.seconds[1]),
        curve,
        reach: None,
    }
}

/// 405 002: a number whose thousands stand apart.
fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.max(0.0));
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deviation_takes_two() {
        assert_eq!(Statistic::of(&[]), None);
        assert_eq!(Statistic::of(&[0.5]), Some(Statistic { mean: 0.5, deviation: None }));
        let s = Statistic::of(&[1.0, 2.0, 3.0]).unwrap();
        assert_eq!((s.mean, s.deviation), (2.0, Some(1.0)));
        assert_eq!(Statistic { mean: 0.5, deviation: Some(0.012) }.percent(), "50.00 ± 1.20");
    }

    #[test]
    fn thousands_stand_apart() {
        assert_eq!(
            ["0", "999", "1 000", "405 002"].map(str::to_string),
            [0.0, 999.0, 1000.0, 405_002.0].map(thousands)
        );
    }
}
