//! The part of Python's pickle format that tensors are written in, as data: nothing is ever called.
//!
//! A pickle is a program for a stack machine. Of its calls only the one that makes a tensor is
//! understood; any other leaves a value that nothing can be done with.

/// A value on the stack.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Text(String),
    /// Also lists.
    Tuple(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    /// Module and name of a class or function.
    Global(String),
    /// What a persistent id names: the numbers of tensors.
    Storage {
        kind: String,
        key: String,
    },
    Tensor(TensorRef),
    /// Whatever else it may be.
    Opaque,
    /// Beginning of a tuple, a list or items.
    Mark,
}

/// Where the numbers of a tensor are.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TensorRef {
    /// `FloatStorage`, `HalfStorage` and so on.
    pub(super) kind: String,
    /// Name of the entry below `data/`.
    pub(super) key: String,
    /// First number, counted from the start of the entry.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) stride: Vec<usize>,
}

/// Deepest and widest that a pickle of features may be; one of a model has some thousand values.
const MAX_VALUES: usize = 1 << 20;

/// The value that a pickle leaves.
///
/// # Errors
/// A sentence, for a pickle that is cut off or uses what tensors do not need.
pub(super) fn read(bytes: &[u8]) -> Result<Value, String> {
    let mut machine = Machine { bytes, stack: Vec::new(), memo: Vec::new() };
    loop {
        if machine.stack.len() + machine.memo.len() > MAX_VALUES {
            return Err("the pickle holds too many values".to_owned());
        }
        let [code] = machine.take::<1>()?;
        if code == b'.' {
            return machine.pop();
        }
        machine.step(code)?;
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    stack: Vec<Value>,
    memo: Vec<(u32, Value)>,
}

impl Machine<'_> {
    fn step(&mut self, code: u8) -> Result<(), String> {
        match code {
            // PROTO and FRAME
            0x80 => drop(self.take::<1>()?),
            0x95 => drop(self.take::<8>()?),
            b'(' => self.stack.push(Value::Mark),
            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            b'J' => {
                let value = i32::from_le_bytes(self.take()?);
                self.stack.push(Value::Int(value.into()));
            }
            b'K' => {
                let [value] = self.take::<1>()?;
                self.stack.push(Value::Int(value.into()));
            }
            b'M' => {
                let value = u16::from_le_bytes(self.take()?);
                self.stack.push(Value::Int(value.into()));
            }
            0x8a => {
                let [len] = self.take::<1>()?;
                let digits = self.slice(len.into())?;
                let mut value =
                    [if digits.last().is_some_and(|last| *last > 127) { 255 } else { 0 }; 8];
                let place = value.get_mut(..digits.len());
                place.ok_or("the pickle holds too large a number")?.copy_from_slice(digits);
                self.stack.push(Value::Int(i64::from_le_bytes(value)));
            }
            b'G' => {
                self.take::<8>()?;
                self.stack.push(Value::Opaque);
            }
            b'X' => {
                let len = u32::from_le_bytes(self.take()?);
                self.text(len as usize)?;
            }
            0x8c => {
                let [len] = self.take::<1>()?;
                self.text(len.into())?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.stack.push(Value::Global(format!("{module}.{name}")));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Text(module), Value::Text(name)) = (module, name) else {
                    return Err("the pickle names a class by something else than text".to_owned());
                };
                self.stack.push(Value::Global(format!("{module}.{name}")));
            }
            b')' | b']' => self.stack.push(Value::Tuple(Vec::new())),
            b'}' => self.stack.push(Value::Dict(Vec::new())),
            b't' | b'l' => {
                let items = self.pop_to_mark()?;
                self.stack.push(Value::Tuple(items));
            }
            0x85..=0x87 => {
                let count = usize::from(code) - 0x84;
                let start = self.stack.len().checked_sub(count).ok_or_else(underflow)?;
                let items = self.stack.split_off(start);
                self.stack.push(Value::Tuple(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set(items)?;
            }
            b'q' => {
                let [index] = self.take::<1>()?;
                self.remember(index.into())?;
            }
            b'r' => {
                let index = u32::from_le_bytes(self.take()?);
                self.remember(index)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,
            b'h' => {
                let [index] = self.take::<1>()?;
                self.recall(index.into())?;
            }
            b'j' => {
                let index = u32::from_le_bytes(self.take()?);
                self.recall(index)?;
            }
            b'Q' => {
                let id = self.pop()?;
                self.stack.push(storage(&id));
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.stack.push(call(&function, &arguments)?);
            }
            // BUILD: the state of an object that is not interpreted anyway.
            b'b' => drop(self.pop()?),
            other => return Err(format!("the pickle uses the operation 0x{other:02x}")),
        }
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (head, rest) = self.bytes.split_first_chunk::<N>().ok_or_else(cut_off)?;
        self.bytes = rest;
        Ok(*head)
    }

    fn slice(&mut self, len: usize) -> Result<&[u8], String> {
        let (head, rest) = self.bytes.split_at_checked(len).ok_or_else(cut_off)?;
        self.bytes = rest;
        Ok(head)
    }

    fn text(&mut self, len: usize) -> Result<(), String> {
        let text = String::from_utf8_lossy(self.slice(len)?).into_owned();
        self.stack.push(Value::Text(text));
        Ok(())
    }

    fn line(&mut self) -> Result<String, String> {
        let end = self.bytes.iter().position(|byte| *byte == b'\n').ok_or_else(cut_off)?;
        let line = String::from_utf8_lossy(&self.bytes[..end]).into_owned();
        self.bytes = &self.bytes[end + 1..];
        Ok(line)
    }

    fn pop(&mut self) -> Result<Value, String> {
        self.stack.pop().ok_or_else(underflow)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.stack.iter().rposition(|value| *value == Value::Mark);
        let items = self.stack.split_off(mark.ok_or_else(underflow)? + 1);
        self.stack.pop();
        Ok(items)
    }

    fn append(&mut self, items: Vec<Value>) -> Result<(), String> {
        if let Value::Tuple(list) = self.stack.last_mut().ok_or_else(underflow)? {
            list.extend(items);
        }
        Ok(())
    }

    fn set(&mut self, items: Vec<Value>) -> Result<(), String> {
        if let Value::Dict(dict) = self.stack.last_mut().ok_or_else(underflow)? {
            let mut items = items.into_iter();
            while let (Some(key), Some(value)) = (items.next(), items.next()) {
                dict.push((key, value));
            }
        }
        Ok(())
    }

    fn remember(&mut self, index: u32) -> Result<(), String> {
        // Only what is a leaf of a tensor is looked up again; copies of more could grow without end.
        let top = match self.stack.last().ok_or_else(underflow)? {
            value @ (Value::Text(_) | Value::Global(_) | Value::Storage { .. } | Value::Int(_)) => {
                value.clone()
            }
            Value::Tuple(items) if items.len() <= 8 && items.iter().all(is_leaf) => {
                Value::Tuple(items.clone())
            }
            _ => Value::Opaque,
        };
        self.memo.push((index, top));
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<(), String> {
        let known = self.memo.iter().rev().find(|(known, _)| *known == index);
        let (_, value) = known.ok_or("the pickle recalls a value that it never made")?;
        self.stack.push(value.clone());
        Ok(())
    }
}

fn is_leaf(value: &Value) -> bool {
    matches!(
        value,
        Value::None | Value::Bool(_) | Value::Int(_) | Value::Text(_) | Value::Global(_)
    )
}

fn cut_off() -> String {
    "the pickle is cut off".to_owned()
}

fn underflow() -> String {
    "the pickle takes more values than it makes".to_owned()
}

/// `('storage', torch.FloatStorage, '0', 'cpu', 12)`
fn storage(id: &Value) -> Value {
    match id {
        Value::Tuple(items) => match items.as_slice() {
            [Value::Text(word), Value::Global(kind), Value::Text(key), ..] if word == "storage" => {
                let kind = kind.rsplit('.').next().unwrap_or_default().to_owned();
                Value::Storage { kind, key: key.clone() }
            }
            _ => Value::Opaque,
        },
        _ => Value::Opaque,
    }
}

/// What a call makes, as far as it is understood.
fn call(function: &Value, arguments: &Value) -> Result<Value, String> {
    let (Value::Global(function), Value::Tuple(arguments)) = (function, arguments) else {
        return Ok(Value::Opaque);
    };
    match function.as_str() {
        "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor" => {
            let [Value::Storage { kind, key }, Value::Int(offset), shape, stride, ..] =
                arguments.as_slice()
            else {
                return Err("the pickle makes a tensor in an unknown way".to_owned());
            };
            let offset =
                usize::try_from(*offset).map_err(|_| "a tensor begins before its numbers")?;
            let (shape, stride) = (sizes(shape)?, sizes(stride)?);
            let (kind, key) = (kind.clone(), key.clone());
            Ok(Value::Tensor(TensorRef { kind, key, offset, shape, stride }))
        }
        "torch._utils._rebuild_parameter" => {
            Ok(arguments.first().cloned().unwrap_or(Value::Opaque))
        }
        "collections.OrderedDict" => Ok(Value::Dict(Vec::new())),
        _ => Ok(Value::Opaque),
    }
}

fn sizes(value: &Value) -> Result<Vec<usize>, String> {
    let Value::Tuple(items) = value else {
        return Err("a tensor has no shape".to_owned());
    };
    let size = |item: &Value| match item {
        Value::Int(size) => usize::try_from(*size).ok(),
        _ => None,
    };
    items.iter().map(size).collect::<Option<_>>().ok_or_else(|| "a tensor has no shape".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_other_than_that_of_a_tensor_leave_nothing() {
        // os.system('rm') in the oldest and in a newer protocol.
        assert_eq!(read(b"cos\nsystem\n(X\x02\0\0\0rmtR."), Ok(Value::Opaque));
        assert_eq!(
            read(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02rm\x85R."),
            Ok(Value::Opaque)
        );
    }

    #[test]
    fn defects_are_named() {
        for (bytes, reason) in [
            (&b"X\xff\0\0\0a"[..], "the pickle is cut off"),
            (b"", "the pickle is cut off"),
            (b"t.", "the pickle takes more values than it makes"),
            (b".", "the pickle takes more values than it makes"),
            (b"h\x07.", "the pickle recalls a value that it never made"),
            (b"i", "the pickle uses the operation 0x69"),
        ] {
            assert_eq!(read(bytes).unwrap_err(), reason);
        }
    }
}
