"""One or two JAX processes: evaluators find the same numbers."""

import json
import pathlib

import pytest

from tests.data import pascal
from tests.program import work_together

# A process of its own imports this file too, and must set up JAX first.
DEVICES = 4


def work(process, count, port, folder, out):
  """Evaluates as process `process` of `count`."""
  import jax

  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", DEVICES // count)
  if count > 1:
    jax.distributed.initialize(f"localhost:{port}", count, process)
  import numpy as np

  from odc_jax import mesh as mesh_lib
  from odc_jax.data import sources
  from odc_jax.distributed import processes
  from odc_jax.evals import clustering, retrieval, svm
  from tests.evals.retrieval_test import draw
  from tests.evals.svm_test import subject_of

  mesh = mesh_lib.make_mesh()

  def with_features(split, seed):
    x, labels = draw(len(split.source), seed)
    padded = np.zeros((1024, x.shape[1]), np.float32)
    padded[: len(x)] = x
    share = 1024 // count
    mine = padded[process * share : (process + 1) * share]
    features = split.features._replace(
      features=processes.to_devices(mine, mesh), labels=labels
    )
    rows = np.arange(len(x))
    return split._replace(features=features, rows=rows, labels=labels)

  train, test = (
    sources.make(f"voc:{folder}", split) for split in ("trainval", "test")
  )
  found = {}
  with jax.set_mesh(mesh):
    subject = subject_of(mesh, train, test)
    # These take the labels from the source.
    found.update(svm.full(subject))
    found.update(svm.low_shot(subject))
    subject = subject._replace(
      train=with_features(subject.train, 1), test=with_features(subject.test, 2)
    )
    found.update(clustering.kmeans(subject))
    found.update(retrieval.evaluate(subject))
  pathlib.Path(out).write_text(json.dumps(found))


def evaluate(count, folder, tmp_path):
  outs = [tmp_path / f"{count}_{process}.json" for process in range(count)]
  work_together(__name__, folder, outs)
  return [json.loads(out.read_text()) for out in outs]


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
  pascal.write(tmp_path / "voc", {"trainval": 40, "test": 35})
  (alone,) = evaluate(1, tmp_path / "voc", tmp_path)
  assert len(alone) > 12
  # An odd number of classes: the first process has one more.
  first, second = evaluate(2, tmp_path / "voc", tmp_path)
  assert first == second
  # The devices divide the rows otherwise, and round otherwise.
  assert first == pytest.approx(alone, rel=1e-4)
