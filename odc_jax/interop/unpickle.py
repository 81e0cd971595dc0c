"""Reads pickles as data: nothing that they name is looked up or called.

A pickle is a program for a small stack machine, and `pickle.load` runs it with
the machine's functions being whatever the file names. The machine here has the
same instructions, decoded by `pickletools`, but knows no module: a name in the
file stays a name, and what it may stand for is a table of the caller's. So
there is nothing that a file could execute.

Memory and time are linear in the size of the file: no instruction allocates
more than the bytes that it comes with.
"""

import dataclasses
import io
import mmap
import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any, cast

# A checkpoint of a large network with its optimiser has 100,000.
_MOST_INSTRUCTIONS = 10_000_000

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}

# Opcodes of protocols 2 to 5; their values are decoded when they are read.
_LITERALS = frozenset(
  {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "LONG4",
    "BINFLOAT",
    "BINSTRING",
    "SHORT_BINSTRING",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
    "BYTEARRAY8",
  }
)


class ForeignNameError(Exception):
  """A pickle names something that is not in the caller's table.

  Attributes:
    name: Such as "os.system".
  """

  def __init__(self, name: str):
    """Keeps the name."""
    super().__init__(name)
    self.name = name


@dataclasses.dataclass(frozen=True)
class Name:
  """A function or a class that a file names, which is never looked up.

  Attributes:
    text: Module and name, such as "collections.OrderedDict".
  """

  text: str


class Inert:
  """A value of which nothing is kept but that it is there."""


def load(
  file: io.BytesIO | mmap.mmap,
  names: Mapping[str, Callable[..., Any] | None],
  persistent: Callable[[Any], Any],
) -> Any:
  """Reads one pickle.

  Args:
    file: Read from where it stands to the end of the pickle. No plain file,
      whose `read` makes room for all that it is asked for, there or not.
    names: What the file may name -> what makes a value of the arguments that
      the file calls it with; None if it may be named and not called.
    persistent: Makes a value of what stands for something outside the pickle.

  Returns:
    Numbers, text, bytes, None, `Name`, `Inert`, what `names` and `persistent`
    make, and tuples, lists and dicts of those. Attributes that the file gives
    to its objects are dropped; so is an item whose key is no text or integer.

  Raises:
    ForeignNameError: The file names what is not in `names`.
    ValueError: It is no pickle, cut short, or uses instructions that no pickle
      of protocols 2 to 5 has.
    LookupError: It refers to what it has not defined.
    TypeError: It calls what is in `names` with other arguments.
  """
  machine = _Machine(names, persistent)
  instructions = pickletools.genops(cast(IO[bytes], file))
  for count, (opcode, argument, _) in enumerate(instructions):
    if count == _MOST_INSTRUCTIONS:
      raise ValueError(f"the pickle has over {count:,} instructions")
    if opcode.name == "STOP":
      return machine.take(1)[0]
    machine.step(opcode.name, argument)
  raise ValueError("the pickle has no end")


class _Machine:
  """The stack machine of `pickle`."""

  def __init__(self, names, persistent):
    self.names = names
    self.persistent = persistent
    self.stack: list[Any] = []
    self.marks: list[int] = []  # heights of the stack
    self.memo: dict[int, Any] = {}

  def step(self, instruction: str, argument: Any) -> None:
    """Executes one instruction."""
    match instruction:
      case "PROTO" | "FRAME":
        pass
      case "NONE" | "NEWTRUE" | "NEWFALSE":
        self.stack.append(_CONSTANTS[instruction])
      case _ if instruction in _LITERALS:
        self.stack.append(argument)
      case "EMPTY_TUPLE":
        self.stack.append(())
      case "EMPTY_LIST":
        self.stack.append([])
      case "EMPTY_DICT":
        self.stack.append({})
      case "EMPTY_SET":
        self.stack.append(Inert())
      case "MARK":
        self.marks.append(len(self.stack))
      case "TUPLE":
        self.stack.append(tuple(self.take_marked()))
      case "TUPLE1" | "TUPLE2" | "TUPLE3":
        self.stack.append(tuple(self.take(int(instruction[-1]))))
      case "FROZENSET":
        self.take_marked()
        self.stack.append(Inert())
      case "APPEND":
        self.extend(self.take(1))
      case "APPENDS" | "ADDITEMS":
        self.extend(self.take_marked())
      case "SETITEM":
        self.set_items(self.take(2))
      case "SETITEMS":
        self.set_items(self.take_marked())
      case "POP":
        self.take(1)
      case "POP_MARK":
        self.take_marked()
      case "BINPUT" | "LONG_BINPUT":
        self.memo[argument] = self.stack[-1]
      case "MEMOIZE":
        self.memo[len(self.memo)] = self.stack[-1]
      case "BINGET" | "LONG_BINGET":
        self.stack.append(self.memo[argument])
      case "GLOBAL":  # decoded as "module name"
        self.stack.append(self.named(*argument.split(" ", 1)))
      case "STACK_GLOBAL":
        self.stack.append(self.named(*self.take(2)))
      case "REDUCE" | "NEWOBJ":
        self.stack.append(self.called(*self.take(2)))
      case "BUILD":
        self.take(1)
      case "BINPERSID":
        self.stack.append(self.persistent(*self.take(1)))
      case _:
        raise ValueError(f"the pickle has the instruction {instruction}")

  def take(self, count: int) -> list[Any]:
    """Takes values off the stack, none from below the last mark."""
    start = len(self.stack) - count
    if start < (self.marks[-1] if self.marks else 0):
      raise LookupError("the pickle takes what it has not put down")
    taken = self.stack[start:]
    del self.stack[start:]
    return taken

  def take_marked(self) -> list[Any]:
    """Takes everything since the last mark off the stack."""
    start = self.marks.pop()
    taken = self.stack[start:]
    del self.stack[start:]
    return taken

  def extend(self, values: list[Any]) -> None:
    """Appends to the list on top of the stack."""
    (target,) = self.take(1)
    self.stack.append(target)
    if isinstance(target, list):
      target.extend(values)
    elif not isinstance(target, Inert):
      raise ValueError("the pickle appends to what is no list")

  def set_items(self, items: list[Any]) -> None:
    """Sets key, value, key, value, ... of the dict on top of the stack."""
    (target,) = self.take(1)
    self.stack.append(target)
    if isinstance(target, dict):
      for key, value in zip(items[::2], items[1::2], strict=True):
        # Others would be hashed, which a tuple of a million levels survives
        # as little as the interpreter does.
        if isinstance(key, str | int):
          target[key] = value
    elif not isinstance(target, Inert):
      raise ValueError("the pickle sets items of what is no dict")

  def named(self, module: Any, name: Any) -> Name:
    """Returns a name, if the table has it."""
    if not (isinstance(module, str) and isinstance(name, str)):
      raise ValueError("the pickle names what is no text")
    # As Python 2 called it, and as protocol 2 does for its sake.
    module = "builtins" if module == "__builtin__" else module
    text = f"{module}.{name}"
    if text not in self.names:
      raise ForeignNameError(text)
    return Name(text)

  def called(self, name: Any, arguments: Any) -> Any:
    """Returns what the table makes of a call."""
    if not (isinstance(name, Name) and isinstance(arguments, tuple)):
      raise ValueError("the pickle calls what is no name")
    make = self.names[name.text]
    if make is None:
      raise ValueError(f"the pickle calls {name.text}")
    return make(*arguments)
