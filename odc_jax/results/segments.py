"""`segments.parquet`: the runs of equal clusters in sequences of frames."""

import pathlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from odc_jax.files import whole

FILE = "segments.parquet"

# Names are a contract: scripts read them.
COLUMNS = {
  "sequence": "name of the sequence",
  "start": "its first frame, from 0",
  "end": "the frame behind its last",
  "cluster": "the cluster of all of its frames",
  "confidence": "mean of its frames' `confidence` in clusters.parquet",
}


def write(
  workdir: pathlib.Path, names: Sequence[str], lengths: Int[np.ndarray, "s"]
) -> None:
  """Writes the segments of what `clusters.parquet` says of every frame.

  Args:
    workdir: With `clusters.parquet`, a row for every frame.
    names: Of the sequences, in the order of the rows.
    lengths: Frames of each.

  Raises:
    OSError: A file cannot be read or written.
  """
  frames = pq.read_table(
    workdir / "clusters.parquet", columns=["cluster", "confidence"]
  )
  found = segments(
    frames["cluster"].to_numpy(), frames["confidence"].to_numpy(), lengths
  )
  sequence = found.pop("sequence")
  columns = {"sequence": pa.array([names[i] for i in sequence]), **found}
  with whole(workdir / FILE) as partial:
    pq.write_table(pa.table({name: columns[name] for name in COLUMNS}), partial)


def segments(
  clusters: Int[np.ndarray, "n"],
  confidence: Float[np.ndarray, "n"],
  lengths: Int[np.ndarray, "s"],
) -> dict[str, np.ndarray]:
  """Returns column -> its values, one for each segment.

  Args:
    clusters: Of all frames, one sequence after the other.
    confidence: Of the frames.
    lengths: Frames of each sequence.

  Returns:
    As `COLUMNS`, but for `sequence`, which is the sequence's number.
  """
  ids = np.repeat(np.arange(len(lengths)), lengths)
  begins = np.ones(len(clusters), bool)
  begins[1:] = (np.diff(clusters) != 0) | (np.diff(ids) != 0)
  starts = np.flatnonzero(begins)
  ends = np.append(starts[1:], len(clusters))
  sums = np.add.reduceat(confidence.astype(np.float64), starts)
  offset = (np.cumsum(lengths) - lengths)[ids[starts]]
  return {
    "sequence": ids[starts],
    "start": starts - offset,
    "end": ends - offset,
    "cluster": clusters[starts].astype(np.int32),
    "confidence": (sums / (ends - starts)).astype(np.float32),
  }
