//! The part of Python's pickle format that `torch.save` uses. Nothing is executed: a call stays a name with arguments.
//!
//! Every value has a place in one list and refers to others by theirs. So a hostile file costs memory in proportion to its
//! size, however deeply its values are nested and however often they are repeated. That is why candle-core's reader does not do:
//! it copies what is repeated, so that three hundred bytes (40 doublings) ask for terabytes, and its values nest in each other.

use crate::error::{Error, Result};
use std::collections::HashMap;

/// A value's place in [`Pickle::values`].
pub type Id = usize;

/// The largest pickle that is read, in bytes. Every instruction may cost fifty times its own size; a tensor takes some two
/// hundred bytes.
const LARGEST: usize = 64 << 20;

/// A pickled value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Something that tells nothing about tensors: None, a number with a fraction, bytes.
    Other,
    /// `True` or `False`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A string.
    Text(String),
    /// The name of a class or function: its module and its own, which are texts.
    Global(Id, Id),
    /// A tuple or a list.
    Sequence(Vec<Id>),
    /// A dictionary.
    Dict(Vec<(Id, Id)>),
    /// What a call would return: the callee and a tuple of arguments.
    Call(Id, Id),
    /// What is kept outside the pickle under this name.
    Stored(Id),
}

/// A pickle that has been read.
#[derive(Debug)]
pub struct Pickle {
    /// Every value.
    pub values: Vec<Value>,
    /// The one that was pickled.
    pub root: Id,
}

impl Pickle {
    /// Reads a pickle.
    ///
    /// # Errors
    /// It is cut short or damaged, larger than 64 MiB, or uses what `torch.save` does not.
    pub fn read(bytes: &[u8]) -> Result<Pickle> {
        if bytes.len() > LARGEST {
            return Err(Error::new(format!("its pickle has {} bytes, more than any of {LARGEST}", bytes.len())));
        }
        let mut reader =
            Reader { bytes, at: 0, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
        while !reader.step()? {}
        let root = reader.pop()?;
        Ok(Pickle { values: reader.values, root })
    }

    /// The value at a place.
    pub fn get(&self, id: Id) -> &Value {
        &self.values[id]
    }

    /// The elements of a tuple or list.
    pub fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Sequence(ids) => Some(ids),
            _ => None,
        }
    }

    /// A whole number that is not negative.
    pub fn size(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Value::Int(n) => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    /// A string.
    pub fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The name of a class or function.
    pub fn global(&self, id: Id) -> Option<(&str, &str)> {
        match self.get(id) {
            Value::Global(module, name) => Some((self.text(*module)?, self.text(*name)?)),
            _ => None,
        }
    }
}

/// The stack machine that pickles are programs of.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// How high the stack was at each mark.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl Reader<'_> {
    /// One instruction; whether it was the last.
    fn step(&mut self) -> Result<bool> {
        let start = self.at;
        match self.byte()? {
            0x80 => drop(self.byte()?),  // PROTO
            0x95 => drop(self.take(8)?), // FRAME
            b'.' => return Ok(true),
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.push(Value::Other),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'K' => self.int(1)?,
            b'M' => self.int(2)?,
            b'J' => {
                let n = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(n.into()));
            }
            0x8a => {
                let n = self.byte()?;
                self.long(n.into())?;
            }
            b'G' => {
                self.take(8)?;
                self.push(Value::Other);
            }
            b'X' => {
                let n = u32::from_le_bytes(self.array()?);
                self.string(n as usize)?;
            }
            0x8c => {
                let n = self.byte()?;
                self.string(n.into())?;
            }
            b'C' | b'U' => {
                let n = self.byte()?;
                self.take(n.into())?;
                self.push(Value::Other);
            }
            b'B' | b'T' => {
                let n = u32::from_le_bytes(self.array()?);
                self.take(n as usize)?;
                self.push(Value::Other);
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.values.extend([Value::Text(module), Value::Text(name)]);
                let texts = self.values.len() - 2;
                self.push(Value::Global(texts, texts + 1));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (&self.values[module], &self.values[name]) {
                    (Value::Text(_), Value::Text(_)) => self.push(Value::Global(module, name)),
                    _ => return Err(self.damaged(start, "a global without a name")),
                }
            }
            b')' | b']' => self.push(Value::Sequence(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b't' => {
                let ids = self.pop_to_mark()?;
                self.push(Value::Sequence(ids));
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(&items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set(&items)?;
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Stored(id));
            }
            b'R' | 0x81 => {
                let (arguments, callee) = (self.pop()?, self.pop()?);
                let ordered = match &self.values[callee] {
                    Value::Global(_, name) => self.values[*name] == Value::Text("OrderedDict".into()),
                    _ => false,
                };
                self.push(if ordered { Value::Dict(Vec::new()) } else { Value::Call(callee, arguments) });
            }
            // What is set on an object behind its contents: nothing that tensors need.
            b'b' => drop(self.pop()?),
            b'q' => {
                let key = self.byte()?;
                self.remember(key.into())?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.array()?);
                self.remember(key)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,
            b'h' => {
                let key = self.byte()?;
                self.recall(key.into())?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.array()?);
                self.recall(key)?;
            }
            other => {
                return Err(self.damaged(start, &format!("instruction 0x{other:02x}, which torch.save never writes")));
            }
        }
        Ok(false)
    }

    fn damaged(&self, at: usize, what: &str) -> Error {
        Error::new(format!("its pickle has {what}, at byte {at} of {}", self.bytes.len()))
    }

    fn take(&mut self, n: usize) -> Result<&[u8]> {
        if n > self.bytes.len() - self.at {
            return Err(self.damaged(self.at, &format!("fewer than {n} bytes left")));
        }
        self.at += n;
        Ok(&self.bytes[self.at - n..self.at])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn byte(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn line(&mut self) -> Result<String> {
        let rest = &self.bytes[self.at..];
        let Some(n) = rest.iter().position(|&b| b == b'\n') else {
            return Err(self.damaged(self.at, "a name without an end"));
        };
        let line = String::from_utf8_lossy(&rest[..n]).into_owned();
        self.at += n + 1;
        Ok(line)
    }

    fn string(&mut self, n: usize) -> Result<()> {
        let text = String::from_utf8_lossy(self.take(n)?).into_owned();
        self.push(Value::Text(text));
        Ok(())
    }

    /// A number without a sign, of `n` bytes.
    fn int(&mut self, n: usize) -> Result<()> {
        let n = self.take(n)?.iter().rev().fold(0, |sum, &byte| sum << 8 | i64::from(byte));
        self.push(Value::Int(n));
        Ok(())
    }

    /// A number with a sign, of `n` bytes.
    fn long(&mut self, n: usize) -> Result<()> {
        let start = self.at;
        let bytes = self.take(n)?;
        if n > 8 {
            return Err(self.damaged(start, &format!("a number of {n} bytes")));
        }
        let fill = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
        let mut whole = [fill; 8];
        whole[..n].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(whole)));
        Ok(())
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<Id> {
        // What lies below a mark belongs to it.
        if self.stack.len() <= self.marks.last().copied().unwrap_or(0) {
            return Err(self.damaged(self.at, "an empty stack"));
        }
        self.stack.pop().ok_or_else(|| self.damaged(self.at, "an empty stack"))
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(|| self.damaged(self.at, "no mark where one is needed"))?;
        Ok(self.stack.split_off(mark))
    }

    fn tuple(&mut self, n: usize) -> Result<()> {
        let mut ids = (0..n).map(|_| self.pop()).collect::<Result<Vec<Id>>>()?;
        ids.reverse();
        self.push(Value::Sequence(ids));
        Ok(())
    }

    fn top(&self) -> Result<Id> {
        self.stack.last().copied().ok_or_else(|| self.damaged(self.at, "an empty stack"))
    }

    fn append(&mut self, items: &[Id]) -> Result<()> {
        let id = self.top()?;
        match &mut self.values[id] {
            Value::Sequence(ids) => ids.extend(items),
            // An object that takes items in some way of its own.
            Value::Call(..) => {}
            _ => return Err(self.damaged(self.at, "items for what is no list")),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Result<()> {
        let id = self.top()?;
        match &mut self.values[id] {
            Value::Dict(pairs) if items.len().is_multiple_of(2) => {
                pairs.extend(items.chunks(2).map(|pair| (pair[0], pair[1])));
            }
            Value::Call(..) => {}
            _ => return Err(self.damaged(self.at, "items for what is no dictionary")),
        }
        Ok(())
    }

    fn remember(&mut self, key: u32) -> Result<()> {
        let id = self.top()?;
        self.memo.insert(key, id);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<()> {
        let Some(&id) = self.memo.get(&key) else {
            return Err(self.damaged(self.at, &format!("no value {key} to repeat")));
        };
        self.stack.push(id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_python_wrote_them() {
        // pickle.dumps({"a": (1, 300, -2, 2**40, -5), "b": [True, None, 1.5, "é"]}, protocol=2), with its memo left out.
        let bytes = [
            &b"\x80\x02}(X\x01\0\0\0a(K\x01M\x2c\x01J\xfe\xff\xff\xff\x8a\x06\0\0\0\0\0\x01\x8a\x01\xfbt"[..],
            b"X\x01\0\0\0b](\x88NG?\xf8\0\0\0\0\0\0X\x02\0\0\0\xc3\xa9eu.",
        ]
        .concat();
        let pickle = Pickle::read(&bytes).unwrap();
        let Value::Dict(pairs) = pickle.get(pickle.root) else { panic!("{pickle:?}") };
        assert_eq!(pairs.iter().map(|&(key, _)| pickle.text(key).unwrap()).collect::<Vec<_>>(), ["a", "b"]);
        let ids = |of: usize| pickle.sequence(pairs[of].1).unwrap().iter().map(|&id| pickle.get(id).clone());
        assert_eq!(ids(0).collect::<Vec<_>>(), [1, 300, -2, 1 << 40, -5].map(Value::Int));
        let text = Value::Text("é".into());
        assert_eq!(ids(1).collect::<Vec<_>>(), [Value::Bool(true), Value::Other, Value::Other, text]);
    }

    #[test]
    fn a_pickle_that_is_cut_or_damaged_is_an_error() {
        let whole = b"\x80\x02ccollections\nOrderedDict\nq\0)Rq\x01(X\x01\0\0\0aK\x07uh\0b.";
        assert!(Pickle::read(whole).is_ok());
        for length in 0..whole.len() {
            assert!(Pickle::read(&whole[..length]).is_err(), "{length}");
        }
        for (bytes, told) in [
            (&b"0."[..], "instruction 0x30"),
            (b".", "an empty stack"),
            (b"(.", "an empty stack"),
            (b"K\x01K\x02a.", "no list"),
            (b"K\x01K\x02K\x03s.", "no dictionary"),
            (b"h\x05.", "no value 5"),
            (b"X\xff\xff\xff\xffa.", "fewer than 4294967295 bytes"),
            (b"\x8a\x09\0\0\0\0\0\0\0\0\0.", "a number of 9 bytes"),
            (b"K\x01t.", "no mark"),
        ] {
            let message = Pickle::read(bytes).unwrap_err().to_string();
            assert!(message.contains(told), "{message}");
        }
    }

    #[test]
    fn repetition_and_nesting_cost_no_more_than_the_bytes_that_ask_for_them() {
        // A tuple of itself twice, 40 times over, would be 2^40 values if each were copied.
        let doubled: Vec<u8> = [&b"K\x01"[..], &b"q\0h\0h\0\x86".repeat(40), b"."].concat();
        let pickle = Pickle::read(&doubled).unwrap();
        assert_eq!(pickle.values.len(), 41);
        let nested: Vec<u8> = [&b")"[..], &b"\x85".repeat(1 << 20), b"."].concat();
        assert_eq!(Pickle::read(&nested).unwrap().values.len(), (1 << 20) + 1);
        // A long text that names a class a million times is one text.
        let name = [&b"X\0\0\x10\0"[..], &b"a".repeat(1 << 20), b"q\0"].concat();
        let classes: Vec<u8> = [&name[..], &b"h\0h\0\x93".repeat(1 << 20), b"."].concat();
        let pickle = Pickle::read(&classes).unwrap();
        assert_eq!(pickle.values.len(), (1 << 20) + 1);
        assert_eq!(pickle.global(pickle.root).map(|(module, _)| module.len()), Some(1 << 20));
        let large = Pickle::read(&vec![b')'; LARGEST + 1]).unwrap_err().to_string();
        assert!(large.contains("67108865 bytes"), "{large}");
    }
}
