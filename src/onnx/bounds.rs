//! How much memory the structure of a file takes, counted before any of it is decoded.
//!
//! An empty message takes two bytes in a file and hundreds in memory. Lengths are walked as they lie there, without
//! copying; weights are stepped over.

use std::mem::size_of;

use super::proto::{
    AttributeProto, FunctionProto, GraphProto, NodeProto, SparseTensorProto, TensorProto, TrainingInfoProto,
    ValueInfoProto,
};
use crate::error::{Error, ErrorKind, Result};

/// Bytes that decoded nodes, tensors, names and shapes may take: twenty times what the largest exports need.
const MAX_BYTES: usize = 1 << 30;

/// The messages of ONNX that hold others many times.
#[derive(Clone, Copy)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    Function,
    Training,
    Value,
    /// Types, shapes and placements: small messages in one another.
    Nested,
    Other,
}

impl Message {
    /// The message in a field; `None` for bytes and for numbers in one piece, whose memory is what they take in the
    /// file.
    fn field(self, tag: u64) -> Option<Message> {
        use Message::*;
        Some(match (self, tag) {
            (Model, 7) => Graph,
            (Model, 20) => Training,
            (Model, 25) => Function,
            (Training, 1 | 2) => Graph,
            (Graph, 1) | (Function, 7) => Node,
            (Graph, 5) | (Attribute, 5 | 10) | (Sparse, 1 | 2) => Tensor,
            (Graph, 11..=13) | (Function, 12) => Value,
            (Graph, 15) | (Attribute, 22 | 23) => Sparse,
            (Node, 5) | (Function, 11) => Attribute,
            (Attribute, 6 | 11) => Graph,
            (Attribute, 14 | 15) | (Value, 2) | (Node, 10) | (Model, 26) => Nested,
            (Nested, _) => Nested,
            (Tensor, 4 | 5 | 7 | 9 | 10 | 11) | (Attribute, 4) => return None,
            _ => Other,
        })
    }

    /// Bytes of one in memory, without what it holds.
    fn bytes(self) -> usize {
        match self {
            Message::Model | Message::Graph => size_of::<GraphProto>(),
            Message::Node => size_of::<NodeProto>(),
            Message::Attribute => size_of::<AttributeProto>(),
            Message::Tensor => size_of::<TensorProto>(),
            Message::Sparse => size_of::<SparseTensorProto>(),
            Message::Function => size_of::<FunctionProto>(),
            Message::Training => size_of::<TrainingInfoProto>(),
            Message::Value => size_of::<ValueInfoProto>(),
            Message::Nested => 96,
            Message::Other => 48,
        }
    }
}

/// Checks that an encoded model can be decoded in little memory.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a structure larger than any model has. What is damaged is left to the decoder, which
/// says where.
pub(super) fn check(bytes: &[u8]) -> Result<()> {
    let mut total = 0;
    count(bytes, Message::Model, 0, &mut total);
    if total > MAX_BYTES {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("its nodes, tensors, names and shapes would take more than {} MB of memory", MAX_BYTES >> 20),
        )
        .hint("no exporter writes such a file: it is damaged, or made to exhaust memory"));
    }
    Ok(())
}

/// The decoder ends at this depth, too.
const MAX_DEPTH: usize = 100;

fn count(mut bytes: &[u8], message: Message, depth: usize, total: &mut usize) {
    while !bytes.is_empty() && *total <= MAX_BYTES && depth < MAX_DEPTH {
        let Some(key) = varint(&mut bytes) else { return };
        let skipped = match key & 7 {
            0 => varint(&mut bytes).map(|_| 0),
            1 => Some(8),
            5 => Some(4),
            2 => {
                let Some(inner) = varint(&mut bytes).and_then(|n| bytes.get(..usize::try_from(n).ok()?)) else {
                    return;
                };
                match message.field(key >> 3) {
                    None => {}
                    // Strings are copied.
                    Some(Message::Other) => *total += Message::Other.bytes() + inner.len(),
                    Some(known) => {
                        *total += known.bytes();
                        count(inner, known, depth + 1, total);
                    }
                }
                Some(inner.len())
            }
            _ => None,
        };
        if key & 7 != 2 {
            *total += size_of::<u64>();
        }
        match skipped.and_then(|n| bytes.get(n..)) {
            Some(rest) => bytes = rest,
            None => return,
        }
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
