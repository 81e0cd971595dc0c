"""Arrays out of the files of others. Files are data: nothing is executed."""

import os

import numpy as np
import safetensors
import safetensors.numpy

from odc_jax.errors import UserError
from odc_jax.files import expanded
from odc_jax.interop import torch_file
from odc_jax.interop.unpickle import ForeignNameError

# The files of an export; hubs have the first one too.
BACKBONE_FILE = "model.safetensors"
NECK_AND_HEAD_FILE = "neck_and_head.safetensors"

_LONGEST_NAME = 1_000
_LONGEST_SHOWN = 200

_NARROW = ("F4", "F6_", "F8_")  # safetensors' names of floats below 16 bits


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Returns all arrays in a file.

  Args:
    path: A `.safetensors` file, one that `torch.save` wrote, or the folder of
      an export.

  Returns:
    Arrays in PyTorch's layout by their names; names of what they are nested in
    stand before theirs: "state_dict.module.conv1.weight". They may lie in the
    file until they are used, and cannot be written to.

  Raises:
    UserError: It cannot be read, or not without executing what is in it.
  """
  path = expanded(path)
  # Not Path's own: they raise where a name is too long, or access denied.
  if os.path.isdir(path):
    files = [path / BACKBONE_FILE, path / NECK_AND_HEAD_FILE]
    arrays = read(files[0])
    return arrays | (read(files[1]) if os.path.exists(files[1]) else {})
  if not os.path.exists(path):
    raise UserError(
      f"there is no file {path}; give weights as --config.model.weights=FILE"
    )
  is_safetensors = path.suffix.lower() == ".safetensors"
  arrays = _read_safetensors(path) if is_safetensors else _read_torch(path)
  for name in arrays:
    # They come up in messages, which are to be one line, and no command to a
    # terminal.
    if not name.isprintable() or len(name) > _LONGEST_NAME:
      raise UserError(f"{path}: no layer is called {_shown(name)}")
  return arrays


def _read_safetensors(path):
  try:
    with safetensors.safe_open(path, "np") as file:
      names_there = file.keys()  # `file` itself cannot be iterated over
      for name in names_there:
        dtype = file.get_slice(name).get_dtype()
        if dtype.startswith(_NARROW):  # which `load_file` would stumble over
          raise UserError(
            f"{path}: {name} is {dtype}, which NumPy does not have; save "
            "it as float32"
          )
    return safetensors.numpy.load_file(path)
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(
      f"{path} is no readable safetensors: {_shown(str(error))}"
    ) from error


def _read_torch(path):
  try:
    return torch_file.read(path)
  except ForeignNameError as error:
    raise UserError(
      f"{path} holds more than arrays ({_shown(error.name)}); nothing in it "
      "was executed. If you trust where it comes from, save the weights alone, "
      "with PyTorch: content = torch.load(PATH, weights_only=False), and "
      "torch.save(content.state_dict(), NEW) where that is a network, "
      "torch.save(content['state_dict'], NEW) where it is a dictionary"
    ) from error
  except torch_file.UnreadableError as error:
    raise UserError(
      f"{path}: {_shown(str(error))} is nothing that NumPy has; save it dense, "
      "as float32"
    ) from error
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}") from error
  except torch_file.DAMAGES as error:
    reason = _shown(str(error) or type(error).__name__)
    raise UserError(
      f"{path} is no file that torch.save wrote, or a damaged one: {reason}"
    ) from error


def _shown(text):
  """Returns text out of a file as one line of a message."""
  text = text if text.isprintable() else ascii(text)
  return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
