"""Pickles put together by hand, and files of PyTorch's formats with them."""

import pickle
import struct
import zipfile
from typing import Any, NamedTuple


class Global(NamedTuple):
  """What `pickle` would import."""

  module: str
  name: str


class Call(NamedTuple):
  """What `pickle` would call, and then give attributes to."""

  function: Any
  arguments: Any
  state: Any = None


class Persistent(NamedTuple):
  """What stands for something outside the pickle."""

  reference: Any


class Raw(NamedTuple):
  """Instructions as they are."""

  code: bytes


MAGIC = 0x1950A86A20F9469CFC6C

FLOATS = Global("torch", "FloatStorage")
REBUILD = Global("torch._utils", "_rebuild_tensor_v2")


def storage(key="0", count=6, kind=FLOATS):
  return Persistent(("storage", kind, key, "cpu", count))


def tensor(key="0", count=6, start=0, shape=(2, 3), strides=(3, 1)):
  """Returns a tensor as `torch.save` has it, sound unless told otherwise."""
  return Call(REBUILD, (storage(key, count), start, shape, strides, False, {}))


def pickled(value) -> bytes:
  """Returns a pickle of protocol 2."""
  return pickle.PROTO + b"\x02" + _code(value) + pickle.STOP


def _code(value):
  match value:
    case Raw(code):
      return code
    case Global(module, name):
      return pickle.GLOBAL + f"{module}\n{name}\n".encode()
    case Call(function, arguments, state):
      code = _code(function) + _code(arguments) + pickle.REDUCE
      return code if state is None else code + _code(state) + pickle.BUILD
    case Persistent(reference):
      return _code(reference) + pickle.BINPERSID
    case tuple():
      return pickle.MARK + b"".join(map(_code, value)) + pickle.TUPLE
    case list():
      items = b"".join(map(_code, value))
      return pickle.EMPTY_LIST + pickle.MARK + items + pickle.APPENDS
    case dict():
      items = b"".join(_code(key) + _code(v) for key, v in value.items())
      return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
    case _:
      return pickle.dumps(value, 2)[2:-1]


def write_zip(path, content, storages=None, **members):
  """Writes a file as PyTorch does since 1.6.

  Args:
    path: Of the file.
    content: What to pickle.
    storages: Key -> bytes.
    members: Further names -> bytes.
  """
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", pickled(content))
    for key, data in (storages or {}).items():
      archive.writestr(f"archive/data/{key}", data)
    for name, data in members.items():
      archive.writestr(f"archive/{name}", data)


def write_old(path, content, storages=None, size=4):
  """Writes a file as PyTorch did before.

  Args:
    path: Of the file.
    content: What to pickle.
    storages: Key -> bytes.
    size: Of each number in them.
  """
  storages = storages or {}
  machine = {"protocol_version": 1001, "little_endian": True}
  parts = [MAGIC, 1001, machine, content, list(storages)]
  with open(path, "wb") as file:
    for part in parts:
      file.write(pickled(part))
    for data in storages.values():
      file.write(struct.pack("<q", len(data) // size) + data)
