"""Arrays out of safetensors and folders; `torch_file_test` has the others."""

import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from odc_jax import UserError
from odc_jax.interop.read import read

ARRAYS = {
  "conv1.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
  "bn1.num_batches_tracked": np.int64([7]),
  "half": np.float16([0.5, -2]),
}


def refused(path):
  with pytest.raises(UserError) as caught:
    read(path)
  said = str(caught.value)
  assert "\n" not in said
  assert str(path) in said
  return said


def test_safetensors_come_back_as_they_were(tmp_path):
  path = tmp_path / "weights.SafeTensors"
  safetensors.numpy.save_file(ARRAYS, path)
  found = read(str(path))
  assert found.keys() == ARRAYS.keys()
  for name, array in ARRAYS.items():
    np.testing.assert_array_equal(found[name], array)
    assert found[name].dtype == array.dtype


def test_files_that_are_not_there_are_named(tmp_path):
  assert "--config.model.weights" in refused(tmp_path / "none.pth")


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F4"])
def test_floats_that_numpy_lacks_are_named(tmp_path, dtype):
  size = 2 if dtype == "F4" else 4
  header = json.dumps(
    {"w": {"dtype": dtype, "shape": [4], "data_offsets": [0, size]}}
  ).encode()
  path = tmp_path / "weights.safetensors"
  path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
  assert f"w is {dtype}, which NumPy does not have" in refused(path)


def test_the_folder_of_an_export_is_read_whole(tmp_path):
  path = tmp_path / "model.safetensors"
  safetensors.numpy.save_file(ARRAYS, path)
  assert read(tmp_path).keys() == ARRAYS.keys()
  neck = {"neck.fc0.weight": np.ones((2, 3), np.float32)}
  safetensors.numpy.save_file(neck, tmp_path / "neck_and_head.safetensors")
  assert read(tmp_path).keys() - read(path).keys() == neck.keys()


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(data=st.data())
def test_damaged_files_are_read_or_refused(data, tmp_path_factory):
  content = bytearray(safetensors.numpy.save(ARRAYS))
  places = st.integers(0, len(content) - 1)
  for place, value in data.draw(
    st.lists(st.tuples(places, st.integers(0, 255)), max_size=4)
  ):
    content[place] = value
  if data.draw(st.booleans()):
    del content[data.draw(places) :]
  path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
  path.write_bytes(content)
  try:
    found = list(read(path).values())
  except UserError as error:
    found = str(error)
  if isinstance(found, str):
    assert "\n" not in found
  else:
    assert all(isinstance(array, np.ndarray) for array in found)


# What a header may say of an array; the first of each is sound.
ODD = st.one_of(
  st.integers(-2, 64), st.sampled_from([2**31, 2**63, 2**64, None, "1", 0.5])
)
DTYPES = ["F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "C64"]
ENTRIES = st.fixed_dictionaries(
  {
    "dtype": st.sampled_from([*DTYPES, "F4", "I4", "f32", "", 7, None]),
    "shape": st.one_of(st.lists(ODD, max_size=3), ODD),
    "data_offsets": st.one_of(st.lists(ODD, min_size=2, max_size=2), ODD),
  }
)
SOUND = st.integers(0, 6).map(
  lambda n: {"dtype": "F32", "shape": [n], "data_offsets": [0, 4 * n]}
)
HEADERS = st.dictionaries(
  st.sampled_from(["a", "b.weight", "", "__metadata__", "a\nb", "\ud800"]),
  st.one_of(SOUND, ENTRIES, st.sampled_from([{}, [], None, {"format": 3}])),
  max_size=3,
)


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(header=HEADERS, lie=st.sampled_from([0] * 6 + [-1, 1, 2**40, 2**63]))
def test_odd_headers_are_read_or_refused(header, lie, tmp_path_factory):
  text = json.dumps(header).encode()
  length = max(0, len(text) + lie).to_bytes(8, "little")
  size = max(
    [
      entry["data_offsets"][1]
      for entry in header.values()
      if isinstance(entry, dict)
      and isinstance(entry.get("data_offsets"), list)
      and isinstance(entry["data_offsets"][1], int)
      and 0 < entry["data_offsets"][1] < 100
    ],
    default=0,
  )
  path = tmp_path_factory.getbasetemp() / "odd.safetensors"
  path.write_bytes(length + text + bytes(size))
  assert_read_or_refused(path)


def assert_read_or_refused(path):
  try:
    found, said = read(path), ""
  except UserError as error:
    found, said = {}, str(error)
  assert "\n" not in said
  for array in found.values():
    assert isinstance(array, np.ndarray)
    array.sum()  # which looks at all of it
