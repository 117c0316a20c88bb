//! Plots as SVG.

use plotters::prelude::*;

use crate::error::{Error, ErrorKind, Result};

/// Density of every head against depth, as in figure 1c of the paper: one dot a head, sorted within a layer by colour.
///
/// # Errors
/// [`ErrorKind::Internal`] where the plot cannot be drawn.
pub fn density_plot(densities: &[Vec<f64>]) -> Result<String> {
    let mut svg = String::new();
    draw(densities, &mut svg).map_err(|e| Error::new(ErrorKind::Internal, format!("the plot cannot be drawn: {e}")))?;
    Ok(svg)
}

fn draw(densities: &[Vec<f64>], svg: &mut String) -> std::result::Result<(), Box<dyn std::error::Error>> {
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
        .y_desc("mean attention distance (pixels)")
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
    let means = densities.iter().enumerate().map(|(l, d)| (l as f64, d.iter().sum::<f64>() / d.len().max(1) as f64));
    chart.draw_series(LineSeries::new(means, BLACK.mix(0.5).stroke_width(1)))?;
    root.present()?;
    drop(chart);
    drop(root);
    Ok(())
}

/// How a training run went.
#[derive(Clone, Debug, Default)]
pub struct Curve {
    /// Update and loss.
    pub losses: Vec<(u64, f64)>,
    /// Update and learning rate.
    pub rates: Vec<(u64, f64)>,
    /// Update, validation loss and share of images that were recognised, where there are labels.
    pub validations: Vec<(u64, f64, Option<f64>)>,
}

/// Loss against updates, in training (thin: every update, thick: smoothed) and in validation, and accuracy below it.
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
    let accuracies: Vec<(f64, f64)> =
        curve.validations.iter().filter_map(|v| Some((v.0 as f64, 100.0 * v.2?))).collect();
    let height = if accuracies.is_empty() { 360 } else { 620 };
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
    if !accuracies.is_empty() {
        let least = accuracies.iter().map(|a| a.1).fold(100.0, f64::min);
        let mut chart = ChartBuilder::on(&lower)
            .margin(16)
            .caption("Accuracy (%)", ("sans-serif", 18))
            .x_label_area_size(36)
            .y_label_area_size(56)
            .build_cartesian_2d(0f64..last, (least - 2.0).max(0.0)..100f64)?;
        chart.configure_mesh().disable_x_mesh().light_line_style(WHITE).x_desc("update").draw()?;
        chart.draw_series(LineSeries::new(accuracies.iter().copied(), VALIDATION.stroke_width(2)))?;
        chart.draw_series(accuracies.iter().map(|&p| Circle::new(p, 3, VALIDATION.filled())))?;
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
        };
        let svg = super::training_plot(&curve).unwrap();
        assert_eq!(svg.matches("<circle").count(), 4);
        assert!(svg.contains("Accuracy"));
        let empty = super::training_plot(&super::Curve::default()).unwrap();
        assert!(!empty.contains("Accuracy"));
    }

    #[test]
    fn a_dot_stands_for_every_head() {
        let svg = super::density_plot(&[vec![10.0, 20.0], vec![30.0, 5.0], vec![1.0, 1.0]]).unwrap();
        assert_eq!(svg.matches("<circle").count(), 6);
        assert!(svg.ends_with("</svg>\n") || svg.ends_with("</svg>"));
    }
}
