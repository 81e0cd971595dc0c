"""What `torch.save` wrote, read without PyTorch; and what only pretends."""

import pathlib
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odc_jax import UserError
from odc_jax.interop.read import read
from tests.interop.pickles import (
  FLOATS,
  REBUILD,
  Call,
  Global,
  Persistent,
  Raw,
  pickled,
  storage,
  tensor,
  write_old,
  write_zip,
)
from tests.interop.read_test import assert_read_or_refused

# Written by PyTorch 2.13, one content in both formats.
FILES = pathlib.Path(__file__).parent / "files"
FORMATS = ("zip.pth", "old.pth")

SIX = np.arange(6, dtype="<f4").tobytes()
WRITERS = {"zip": write_zip, "old": write_old}


@pytest.mark.parametrize("name", FORMATS)
def test_both_formats_hold_what_was_saved(name):
  found = read(FILES / name)
  whole = np.arange(24, dtype=np.float32)
  matrix = whole.reshape(4, 6)
  expected = {
    "state_dict.weight": np.float32([[-2.5, -1.5, -0.5], [0.5, 1.5, 2.5]]),
    "state_dict.bias": np.float32([0.5, -0.5]),
    # Five views of two storages.
    "views.whole": whole,
    "views.matrix": matrix,
    "views.transposed": matrix.T,
    "views.part": matrix[1:3, ::2],
    "views.expanded": np.full(5, 7, np.float32),
    "dtypes.half": np.float16([1, -0.5, 65504]),
    # 8 bits of 3e38, which float32 has exactly.
    "dtypes.bfloat16": np.float32([1, -0.5, 226 * 2.0**120]),
    "dtypes.double": np.float64([[0.1]]),
    "dtypes.long": np.int64(7),
    "dtypes.byte": np.uint8([0, 255]),
    "dtypes.bool": np.array([True, False]),
    "dtypes.complex": np.complex64([1 + 2j]),
    "dtypes.empty": np.zeros((0, 3), np.float32),
    "parameter": np.ones(2, np.float32),
  }
  assert list(found) == list(expected)
  for key, array in expected.items():
    np.testing.assert_array_equal(found[key], array, err_msg=key)
    assert found[key].dtype == array.dtype, key
    assert found[key].shape == array.shape, key


@pytest.mark.parametrize("writer", WRITERS)
def test_files_put_together_by_hand_are_read(writer, tmp_path):
  """The other tests change one thing in these."""
  path = tmp_path / "weights.pth"
  content = {
    "a": tensor(),
    "b": [tensor()],
    "c": {7: tensor(start=3, count=6, shape=(3,), strides=(1,))},
  }
  WRITERS[writer](path, content, {"0": SIX})
  found = read(path)
  # In lists there are no names.
  assert list(found) == ["a", "c.7"]
  np.testing.assert_array_equal(found["a"], [[0, 1, 2], [3, 4, 5]])
  np.testing.assert_array_equal(found["c.7"], [3, 4, 5])
  assert not found["a"].flags.writeable


def test_the_order_of_bytes_is_the_files(tmp_path):
  path = tmp_path / "weights.pth"
  big = np.arange(6, dtype=">f4").tobytes()
  write_zip(path, {"a": tensor()}, {"0": big}, byteorder=b"big")
  found = read(path)["a"]
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, [[0, 1, 2], [3, 4, 5]])


def test_storages_that_are_parts_of_others_are_found(tmp_path):
  """As PyTorch wrote them until 0.4: two numbers from the second on."""
  part = ("storage", Global("torch.cuda", "FloatStorage"), "0", "cuda:0", 6)
  view = Persistent((*part, ("1", 2, 2)))
  content = {"a": Call(REBUILD, (view, 1, (1,), (1,), False, {}))}
  write_old(tmp_path / "weights.pth", content, {"0": SIX})
  np.testing.assert_array_equal(read(tmp_path / "weights.pth")["a"], [3])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_has_its_instructions_read(protocol, tmp_path):
  """PyTorch takes any; these values have all that Python's pickler writes."""
  content = {
    "numbers": [0, 255, 65535, -1, 2**40, 2**70, 0.5, True, None],
    "texts": ["", "ä" * 300, b"ab", b"a" * 300, bytearray(b"abc")],
    "many": list(range(3000)),
    "sets": [{1, 2}, frozenset({3})],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "again": (shared := ["x"], shared),
  }
  with zipfile.ZipFile(tmp_path / "weights.pth", "w") as archive:
    archive.writestr("x/data.pkl", pickle.dumps(content, protocol))
  assert read(tmp_path / "weights.pth") == {}


# What is malicious, or looks so. Each would do something under `pickle.load`.

COMMANDS = {
  "os.system": lambda path: Call(Global("os", "system"), (f"touch {path}",)),
  "posix.system": lambda path: Call(
    Global("posix", "system"), (f"touch {path}",)
  ),
  "builtins.eval": lambda path: Call(
    Global("builtins", "eval"),
    (f"__import__('pathlib').Path({str(path)!r}).touch()",),
  ),
  "Python 2": lambda path: Call(
    Global("__builtin__", "eval"),
    (f"__import__('pathlib').Path({str(path)!r}).touch()",),
  ),
  "builtins.exec": lambda path: Call(
    Global("builtins", "exec"),
    (f"__import__('pathlib').Path({str(path)!r}).touch()",),
  ),
  "subprocess": lambda path: Call(
    Global("subprocess", "call"), (("touch", str(path)),)
  ),
  "getattr": lambda path: Call(
    Call(Global("builtins", "getattr"), (Global("os", "path"), "os")), ()
  ),
  "dotted": lambda path: Call(
    Raw(
      pickle.PROTO
      + b"\x04"
      + b"".join(
        pickle.SHORT_BINUNICODE + bytes([len(t)]) + t
        for t in (b"pathlib", b"Path.touch")
      )
      + pickle.STACK_GLOBAL
    ),
    (Call(Global("pathlib", "PosixPath"), (str(path),)),),
  ),
  "torch.load": lambda path: Call(
    Global("torch.storage", "_load_from_bytes"), (b"",)
  ),
  "partial": lambda path: Call(
    Global("functools", "partial"), (Global("os", "system"), f"touch {path}")
  ),
}

# Where in a file it may stand.
PLACES = {
  "alone": lambda evil: evil,
  "value": lambda evil: {"a": tensor(), "b": evil},
  "key": lambda evil: {"a": tensor(), evil: 1},
  "deep": lambda evil: {"a": {"b": [(1, {"c": evil})]}},
  "argument": lambda evil: {
    "a": Call(Global("torch._utils", "_rebuild_parameter"), (evil, False, {}))
  },
  "storage": lambda evil: {
    "a": Call(REBUILD, (evil, 0, (2, 3), (3, 1), False, {}))
  },
  "reference": lambda evil: {
    "a": Call(REBUILD, (Persistent(evil), 0, (6,), (1,), False, {}))
  },
  "attributes": lambda evil: {
    "a": tensor(),
    "b": Call(Global("collections", "OrderedDict"), (), {"_metadata": evil}),
  },
  "namespace": lambda evil: {
    "a": tensor(),
    "args": Call(Global("argparse", "Namespace"), (), {"lr": evil}),
  },
  "kept": lambda evil: Raw(
    pickle.PROTO + b"\x02" + pickled(evil)[2:-1] + pickle.POP + pickle.NONE
  ),
}


def test_the_commands_would_work(tmp_path):
  """Under `pickle.load`; else the tests below would show nothing."""
  for name in ("os.system", "builtins.eval", "subprocess", "dotted"):
    path = tmp_path / name
    pickle.loads(pickled(COMMANDS[name](path)))
    assert path.exists(), name


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_in_a_file_is_executed(command, place, tmp_path):
  made = tmp_path / "made"
  content = PLACES[place](COMMANDS[command](made))
  for format, write in WRITERS.items():
    path = tmp_path / f"{format}.pth"
    write(path, content, {"0": SIX})
    said = refused(path)
    assert "holds more than arrays (" in said
    assert "nothing in it was executed" in said
    assert not made.exists()


# Python itself tells of every import, compilation, process and connection.
LISTEN = """
import sys
from odc_jax import UserError
from odc_jax.interop.read import read

b"a".decode("cp437")  # which archives name their members in, since MS-DOS
events, listening = [], False
sys.addaudithook(lambda event, _: listening and events.append(event))
for path in sys.argv[1:]:
  listening = True
  try:
    read(path)
  except UserError as error:
    said = error
  listening = False
print(*sorted(set(events)), said, sep="\\n")
"""


def test_reading_imports_and_compiles_nothing(environment, tmp_path):
  """In a process of its own, where nothing checks the shapes of arrays."""
  evil = tmp_path / "evil.pth"
  write_zip(evil, {"a": tensor(), "b": COMMANDS["os.system"](tmp_path)})
  done = subprocess.run(
    [sys.executable, "-c", LISTEN, *(FILES / f for f in FORMATS), evil],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  *events, said = done.stdout.splitlines()
  assert events == ["mmap.__new__", "open"]
  assert "holds more than arrays (os.system)" in said


def refused(path):
  with pytest.raises(UserError) as caught:
    read(path)
  said = str(caught.value)
  assert said.isprintable()
  assert said.startswith(str(path))
  return said


def call(name, *arguments):
  return Call(Global("torch._utils", name), arguments)


# Names that may stand in a file, with what they are never called with.
WRONG_CALLS = {
  "no arguments": call("_rebuild_tensor_v2"),
  "too few": call("_rebuild_tensor_v2", storage(), 0),
  "no storage": call("_rebuild_tensor_v2", "0", 0, (6,), (1,), False, {}),
  "a text for a size": call("_rebuild_tensor_v2", storage(), 0, "6", "1"),
  "texts for sizes": call("_rebuild_tensor_v2", storage(), 0, ("6",), ("1",)),
  "a negative size": tensor(shape=(-6,), strides=(1,)),
  "a negative stride": tensor(shape=(6,), strides=(-1,)),
  "a negative offset": tensor(start=-1),
  "fewer strides": tensor(shape=(2, 3), strides=(1,)),
  "no type": call(
    "_rebuild_tensor_v3", storage(), 0, (6,), (1,), False, {}, "float32"
  ),
  "a type that is none": call(
    "_rebuild_tensor_v3",
    *(storage(), 0, (6,), (1,), False, {}, Global("torch", "FloatStorage")),
  ),
  "a parameter of a text": call("_rebuild_parameter", "weights", False, {}),
  "a sparse tensor of texts": call("_rebuild_sparse_tensor", "a", "b"),
  "of a subclass of a text": Call(
    Global("torch._tensor", "_rebuild_from_type_v2"), ("f", "t", (), {})
  ),
  "of a subclass of a dict": Call(
    Global("torch._tensor", "_rebuild_from_type_v2"),
    (Global("collections", "OrderedDict"), "t", (), {}),
  ),
  "a type that is called": Call(Global("torch", "float32"), ()),
  "a storage that is called": Call(Global("torch", "FloatStorage"), (6,)),
  "a text that is called": Call("os.system", ("ls",)),
  "arguments that are none": Call(REBUILD, {"a": 1}),
  "pairs that are none": Call(Global("collections", "OrderedDict"), ([1, 2],)),
  "a reference to a text": Persistent("0"),
  "a reference to no storage": Persistent(("module", 1, 2)),
  "a storage of texts": storage(kind=Global("torch", "float32")),
  "a storage of a negative size": tensor(count=-6),
  "a storage that is not there": tensor(key="1"),
  "an item of a tuple": Raw(
    pickle.EMPTY_TUPLE + pickle.NONE + pickle.NONE + pickle.SETITEM
  ),
  "an element of a dict": Raw(pickle.EMPTY_DICT + pickle.NONE + pickle.APPEND),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", WRONG_CALLS)
def test_names_with_wrong_arguments_are_refused(name, writer, tmp_path):
  path = tmp_path / "weights.pth"
  WRITERS[writer](path, {"a": WRONG_CALLS[name]}, {"0": SIX})
  assert "is no file that torch.save wrote, or a damaged one" in refused(path)


HUGE = 2**62

LARGE = {
  "a shape": tensor(shape=(HUGE, HUGE), strides=(0, 0)),
  "a shape that wraps around": tensor(shape=(2**32, 2**32), strides=(0, 0)),
  "strides of 0": tensor(shape=(10**9,), strides=(0,)),
  "a stride": tensor(shape=(2,), strides=(HUGE - 1,)),
  "an offset": tensor(start=HUGE - 1),
  "an offset beyond integers": tensor(start=2**200),
  "a number of numbers": tensor(count=HUGE),
  "a little too much": tensor(start=1),
  "many axes": tensor(shape=(1,) * 1_000, strides=(1,) * 1_000),
  # 2 GB, 16 EB.
  "a place in the memory": Raw(
    pickle.NONE + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f"
  ),
  "bytes": Raw(pickle.BINBYTES8 + struct.pack("<Q", HUGE)),
  "a text": Raw(pickle.BINUNICODE8 + struct.pack("<Q", HUGE)),
  "an integer": Raw(pickle.LONG4 + struct.pack("<i", 2**31 - 1)),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", sorted({*LARGE} - {"a place in the memory"}))
def test_what_claims_to_be_huge_is_refused(name, writer, tmp_path):
  path = tmp_path / "weights.pth"
  WRITERS[writer](path, {"a": LARGE[name]}, {"0": SIX})
  assert "is no file that torch.save wrote, or a damaged one" in refused(path)


def test_places_in_memory_cost_what_they_hold(tmp_path):
  """`pickle` would make room for all before it, 32 GB."""
  path = tmp_path / "weights.pth"
  write_zip(path, {"a": LARGE["a place in the memory"]})
  assert read(path) == {}


def nested(levels):
  """Returns tuples in each other, and a dict that has them for a key."""
  inner = pickle.EMPTY_TUPLE + pickle.TUPLE1 * levels
  return Raw(pickle.EMPTY_DICT + inner + pickle.NONE + pickle.SETITEM)


def itself():
  """Returns a dict that holds itself."""
  code = pickle.EMPTY_DICT + pickle.BINPUT + b"\x00"
  key = pickle.BINUNICODE + struct.pack("<I", 1) + b"a"
  return Raw(code + key + pickle.BINGET + b"\x00" + pickle.SETITEM)


def doubling(levels):
  """Returns a dict of two dicts, which are one, of two dicts, ..."""
  code = pickle.EMPTY_DICT
  for level in range(levels):
    put, get = (op + bytes([level]) for op in (pickle.BINPUT, pickle.BINGET))
    keys = [pickle.BINUNICODE + struct.pack("<I", 1) + k for k in (b"a", b"b")]
    code += put + pickle.POP + pickle.EMPTY_DICT
    for key in keys:
      code += key + get + pickle.SETITEM
  return Raw(code)


def test_nesting_does_not_end_the_program(environment, tmp_path):
  """The hash of such a tuple does: it overflows the interpreter's stack."""
  path = tmp_path / "weights.pth"
  write_zip(path, {"a": nested(300_000), "b": tensor()}, {"0": SIX})
  code = "import sys; from odc_jax.interop.read import read; "
  done = subprocess.run(
    [sys.executable, "-c", code + "print(*read(sys.argv[1]))", path],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.split() == ["b"]


def test_dictionaries_in_themselves_end(tmp_path):
  path = tmp_path / "weights.pth"
  for content in (itself(), doubling(100)):
    write_zip(path, {"a": content})
    assert "too many or too deep" in refused(path)


def test_instructions_that_no_pickler_writes_are_refused(tmp_path):
  path = tmp_path / "weights.pth"
  for code, words in (
    (pickle.MARK + pickle.INST + b"os\nsystem\n", "INST"),
    (pickle.MARK + pickle.NONE + pickle.OBJ, "OBJ"),
    (pickle.EXT1 + b"\x01", "EXT1"),
    (pickle.PERSID + b"0\n", "PERSID"),
    (pickle.NEXT_BUFFER, "NEXT_BUFFER"),
    (b"\xff", "unknown"),
    (pickle.POP * 9, "takes what it has not put down"),
    (pickle.TUPLE, "pop from empty list"),
    (pickle.BINGET + b"\x63", "99"),
  ):
    write_zip(path, Raw(code))
    assert words in refused(path)


def test_archives_that_are_none_of_pytorchs_are_refused(tmp_path):
  path = tmp_path / "weights.pth"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("a.npy", b"")
  assert "an archive without a data.pkl" in refused(path)
  # A bomb: a gigabyte of zeros in a megabyte would be 16 of these.
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("archive/data.pkl", pickled({"a": tensor(count=2**24)}))
    archive.writestr("archive/data/0", bytes(2**26))
  assert "a compressed archive" in refused(path)
  write_zip(path, {"a": tensor()}, {"0": SIX})
  damaged = bytearray(path.read_bytes())
  damaged[damaged.index(SIX) + 5] ^= 1
  path.write_bytes(damaged)
  assert "Bad CRC-32" in refused(path)


def test_files_that_are_something_else_are_refused(tmp_path):
  path = tmp_path / "weights.pth"
  for content, words in (
    (b"", "it is empty"),
    (b"no weights at all", "it does not begin as one of PyTorch's"),
    (pickle.dumps({"a": np.ones(3)}), "it does not begin as one of PyTorch's"),
    ((FILES / "old.pth").read_bytes()[:2600], "it is cut short"),
    ((FILES / "old.pth").read_bytes()[:1200], "pickle"),
    ((FILES / "zip.pth").read_bytes()[:5000], "not a zip file"),
  ):
    path.write_bytes(content)
    assert words in refused(path)


def test_sparse_tensors_and_small_floats_are_named(tmp_path):
  path = tmp_path / "weights.pth"
  layout = Call(
    Global("torch.serialization", "_get_layout"), ("torch.sparse_coo",)
  )
  for content, words in (
    (
      call(
        "_rebuild_sparse_tensor", layout, (tensor(), tensor(), (2, 3), True)
      ),
      "w.a (torch.sparse_coo, torch.float32)",
    ),
    (
      call(
        "_rebuild_tensor_v3",
        *(storage(), 0, (6,), (1,), False, {}),
        Global("torch", "float8_e4m3fn"),
      ),
      "w.a (torch.strided, torch.float8_e4m3fn)",
    ),
    (call("_rebuild_qtensor", storage()), "w.a (torch.quantized)"),
  ):
    write_zip(path, {"w": {"a": content}}, {"0": SIX})
    assert refused(path).startswith(
      f"{path}: {words} is nothing that NumPy has; save it dense, as float32"
    )


@pytest.mark.parametrize("text", ["a\nb", "a\x1b[2Jb", "a\u2028b", "a\ud800b"])
def test_no_text_in_a_file_can_break_a_message(text, tmp_path):
  """Which is one line, and tells a terminal nothing."""
  path = tmp_path / "weights.pth"
  write_zip(path, {text: tensor()}, {"0": SIX})
  assert "no layer is called" in refused(path)
  name = b"".join(
    pickle.BINUNICODE + struct.pack("<I", len(part)) + part
    for part in (b"os", text.encode("utf8", "surrogatepass"))
  )
  write_zip(path, Raw(name + pickle.STACK_GLOBAL))
  assert "holds more than arrays (" in refused(path)
  write_zip(path, {"a" * 2000: tensor()}, {"0": SIX})
  assert len(refused(path)) < 500 + len(str(path))


@pytest.fixture(scope="module")
def originals():
  return {name: (FILES / name).read_bytes() for name in FORMATS}


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(data=st.data())
def test_damaged_files_are_read_or_refused(
  name, data, originals, tmp_path_factory
):
  """Cut short, or with a few bytes changed: a UserError, or some arrays."""
  content = bytearray(originals[name])
  length = data.draw(st.integers(0, len(content)), "length")
  changes = data.draw(
    st.lists(
      st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)),
      max_size=4,
    ),
    "changes",
  )
  for place, value in changes:
    content[place] = value
  if data.draw(st.booleans(), "cut"):
    del content[length:]
  path = tmp_path_factory.getbasetemp() / f"damaged_{name}"
  path.write_bytes(content)
  try:
    found = list(read(path).values())
  except UserError as error:
    found = str(error)
  if isinstance(found, str):
    assert "\n" not in found
  else:
    assert all(isinstance(array, np.ndarray) for array in found)


WHOLE = st.one_of(
  st.integers(-2, 8), st.sampled_from([2**31, 2**62, 2**70, None, "1", 0.5])
)
TUPLES = st.one_of(st.lists(WHOLE, max_size=3).map(tuple), WHOLE)
KINDS = st.sampled_from(
  [
    Global("torch", f"{name}Storage")
    for name in ("Float", "Half", "BFloat16", "Bool", "Untyped", "QInt8", "")
  ]
  + [Global("torch.storage", "UntypedStorage"), Global("os", "system"), 7]
)
KEYS = st.sampled_from(["0", "1", 0, None, "../0", "", "0/", "\x00"])


@pytest.mark.parametrize("writer", WRITERS)
@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(data=st.data())
def test_odd_storages_are_read_or_refused(writer, data, tmp_path_factory):
  """Of a sound tensor one part or several are something else."""

  def either(sound, odd, what):
    odds = st.integers(0, 3).flatmap(
      lambda n: odd if n == 0 else st.just(sound)
    )
    return data.draw(odds, what)

  stored = Persistent(
    (
      either("storage", st.sampled_from(["module", None]), "tag"),
      either(FLOATS, KINDS, "kind"),
      either("0", KEYS, "key"),
      either("cpu", st.sampled_from(["cuda:7", "meta", None, 3]), "place"),
      either(6, WHOLE, "count"),
    )
  )
  parts = (
    either(stored, st.sampled_from([None, 3, "0", ("storage",)]), "storage"),
    either(0, WHOLE, "start"),
    either((2, 3), TUPLES, "shape"),
    either((3, 1), TUPLES, "strides"),
    *either((False, {}), st.sampled_from([(), (1,), (True, None, {})]), "rest"),
  )
  content = {"a": Call(REBUILD, parts), "b": tensor()}
  stored_bytes = either(SIX, st.binary(max_size=40), "bytes")
  path = tmp_path_factory.getbasetemp() / f"odd_{writer}.pth"
  WRITERS[writer](path, content, {"0": stored_bytes})
  assert_read_or_refused(path)
