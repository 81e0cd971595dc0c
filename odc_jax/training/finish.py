"""The end of a run: what its user takes away."""

import contextlib
import functools
import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from odc_jax.config import check
from odc_jax.data import facts, loader, sources
from odc_jax.data.sequences import Sequences
from odc_jax.data.subset import Subset
from odc_jax.distributed import processes
from odc_jax.files import write_json
from odc_jax.logs import progress, writer
from odc_jax.passes.extract import Features
from odc_jax.results import segments, vectors
from odc_jax.results import verdict as verdict_lib
from odc_jax.results.collect import hand_over
from odc_jax.results.growth import Grown
from odc_jax.training.setup import Run
from odc_jax.training.state import TrainState

# The first process looks at the files of an image at a time and core: minutes.
_MOST_LOOKED_AT = 2_000_000


def finish(
  run: Run,
  state: TrainState,
  features: Features,
  num_groups: int | None,
  bottleneck: str,
) -> dict[str, int | float]:
  """Writes the tables, the summary and the report of a run.

  All processes have to call; the first one writes, the others wait.

  Args:
    run: The run.
    state: After the last step.
    features: What its network makes of the training set.
    num_groups: How many groups to merge the clusters into, if any.
    bottleneck: What held the run up, to be said; "" if nothing is known.

  Returns:
    The numbers in `summary.json`.

  Raises:
    UserError: There cannot be so many groups.
  """
  bad_train, bad_test = run.evaluation.bad_train, run.evaluation.bad_test
  for bad in (bad_train, bad_test):
    bad.exchange(processes.gather)
  keys = run.train.keys
  if keys is None:
    named = _all_keys(features)
    keys = [named[i] for i in range(run.config.num_examples)]
  hand_over(
    run.workdir,
    run.program,
    run.mesh,
    state,
    features,
    num_clusters=run.config.num_clusters,
    clusters=run.clusters(state),
    keys=keys,
    bad=bad_train.indices,
    num_groups=num_groups,
    look=functools.partial(_facts, run),
    folder=getattr(sources.pictures(run.train), "base", None),
    grown=_grown(run, keys),
  )
  summary, verdict = None, None
  if processes.is_first():
    if isinstance(run.train, Sequences):
      segments.write(run.workdir, run.train.sequence_names, run.train.lengths)
    # Late: Matplotlib and Jinja take a second to import.
    from odc_jax import report

    verdict = _verdict(run)
    summary = writer.last_values(run.workdir) | verdict.numbers
    said = {"verdict": verdict.line, "verdict_details": verdict.details}
    write_json(run.workdir / "summary.json", said | summary, indent=2)
    report.write(run.workdir)
  for bad in (bad_train, bad_test):
    if len(bad):
      processes.say(f"{bad}, named in {run.workdir / 'bad_images.txt'}")
  if bottleneck:
    processes.say(bottleneck)
  if verdict is not None:
    processes.say(" ".join((verdict.line, *verdict.details)))
  # Also keeps the others until all is written.
  return processes.gather(summary)[0]


def _facts(run: Run, readable: np.ndarray) -> dict[str, pa.Array]:
  """Returns what the images say of themselves, [n] -> columns of n values."""
  n = len(readable)
  if n > _MOST_LOOKED_AT:
    processes.say(
      f"{n:,} images: size, light, digest and date are not looked at, as of "
      f"more than {_MOST_LOOKED_AT:,}"
    )
    return {}
  kept, pictures = None, sources.pictures(run.train)
  if pictures is None:
    return {}
  if check.is_frozen(run.config):  # as features are, for the next run
    data = run.config.data
    folder = getattr(pictures, "base", "")
    name = hashlib.sha256(f"{folder}\0{data.split}".encode()).hexdigest()[:16]
    kept = run.workdir.parent / "facts" / f"{name}.parquet"
  with progress.bar("looking at the files", n) as advance:
    return facts.look(
      pictures,
      readable,
      num_threads=run.config.data.num_threads,
      kept=kept,
      advance=advance,
    )


def _grown(run: Run, keys: Sequence[str]) -> Grown | None:
  """Returns which images came later and which are gone, if any did or are."""
  if run.growth is None:
    return None
  sizes, missing = run.growth.sizes, run.growth.missing
  return Grown(
    run.growth.generations(),
    np.array([key in missing for key in keys]),
    len(sizes) - 1,
  )


def _verdict(run: Run) -> verdict_lib.Verdict:
  """Judges the clusters that were written, by a sample of the images."""
  config = run.config
  table = pq.read_table(
    run.workdir / "clusters.parquet",
    columns=["index", "cluster", "margin", "confidence"],
  )
  index, clusters = table["index"].to_numpy(), table["cluster"].to_numpy()
  chosen = verdict_lib.sample(len(index))
  if run.growth is not None and run.growth.missing:
    keys, missing = run.train.keys or (), run.growth.missing
    there = [keys[i] not in missing for i in index[chosen].tolist()]
    chosen = chosen[there]
  features = np.load(run.workdir / "features.npy", mmap_mode="r")
  measures = verdict_lib.measure(
    vectors.unit(features[index[chosen]]),
    clusters[chosen],
    _small(sources.pictures(run.train), index[chosen], config.data.num_threads),
  )
  return verdict_lib.of(
    verdict_lib.Start(
      not config.model.weights and not check.has_features(config),
      check.is_frozen(config),
      run.num_steps,
    ),
    measures,
    largest=float(np.bincount(clusters).max() / len(clusters)),
    elsewhere=float(np.mean(table["margin"].to_numpy() < 0)),
    heads=(
      None
      if run.method.vote is None
      else float(np.mean(table["confidence"].to_numpy()))
    ),
  )


def _small(source, rows, num_threads):
  """Returns small pictures of some images, uint8 [m, side, side, 3], if any."""
  if source is None:
    return None
  side = verdict_lib.SIDE
  batches = loader.eval_batches(
    Subset(source, rows),
    batch_size=min(64, len(rows)),
    resize=side,
    crop=side,
    num_threads=num_threads,
  )
  with contextlib.closing(batches):
    pictures = [batch["image"] for batch in batches]
  return np.concatenate(pictures)[: len(rows)]


def _all_keys(features: Features) -> dict[int, str]:
  """Returns the names of the images that all processes have read."""
  keys = {}
  for part in processes.gather(list(features.keys.items())):
    keys.update(part)
  return keys
