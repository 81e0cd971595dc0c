"""The images below a folder, and the list of them that a run is held to."""

import collections
import contextlib
import copy
import os
import pathlib
import re
import stat
from collections.abc import Iterator, Mapping, Sequence

from odc_jax.data import growth
from odc_jax.data.source import Record
from odc_jax.errors import UserError
from odc_jax.files import expanded, write_whole

# All that every build of Pillow can read, by the names that they go by.
IMAGE_SUFFIXES = frozenset(
  {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib"),
    *(".webp", ".gif", ".tif", ".tiff", ".avif", ".jp2", ".mpo"),
    *(".pbm", ".pgm", ".ppm", ".pnm"),
  }
)

# Pictures that are passed over: who has some should know.
_OTHER_SUFFIXES = frozenset(
  {
    *(".heic", ".heif", ".hif", ".jxl", ".jxr", ".wdp", ".j2k", ".jpx", ".jpf"),
    *(".svg", ".svgz", ".psd", ".psb", ".xcf", ".ai", ".eps", ".ps", ".pdf"),
    *(".tga", ".pcx", ".ico", ".icns", ".cur", ".dds", ".exr", ".hdr", ".pfm"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".raw"),
    *(".dcm", ".nii", ".fits", ".fit", ".czi", ".svs", ".ndpi", ".flif"),
  }
)

# Folders of systems and of their programs, which hold copies or waste.
_NOT_THE_USERS = frozenset(
  {
    *("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN"),
    *("System Volume Information", "lost+found"),
  }
)

# The list of a run's images, in its work directory.
LIST = "images.txt"

# Controls, the two other line breaks, and what stands for bytes that are no
# UTF-8. Not str.isprintable: it changes with the version of Unicode, and keys
# are kept. The backslash, or two names might have one key.
_UNPRINTABLE = re.compile("[\\\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Folder:
  """Every image file below a folder, sorted by path.

  Hidden files and folders are left out, and so are those that an operating
  system makes for itself (a network drive's thumbnails, a bin); links are
  followed. Where every image
  lies in a folder of the first level, and in none below that, these folders
  are the labels, numbered in sorted order.

  A name may be any bytes that the file system takes. The key is the path with
  backslash escapes for line breaks and other control characters (`\\n`,
  `\\x1b`, `\\u2028`), for bytes that are no UTF-8 (`\\xff`) and for the
  backslash itself, so that it can be printed and no two files share one.

  Attributes:
    passed_over: Suffix of a kind of picture that is not read -> how many there
      are.
    classes: The names of the labels, if there are any.
    num_classes: How many there are.
  """

  def __init__(
    self, path: str, split: str = "", classes: Sequence[str] | None = None
  ):
    """Lists the files; none is opened.

    Args:
      path: the folder. Keys are paths relative to it, with forward slashes.
      split: a sub-folder to stay within, or "".
      classes: the folders that are labels, in the order of their numbers; None:
        those that are there.

    Raises:
      UserError: the folder is not there or cannot be listed, or no image is in
        it, or a folder of the first level is not among `classes`.
    """
    if not path:
      raise UserError(
        "data source 'folder:' names no folder; "
        "set --config.data.source=folder:/your/images"
      )
    base = expanded(path)
    # Not Path's own: they raise where a name is too long, or access denied.
    if os.path.isfile(base):
      raise UserError(f"folder:{path} is a file; give the folder that it is in")
    if not os.path.isdir(base):
      raise UserError(f"folder:{path}: there is no such folder; check the path")
    root = base / split
    leaves = os.path.isabs(split) or ".." in pathlib.PurePath(split).parts
    if leaves or not os.path.isdir(root):
      there = []
      with contextlib.suppress(OSError):
        there = sorted(printable(p.name) for p in base.iterdir() if p.is_dir())
      raise UserError(
        f"folder:{path} has no split (sub-folder) {split!r}: "
        f"there is {', '.join(there[:10]) or 'none; leave the split empty'}"
      )
    inside = root.relative_to(base).as_posix()
    prefix = "" if inside == "." else f"{inside}/"
    self._base = str(base.absolute())
    others: collections.Counter[str] = collections.Counter()
    self._paths = sorted(_image_paths(str(root), prefix, others))
    self.passed_over = dict(others.most_common())
    if not self._paths:
      raise UserError(
        f"folder:{path}: no images in {root}; "
        f"looked for {' '.join(sorted(IMAGE_SUFFIXES))}"
        + (f", found {counted(self.passed_over)}" if others else "")
      )
    # One list, not two equal ones, where all names are plain: there may be
    # millions, and each worker process gets a copy.
    self._keys = self._paths
    if any(map(_UNPRINTABLE.search, self._paths)):
      self._keys = [printable(path) for path in self._paths]
    # Keys of images that are numbered, but no longer there.
    self.missing: frozenset[str] = frozenset()
    self._root, self._prefix = root, prefix
    self._label(self._paths, classes)

  def _label(
    self, paths: Sequence[str], classes: Sequence[str] | None, first: int = 0
  ):
    """Takes the labels from the folders of the first level, if they can be.

    Args:
      paths: Of all images.
      classes: As for the class.
      first: Without `classes`: the folders of so many images are numbered
        before the others; 0: of all.
    """
    self._labels: list[int] | None = None
    self.classes: list[str] | None = None
    self.num_classes: int | None = None
    below = [path[len(self._prefix) :].split("/") for path in paths]
    if not all(len(parts) == 2 for parts in below):
      return
    there = sorted({folder for folder, _ in below})
    if first:
      old = {folder for folder, _ in below[:first]}
      there.sort(key=lambda folder: folder not in old)
    names = there if classes is None else list(classes)
    if unknown := sorted(set(there) - set(names)):
      raise UserError(
        f"{self._root} has the class {unknown[0]!r}, which the training set "
        f"has not: that has {', '.join(map(printable, names[:10]))}; remove "
        "it, or add it there"
      )
    numbers = {name: i for i, name in enumerate(names)}
    self.classes = names
    self._labels = [numbers[folder] for folder, _ in below]
    self.num_classes = len(numbers)

  def numbered(self, kept: Sequence[str], num_first: int) -> "Folder":
    """Returns this folder with the numbers that a run knows its images by.

    Args:
      kept: Keys in the order of their numbers. Images that are not among them
        follow, sorted by path; those that are not there are `missing`.
      num_first: How many there were when the run began: the labels of their
        folders stay as they were.
    """
    path_of = dict(zip(self._keys, self._paths, strict=True))
    known = set(kept)
    keys = [*kept, *(key for key in self._keys if key not in known)]
    result = copy.copy(self)
    result._keys = keys
    result._paths = [path_of.get(key, key) for key in keys]
    result.missing = frozenset(known - path_of.keys())
    result._label(result._paths, None, num_first)
    return result

  @property
  def keys(self) -> Sequence[str]:
    """The keys of all records, in their order."""
    return self._keys

  @property
  def labels(self) -> Sequence[int] | None:
    """The number of every image's folder; None where these are no labels."""
    return self._labels

  @property
  def base(self) -> str:
    """The absolute path that all paths are below."""
    return self._base

  @property
  def paths(self) -> Sequence[str]:
    """The paths below `base` of all records, in their order.

    What the file system calls them: a key is this, made printable.
    """
    return self._paths

  def stamps(self) -> Iterator[str]:
    """Yields size and time of change of every file, in their order."""
    for key, path in zip(self._keys, self._paths, strict=True):
      if key in self.missing:
        yield "missing"
        continue
      with contextlib.suppress(OSError):  # gone: reading it will tell
        found = os.stat(os.path.join(self._base, path))
        yield f"{found.st_size} {found.st_mtime_ns}"

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: int) -> Record:
    if self._keys[index] in self.missing:
      raise FileNotFoundError("the file was removed")
    path = os.path.join(self._base, self._paths[index])
    return {
      "image": read_file(path),
      "index": index,
      "key": self._keys[index],
      "label": None if self._labels is None else self._labels[index],
    }


def read_file(path: str | os.PathLike[str]) -> bytes:
  """Returns what is in a file.

  Args:
    path: where it is; "~" is the user's home.

  Raises:
    OSError: it cannot be read, or is no file: a pipe would never end, nor would
      a device.
  """
  path = expanded(path)
  kind = path.stat().st_mode
  if not stat.S_ISREG(kind):
    what = "a folder" if stat.S_ISDIR(kind) else "no regular file"
    raise OSError(f"it is {what}")
  return path.read_bytes()


def write_list(path: str | os.PathLike[str], keys: Sequence[str]) -> None:
  """Writes the keys of a folder, one per line, whole or not at all.

  Args:
    path: the file.
    keys: `Folder.keys`: printable, without line breaks.

  Raises:
    OSError: it cannot be written.
  """
  write_whole(path, "".join(f"{key}\n" for key in keys).encode())


def read_list(path: str | os.PathLike[str]) -> list[str]:
  """Returns the keys that `write_list` wrote.

  Raises:
    OSError: it cannot be read.
  """
  data = pathlib.Path(path).read_bytes()
  # Not splitlines(): it breaks lines at more than line feeds.
  return data.decode(errors="replace").split("\n")[:-1]


def check_list(
  path: str | os.PathLike[str],
  keys: Sequence[str],
  grown: growth.Growth | None = None,
) -> None:
  """Holds a folder against the list that was written when the run began.

  The memories address an image by its place in the list: with a file more or
  less, every feature after it would be another image's.

  Args:
    path: the file, as `write_list` left it.
    keys: `Folder.keys` as they are now, of a folder that is not `numbered`.
    grown: how the run has grown since, if it has.

  Raises:
    UserError: they differ; the message says in what.
    OSError: the list cannot be read.
  """
  kept = read_list(path)
  if kept == list(keys):
    return
  change = growth.change(kept, grown.missing if grown else (), keys)
  if not any(change) and grown:
    return  # those that came later are behind the others
  raise UserError(
    "the folder of images is not as it was when this run began, as kept in "
    f"{path}: {str(change) or 'the order is another'}; restore the folder, "
    "let the run grow with --on_change=extend, give new images clusters with "
    "--mode=assign, or start in a new --workdir"
  )


def counted(passed_over: Mapping[str, int]) -> str:
  """Returns `Folder.passed_over` in words: 3 .heic and 1 .psd."""
  kinds = [f"{count:,} {suffix}" for suffix, count in passed_over.items()]
  return " and ".join(filter(None, (", ".join(kinds[:-1]), kinds[-1])))


def _image_paths(
  root: str, prefix: str, others: collections.Counter[str]
) -> Iterator[str]:
  """Yields `prefix` + the path below `root`, with "/", of every image.

  Args:
    root: The folder.
    prefix: What its name becomes.
    others: Counts the suffixes of pictures of other kinds.
  """
  seen = set()
  stack = [(root, prefix)]
  while stack:
    folder, prefix = stack.pop()
    subfolders = []
    try:
      status = os.stat(folder)
      # A link to a folder above would be walked for ever.
      if (identity := (status.st_dev, status.st_ino)) in seen:
        continue
      seen.add(identity)
      with os.scandir(folder) as entries:
        for entry in entries:
          name = entry.name
          if name.startswith("."):
            continue
          if _is_folder(entry):
            if name not in _NOT_THE_USERS:
              subfolders.append(name)
            continue
          suffix = name[name.rfind(".") :].lower()
          if suffix in IMAGE_SUFFIXES:
            yield prefix + name
          elif suffix in _OTHER_SUFFIXES:
            others[suffix] += 1
    except OSError as error:
      # Left out, its images would be missed by nobody.
      raise UserError(
        f"folder {folder!r} cannot be listed: {error.strerror}; make it "
        "readable or move it away"
      ) from error
    # Sorted, or chance would choose between two links to one folder.
    for name in sorted(subfolders, reverse=True):
      stack.append((os.path.join(folder, name), f"{prefix}{name}/"))


def _is_folder(entry: os.DirEntry[str]) -> bool:
  try:
    return entry.is_dir()
  except OSError:  # a link to itself
    return False


def printable(path: str) -> str:
  """Returns the key of a path: what no line of text can hold is escaped."""
  return _UNPRINTABLE.sub(lambda found: _escaped(found.group()), path)


def _escaped(character: str) -> str:
  """Returns the escape of one character, as in Python's own strings."""
  code = ord(character)
  if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: a byte that is no UTF-8
    return f"\\x{code - 0xDC00:02x}"
  if code >= 0x80:  # \x85 is a byte already
    return f"\\u{code:04x}"
  return character.encode("unicode_escape").decode()
