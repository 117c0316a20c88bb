//! Reports as one self-contained HTML page: no script, no file beside it.

use super::plot::{Curve, KeptLayer, kept_plot, map_picture, training_plot};
use crate::density::AttentionMap;
use crate::error::Result;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 \
    1rem;color:#222}\
    h1{font-size:1.6rem}table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .8rem;text-align:left;\
    border-bottom:1px solid \
    #ddd}td.number{text-align:right;font-variant-numeric:tabular-nums}svg{max-width:100%;height:auto}\
    .maps{display:flex;flex-wrap:wrap;gap:1.5rem}figure{margin:0}\
    figcaption{font-size:.85rem;color:#555}svg.map{border:1px solid #ccc}";

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
        .map(|(step, loss, found)| vec![step.to_string(), format!("{loss:.4}"), curve.measure.cell(*found).1])
        .collect();
    let (measure, _) = curve.measure.cell(None);
    let validations =
        if rows.is_empty() { String::new() } else { table(&["Updates", "Validation loss", measure], &rows) };
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

/// The report of a shrunk model: facts, a comparison with the ancestor, what every layer keeps, and attention maps side
/// by side.
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
        body += "<h2>Attention</h2>\n<p>Where the class token looks, or all patches where there is none, on one view \
            that no fit has seen: \
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

/// A table of a study's report, under its heading.
pub struct Section {
    /// The heading.
    pub heading: String,
    /// The header of the table.
    pub header: Vec<String>,
    /// Its rows.
    pub rows: Vec<Vec<String>>,
}

/// A picture of a report.
pub struct Picture {
    /// What is seen.
    pub caption: String,
    /// The bytes of a PNG file.
    pub png: Vec<u8>,
}

/// The report of a study: a note, tables, plots (SVG) and pictures.
pub fn study_page(
    title: &str,
    note: &str,
    sections: &[Section],
    plots: &[(String, String)],
    pictures: &[Picture],
) -> String {
    let paragraphs = note.split("\n\n").map(str::trim).filter(|p| !p.is_empty());
    let mut body: String = paragraphs.map(|p| format!("<p>{}</p>\n", escape(p))).collect();
    for section in sections {
        let header: Vec<&str> = section.header.iter().map(String::as_str).collect();
        body += &format!("<h2>{}</h2>\n{}", escape(&section.heading), table(&header, &section.rows));
    }
    if !plots.is_empty() {
        body += "<h2>Plots</h2>\n";
    }
    for (name, svg) in plots {
        body += &format!("<figure>{svg}<figcaption>{}</figcaption></figure>\n", escape(name));
    }
    if !pictures.is_empty() {
        body += "<h2>Attention</h2>\n<p>255 A, queries down and keys to the right, a square a head: the first layer of \
            the ancestor and of \
                 the descendant, then the last layer of both; on one validation image.</p>\n";
    }
    for picture in pictures {
        body += &format!(
            "<figure><img style=\"width:100%;image-rendering:pixelated\" alt=\"\" src=\"data:image/png;base64,{}\">\
             <figcaption>{}</figcaption></figure>\n",
            base64(&picture.png),
            escape(&picture.caption)
        );
    }
    page(title, &body)
}

/// Base64 (RFC 4648).
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let word = at(0) << 16 | at(1) << 8 | at(2);
        for i in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= chunk.len() { letter.into() } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_rfc() {
        let pairs =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")];
        for (plain, encoded) in pairs {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }

    #[test]
    fn names_cannot_break_the_page() {
        let curve = Curve { losses: vec![(1, 2.0)], validations: vec![(1, 1.5, None)], ..Curve::default() };
        let page = training_page("a<b", &[("Model", "<script>".into())], &curve).unwrap();
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;") && page.contains("<svg"));
        assert!(page.contains("1.5000"));
    }
}
