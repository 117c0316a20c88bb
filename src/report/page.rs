//! Reports as one self-contained HTML page: no script, no file beside it.

use super::plot::{Curve, KeptLayer, kept_plot, map_picture, training_plot};
use crate::density::AttentionMap;
use crate::error::Result;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#222}\
    h1{font-size:1.6rem}table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .8rem;text-align:left;\
    border-bottom:1px solid #ddd}td.number{text-align:right;font-variant-numeric:tabular-nums}svg{max-width:100%;height:auto}\
    .maps{display:flex;flex-wrap:wrap;gap:1.5rem}figure{margin:0}figcaption{font-size:.85rem;color:#555}svg.map{border:1px solid #ccc}";

/// Text that stands in HTML as it is.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A page around a body.
fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n<style>{STYLE}</style>\n\
         </head>\n<body>\n<h1>{title}</h1>\n{body}</body>\n</html>\n"
    )
}

fn facts_table(facts: &[(&str, String)]) -> String {
    let rows: String =
        facts.iter().map(|(n, v)| format!("<tr><th>{}</th><td>{}</td></tr>\n", escape(n), escape(v))).collect();
    format!("<table>\n{rows}</table>\n")
}

fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let head: String = header.iter().map(|h| format!("<th>{}</th>", escape(h))).collect();
    let body: String = rows
        .iter()
        .map(|row| {
            let cells: String = row
                .iter()
                .map(|c| match c.starts_with(|f: char| f.is_ascii_digit() || f == '-') {
                    true => format!("<td class=\"number\">{}</td>", escape(c)),
                    false => format!("<td>{}</td>", escape(c)),
                })
                .collect();
            format!("<tr>{cells}</tr>\n")
        })
        .collect();
    format!("<table>\n<tr>{head}</tr>\n{body}</table>\n")
}

/// The report of a training run: facts, curves, and a table of validations.
///
/// # Errors
/// Those of [`training_plot`].
pub fn training_page(title: &str, facts: &[(&str, String)], curve: &Curve) -> Result<String> {
    Ok(page(title, &(facts_table(facts) + &curve_part(curve)?)))
}

fn curve_part(curve: &Curve) -> Result<String> {
    let rows: Vec<Vec<String>> = curve
        .validations
        .iter()
        .map(|(step, loss, top1)| {
            let top1 = top1.map_or("-".to_string(), |v| format!("{:.2} %", 100.0 * v));
            vec![step.to_string(), format!("{loss:.4}"), top1]
        })
        .collect();
    let validations =
        if rows.is_empty() { String::new() } else { table(&["Updates", "Validation loss", "Accuracy"], &rows) };
    Ok(training_plot(curve)? + &validations)
}

/// The report of a whole path: facts, a table of models, the densities of heads, and the curves of the tuning.
///
/// # Errors
/// Those of [`training_plot`].
pub fn run_page(
    title: &str,
    facts: &[(&str, String)],
    header: &[&str],
    models: &[Vec<String>],
    densities: Option<&str>,
    curve: Option<&Curve>,
) -> Result<String> {
    let mut body = facts_table(facts) + "<h2>Models</h2>\n" + &table(header, models);
    if let Some(svg) = densities {
        body += &format!("<h2>Heads of the ancestor</h2>\n{svg}\n");
    }
    if let Some(curve) = curve {
        body += &format!("<h2>Tuning</h2>\n{}", curve_part(curve)?);
    }
    Ok(page(title, &body))
}

/// An attention map of a layer in the ancestor and in the descendant.
pub struct Seen {
    /// What is seen: the layer.
    pub caption: String,
    /// The ancestor's map.
    pub ancestor: AttentionMap,
    /// The descendant's.
    pub descendant: AttentionMap,
}

/// The report of a shrunk model: facts, a comparison with the ancestor, what every layer keeps, and attention maps side by side.
///
/// # Errors
/// Those of [`kept_plot`].
pub fn shrink_page(
    title: &str,
    facts: &[(&str, String)],
    models: &[Vec<String>],
    layers: &[KeptLayer],
    features: &[Vec<String>],
    maps: &[Seen],
    frontier: Option<&str>,
) -> Result<String> {
    let mut body = facts_table(facts);
    body += &format!("<h2>Size and time</h2>\n{}", table(&["", "Ancestor", "Descendant", "Ratio"], models));
    body += &format!("<h2>Heads and FFN neurons that are kept</h2>\n{}\n", kept_plot(layers)?);
    body +=
        &format!("<h2>Features</h2>\n{}", table(&["Layer of the ancestor", "Correlation of what leaves it"], features));
    if !maps.is_empty() {
        body += "<h2>Attention</h2>\n<p>Where the class token looks, or all patches where there is none, on one view that no fit has seen: \
                 the ancestor on the left, the descendant on the right.</p>\n<div class=\"maps\">\n";
        for seen in maps {
            body += &format!(
                "<figure>{} {}<figcaption>{}</figcaption></figure>\n",
                map_picture(&seen.ancestor),
                map_picture(&seen.descendant),
                escape(&seen.caption)
            );
        }
        body += "</div>\n";
    }
    if let Some(svg) = frontier {
        body += &format!("<h2>Frontier</h2>\n{svg}\n");
    }
    Ok(page(title, &body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_the_page() {
        let curve = Curve { losses: vec![(1, 2.0)], validations: vec![(1, 1.5, None)], ..Curve::default() };
        let page = training_page("a<b", &[("Model", "<script>".into())], &curve).unwrap();
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;") && page.contains("<svg"));
        assert!(page.contains("1.5000"));
    }
}
