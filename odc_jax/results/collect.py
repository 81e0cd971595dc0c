"""From the last state of a run to the files that its user takes away.

The devices judge every image (`Program.judge`); what follows is the first
process's work alone, in `results`.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
import pyarrow as pa
from jax.sharding import Mesh

from odc_jax import mesh as mesh_lib
from odc_jax.clustering import pca
from odc_jax.distributed import processes
from odc_jax.files import whole
from odc_jax.passes.extract import Features
from odc_jax.results import growth, vectors, write
from odc_jax.training import assign
from odc_jax.training.programs import Program
from odc_jax.training.state import TrainState

# The first of them hold nearly all of a trained backbone's variance, and a
# million images are compared in 128 dimensions where 2,048 would not fit.
_NUM_COMPONENTS = 128
# Half of a whitening: what is novel shows in directions in which the training
# images vary little, what is alike in those in which they vary much.
_EIGEN_POWER = -0.25


def hand_over(
  workdir: pathlib.Path,
  program: Program,
  mesh: Mesh,
  state: TrainState,
  found: Features,
  *,
  num_clusters: int,
  clusters: np.ndarray,
  keys: Sequence[str],
  bad: set[int],
  num_groups: int | None,
  look: Callable[[np.ndarray], Mapping[str, pa.Array]],
  folder: str | None,
  grown: growth.Grown | None = None,
) -> None:
  """Writes what a user takes away; `results` lists the files.

  All processes have to call; the first one writes.

  Args:
    workdir: The work directory.
    program: What computed `found`.
    mesh: All devices.
    state: The network.
    found: What it makes of the n training images.
    num_clusters: k.
    clusters: Of the training images, [n]; k where one has none, which gets the
      nearest, or the one that is voted for.
    keys: Their names.
    bad: Those that could not be read.
    num_groups: How many groups to merge the clusters into, or None.
    look: Which images could be read, [n] -> further columns of the table; the
      first process calls it.
    folder: That the keys are below; None: images are no files.
    grown: Which images came later, and which are gone, if any did or are.

  Raises:
    UserError: There cannot be so many groups.
  """
  n = len(clusters)
  readable = np.ones(n, bool)
  readable[list(bad)] = False
  # An unreadable image has a neighbour's features, and is padding here.
  own = np.full(mesh_lib.padded_rows(n), num_clusters, np.int32)
  own[:n] = np.where(readable, clusters, num_clusters)
  own_rows = jax.device_put(own, mesh_lib.rows(mesh))
  asked = np.minimum(own, num_clusters - 1)
  asked[:n][clusters == num_clusters] = -1
  centroids = assign.centroids(found.embeddings, own_rows, num_clusters)
  components = pca.fit(
    found.features, own_rows < num_clusters, _NUM_COMPONENTS, _EIGEN_POWER
  )
  chunks = _judged_chunks(program, state, found, centroids, asked, n)
  if not processes.is_first():
    for _ in chunks:  # the devices need all of us
      pass
    return
  judgements, signatures = _write_rows(
    workdir, chunks, components, readable, found.embeddings.shape[1]
  )
  decided, *rest = (
    np.concatenate(parts) for parts in zip(*judgements, strict=True)
  )
  clusters = np.where(clusters == num_clusters, decided, clusters)
  write.write(
    workdir,
    keys=keys,
    labels=found.labels,
    readable=readable,
    judged=write.Judged(clusters, *rest),
    centroids=np.asarray(centroids),
    components=components._asdict(),
    signatures=np.concatenate(signatures),
    num_groups=num_groups,
    facts=look(readable),
    folder=folder,
    grown=grown,
  )


def _judged_chunks(program, state, found, centroids, asked, num_images):
  """Yields the training images' rows, `assign.CHUNK` of them at a time.

  All processes have to take every chunk: the devices compute it together.

  Args:
    program: What computed `found`.
    state: The network.
    found: What it makes of the training images.
    centroids: Of the clusters, [k, d].
    asked: The cluster that an image is judged as a member of, [rows]; -1 for
      the nearest.
    num_images: How many of the rows are images and no padding.

  Yields:
    The chunk's place as a slice, its `Judgement`, features, embeddings and
    signatures, as NumPy arrays.
  """
  params, _ = program.evaluated(state)
  for start in range(0, num_images, assign.CHUNK):
    features, embeddings, signatures = assign.chunk(
      (found.features, found.embeddings, found.signatures), start
    )
    judged = program.judge(
      params,
      centroids,
      embeddings,
      asked[start : start + assign.CHUNK],
      state.method,
    )
    count = min(assign.CHUNK, num_images - start)
    yield (
      slice(start, start + count),
      *jax.tree.map(
        lambda array, count=count: processes.to_host(array)[:count],
        (judged, features, embeddings, signatures),
      ),
    )


def _write_rows(workdir, chunks, components, readable, width):
  """Writes `embeddings.npy` and `features.npy`, rows of unit length.

  Args:
    workdir: The work directory.
    chunks: See `_judged_chunks`.
    components: What the features are projected on (`pca.PCA`).
    readable: Which images could be read, [n]; the others' rows are zeros.
    width: Width of the embeddings.

  Returns:
    The chunks' judgements, and their signatures.
  """
  n = len(readable)
  judgements, signatures = [], []
  with (
    _rows_file(workdir / "embeddings.npy", (n, width)) as all_embeddings,
    _rows_file(
      workdir / "features.npy", (n, len(components.components))
    ) as all_features,
  ):
    for where, judged, features, embeddings, chunk_signatures in chunks:
      judgements.append(judged)
      signatures.append(chunk_signatures)
      there = readable[where, None]
      all_embeddings[where] = np.where(there, vectors.unit(embeddings), 0)
      reduced = vectors.unit(components.project(features))
      all_features[where] = np.where(there, reduced, 0)
  return judgements, signatures


@contextlib.contextmanager
def _rows_file(path: pathlib.Path, shape: tuple[int, int]) -> Iterator:
  """Yields a float16 array of zeros that is a file, there whole or not."""
  with whole(path) as partial:
    # Not in memory: a million rows of 256 values are half a gigabyte.
    rows = np.lib.format.open_memmap(partial, "w+", np.float16, shape=shape)
    yield rows
    rows.flush()
    del rows
