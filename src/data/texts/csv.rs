//! Tables of text whose fields are set apart by a character, as RFC 4180 has them: a field may stand in double quotes,
//! where separators and breaks are text, and a quote is written twice.

/// The records of a table, without empty lines.
///
/// # Errors
/// What is wrong, with the line: a quote that is not closed, or text behind a closed one.
pub(super) fn records(text: &str, separator: char) -> Result<Vec<Vec<String>>, String> {
    let mut records = Vec::new();
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let line = |rest: &str| text[..text.len() - rest.len()].matches('\n').count() + 1;
    while !rest.is_empty() {
        if let Some(behind) = rest.strip_prefix("\r\n").or_else(|| rest.strip_prefix('\n')) {
            rest = behind;
            continue;
        }
        let mut record = Vec::new();
        loop {
            let (field, behind) = match rest.strip_prefix('"') {
                Some(inside) => {
                    quoted(inside).ok_or_else(|| format!("a quote in line {} is not closed", line(rest)))?
                }
                None => {
                    let end = rest.find([separator, '\n']).unwrap_or(rest.len());
                    let field = &rest[..end];
                    let ends_line = !rest[end..].starts_with(separator);
                    let field = if ends_line { field.strip_suffix('\r').unwrap_or(field) } else { field };
                    (field.to_owned(), &rest[end..])
                }
            };
            record.push(field);
            if let Some(behind) = behind.strip_prefix(separator) {
                rest = behind;
                continue;
            }
            let ended = behind.strip_prefix("\r\n").or_else(|| behind.strip_prefix('\n'));
            match ended.or(behind.is_empty().then_some("")) {
                Some(behind) => rest = behind,
                None => return Err(format!("in line {} there is text behind a closed quote", line(behind))),
            }
            break;
        }
        records.push(record);
    }
    Ok(records)
}

/// The field of which a quote was read, and what is behind its other quote.
fn quoted(text: &str) -> Option<(String, &str)> {
    let (mut field, mut rest) = (String::new(), text);
    loop {
        let end = rest.find('"')?;
        field.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(behind) => {
                field.push('"');
                rest = behind;
            }
            None => return Some((field, rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_may_hold_everything() {
        let read = records("\u{feff}a,b\r\n\"x, \"\"y\"\"\nz\",\r\n\n,\" \"\nlast,\"q\"", ',').unwrap();
        assert_eq!(read, [["a", "b"], ["x, \"y\"\nz", ""], ["", " "], ["last", "q"]]);
        // A quote within a field is one.
        assert_eq!(records("5\" pipe\tb\n", '\t').unwrap(), [["5\" pipe", "b"]]);
        assert_eq!(records("a\n\n\"\"\n", ',').unwrap(), [["a"], [""]]);
        assert!(records("", ',').unwrap().is_empty());
    }

    #[test]
    fn what_is_malformed_is_named_by_its_line() {
        assert_eq!(records("a\nb,\"c\nd", ',').unwrap_err(), "a quote in line 2 is not closed");
        assert_eq!(records("a\n\"b\"c\n", ',').unwrap_err(), "in line 2 there is text behind a closed quote");
    }
}
