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

#[cfg(test)]
mod tests {
    #[test]
    fn a_dot_stands_for_every_head() {
        let svg = super::density_plot(&[vec![10.0, 20.0], vec![30.0, 5.0], vec![1.0, 1.0]]).unwrap();
        assert_eq!(svg.matches("<circle").count(), 6);
        assert!(svg.ends_with("</svg>\n") || svg.ends_with("</svg>"));
    }
}
