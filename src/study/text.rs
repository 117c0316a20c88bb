//! A value that a person may write as a number or as text.

use serde::{Deserialize, Serialize};

/// A value that may stand as a number, a text or a list: as the command line would have it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(from = "toml::Value", into = "String")]
pub struct Text(pub String);

impl From<toml::Value> for Text {
    fn from(value: toml::Value) -> Text {
        Text(match value {
            toml::Value::String(s) => s,
            toml::Value::Array(a) => {
                let parts: Vec<String> = a.iter().map(|v| v.to_string()).collect();
                // One comma tells a list of one from a number.
                if parts.len() == 1 { format!("{},", parts[0]) } else { parts.join(",") }
            }
            other => other.to_string(),
        })
    }
}

impl From<Text> for String {
    fn from(text: Text) -> String {
        text.0
    }
}
