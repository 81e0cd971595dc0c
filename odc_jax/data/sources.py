"""From the name of a data set to an object that hands out its records.

A source knows its length and returns record `i` of its own, fixed order:

    {"image": encoded bytes, or uint8 [h, w, 3],
     "index": i, "key": str, "label": int or None}

`index` is what the memories are addressed by; `key` is what a person finds the
image by. Sources are picklable (the loader's worker processes get a copy) and
never download anything. Each lives in a file of its own beside this one.
"""

import pathlib

from odc_jax.data import growth
from odc_jax.data.source import Source
from odc_jax.errors import UserError


def make(name: str, split: str = "", like: Source | None = None) -> Source:
  """Opens a data set.

  Args:
    name: `digits` (inside scikit-learn), `folder:PATH` (every image below
      PATH), `voc:PATH` (Pascal VOC2007, unpacked there) or `tfds:NAME`
      (prepared by `odc_jax.data.prepare`; `TFDS_DATA_DIR` says where).
    split: for a folder a sub-folder of PATH, or "" for all of it; for VOC
      "trainval", "train", "val" or "test"; for TFDS a split such as "train" or
      "train[:10%]"; for digits "".

    like: a data set whose labels mean the same: the folders of this one are
      numbered as that one's are, also where some are missing.

  Returns:
    The source.

  Raises:
    UserError: the name, the folder or the split does not exist, or there is
      nothing in it that can be read.
  """
  # Late: these modules need the types above.
  from odc_jax.data.digits import Digits
  from odc_jax.data.folder import Folder
  from odc_jax.data.tfds import Tfds
  from odc_jax.data.voc import Voc

  kind, _, rest = name.partition(":")
  if name == "digits":
    return Digits(split)
  if kind == "folder":
    return Folder(rest, split, getattr(like, "classes", None))
  if kind == "voc":
    return Voc(rest, split)
  if kind == "tfds" and rest:
    return Tfds(rest, split)
  raise UserError(
    f"unknown data source {name!r}: use 'digits', 'folder:PATH', 'voc:PATH' or "
    "'tfds:NAME'"
  )


def of_run(workdir: pathlib.Path, name: str, split: str = "") -> Source:
  """Opens the training set of a run, numbered as the run numbers it.

  Args:
    workdir: The work directory of the run.
    name: As for `make`.
    split: As for `make`.

  Raises:
    UserError: As `make`; or the list of a run that has grown is damaged.
  """
  source = make(name, split)
  grown = growth.read(workdir)
  return source if grown is None else as_in_list(source, workdir, grown)


def as_in_list(
  source: Source, workdir: pathlib.Path, grown: growth.Growth
) -> Source:
  """Returns a source with the numbers in the list of a run that has grown.

  Args:
    source: A folder; anything else stays as it is.
    workdir: The work directory of the run.
    grown: How it has grown, or is about to.

  Raises:
    UserError: The list cannot be read.
  """
  from odc_jax.data import folder

  if not isinstance(source, folder.Folder):
    return source
  try:
    kept = folder.read_list(workdir / folder.LIST)
  except OSError as error:
    raise UserError(
      f"{workdir} holds a run whose {folder.LIST} cannot be read: {error}; put "
      "it back, or choose another --workdir"
    ) from error
  return source.numbered(kept, grown.sizes[0])
