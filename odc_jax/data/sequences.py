"""Sequences of frames: the features of videos, as benchmarks lay them out.

    PATH/features/ANYTHING/VIDEO.npy or .txt  a row of numbers for every frame
    PATH/groundTruth/VIDEO or VIDEO.txt       a word for every frame; optional
    PATH/mapping/mapping*.txt                 lines "number word"; background -1

All frames together are the rows of a data set like any other; a sequence is a
range of them. Source of the layout and of what is done with it: Annusha
Kukleva's CTE (ute/corpus.py, ute/video.py, ute/utils/mapping.py), on which the
codes of TOT and ASOT are built.
"""

import bisect
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from odc_jax.data import features
from odc_jax.data.folder import printable
from odc_jax.errors import UserError
from odc_jax.files import expanded

SUFFIXES = (".npy", ".txt")

# Frames by which features and ground truth of a video may differ in length;
# both are then cut to the shorter. CTE ute/video.py.
MOST_EXCESS = 50

_BACKGROUND = -1


class Sequences(features.Features):
  """The frames of all sequences, one sequence after the other.

  Attributes:
    sequence_names: Of the sequences, sorted.
    lengths: Frames of each, int64 [s]; their sum is n.
    background: Which frames are background by the ground truth, [n]. They have
      the label -1, as frames without ground truth have.
    passed_over_sequences: Names of those that are left out, because features
      and ground truth differ by more than 50 frames.
  """

  def __init__(
    self,
    rows: np.ndarray,
    names: Sequence[str],
    lengths: Sequence[int],
    name: str = "the features",
  ):
    """Labels none of the frames.

    Args:
      rows: Features of all frames, [n, c].
      names: Of the sequences.
      lengths: Frames of each.
      name: What messages call the rows.

    Raises:
      UserError: As for `Features`.
    """
    super().__init__(rows, None, name)
    self.sequence_names = [printable(name) for name in names]
    self.lengths = np.array(lengths, np.int64)
    self.background = np.zeros(len(rows), bool)
    self.passed_over_sequences: list[str] = []
    self._keys = _FrameNames(self.sequence_names, self.lengths)

  @property
  def keys(self) -> Sequence[str]:
    """Names of the frames: the sequence's, and the frame's number from 0."""
    return self._keys

  def sequence_ids(self) -> Int[np.ndarray, "n"]:
    """Returns the number of each frame's sequence."""
    return np.repeat(np.arange(len(self.lengths)), self.lengths)


class _FrameNames(Sequence):
  """Names of frames, made when they are asked for."""

  def __init__(self, names: Sequence[str], lengths: Int[np.ndarray, "s"]):
    self._names, self._ends = names, np.cumsum(lengths).tolist()

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: Any) -> Any:
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    index = range(len(self))[index]
    number = bisect.bisect_right(self._ends, index)
    start = self._ends[number - 1] if number else 0
    return f"{self._names[number]}/{index - start:06d}"


class _Truth(NamedTuple):
  """The ground truth of a data set.

  Attributes:
    words: Video -> the word of every frame.
    numbers: Word -> its number in the mapping.
  """

  words: dict[str, list[str]]
  numbers: dict[str, int]


def read(
  path: str,
  split: str = "",
  *,
  mapping: str = "",
  standardize: str = "none",
  classes: Sequence[str] | None = None,
  has_truth: bool = True,
) -> Sequences:
  """Reads features and ground truth.

  Args:
    path: A folder as at the top of this file.
    split: Part of the name of the sequences that are meant, such as an
      activity's; "" for all.
    mapping: Which file of `mapping/`: X for `mapping/mappingX.txt`; "" where
      there is one only, or `mapping.txt`.
    standardize: "none"; "video": each number to mean 0 and variance 1 over the
      frames of a sequence, as TOT does it; "video_unit": that over the root of
      the row's length, as ASOT does it.
    classes: Names of the labels of another data set, whose numbers hold here.
    has_truth: Whether to look for ground truth.

  Raises:
    UserError: There is nothing of the kind, or it cannot be read.
  """
  make = _STANDARDIZE.get(standardize)
  if make is None:
    raise UserError(
      f"unknown data.standardize {standardize!r}; choose "
      f"{', '.join(_STANDARDIZE)}"
    )
  files = find(path, split)
  truth = _truth(expanded(path), files, mapping) if has_truth else None
  rows, kept, words, passed_over = [], [], [], []
  for name, file in files.items():
    found, said = _array(file), truth.words.get(name) if truth else None
    if said is not None:
      if abs(len(said) - len(found)) > MOST_EXCESS:
        passed_over.append(name)
        continue
      found = found[: len(said)]
      said = said[: len(found)]
    if rows and found.shape[1] != rows[0].shape[1]:
      raise UserError(
        f"{file} has {found.shape[1]:,} numbers a frame, {files[kept[0]]} has "
        f"{rows[0].shape[1]:,}; all sequences need the same kind of features"
      )
    rows.append(make(found))
    kept.append(name)
    words.append(said)
  if not rows:
    raise UserError(
      f"in {path} the features and the ground truth of all sequences differ by "
      f"more than {MOST_EXCESS} frames; give those that belong together"
    )
  source = Sequences(
    np.concatenate(rows), kept, [len(part) for part in rows], f"{path}"
  )
  source.passed_over_sequences = passed_over
  if truth:
    _label(source, words, truth.numbers, classes)
  return source


def find(path: str, split: str = "") -> dict[str, pathlib.Path]:
  """Returns the sequences that are meant: name -> file, sorted by name.

  Args:
    path: As for `read`.
    split: As for `read`.

  Raises:
    UserError: There is none.
  """
  if not path:
    raise UserError(
      "data source 'sequences:' names no folder; "
      "set --config.data.source=sequences:/your/folder"
    )
  folder = expanded(path) / "features"
  files = sorted(
    (file for file in folder.rglob("*") if file.suffix in SUFFIXES),
    key=lambda file: file.stem,
  )
  if not files:
    raise UserError(
      f"there are no .npy or .txt files below {folder}; sequences:PATH has the "
      "features of a video in PATH/features/VIDEO.npy"
    )
  for first, second in itertools.pairwise(files):
    if first.stem == second.stem:
      raise UserError(
        f"{first} and {second} are features of the same video; keep one"
      )
  found = {file.stem: file for file in files if split in file.stem}
  if not found:
    raise UserError(
      f"no sequence of {path} has {split!r} in its name; names are such as "
      f"{files[0].stem}: choose another part with --config.data.split, or none"
    )
  return found


def width(files: dict[str, pathlib.Path]) -> int:
  """Returns how many numbers a frame has, by the first of what `find` found.

  Raises:
    UserError: Its file cannot be read.
  """
  return _array(next(iter(files.values()))).shape[1]


def _array(file: pathlib.Path) -> np.ndarray:
  """Returns the features in a file, [frames, c]."""
  if file.suffix == ".npy":
    found = features.mapped(file)
  else:
    try:
      found = np.loadtxt(file, np.float32, ndmin=2)
    except (OSError, ValueError) as error:
      reason = " ".join(str(error).split())
      raise UserError(
        f"{file} cannot be read as features: {reason}; give a line of numbers "
        "for every frame"
      ) from error
  features.check(found, str(file))
  return found


def _truth(
  root: pathlib.Path, files: dict[str, pathlib.Path], mapping: str
) -> _Truth | None:
  """Returns the ground truth, if there is any."""
  folder = root / "groundTruth"
  words = {}
  for name in files:
    for file in (folder / name, folder / f"{name}.txt"):
      if file.is_file():
        lines = _text(file).splitlines()
        words[name] = [line.split()[0] for line in lines if line.strip()]
        break
  if not words:
    if mapping:
      raise UserError(
        f"data.mapping={mapping!r} is for ground truth, and {folder} has none "
        "of these sequences; leave it out"
      )
    return None
  numbers = _mapping(root / "mapping", mapping)
  seen = sorted({word for part in words.values() for word in part})
  if numbers is None:
    return _Truth(words, {word: i for i, word in enumerate(seen)})
  if lacking := [word for word in seen if word not in numbers]:
    name = next(n for n, part in words.items() if lacking[0] in part)
    raise UserError(
      f"the ground truth of {name} has {lacking[0]!r}, which the mapping in "
      f"{root / 'mapping'} lacks: add a line 'NUMBER {lacking[0]}'"
    )
  return _Truth(words, numbers)


def _mapping(folder: pathlib.Path, mapping: str) -> dict[str, int] | None:
  """Returns word -> number; None where there is no file for it."""
  there = sorted(folder.glob("mapping*.txt"))
  file = folder / f"mapping{mapping}.txt"
  if not mapping and len(there) == 1:
    file = there[0]
  if file not in there:
    if not there and not mapping:
      return None
    known = [item.stem.removeprefix("mapping") for item in there]
    raise UserError(
      f"there is no {file}; choose one of {', '.join(filter(None, known))} "
      "with --config.data.mapping"
    )
  numbers = {}
  for line in _text(file).splitlines():
    if not line.strip():
      continue
    number, _, word = line.strip().partition(" ")
    try:
      numbers[word.split()[0]] = int(number)
    except (ValueError, IndexError) as error:
      raise UserError(
        f"{file}: {line.strip()!r} is no line 'NUMBER WORD'; mend it"
      ) from error
  return numbers


def _text(file: pathlib.Path) -> str:
  try:
    return file.read_text("utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{file} cannot be read as text: {error}") from error


def _label(
  source: Sequences,
  words: Sequence[Sequence[str] | None],
  numbers: dict[str, int],
  classes: Sequence[str] | None,
) -> None:
  """Gives the frames labels from 0, in the order of the mapping's numbers."""
  found = np.full(len(source), _BACKGROUND, np.int64)
  known = np.zeros(len(source), bool)
  start = 0
  for length, said in zip(source.lengths.tolist(), words, strict=True):
    if said is not None:
      found[start : start + length] = [numbers[word] for word in said]
      known[start : start + length] = True
    start += length
  source.background = known & (found == _BACKGROUND)
  name_of: dict[int, str] = {}
  for word, number in numbers.items():  # the first word of several
    name_of.setdefault(number, word)
  present = [int(i) for i in np.unique(found) if i != _BACKGROUND]
  own = [name_of[number] for number in present]
  if classes is not None:
    own_place = {name: i for i, name in enumerate(classes)}
    if strange := [name for name in own if name not in own_place]:
      raise UserError(
        f"{source._name} has frames of {strange[0]!r}, which the training set "
        "lacks; leave these sequences out with --config.eval.split"
      )
    place = {number: own_place[name_of[number]] for number in present}
    own = list(classes)
  else:
    place = {number: i for i, number in enumerate(present)}
  source.labels = np.full(len(source), -1, np.int32)
  for number, i in place.items():
    source.labels[found == number] = i
  source.num_classes, source.classes = len(own), own


def _standardized(rows: np.ndarray) -> np.ndarray:
  """Returns rows of mean 0 and variance 1, by column.

  Rows whose sum is 0 are no part of it and become 0; so does a column that is
  constant. Source: CTE ute/video.py: Video._features (full).
  """
  rows = np.array(rows, np.float64)
  counts: Bool[np.ndarray, "n"] = np.sum(rows, axis=1) != 0
  chosen = rows[counts]
  rows[~counts] = 0
  if len(chosen):
    deviation = np.std(chosen, axis=0)
    constant = deviation == 0
    scaled = (chosen - np.mean(chosen, axis=0)) / np.where(
      constant, 1, deviation
    )
    rows[counts] = np.where(constant, 0, scaled)
  return rows.astype(np.float32)


_STANDARDIZE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  "none": lambda rows: np.array(rows, np.float32),
  "video": _standardized,
  # ASOT src/video_dataset.py, which takes the frames of a batch alone.
  "video_unit": lambda rows: (
    _standardized(rows) / np.float32(np.sqrt(rows.shape[1]))
  ),
}
