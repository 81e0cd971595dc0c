"""Features of a frozen backbone: one pass over the images, kept on disk.

A folder holds them beside what else is known of every image, under a name that
follows from the images, the weights and the preprocessing: the next experiment
on the same images finds them there. A pass that was killed goes on from its
last note of what is whole. Where a collection has grown, the rows of before are
copied, and the pass is over what is new.
"""

import contextlib
import functools
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from odc_jax import mesh as mesh_lib
from odc_jax.config import Config
from odc_jax.data import resident
from odc_jax.data.bad_images import BadImage
from odc_jax.data.features import Features
from odc_jax.data.source import Record, Source
from odc_jax.distributed import compiler, processes
from odc_jax.files import BusyError, alone, write_json
from odc_jax.passes import extract

# Seconds between two notes: what a kill costs at most.
_NOTE_SECONDS = 5.0

# ... and between two looks whether another run has made way.
_LOOK_SECONDS = 0.5

_NOTE = "done.json"
_LOCK = "lock"
_KEYS = "keys.txt"
_KEPT = ("features", "signatures", "labels")  # each in a file of NumPy's

# How images are made into what the backbone sees.
_PREPROCESSING = (
  "data.image_size",
  "data.eval_resize",
  "data.interpolation",
  "augment.mean",
  "augment.std",
  "augment.sobel",
  # Random weights have no digest that would tell one network from another.
  "model.name",
  "model.stem",
  "model.width",
  "model.settings",
  "model.dtype",
)


def digest(source: Source, split: str, config: Config, weights: str) -> str:
  """Returns a name for the features of a data set, in hexadecimal.

  Args:
    source: The images; of files, sizes and times of change are looked at.
    split: Which part of the data set they are.
    config: A resolved experiment.
    weights: What tells the backbone's weights from others.
  """
  found = hashlib.sha256()
  facts = [config.data.source.partition(":")[0], split, len(source), weights]
  stamps = getattr(source, "stamps", None)  # of files
  if stamps is None:
    facts.append(config.data.source)
  for name in _PREPROCESSING:
    section, key = name.split(".")
    value = config[section].get(key)
    facts.append(json.loads(json.dumps(value, default=dict)))
  found.update(json.dumps(facts, sort_keys=True).encode())
  for key in source.keys or ():
    found.update(f"{key}\n".encode())
  for stamp in stamps() if stamps is not None else ():
    found.update(f"{stamp}\n".encode())
  return found.hexdigest()[:16]


def features(
  source: Source,
  folder: pathlib.Path,
  config: Config,
  mesh: Mesh,
  look: Callable[..., Any],
  *,
  met: Callable[[list[BadImage]], None],
  advance: Callable[[int], None],
  before: pathlib.Path | None = None,
) -> resident.Rows:
  """Returns the features of all images, computed or found.

  All processes have to call; the first one writes. Where another run is at it,
  this one waits, and then finds them.

  Args:
    source: The data set.
    folder: Where they are kept; `digest` gives its name.
    config: A resolved experiment.
    mesh: The devices.
    look: uint8 images [b, h, w, 3] on the devices -> features [b, c] and
      signatures [b, s], on every device.
    met: Is told of the images that cannot be read.
    advance: Is told how many images are done; may raise `StoppedError`, after
      which the pass goes on where it was.
    before: A folder of the first images of `source`, whole; None: there is
      none. They are not looked at again.

  Raises:
    UserError: As `met`.
  """
  note = _Note(*processes.gather(_note(folder))[0])
  n = len(source)
  with contextlib.ExitStack() as stack:
    if note.rows < n:
      stack.enter_context(_alone(folder, advance))
      if before is not None and processes.is_first():
        _copy(before, folder, n)
      note = _Note(*processes.gather(_note(folder))[0])
    met([BadImage(*image) for image in note.bad])
    if note.rows < n:
      _pass(source, folder, config, mesh, look, note, met, advance)
    processes.gather(None)  # until the first process has written all of it
  kept = {name: np.load(folder / _file(name), mmap_mode="r") for name in _KEPT}
  keys = (folder / _KEYS).read_text("utf-8").split("\n")[:n]
  return resident.Rows(
    resident.place(kept["features"], mesh),
    resident.place(kept["signatures"], mesh),
    np.array(kept["labels"]),
    keys,
  )


def given(source: Features, mesh: Mesh) -> resident.Rows:
  """Returns features that come from elsewhere, on the devices.

  Each process reads the rows of its own devices.

  Args:
    source: The data set.
    mesh: The devices.
  """
  none = np.zeros((len(source), 0), np.int8)
  return resident.Rows(
    resident.place(source.rows, mesh, np.float32),
    resident.place(none, mesh),
    source.labels,
    source.names(),
  )


def looker(forward: Callable[..., Any], network: Any, mesh: Mesh):
  """Returns what `features` takes as `look`.

  Args:
    forward: (params, batch_stats, uint8 images) -> outputs in evaluation mode.
    network: The parameters and batch statistics.
    mesh: The devices.
  """
  return functools.partial(compiled(forward, mesh), network)


def compiled(forward: Callable[..., Any], mesh: Mesh):
  """Returns (network, images) -> features and signatures, jitted.

  Args:
    forward: As for `looker`.
    mesh: The devices.
  """

  @functools.partial(jax.jit, compiler_options=compiler.compiler_options(mesh))
  def look(network, images):
    found = forward(*network, images).features
    return mesh_lib.replicate((found, extract.signature(images)))

  return look


@contextlib.contextmanager
def _alone(
  folder: pathlib.Path, advance: Callable[[int], None]
) -> Iterator[None]:
  """Encloses what two runs may not do in a folder at the same time."""
  folder.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:

    def is_free():
      try:
        stack.enter_context(alone(folder / _LOCK))
      except BusyError:
        return False
      return True

    said = False
    while not processes.gather(processes.is_first() and is_free())[0]:
      if not said:
        processes.say(f"another run is making {folder}; waiting for it")
        said = True
      advance(0)  # where a signal is heard
      time.sleep(_LOOK_SECONDS)
    yield


class _Note(NamedTuple):
  """What a folder holds.

  Attributes:
    rows: How many rows are whole.
    bad: The images among them that cannot be read.
    copied: How many of the rows are those of a smaller collection.
  """

  rows: int = 0
  bad: Sequence[Sequence] = ()
  copied: int = 0


def _note(folder: pathlib.Path) -> _Note:
  """Returns what a folder holds."""
  with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
    note = json.loads((folder / _NOTE).read_text("utf-8"))
    if all((folder / name).exists() for name in (*map(_file, _KEPT), _KEYS)):
      return _Note(note["rows"], note["bad"], note.get("copied", 0))
  return _Note()


def _file(name: str) -> str:
  return f"{name}.npy"


def _copy(before: pathlib.Path, folder: pathlib.Path, n: int) -> None:
  """Begins a folder of n images with the rows of another, if they are more."""
  old = _note(before)
  if before == folder or not _note(folder).rows < old.rows <= n:
    return
  writer = _Writer(folder, n, _Note())
  rows = [np.load(before / _file(name), mmap_mode="r") for name in _KEPT]
  keys = (before / _KEYS).read_text("utf-8").split("\n")[: old.rows]
  *arrays, labels = (part[: old.rows] for part in rows)
  with contextlib.closing(writer):
    writer.add(arrays, labels, keys, old.bad, copied=old.rows)


class _Rest:
  """The records from number `first` on, numbered from 0.

  Behind them is a black one, which stands in for the last where that cannot be
  read: no image of before is read again.
  """

  def __init__(self, source: Source, first: int):
    self._source, self._first = source, first
    self.num_classes = source.num_classes
    self.keys = None if source.keys is None else [*source.keys[first:], ""]

  def __len__(self) -> int:
    return len(self._source) - self._first + 1

  def __getitem__(self, index: int) -> Record:
    if index == len(self) - 1:
      black = np.zeros((1, 1, 3), np.uint8)
      return {"image": black, "index": index, "key": "", "label": None}
    record = self._source[self._first + index]
    return {**record, "index": index}


def _pass(source, folder, config, mesh, look, note, met, advance):
  """Passes over the images that a folder does not hold yet."""
  n, first = len(source), note.copied
  if first:
    source = _Rest(source, first)
  # Whole batches, also where they had another size before: an image that cannot
  # be read is replaced by one that follows it in the whole data set.
  size = mesh_lib.divisible(config.eval.batch_size, mesh)
  first_batch = (note.rows - first) // size
  done = first + first_batch * size
  bad = [image for image in note.bad if image[0] < done]
  writer = None
  if processes.is_first():
    writer = _Writer(folder, n, _Note(done, bad, first))
  with contextlib.ExitStack() as stack:
    if writer is not None:
      stack.callback(writer.close)
    batches = stack.enter_context(
      extract.reading(source, config, mesh, first_batch=first_batch)
    )
    for batch in batches:
      advance(done)
      found = [
        image._replace(index=first + image.index) for image in batch.pop("bad")
      ]
      met(found)
      arrays = look(processes.to_devices(batch["image"], mesh))
      whole = processes.gather(
        [batch["label"].tolist(), batch["key"], [list(b) for b in found]]
      )
      labels = np.concatenate([np.array(p[0], np.int32) for p in whole])
      keys = [key for part in whole for key in part[1]]
      count = min(len(labels), n - done)
      if writer is not None and count:
        writer.add(
          [np.asarray(array)[:count] for array in arrays],
          labels[:count],
          keys[:count],
          [image for part in whole for image in part[2]],
        )
      done += count


class _Writer:
  """Writes rows in order, and from time to time a note of what is whole."""

  def __init__(self, folder: pathlib.Path, n: int, begun: _Note):
    folder.mkdir(parents=True, exist_ok=True)
    self._folder, self._n, self._done = folder, n, begun.rows
    self._bad = [list(image) for image in begun.bad]
    self._copied = begun.copied
    self._arrays: dict[str, Any] = {}
    self._noted = time.monotonic()
    path = folder / _KEYS
    done = self._done
    keys = path.read_text("utf-8").split("\n")[:done] if done else []
    path.write_text("".join(f"{key}\n" for key in keys), "utf-8")
    self._keys = path.open("a", encoding="utf-8")

  def add(self, arrays, labels, keys, bad, copied=0):
    """Writes the rows that follow; they may be `copied`, not computed."""
    features, signatures = arrays
    rows = dict(zip(_KEPT, (features, signatures, labels), strict=True))
    end = self._done + len(labels)
    for name, part in rows.items():
      if name not in self._arrays:
        self._arrays[name] = np.lib.format.open_memmap(
          self._folder / _file(name),
          "r+" if self._done else "w+",
          part.dtype,
          (self._n, *part.shape[1:]),
        )
      self._arrays[name][self._done : end] = part
    self._keys.write("".join(f"{key}\n" for key in keys))
    self._bad += bad
    self._done, self._copied = end, self._copied + copied
    if time.monotonic() - self._noted > _NOTE_SECONDS:
      self.note()

  def note(self):
    """Notes that all rows so far are on disk."""
    for array in self._arrays.values():
      array.flush()
    self._keys.flush()
    note = _Note(self._done, self._bad, self._copied)
    write_json(self._folder / _NOTE, note._asdict())
    self._noted = time.monotonic()

  def close(self):
    """Notes what there is, also where a signal or an error ends the pass."""
    if self._arrays:
      self.note()
    self._keys.close()
