//! How texts name options. The library knows no command line: where an error, a hint, a warning or a report names an
//! option, its name stands between `⟦` and `⟧`, as in "leave ⟦image-size⟧ out". Whoever shows the text says how an
//! option is written: [`named`] for those who call the library, `--image-size` on the command line, a key in a study.

use std::borrow::Cow;

/// The options that a text names.
pub fn options_in(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices('⟦').filter_map(|(at, mark)| option_at(&text[at + mark.len()..]))
}

/// The text with every option as `write` has it.
pub fn written(text: &str, write: impl Fn(&str) -> String) -> Cow<'_, str> {
    replaced(text, |_, option| write(option))
}

/// The text with every option as the library names it: `image_size`, in backticks but for those in a command that has
/// some already.
pub fn named(text: &str) -> Cow<'_, str> {
    replaced(text, |before, option| {
        let name = option.replace('-', "_");
        if before.matches('`').count() % 2 == 0 { format!("`{name}`") } else { name }
    })
}

fn replaced(text: &str, write: impl Fn(&str, &str) -> String) -> Cow<'_, str> {
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('⟦') {
        out += before;
        match option_at(after) {
            Some(option) => {
                out += &write(&out, option);
                rest = &after[option.len() + '⟧'.len_utf8()..];
            }
            None => {
                out.push('⟦');
                rest = after;
            }
        }
    }
    if out.is_empty() { Cow::Borrowed(text) } else { Cow::Owned(out + rest) }
}

/// The name up to a `⟧`. Anything else between such brackets comes from outside, and stays.
fn option_at(text: &str) -> Option<&str> {
    let (name, _) = text.split_once('⟧')?;
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(fits)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_written_as_its_reader_knows_it() {
        let text = "leave ⟦image-size⟧ out, or run `grow ⟦batch-axis⟧ open` without ⟦of⟧";
        assert_eq!(named(text), "leave `image_size` out, or run `grow batch_axis open` without `of`");
        let keys = "leave image-size= out, or run `grow batch-axis= open` without of=";
        assert_eq!(written(text, |option| format!("{option}=")), keys);
        assert_eq!(options_in(text).collect::<Vec<_>>(), ["image-size", "batch-axis", "of"]);
    }

    #[test]
    fn brackets_from_outside_stay() {
        for text in ["plain", "", "⟦", "⟧⟦", "⟦A⟧", "⟦⟧", "⟦ of⟧", "a ⟦of", "⟦-x⟧"] {
            assert_eq!(named(text), text);
        }
        assert_eq!(named("⟦⟦of⟧⟧"), "⟦`of`⟧");
    }
}
