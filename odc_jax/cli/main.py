"""The command's flags, and which function each mode calls."""

import errno
import os
import pathlib
import re
import signal
import sys
import traceback
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from odc_jax.cli import configs, usage
from odc_jax.distributed import huge_pages, interrupts, launch
from odc_jax.errors import UserError
from odc_jax.files import expanded

CONFIG = config_flags.DEFINE_config_file(
  "config",
  help_string="the experiment: the name of a config that comes along or the "
  "path of your own, FILE:VARIANT for a variant of it; --config.KEY=VALUE "
  "changes a value",
)
flags.FLAGS["config"].parser = configs.Parser("config")
WORKDIR = flags.DEFINE_string(
  "workdir", None, "where to write; default: runs/<name of the config>"
)
MODES = {
  "train": "train, or go on where the run stopped, then evaluate (default)",
  "evaluate": "try the last checkpoint of a run, or a network, on labels",
  "assign": "assign new images to the clusters of a finished run",
  "export": "write the network of a run for PyTorch",
  "report": "write report.html of a run anew",
  "sort": "sort the images of a finished run into folders",
  "plan": "print what training will need, before it is launched",
}
MODE = flags.DEFINE_enum("mode", "train", [*MODES], "what to do")
EVALS = flags.DEFINE_list(
  "evals",
  None,
  "evaluate: the evaluators, such as knn,linear; default: the config's",
)
IMAGES = flags.DEFINE_string(
  "images",
  None,
  "assign: a folder of images, nested or not; of a run on features a .npy file",
)
OUTPUT = flags.DEFINE_string(
  "output",
  None,
  "assign: the file to write; default: WORKDIR/assigned.parquet. export: the "
  "folder; default: WORKDIR/export. sort: the folder, which must be new",
)
SORT_BY = flags.DEFINE_enum(
  "sort_by",
  None,
  ["cluster", "group"],
  "sort: a folder for each of these; default: cluster",
)
SORT_AS = flags.DEFINE_enum(
  "sort_as",
  None,
  ["link", "copy", "list"],
  "sort: fill the folders with links to the originals, with copies, or with a "
  "list of their paths; default: link",
)
THUMBNAILS = flags.DEFINE_bool(
  "thumbnails",
  False,
  "train, report: put small pictures into clusters.parquet, for programs that "
  "show them",
)
NUM_GROUPS = flags.DEFINE_integer(
  "num_groups",
  None,
  "train, assign, report: merge the clusters into so many groups as well",
)
ON_CHANGE = flags.DEFINE_enum(
  "on_change",
  None,
  ["extend"],
  "train: what to do where the images are not those that the run began with; "
  "extend: the run grows with them. Default: it is refused",
)
ANNOTATIONS = flags.DEFINE_string(
  "annotations",
  None,
  "report: names and marks to take in, a file that the page has saved",
)
TOPOLOGY = flags.DEFINE_string(
  "topology",
  "",
  "plan: for this TPU slice, such as v5e:16x16, not these devices",
)
NUM_EXAMPLES = flags.DEFINE_integer(
  "num_examples", 0, "plan: images; default: as many as the data set has"
)
IMAGES_PER_SECOND = flags.DEFINE_float(
  "images_per_second", 0.0, "plan: for the hours that the run will take"
)
PLATFORM = flags.DEFINE_enum(
  "platform",
  "auto",
  ["auto", "cpu", "gpu", "tpu"],
  "where to compute; auto refuses the CPU where there is a GPU or a TPU",
)
COORDINATOR = flags.DEFINE_string(
  "coordinator",
  None,
  "host:port on the machine of process 0; for several processes that neither "
  "srun nor mpirun nor a TPU pod started",
)
NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "how many there are; 1: run alone, ask no launcher"
)
PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "which of them this is, from 0"
)
START_TIMEOUT = flags.DEFINE_float(
  "start_timeout", 300, "seconds to wait for the other processes", 1
)

# The flags as --help shows them.
_SECTIONS = {
  "what": (CONFIG, WORKDIR, MODE),
  "of single modes": (
    *(EVALS, IMAGES, OUTPUT, SORT_BY, SORT_AS, NUM_GROUPS, ANNOTATIONS),
    *(THUMBNAILS, ON_CHANGE),
    *(TOPOLOGY, NUM_EXAMPLES, IMAGES_PER_SECOND),
  ),
  "where, and with which other processes": (
    *(PLATFORM, COORDINATOR, NUM_PROCESSES, PROCESS_ID, START_TIMEOUT),
  ),
}
_HELP = ("-h", "-help", "--help", "-helpshort", "--helpshort", "-?", "--?")

# What a user can mend when a file cannot be written or read.
_REMEDIES = {
  errno.ENOSPC: "make room, and the same command goes on",
  errno.EDQUOT: "make room, and the same command goes on",
  errno.EROFS: "choose a place that can be written to",
  errno.EACCES: "change its permissions, or choose another place",
  errno.EPERM: "change its permissions, or choose another place",
  errno.ENAMETOOLONG: "choose a shorter name",
  errno.EMFILE: "raise the limit, with ulimit -n",
}

# Modes that need no config, but a work directory.
_OF_A_RUN = ("evaluate", "assign", "export", "report", "sort")


def main(argv: list[str]) -> None:
  """Calls the function of the mode."""
  if len(argv) > 1:
    raise UserError(f"unexpected argument {argv[1]!r}; flags begin with --")
  # Orbax logs every step of a checkpoint.
  logging.set_verbosity(logging.WARNING)
  _check_flags()
  if MODE.value == "plan" and TOPOLOGY.value:
    _plan()
    return
  if MODE.value in ("report", "sort"):
    _report() if MODE.value == "report" else _sort()
    return
  launch.start(
    platform=PLATFORM.value,
    coordinator=COORDINATOR.value,
    num_processes=NUM_PROCESSES.value,
    process_id=PROCESS_ID.value,
    timeout=START_TIMEOUT.value,
  )
  if MODE.value == "plan":
    _plan()
    return
  if MODE.value == "assign":
    _assign()
    return
  if MODE.value == "export":
    _export()
    return
  # Late: JAX takes a second to import, and wrong flags should not wait for it.
  from odc_jax.distributed import lifeline, processes
  from odc_jax.evals import evaluate
  from odc_jax.training import loop

  workdir = _workdir()
  with lifeline.together():
    _check_given()
    if MODE.value == "evaluate":
      summary = evaluate.run(workdir, CONFIG.value, EVALS.value)
    else:
      summary = loop.train(
        CONFIG.value, workdir, NUM_GROUPS.value, ON_CHANGE.value
      )
      if THUMBNAILS.value and processes.is_first():
        _thumbnails(workdir)
  width = max(map(len, summary))
  for name, value in summary.items():
    processes.say(f"{name:{width}}  {value:.4f}")
  if MODE.value == "evaluate":
    processes.say(f"written to {workdir}")
    return
  kind = CONFIG.value.data.source.partition(":")[0]
  new = {"features": "FILE.npy", "sequences": "PATH"}.get(kind, "FOLDER")
  processes.say(
    f"written to {workdir}: open {workdir / 'report.html'} in a browser. New "
    f"images: {usage.program()} --mode=assign --workdir={workdir} "
    f"--images={new}"
  )


def _check_flags() -> None:
  """Raises a UserError where a flag belongs to another mode."""
  for flag, *modes in (
    (TOPOLOGY, "plan"),
    (NUM_EXAMPLES, "plan"),
    (IMAGES_PER_SECOND, "plan"),
    (EVALS, "evaluate"),
    (IMAGES, "assign"),
    (OUTPUT, "assign", "export", "sort"),
    (SORT_BY, "sort"),
    (SORT_AS, "sort"),
    (THUMBNAILS, "train", "report"),
    (NUM_GROUPS, "train", "assign", "report"),
    (ON_CHANGE, "train"),
    (ANNOTATIONS, "report"),
  ):
    if flag.value and MODE.value not in modes:
      raise UserError(f"--{flag.name} needs --mode={' or '.join(modes)}")


def _check_given() -> None:
  """Raises a UserError where a --config.KEY does nothing in this experiment."""
  if CONFIG.value is None:
    return
  from odc_jax.config import check, options
  from odc_jax.methods import METHODS

  method = check.choose(METHODS, CONFIG.value.method, "method")
  given = config_flags.get_override_values(flags.FLAGS["config"])
  options.check(CONFIG.value, method, given)


def _workdir() -> pathlib.Path:
  """Returns the work directory; a shell leaves the ~ of --workdir=~/x to us.

  Raises:
    UserError: Its path has bytes that are no text, which Orbax cannot write.
  """
  if WORKDIR.value:
    path = expanded(WORKDIR.value)
    try:
      str(path.absolute()).encode()
    except UnicodeEncodeError as error:
      raise UserError(
        f"the work directory {path} has bytes in its path that are no UTF-8; "
        "choose another --workdir"
      ) from error
    return path
  config_name = config_flags.get_config_filename(flags.FLAGS["config"])
  return pathlib.Path("runs", _run_name(config_name))


def _assign() -> None:
  """Assigns new images to the clusters of a finished run."""
  # So that no half of a file stays behind.
  signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
  import jax

  from odc_jax import inference
  from odc_jax.results import assign

  if not IMAGES.value:
    raise UserError("--mode=assign needs a folder: --images=/my/new/images")
  if jax.process_count() > 1:
    raise UserError("--mode=assign runs in one process: --num_processes=1")
  workdir = _workdir()
  path = expanded(OUTPUT.value or workdir / "assigned.parquet")
  run = inference.Run(workdir)
  print(assign.assign_to_file(run, IMAGES.value, path, NUM_GROUPS.value))


def _export() -> None:
  """Writes the network of a run for PyTorch."""
  import jax

  from odc_jax.interop import export

  if jax.process_count() > 1:
    raise UserError("--mode=export runs in one process: --num_processes=1")
  workdir = _workdir()
  folder = expanded(OUTPUT.value or workdir / "export")
  print(export.write(workdir, folder))


def _report() -> None:
  """Writes the report of a run anew."""
  from odc_jax import report
  from odc_jax.results import annotations, groups

  workdir = _workdir()
  try:
    if NUM_GROUPS.value is not None and workdir.is_dir():
      groups.regroup(workdir, NUM_GROUPS.value)
    if ANNOTATIONS.value:
      path = expanded(ANNOTATIONS.value)
      print(annotations.apply(workdir, path))
    if THUMBNAILS.value:
      _thumbnails(workdir)
    print(f"written: {report.write(workdir)}")
  except OSError as error:
    raise UserError(f"cannot write to {workdir}: {error}") from error


def _thumbnails(workdir: pathlib.Path) -> None:
  """Puts small pictures into the table of a finished run."""
  from odc_jax.results import pictures

  print(pictures.add(workdir))


def _sort() -> None:
  """Sorts the images of a finished run into folders."""
  # So that no half of a folder stays behind.
  signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
  from odc_jax.results import sort

  if not OUTPUT.value:
    raise UserError("--mode=sort needs a new folder: --output=/sorted/images")
  by, how = SORT_BY.value or "cluster", SORT_AS.value or "link"
  print(sort.sort(_workdir(), expanded(OUTPUT.value), by, how))


def _plan() -> None:
  """Prints what the run would need."""
  from odc_jax.plan import tpu_slices

  if TOPOLOGY.value:
    tpu_slices.prepare_environment()
  # Late: JAX reads the environment when it is imported.
  from odc_jax.plan import measure

  _check_given()
  measure.run(
    CONFIG.value,
    topology_name=TOPOLOGY.value,
    num_examples=NUM_EXAMPLES.value,
    images_per_second=IMAGES_PER_SECOND.value,
    written=_written(),
  )


def _written() -> Any:
  """Returns the experiment as its file has it, without --config.KEY=VALUE."""
  flag: Any = flags.FLAGS["config"]
  return flag.parser.parse(config_flags.get_config_filename(flag))


def _run_name(config_file: str) -> str:
  """configs/odc_digits.py:quick -> odc_digits_quick."""
  path, _, variant = config_file.partition(":")
  return "_".join(filter(None, [pathlib.Path(path).stem, variant]))


def parse(argv: list[str]) -> list[str]:
  """Parses flags; what is wrong with them becomes one clear line.

  Raises:
    UserError: Unknown flag or key, wrong type, config that cannot be loaded.
  """
  if any(arg in _HELP for arg in argv[1:]):
    print(usage.page(MODES, _SECTIONS, configs.names()))
    raise SystemExit(0)
  try:
    rest = flags.FLAGS(argv)
  except flags.Error as error:
    # ml_collections puts a traceback into the message; its last line says it.
    last = str(error).strip().splitlines()[-1].strip("; ")
    given = any(re.match("--?config(=|$)", arg) for arg in argv)
    if "'config." in last and not given:
      last += "; --config.KEY=VALUE needs the config: --config=FILE.py"
    raise UserError(last) from error
  except (AttributeError, KeyError, TypeError) as error:
    # It names the key that it misses, but not the flag that it came from.
    key = re.search(r"\w+", str(error).replace("\\n", " "))
    key = key.group() if key else "?"
    flag = next((arg for arg in argv if f".{key}=" in f"{arg}="), key)
    similar = re.search(r'Did you mean \\*"(\w+)', str(error))
    raise UserError(
      f"the config has no key {flag.partition('=')[0].lstrip('-')}"
      + (f"; did you mean {similar.group(1)}?" if similar else "")
      + " (the file given as --config shows all keys)"
    ) from error
  except ValueError as error:
    raise UserError(f"cannot load the config: {error}") from error
  if CONFIG.value is None:
    if WORKDIR.value and MODE.value in _OF_A_RUN:
      return rest  # what they need is in the work directory
    if MODE.value in _OF_A_RUN:
      raise UserError("no run given; try --workdir=runs/odc_digits")
    raise UserError(
      "no config given; try --config=configs/odc_digits.py, or --help"
    )
  return rest


def program() -> None:
  """Does what the command line says, and ends with its exit status."""
  huge_pages.restart_with()
  interrupts.never_lose()
  for stream in (sys.stdout, sys.stderr):
    # A name of a file may be no text, or none that this terminal has.
    if hasattr(stream, "reconfigure"):
      stream.reconfigure(errors="backslashreplace")  # pyright: ignore
  try:
    app.run(main, flags_parser=parse)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    launch.leave(2)
  except KeyboardInterrupt:
    print("stopped; the same command starts again", file=sys.stderr)
    launch.leave(130)
  except BrokenPipeError:  # nobody reads on, as with `| head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    launch.leave(1)
  except Exception as error:
    remedy = _REMEDIES.get(getattr(error, "errno", None) or 0)
    if isinstance(error, OSError) and remedy:
      print(f"error: {error}; {remedy}", file=sys.stderr)
      launch.leave(2)
    if isinstance(error, UnicodeEncodeError):
      print(
        f"error: {error.object[:200]!r} is a path or a name with bytes that "
        "are no UTF-8; rename it, or choose another",
        file=sys.stderr,
      )
      launch.leave(2)
    traceback.print_exc()
    launch.leave(1)
