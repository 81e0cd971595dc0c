"""From the name of a data set to an object that hands out its records.

A source knows its length and returns record `i` of its own, fixed order:

    {"image": encoded bytes, or uint8 [h, w, 3],
     "index": i, "key": str, "label": int or None}

`index` is what the memories are addressed by; `key` is what a person finds the
image by. Sources are picklable (the loader's worker processes get a copy) and
never download anything. Each lives in a file of its own beside this one.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from odc_jax.data import growth
from odc_jax.data.source import Source
from odc_jax.errors import UserError


def make(
  name: str,
  split: str = "",
  like: Source | None = None,
  images: str = "",
  options: Mapping[str, str] | None = None,
) -> Source:
  """Opens a data set.

  Args:
    name: `digits` (inside scikit-learn), `folder:PATH` (every image below
      PATH), `voc:PATH` (Pascal VOC2007, unpacked there), `tfds:NAME`
      (prepared by `odc_jax.data.prepare`; `TFDS_DATA_DIR` says where),
      `features:FILE` (a row of numbers for every image; `data.features`) or
      `sequences:PATH` (features of the frames of videos; `data.sequences`).
    split: for a folder a sub-folder of PATH, or "" for all of it; for VOC
      "trainval", "train", "val" or "test"; for TFDS a split such as "train" or
      "train[:10%]"; for features a file in the folder FILE, or ""; for
      sequences a part of their names, or ""; for digits "".
    like: a data set whose labels mean the same: the folders of this one are
      numbered as that one's are, also where some are missing.
    images: `folder:PATH`, the pictures that features are of; "" for none.
    options: `mapping` and `standardize` of sequences, as `sequences.read` has
      them.

  Returns:
    The source.

  Raises:
    UserError: the name, the folder or the split does not exist, or there is
      nothing in it that can be read.
  """
  # Late: these modules need the types above.
  from odc_jax.data import features, sequences
  from odc_jax.data.digits import Digits
  from odc_jax.data.folder import Folder
  from odc_jax.data.tfds import Tfds
  from odc_jax.data.voc import Voc

  kind, _, rest = name.partition(":")
  if name == "digits":
    return Digits(split)
  classes = getattr(like, "classes", None)
  if kind == "folder":
    return Folder(rest, split, classes)
  if kind == "features":
    pictures, _, path = images.partition(":")
    if images and pictures != "folder":
      raise UserError(
        f"data.images={images!r} is no folder of pictures; "
        "--config.data.images=folder:PATH"
      )
    folder = Folder(path, split, classes) if images else None
    return features.read(rest, split, folder)
  if kind == "sequences":
    options = options or {}
    return sequences.read(
      rest,
      split,
      mapping=options.get("mapping", ""),
      standardize=options.get("standardize", "none"),
      classes=classes,
    )
  if kind == "voc":
    return Voc(rest, split)
  if kind == "tfds" and rest:
    return Tfds(rest, split)
  raise UserError(
    f"unknown data source {name!r}: use 'digits', 'folder:PATH', 'voc:PATH', "
    "'tfds:NAME', 'features:FILE.npy' or 'sequences:PATH'"
  )


def of(
  section: Any, split: str | None = None, like: Source | None = None
) -> Source:
  """Opens the data set of an experiment.

  Args:
    section: The config's `data`, a ConfigDict or a dict.
    split: Instead of the training set's.
    like: As for `make`.

  Raises:
    UserError: As `make`.
  """
  own: str = section["split"]
  return make(
    section["source"],
    own if split is None else split,
    like,
    section.get("images", ""),
    {key: section[key] for key in ("mapping", "standardize") if key in section},
  )


def pictures(source: Source) -> Source | None:
  """Returns what has the pictures of a data set; None where there are none."""
  from odc_jax.data.features import Features

  return source.images if isinstance(source, Features) else source


def of_run(workdir: pathlib.Path, section: Any) -> Source:
  """Opens the training set of a run, numbered as the run numbers it.

  Args:
    workdir: The work directory of the run.
    section: As for `of`.

  Raises:
    UserError: As `make`; or the list of a run that has grown is damaged.
  """
  source = of(section)
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
