"""Reads what `torch.save` wrote, without PyTorch and executing nothing.

Two formats. Since PyTorch 1.6 a zip archive, with one pickle of everything but
the numbers, and a member for each storage of numbers. Before that the pickle
and the storages one behind another in a plain file. In both a tensor is a view
of a storage: an offset, a size and strides; several may share one.

Source: torch/serialization.py (`_legacy_load`, `_load`), torch/_utils.py
(`_rebuild_...`).
"""

import io
import math
import mmap
import os
import pathlib
import struct
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from odc_jax.interop import unpickle
from odc_jax.interop.unpickle import Inert, Name

# The number that the old format begins with, as pickles hold it.
_MAGIC = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."

_ZIP = b"PK\x03\x04"

# Raised by the parsers of archives, pickles and arrays for damaged files.
DAMAGES = (
  ValueError,
  TypeError,
  LookupError,
  ArithmeticError,
  MemoryError,
  EOFError,
  RuntimeError,  # an archive is encrypted, or of a kind that zipfile lacks
  struct.error,
  zipfile.BadZipFile,
)

# More than any checkpoint has; a dictionary may hold itself, or another often.
_MOST_NODES = 200_000
_LONGEST_NAME = 1_000

_MOST_AXES = 32  # of every NumPy

# PyTorch's name of a number's type -> NumPy's.
_DTYPES = {
  "float64": "f8",
  "float32": "f4",
  "float16": "f2",
  "bfloat16": "u2",  # which NumPy does not have: the upper half of a float32
  "int64": "i8",
  "int32": "i4",
  "int16": "i2",
  "int8": "i1",
  "uint64": "u8",
  "uint32": "u4",
  "uint16": "u2",
  "uint8": "u1",
  "bool": "u1",
  "complex64": "c8",
  "complex128": "c16",
}

# Those that NumPy does not have.
_FOREIGN_DTYPES = (
  *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
  *("float8_e8m0fnu", "float4_e2m1fn_x2", "complex32"),
  *("qint8", "quint8", "qint32", "quint4x2", "quint2x4"),
)

# The classes of storages, by what they hold.
_STORAGES = {
  "DoubleStorage": "float64",
  "FloatStorage": "float32",
  "HalfStorage": "float16",
  "BFloat16Storage": "bfloat16",
  "LongStorage": "int64",
  "IntStorage": "int32",
  "ShortStorage": "int16",
  "CharStorage": "int8",
  "ByteStorage": "uint8",
  "BoolStorage": "bool",
  "ComplexFloatStorage": "complex64",
  "ComplexDoubleStorage": "complex128",
  "UntypedStorage": "uint8",
}


class Storage(NamedTuple):
  """Numbers in a file, of which tensors are views.

  Attributes:
    key: Of the storage in the file.
    dtype: PyTorch's name of their type.
    count: How many the file's storage holds.
    start: The first of them that belongs to this storage.
  """

  key: str
  dtype: str
  count: int
  start: int


class Tensor(NamedTuple):
  """A view of a storage; start and strides in numbers."""

  storage: Storage
  dtype: str
  start: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class Unreadable(NamedTuple):
  """A tensor that NumPy has nothing for.

  Attributes:
    kind: Layout and type, such as "torch.sparse_coo, torch.float32".
  """

  kind: str


class UnreadableError(Exception):
  """A file holds tensors that NumPy has nothing for."""


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads all tensors in a file.

  Args:
    path: Of a file.

  Returns:
    Name -> array, read-only; names of the dictionaries around it stand before
    a tensor's own, with dots between. bfloat16 becomes float32.

  Raises:
    OSError: It cannot be read.
    unpickle.ForeignNameError: It holds other things than tensors.
    UnreadableError: It holds tensors of a kind that NumPy does not have.
    Exception: One of `DAMAGES`: it is none of these files, or damaged.
  """
  with path.open("rb") as file:
    size = os.fstat(file.fileno()).st_size
    is_zip = file.read(len(_ZIP)) == _ZIP
    if not is_zip and not size:
      raise ValueError("it is empty")
    if is_zip:
      with zipfile.ZipFile(file) as archive:
        return _arrays(*_read_zip(archive, size), size)
    # Arrays keep it open, and stay in the file until they are used.
    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return _arrays(*_read_stream(content), size)


def _read_zip(archive, size):
  """Returns the content of an archive, its storages and their order of bytes.

  Raises:
    ValueError: It is not PyTorch's; or claims to hold more than its `size`.
  """
  members = {info.filename: info for info in archive.infolist()}
  if sum(info.file_size for info in members.values()) > size or any(
    info.compress_type != zipfile.ZIP_STORED for info in members.values()
  ):
    raise ValueError("it is a compressed archive, which PyTorch does not write")
  roots = [
    name.removesuffix("/data.pkl")
    for name in members
    if name.endswith("/data.pkl") and name.count("/") == 1
  ]
  if len(roots) != 1:
    raise ValueError("it is an archive without a data.pkl")
  root = roots[0]
  order = "<"
  if f"{root}/byteorder" in members:
    order = {b"little": "<", b"big": ">"}[archive.read(f"{root}/byteorder")]
  content = unpickle.load(
    io.BytesIO(archive.read(f"{root}/data.pkl")), _NAMES, _storage
  )
  read: dict[str, Any] = {}

  def numbers(storage):
    if storage.key not in read:
      read[storage.key] = archive.read(f"{root}/data/{storage.key}")
    return read[storage.key]

  return content, numbers, order


def _read_stream(file):
  """Returns the same of a file in the old format."""
  if _MAGIC not in file[:32]:
    raise ValueError("it does not begin as one of PyTorch's")
  storages: dict[str, Storage] = {}

  def storage(reference):
    found = _storage(reference)
    storages.setdefault(found.key, found)
    return found

  unpickle.load(file, {}, _storage)  # the magic number
  unpickle.load(file, {}, _storage)  # the version of the format
  unpickle.load(file, {}, _storage)  # of the machine, which numbers are not of
  content = unpickle.load(file, _NAMES, storage)
  places = {}
  for key in unpickle.load(file, {}, _storage):
    count = int.from_bytes(file.read(8), "little")
    length = count * _item_size(storages[key].dtype)
    start = file.tell()
    if count != storages[key].count or start + length > len(file):
      raise ValueError("it is cut short")
    places[key] = memoryview(file)[start : start + length]
    file.seek(start + length)
  return content, lambda storage: places[storage.key], "<"


def _arrays(content, numbers, order, size):
  """Returns name -> array of everything in a file.

  Args:
    content: What its pickle holds.
    numbers: Storage -> its bytes.
    order: Of their bytes, "<" or ">".
    size: Of the file; no array is larger.
  """
  arrays, nodes, left = {}, 0, [("", content)]
  while left:
    name, node = left.pop()
    if isinstance(node, Unreadable):
      raise UnreadableError(f"{name} ({node.kind})")
    if isinstance(node, Tensor):
      arrays[name] = _array(node, numbers(node.storage), order, size)
    if isinstance(node, dict):
      # Backwards, since the last one in is the first one out.
      for key, child in reversed(node.items()):
        if isinstance(child, dict | Tensor | Unreadable):
          left.append((f"{name}.{key}" if name else str(key), child))
          nodes += 1
          if nodes > _MOST_NODES or len(left[-1][0]) > _LONGEST_NAME:
            raise ValueError("its dictionaries are too many or too deep")
  return arrays


def _array(tensor, numbers, order, size):
  """Returns a tensor as an array."""
  dtype = np.dtype(_DTYPES[tensor.dtype]).newbyteorder(order)
  storage = tensor.storage
  if len(numbers) != storage.count * _item_size(storage.dtype):
    raise ValueError("a storage is not of the size that it should be")
  # Strides of 0 make much out of little.
  if math.prod(tensor.shape) * dtype.itemsize > size:
    raise ValueError("a tensor is larger than the file")
  if 0 in tensor.shape:
    array = np.empty(tensor.shape, dtype)
  else:
    start = storage.start * _item_size(storage.dtype)
    # Refused by NumPy where it would reach beyond the numbers.
    array = np.ndarray(
      tensor.shape,
      dtype,
      numbers,
      start + tensor.start * dtype.itemsize,
      tuple(stride * dtype.itemsize for stride in tensor.strides),
    )
  if tensor.dtype == "bfloat16":
    return (array.astype(np.uint32) << 16).view(np.float32)
  if tensor.dtype == "bool":
    return array != 0
  return array.astype(dtype.newbyteorder("="), copy=False)


def _item_size(dtype):
  return np.dtype(_DTYPES[dtype]).itemsize


def _storage(reference):
  """Returns the storage that a pickle refers to."""
  match reference:
    case ("storage", Name(text), str(key), _, int(count), *view):
      dtype = _STORAGES[text.rpartition(".")[2].lstrip("_")]
    case _:
      raise ValueError("it refers to what is no storage")
  start = 0
  match view:
    case [] | [None]:
      pass
    case [(_, int(start), int(_))]:  # of another storage, in the oldest files
      pass
    case _:
      raise ValueError("it refers to what is no part of a storage")
  if count < 0 or start < 0:
    raise ValueError("a storage has a negative size")
  return Storage(key, dtype, count, start)


def _tensor(storage, start, shape, strides, *_, dtype=None):
  """Returns what `_rebuild_tensor` and `_rebuild_tensor_v2` make.

  Args:
    storage: A `Storage`.
    start: Offset in it, in numbers.
    shape: The tensor's.
    strides: The tensor's, in numbers.
    _: Whether it has gradients, and the like.
    dtype: Its type, if not the storage's.
  """
  if not isinstance(storage, Storage):
    raise TypeError("a tensor has no storage")
  shape, strides = _integers(shape), _integers(strides)
  (start,) = _integers((start,))
  if len(shape) != len(strides):
    raise ValueError("a tensor has other strides than dimensions")
  return Tensor(storage, dtype or storage.dtype, start, shape, strides)


def _tensor_of_type(storage, start, shape, strides, _, __, dtype, *___):
  """Returns what `_rebuild_tensor_v3` makes: as above, with a type."""
  if not isinstance(dtype, Name):
    raise TypeError("a tensor has no type")
  kind = dtype.text.removeprefix("torch.")
  if kind in _FOREIGN_DTYPES:
    return Unreadable(f"torch.strided, {dtype.text}")
  if kind not in _DTYPES:
    raise ValueError(f"a tensor is of type {dtype.text}")
  return _tensor(storage, start, shape, strides, dtype=kind)


def _sparse_tensor(layout, data):
  match layout, data:
    case Name("torch.sparse_coo" as kind), (_, Tensor() as values, *_):
      return Unreadable(f"{kind}, torch.{values.dtype}")
    case Name(kind), (_, _, Tensor() as values, *_):
      return Unreadable(f"{kind}, torch.{values.dtype}")
  raise TypeError("a sparse tensor has no values")


def _parameter(data, *_):
  if not isinstance(data, Tensor | Unreadable):
    raise TypeError("a parameter is no tensor")
  return data


def _of_subclass(rebuild, _, arguments, *__):
  """Returns what `_rebuild_from_type_v2` makes, as a plain tensor."""
  if not isinstance(rebuild, Name):
    raise TypeError("a tensor is made by what is no name")
  return _TENSORS[rebuild.text](*arguments)


def _integers(values):
  if not (
    isinstance(values, tuple | list)
    and len(values) <= _MOST_AXES
    and all(isinstance(value, int) and 0 <= value < 2**62 for value in values)
  ):
    raise TypeError("a size is no number")
  return tuple(values)


def _dict(items=()):
  """Returns an OrderedDict's content; Python 2 gave it pairs."""
  return {key: value for key, value in items if isinstance(key, str | int)}


def _inert(*_):
  return Inert()


def _text(text):
  return Name(str(text))


_TENSORS: dict[str, Callable[..., Any]] = {
  "torch._utils._rebuild_tensor": _tensor,
  "torch._utils._rebuild_tensor_v2": _tensor,
  "torch._utils._rebuild_tensor_v3": _tensor_of_type,
  "torch._utils._rebuild_sparse_tensor": _sparse_tensor,
  "torch._utils._rebuild_qtensor": lambda *_: Unreadable("torch.quantized"),
  "torch._utils._rebuild_parameter": _parameter,
  "torch._utils._rebuild_parameter_with_state": _parameter,
}

# Classes of objects that checkpoints hold beside tensors; none is kept.
_INERT = (
  "argparse.Namespace",
  "collections.Counter",
  "collections.deque",
  "datetime.date",
  "datetime.datetime",
  "datetime.timedelta",
  "pathlib.PosixPath",
  "pathlib.PurePosixPath",
  "pathlib.PureWindowsPath",
  "pathlib.WindowsPath",
  "types.SimpleNamespace",
  "_codecs.encode",  # which protocol 2 makes bytes with
  *(
    f"builtins.{name}"
    for name in (
      *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset"),
      *("int", "list", "object", "range", "set", "slice", "str", "tuple"),
    )
  ),
  "copyreg._reconstructor",
  "copy_reg._reconstructor",
  "numpy.ndarray",
  "numpy.dtype",
  *(
    f"numpy.{core}.multiarray.{name}"
    for core in ("core", "_core")
    for name in ("scalar", "_reconstruct")
  ),
  *(f"numpy.{name}" for name in ("float32", "float64", "int32", "int64")),
  "torch.device",
)

_NAMES: dict[str, Callable[..., Any] | None] = {
  **dict.fromkeys(_INERT, _inert),
  "collections.OrderedDict": _dict,
  "collections.defaultdict": lambda *_: {},
  **_TENSORS,
  "torch._tensor._rebuild_from_type_v2": _of_subclass,
  "torch.serialization._get_layout": _text,
  "torch.Size": lambda sizes=(): _integers(sizes),
  "torch.Tensor": None,
  "torch.nn.parameter.Parameter": None,
  **{f"torch.{name}": None for name in (*_DTYPES, *_FOREIGN_DTYPES)},
  **{f"torch.{name}": None for name in _STORAGES},
  **{f"torch.cuda.{name}": None for name in _STORAGES},
  "torch.storage.UntypedStorage": None,
  "torch.storage._UntypedStorage": None,
}
