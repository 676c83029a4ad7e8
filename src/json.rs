//! Strict JSON for model files: duplicate keys are refused, and every error names the file,
//! the field, what was found and what was expected.

use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::{Error, Result};
use crate::sys;

/// Configuration files are small; a larger one is an attack or a mistake.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// A parsed JSON file.
#[derive(Debug)]
pub(crate) struct Document {
    file: String,
    root: Value,
}

impl Document {
    /// Reads and parses `path`.
    ///
    /// # Errors
    /// `NotFound` and `Io` from the file system; `InvalidModel` for JSON that does not parse, that
    /// repeats a key, or that is larger than 64 MiB.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        Self::parse(path.display().to_string(), &read_bytes(path)?)
    }

    /// Parses `bytes`; `file` is the name that errors give.
    pub(crate) fn parse(file: String, bytes: &[u8]) -> Result<Self> {
        let strict: Strict = serde_json::from_slice(bytes)
            .map_err(|e| Error::model(&file, "contents", e, "valid JSON without repeated keys"))?;
        Ok(Self { file, root: strict.0 })
    }

    /// The whole document, which must be an object.
    pub(crate) fn root(&self) -> Result<Node<'_>> {
        let node = Node { file: &self.file, path: String::new(), value: &self.root };
        node.object()?;
        Ok(node)
    }
}

/// The bytes of a JSON file of at most 64 MiB.
pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let (file, length) = sys::file::open_regular(path)?;
    let mut bytes = Vec::new();
    if length <= MAX_JSON_BYTES {
        // A file that grows meanwhile is cut, and refused below.
        file.take(MAX_JSON_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io(path.display(), &e))?;
    }
    let length = length.max(bytes.len() as u64);
    if length > MAX_JSON_BYTES {
        return Err(Error::model(
            path.display(),
            "size",
            format!("{length} bytes"),
            format!("at most {MAX_JSON_BYTES} bytes"),
        ));
    }
    Ok(bytes)
}

/// A `Value` whose objects have no repeated keys.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = access.next_element()? {
            items.push(item);
        }
        Ok(items.into())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((key, Strict(value))) = access.next_entry::<String, Strict>()? {
            if map.contains_key(&key) {
                return Err(de::Error::custom(format!("key {key:?} occurs twice")));
            }
            map.insert(key, value);
        }
        Ok(map.into())
    }
}

/// A value inside a [`Document`] that knows where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Node<'a> {
    file: &'a str,
    path: String,
    value: &'a Value,
}

impl<'a> Node<'a> {
    /// An error at this place.
    pub(crate) fn invalid(&self, found: impl fmt::Display, expected: impl fmt::Display) -> Error {
        let path = if self.path.is_empty() { "contents" } else { &self.path };
        Error::model(self.file, path, found, expected)
    }

    /// As [`Node::invalid`], with this place's own value as what was found.
    pub(crate) fn unexpected(&self, expected: impl fmt::Display) -> Error {
        self.invalid(shown(self.value), expected)
    }

    pub(crate) fn value(&self) -> &'a Value {
        self.value
    }

    fn child(&self, key: &str, value: &'a Value) -> Self {
        let path =
            if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        Self { file: self.file, path, value }
    }

    pub(crate) fn object(&self) -> Result<&'a Map<String, Value>> {
        self.value.as_object().ok_or_else(|| self.unexpected("an object"))
    }

    /// The member `key`; `None` when it is absent. `null` counts as present.
    pub(crate) fn get(&self, key: &str) -> Result<Option<Node<'a>>> {
        Ok(self.object()?.get(key).map(|value| self.child(key, value)))
    }

    /// The member `key`; `None` when it is absent or `null`.
    pub(crate) fn get_non_null(&self, key: &str) -> Result<Option<Node<'a>>> {
        Ok(self.get(key)?.filter(|node| !node.value.is_null()))
    }

    /// The member `key`, which must be there.
    pub(crate) fn require(&self, key: &str) -> Result<Node<'a>> {
        self.get(key)?.ok_or_else(|| {
            self.child(key, &Value::Null).invalid("nothing", "the field to be present")
        })
    }

    pub(crate) fn members(&self) -> Result<Vec<(&'a str, Node<'a>)>> {
        Ok(self.object()?.iter().map(|(k, v)| (k.as_str(), self.child(k, v))).collect())
    }

    pub(crate) fn items(&self) -> Result<Vec<Node<'a>>> {
        let array = self.value.as_array().ok_or_else(|| self.unexpected("an array"))?;
        Ok(array
            .iter()
            .enumerate()
            .map(|(i, value)| Node { file: self.file, path: format!("{}[{i}]", self.path), value })
            .collect())
    }

    pub(crate) fn string(&self) -> Result<&'a str> {
        self.value.as_str().ok_or_else(|| self.unexpected("a string"))
    }

    pub(crate) fn boolean(&self) -> Result<bool> {
        self.value.as_bool().ok_or_else(|| self.unexpected("true or false"))
    }

    /// A whole number in `low..=high`.
    pub(crate) fn integer(&self, low: usize, high: usize) -> Result<usize> {
        self.value
            .as_u64()
            .and_then(|v| usize::try_from(v).ok())
            .filter(|v| (low..=high).contains(v))
            .ok_or_else(|| self.unexpected(format_args!("a whole number from {low} to {high}")))
    }

    /// A finite number in `low..=high`.
    pub(crate) fn number(&self, low: f64, high: f64) -> Result<f64> {
        self.value
            .as_f64()
            .filter(|v| v.is_finite() && (low..=high).contains(v))
            .ok_or_else(|| self.unexpected(format_args!("a number from {low} to {high}")))
    }
}

/// `value` as an error message shows it: short, whatever its size.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("an array of {} items", items.len()),
        Value::Object(map) => format!("an object of {} members", map.len()),
        Value::String(s) if s.chars().count() > 80 => {
            format!("{:?}...", s.chars().take(80).collect::<String>())
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Document> {
        Document::parse("c.json".into(), text.as_bytes())
    }

    #[test]
    fn repeated_keys_are_refused_at_any_depth() {
        for text in [r#"{"a":1,"a":2}"#, r#"{"x":[{"a":1,"b":0,"a":1}]}"#] {
            let error = parse(text).unwrap_err();
            let message = error.message();
            assert!(message.contains("c.json") && message.contains("\"a\" occurs twice"));
        }
        parse(r#"{"a":{"a":[{"a":null}]}}"#).unwrap();
    }

    #[test]
    fn errors_name_file_field_found_and_expected() {
        let document = parse(r#"{"a":{"b":[1,"x"]}}"#).unwrap();
        let items =
            document.root().unwrap().require("a").unwrap().require("b").unwrap().items().unwrap();
        assert_eq!(items[0].integer(0, 1).unwrap(), 1);
        assert_eq!(
            items[1].integer(0, 9).unwrap_err().message(),
            r#"c.json: a.b[1]: found "x", expected a whole number from 0 to 9"#
        );
        assert!(document.root().unwrap().require("z").is_err());
    }

    /// A threshold is compared with a score bit by bit.
    #[test]
    fn numbers_are_read_to_the_last_bit() {
        for number in [0.013648679479956629, 0.1, 0.35, 5e-324, f64::from(f32::MAX)] {
            let document = parse(&format!(r#"{{"a":{number:?}}}"#)).unwrap();
            let found = document.root().unwrap().require("a").unwrap().number(0.0, 1e39).unwrap();
            assert_eq!(found.to_bits(), number.to_bits(), "{number:?}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert!(parse(r#"{"a":1e400}"#).is_err());
        assert!(parse(r#"{"a":NaN}"#).is_err());
        let document = parse(r#"{"a":-1,"b":1.5,"c":18446744073709551615}"#).unwrap();
        let root = document.root().unwrap();
        for key in ["a", "b", "c"] {
            assert!(root.require(key).unwrap().integer(0, 1 << 30).is_err());
        }
    }
}
