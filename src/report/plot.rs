//! Plots as SVG.

use plotters::prelude::*;

use crate::density::AttentionMap;
use crate::error::{Error, ErrorKind, Result};

/// Density of every head, in a unit, against depth, as in figure 1c of the paper: one dot a head, sorted within a layer
/// by colour.
///
/// # Errors
/// [`ErrorKind::Internal`] where the plot cannot be drawn.
pub fn density_plot(densities: &[Vec<f64>], unit: &str) -> Result<String> {
    let mut svg = String::new();
    let drawn = draw(densities, unit, &mut svg);
    drawn.map_err(|e| Error::new(ErrorKind::Internal, format!("the plot cannot be drawn: {e}")))?;
    Ok(svg)
}

fn draw(densities: &[Vec<f64>], unit: &str, svg: &mut String) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let top = densities.iter().flatten().copied().fold(1.0, f64::max) * 1.08;
    let depth = densities.len().max(1);
    let root = SVGBackend::with_string(svg, (760, 460)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(16)
        .caption("Mean attention distance of heads", ("sans-serif", 18))
        .x_label_area_size(42)
        .y_label_area_size(56)
        .build_cartesian_2d(-0.5f64..depth as f64 - 0.5, 0f64..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .x_desc("layer")
        .y_desc(format!("mean attention distance ({unit})"))
        .x_labels(depth.min(24))
        .x_label_formatter(&|x| if (x - x.round()).abs() < 1e-6 { format!("{x:.0}") } else { String::new() })
        .draw()?;
    for (l, heads) in densities.iter().enumerate() {
        let mut sorted: Vec<(usize, f64)> = heads.iter().copied().enumerate().collect();
        sorted.sort_by(|a, b| a.1.total_cmp(&b.1));
        for (rank, (_, d)) in sorted.iter().enumerate() {
            let shade = if sorted.len() > 1 { rank as f64 / (sorted.len() - 1) as f64 } else { 0.5 };
            let colour = HSLColor(0.62 - 0.55 * shade, 0.65, 0.5);
            chart.draw_series(std::iter::once(Circle::new((l as f64, *d), 4, colour.filled())))?;
        }
    }
    let measured = densities.iter().enumerate().filter(|(_, d)| !d.is_empty());
    let means = measured.map(|(l, d)| (l as f64, d.iter().sum::<f64>() / d.len() as f64));
    chart.draw_series(LineSeries::new(means, BLACK.mix(0.5).stroke_width(1)))?;
    root.present()?;
    drop(chart);
    drop(root);
    Ok(())
}

/// What each layer keeps: heads and FFN neurons, each of how many.
pub type KeptLayer = [Option<(usize, usize)>; 2];

/// Heads and FFN neurons of every layer as bars in front of what the ancestor has.
///
/// # Errors
/// [`ErrorKind::Internal`] where the plot cannot be drawn.
pub fn kept_plot(layers: &[KeptLayer]) -> Result<String> {
    let mut svg = String::new();
    draw_kept(layers, &mut svg)
        .map_err(|e| Error::new(ErrorKind::Internal, format!("the plot cannot be drawn: {e}")))?;
    Ok(svg)
}

fn draw_kept(layers: &[KeptLayer], svg: &mut String) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, (760, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(240);
    for (kind, area, name, colour) in [(0, upper, "heads", TRAINING), (1, lower, "FFN neurons", VALIDATION)] {
        let top = layers.iter().filter_map(|l| l[kind]).map(|k| k.1).max().unwrap_or(1).max(1) as f64;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(60)
            .build_cartesian_2d(-0.5f64..layers.len() as f64 - 0.5, 0f64..top * 1.05)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(WHITE)
            .x_desc("layer of the ancestor")
            .y_desc(name)
            .y_label_formatter(&|y| format!("{y:.0}"))
            .x_labels(layers.len().min(24))
            .x_label_formatter(&|x| if (x - x.round()).abs() < 1e-6 { format!("{x:.0}") } else { String::new() })
            .draw()?;
        for (l, layer) in layers.iter().enumerate() {
            let Some((kept, of)) = layer[kind] else { continue };
            let bar = |n: usize| [(l as f64 - 0.35, 0.0), (l as f64 + 0.35, n as f64)];
            chart.draw_series([
                Rectangle::new(bar(of), BLACK.mix(0.12).filled()),
                Rectangle::new(bar(kept), colour.filled()),
            ])?;
        }
    }
    root.present()?;
    Ok(())
}

/// A picture of an attention map: white where most attention goes.
pub fn map_picture(map: &AttentionMap) -> String {
    let [rows, columns] = map.patches;
    let most = map.attention.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    let mut svg = format!(
        "<svg class=\"map\" viewBox=\"0 0 {columns} {rows}\" width=\"160\" height=\"{}\" \
         shape-rendering=\"crispEdges\">",
        160 * rows / columns.max(1)
    );
    for (i, a) in map.attention.iter().enumerate() {
        let grey = (255.0 * a / most).round() as u8;
        let (y, x) = (i / columns.max(1), i % columns.max(1));
        svg +=
            &format!("<rect x=\"{x}\" y=\"{y}\" width=\"1\" height=\"1\" fill=\"#{grey:02x}{grey:02x}{grey:02x}\"/>");
    }
    svg + "</svg>"
}

/// A size on a frontier.
#[derive(Clone, Copy, Debug)]
pub struct Frontier {
    /// Predicted error.
    pub error: f64,
    /// Parameters.
    pub parameters: f64,
    /// Multiply-accumulate operations.
    pub macs: f64,
    /// Time of one image; not a number where it was not measured.
    pub milliseconds: f64,
}

/// Predicted error against parameters, operations and time, each as a share of the largest size's.
///
/// # Errors
/// [`ErrorKind::Internal`] where the plot cannot be drawn.
pub fn frontier_plot(points: &[Frontier]) -> Result<String> {
    let mut svg = String::new();
    draw_frontier(points, &mut svg)
        .map_err(|e| Error::new(ErrorKind::Internal, format!("the plot cannot be drawn: {e}")))?;
    Ok(svg)
}

/// A line of a plot.
struct Line {
    name: &'static str,
    curve: Vec<(f64, f64)>,
    colour: RGBColor,
}

fn draw_frontier(points: &[Frontier], svg: &mut String) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, (760, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let top = points.iter().map(|p| p.error).fold(1e-6, f64::max) * 1.08;
    let line = |name, of: fn(&Frontier) -> f64, colour| {
        let most = points.iter().map(of).fold(f64::MIN_POSITIVE, f64::max);
        let curve = points.iter().map(|p| (100.0 * of(p) / most, p.error)).filter(|p| p.0.is_finite());
        Line { name, curve: curve.collect(), colour }
    };
    let curves = [
        line("parameters", |p| p.parameters, TRAINING),
        line("MACs", |p| p.macs, VALIDATION),
        line("time of one image", |p| p.milliseconds, RGBColor(60, 140, 80)),
    ];
    let curves: Vec<Line> = curves.into_iter().filter(|l| !l.curve.is_empty()).collect();
    let least = curves.iter().flat_map(|l| &l.curve).map(|p| p.0).fold(100.0, f64::min);
    let mut chart = ChartBuilder::on(&root)
        .margin(16)
        .caption("Predicted error against size", ("sans-serif", 18))
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d((least - 3.0).max(0.0)..102f64, 0f64..top)?;
    let mesh = &mut chart.configure_mesh();
    mesh.disable_x_mesh()
        .light_line_style(WHITE)
        .x_desc("share of the ancestor (%)")
        .y_desc("predicted error")
        .draw()?;
    for Line { name, curve, colour } in curves {
        let style = colour.stroke_width(2);
        chart
            .draw_series(LineSeries::new(curve.iter().copied(), style))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
        chart.draw_series(curve.iter().map(|&p| Circle::new(p, 3, colour.filled())))?;
    }
    chart.configure_series_labels().border_style(BLACK.mix(0.2)).background_style(WHITE.mix(0.8)).draw()?;
    root.present()?;
    Ok(())
}

/// A named line of a plot.
#[derive(Clone, Debug)]
pub struct Series {
    /// What it is.
    pub name: String,
    /// Its points from left to right.
    pub points: Vec<(f64, f64)>,
}

/// Colours of lines, told apart by people who see few colours, too (Okabe and Ito 2008).
const LINES: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
    RGBColor(150, 140, 40),
];

/// Several lines over one axis, which may be logarithmic (base 2).
///
/// # Errors
/// [`ErrorKind::Internal`] where the plot cannot be drawn.
pub fn series_plot(title: &str, labels: [&str; 2], series: &[Series], log: bool) -> Result<String> {
    let mut svg = String::new();
    draw_series(title, labels, series, log, &mut svg)
        .map_err(|e| Error::new(ErrorKind::Internal, format!("the plot cannot be drawn: {e}")))?;
    Ok(svg)
}

fn draw_series(
    title: &str,
    [x, y]: [&str; 2],
    series: &[Series],
    log: bool,
    svg: &mut String,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let place = |(x, y): &(f64, f64)| (if log { x.log2() } else { *x }, *y);
    let lines: Vec<Vec<(f64, f64)>> = series
        .iter()
        .map(|s| s.points.iter().map(place).filter(|p| p.0.is_finite() && p.1.is_finite()).collect())
        .collect();
    let range = |of: fn(&(f64, f64)) -> f64| {
        let (low, high) =
            lines.iter().flatten().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
        let room = if high > low { 0.04 * (high - low) } else { 0.5 };
        low - room..high + room
    };
    // The names stand below the plot, two in a row.
    let height = 400 + 18 * (series.len().div_ceil(2) as u32 + 1);
    let root = SVGBackend::with_string(svg, (760, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(400);
    let mut chart = ChartBuilder::on(&upper)
        .margin(16)
        .caption(title, ("sans-serif", 17))
        .x_label_area_size(42)
        .y_label_area_size(60)
        .build_cartesian_2d(range(|p| p.0), range(|p| p.1))?;
    let number = |v: &f64| match log {
        true => format!("{}", v.exp2()),
        false if v.abs() >= 1e4 => format!("{:.0} k", v / 1e3),
        false => format!("{}", (v * 100.0).round() / 100.0),
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .x_desc(x)
        .y_desc(y)
        .x_label_formatter(&number)
        .draw()?;
    for (i, (s, line)) in series.iter().zip(&lines).enumerate() {
        let colour = LINES[i % LINES.len()];
        // Where there are more lines than colours, points tell them apart.
        let filled = (i / LINES.len()).is_multiple_of(2);
        let style = if filled { colour.filled() } else { colour.stroke_width(1) };
        chart.draw_series(LineSeries::new(line.iter().copied(), colour.stroke_width(2)))?;
        chart.draw_series(line.iter().map(|&p| Circle::new(p, 3, style)))?;
        let at = (60 + 340 * (i as i32 % 2), 12 + 18 * (i as i32 / 2));
        lower.draw(&PathElement::new([at, (at.0 + 18, at.1)], colour.stroke_width(2)))?;
        lower.draw(&Circle::new((at.0 + 9, at.1), 3, style))?;
        lower.draw(&Text::new(s.name.clone(), (at.0 + 26, at.1 - 6), ("sans-serif", 13)))?;
    }
    root.present()?;
    Ok(())
}

/// How a training run went.
#[derive(Clone, Debug, Default)]
pub struct Curve {
    /// Update and loss.
    pub losses: Vec<(u64, f64)>,
    /// Update and learning rate.
    pub rates: Vec<(u64, f64)>,
    /// Update, validation loss and the measure, where it is known.
    pub validations: Vec<(u64, f64, Option<f64>)>,
    /// What is measured beside the loss.
    pub measure: Measure,
}

/// What is measured beside the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Measure {
    /// The share of images that were recognised.
    #[default]
    Accuracy,
    /// Spearman's correlation of cosines with scores.
    Spearman,
}

impl Measure {
    /// What it is called, what it is multiplied by to be read, the least that is drawn below the least of it, and the
    /// least that it can be.
    fn scale(self) -> (&'static str, f64, f64, f64) {
        match self {
            Measure::Accuracy => ("Accuracy (%)", 100.0, 2.0, 0.0),
            Measure::Spearman => ("Spearman", 1.0, 0.02, -1.0),
        }
    }

    /// What it is called in a table, and a value as it stands there.
    pub(super) fn cell(self, value: Option<f64>) -> (&'static str, String) {
        let words = |of: &dyn Fn(f64) -> String| value.map_or("-".to_string(), of);
        match self {
            Measure::Accuracy => ("Accuracy", words(&|v| format!("{:.2} %", 100.0 * v))),
            Measure::Spearman => ("Spearman", words(&|v| format!("{v:.4}"))),
        }
    }
}

/// Loss against updates, in training (thin: every update, thick: smoothed) and in validation, and the measure below it.
///
/// # Errors
/// [`ErrorKind::Internal`] where the plot cannot be drawn.
pub fn training_plot(curve: &Curve) -> Result<String> {
    let mut svg = String::new();
    draw_training(curve, &mut svg)
        .map_err(|e| Error::new(ErrorKind::Internal, format!("the plot cannot be drawn: {e}")))?;
    Ok(svg)
}

const TRAINING: RGBColor = RGBColor(70, 110, 180);
const VALIDATION: RGBColor = RGBColor(210, 90, 40);

fn draw_training(curve: &Curve, svg: &mut String) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let finite = |v: &f64| v.is_finite();
    let (caption, factor, room_below, bottom) = curve.measure.scale();
    let measured: Vec<(f64, f64)> =
        curve.validations.iter().filter_map(|v| Some((v.0 as f64, factor * v.2?))).collect();
    let height = if measured.is_empty() { 360 } else { 620 };
    let root = SVGBackend::with_string(svg, (760, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let last = curve.losses.last().map_or(1, |l| l.0).max(1) as f64;
    let (upper, lower) = root.split_vertically(360);
    let losses = curve.losses.iter().map(|l| l.1).chain(curve.validations.iter().map(|v| v.1)).filter(finite);
    let (low, high) = losses.fold((f64::INFINITY, 0.0f64), |(a, b), v| (a.min(v), b.max(v)));
    let (low, high) = if low < high { (low, high) } else { (0.0, high.max(1.0)) };
    let room = 0.05 * (high - low);
    let mut chart = ChartBuilder::on(&upper)
        .margin(16)
        .caption("Loss", ("sans-serif", 18))
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d(0f64..last, low - room..high + room)?;
    chart.configure_mesh().disable_x_mesh().light_line_style(WHITE).x_desc("update").draw()?;
    let points = curve.losses.iter().map(|&(x, y)| (x as f64, y)).filter(|p| p.1.is_finite());
    chart.draw_series(LineSeries::new(points.clone(), TRAINING.mix(0.25)))?;
    let mut mean = f64::NAN;
    let smooth = points.map(|(x, y)| {
        mean = if mean.is_nan() { y } else { 0.95 * mean + 0.05 * y };
        (x, mean)
    });
    chart
        .draw_series(LineSeries::new(smooth.collect::<Vec<_>>(), TRAINING.stroke_width(2)))?
        .label("training")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], TRAINING.stroke_width(2)));
    if !curve.validations.is_empty() {
        let points = || curve.validations.iter().map(|v| (v.0 as f64, v.1)).filter(|p| p.1.is_finite());
        chart
            .draw_series(LineSeries::new(points(), VALIDATION.stroke_width(2)))?
            .label("validation")
            .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], VALIDATION.stroke_width(2)));
        chart.draw_series(points().map(|p| Circle::new(p, 3, VALIDATION.filled())))?;
    }
    chart.configure_series_labels().border_style(BLACK.mix(0.2)).background_style(WHITE.mix(0.8)).draw()?;
    if !measured.is_empty() {
        let least = measured.iter().map(|a| a.1).fold(factor, f64::min);
        let mut chart = ChartBuilder::on(&lower)
            .margin(16)
            .caption(caption, ("sans-serif", 18))
            .x_label_area_size(36)
            .y_label_area_size(56)
            .build_cartesian_2d(0f64..last, (least - room_below).max(bottom)..factor)?;
        chart.configure_mesh().disable_x_mesh().light_line_style(WHITE).x_desc("update").draw()?;
        chart.draw_series(LineSeries::new(measured.iter().copied(), VALIDATION.stroke_width(2)))?;
        chart.draw_series(measured.iter().map(|&p| Circle::new(p, 3, VALIDATION.filled())))?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_training_plot_has_a_point_for_every_validation() {
        let curve = super::Curve {
            losses: (1..50).map(|i| (i, 1.0 / i as f64)).collect(),
            rates: Vec::new(),
            validations: vec![(25, 0.2, Some(0.5)), (49, 0.1, Some(0.75))],
            ..super::Curve::default()
        };
        let svg = super::training_plot(&curve).unwrap();
        assert_eq!(svg.matches("<circle").count(), 4);
        assert!(svg.contains("Accuracy"));
        let svg = super::training_plot(&super::Curve { measure: super::Measure::Spearman, ..curve }).unwrap();
        assert!(svg.matches("<circle").count() == 4 && svg.contains("Spearman") && !svg.contains("Accuracy"));
        let empty = super::training_plot(&super::Curve::default()).unwrap();
        assert!(!empty.contains("Accuracy"));
    }

    #[test]
    fn a_frontier_has_a_dot_for_every_size_and_measure() {
        let point = |s: f64, ms: f64| super::Frontier { error: 1.0 - s, parameters: s, macs: s, milliseconds: ms };
        let svg = super::frontier_plot(&[point(1.0, 4.0), point(0.8, 3.0), point(0.5, 2.0)]).unwrap();
        assert_eq!(svg.matches("<circle").count(), 9);
        let untimed = super::frontier_plot(&[point(1.0, f64::NAN), point(0.5, f64::NAN)]).unwrap();
        assert_eq!(untimed.matches("<circle").count(), 4);
    }

    #[test]
    fn a_line_stands_for_every_series() {
        let series = |name: &str, points: &[(f64, f64)]| super::Series { name: name.into(), points: points.to_vec() };
        let lines = [series("a<b", &[(0.125, 10.0), (4.0, 20.0)]), series("c", &[(1.0, f64::NAN), (2.0, 5.0)])];
        let svg = super::series_plot("title", ["w", "accuracy"], &lines, true).unwrap();
        // Three points that are numbers, and a mark beside each name.
        assert_eq!(svg.matches("<circle").count(), 5);
        assert!(svg.contains("a&lt;b") && svg.contains("0.125"), "{svg}");
        assert!(super::series_plot("none", ["x", "y"], &[], false).is_ok());
    }

    #[test]
    fn pictures_of_what_is_kept_and_seen() {
        let svg = super::kept_plot(&[[Some((2, 6)), Some((100, 200))], [Some((6, 6)), None]]).unwrap();
        // The ground of both halves, and two bars for every block.
        assert!(svg.matches("<rect").count() >= 6, "{svg}");
        let map = crate::density::AttentionMap { patches: [2, 3], attention: vec![0.0, 0.5, 1.0, 0.25, 0.0, 0.0] };
        let picture = super::map_picture(&map);
        assert_eq!(picture.matches("<rect").count(), 6);
        assert!(picture.contains("#ffffff") && picture.contains("#808080") && picture.contains("#000000"));
    }

    #[test]
    fn a_dot_stands_for_every_head() {
        let svg = super::density_plot(&[vec![10.0, 20.0], vec![30.0, 5.0], vec![1.0, 1.0]], "pixels").unwrap();
        assert_eq!(svg.matches("<circle").count(), 6);
        assert!(svg.ends_with("</svg>\n") || svg.ends_with("</svg>"));
    }
}
