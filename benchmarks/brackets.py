"""A finished run between a random and a supervised network.

  python -m benchmarks.brackets --workdir RUN [RUN ...] [--evals=knn,linear]

What a number of an evaluation means shows between two others: that of the same
network with random weights, and that of the same network trained with all
labels of the part that the evaluators learn from (SGD with momentum 0.9,
weight decay 5e-4, random crops and flips, the rate falling to a fifth after 60
and after 80 % of the epochs). All three are tried by the same evaluators on the
same images. With several runs, which may differ in nothing but the seed, the
table has medians. Prints it, and one JSON line.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
from collections.abc import Sequence

import jax
from absl import logging

from odc_jax import mesh as mesh_lib
from odc_jax.config import store
from odc_jax.data import sources
from odc_jax.distributed import processes
from odc_jax.evals import probe, semi
from odc_jax.evals.evaluation import Evaluation
from odc_jax.methods import METHODS
from odc_jax.training import checkpoint
from odc_jax.training.programs import assemble


def scores(
  workdir: pathlib.Path, evals: Sequence[str], epochs: int, rate: float
) -> dict[str, dict[str, float]]:
  """Returns network -> name -> value."""
  config = store.read(workdir)
  if evals:
    config.eval.evaluators = tuple(evals)
  mesh = mesh_lib.make_mesh()
  with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as scratch:
    method = METHODS[config.method]
    program = assemble(config, method, mesh)
    train = sources.make(config.data.source, config.data.split)
    test = None
    if config.eval.split:
      test = sources.make(config.data.source, config.eval.split, train)
    bad_path = pathlib.Path(scratch, "bad_images.txt")
    evaluation = Evaluation(config, program, mesh, train, test, bad_path)

    def subject(params, batch_stats, clusters=None):
      found = evaluation.train_features(params, batch_stats)
      return evaluation.subject(params, batch_stats, found, clusters)

    state = program.init()
    params, batch_stats = program.evaluated(state)
    random = subject(params, batch_stats)
    found = {"random": evaluation.scores(random)}

    parts = ("method", *program.evaluated_parts)
    restored = checkpoint.restore_parts(
      workdir, program.shapes, program.shardings, parts
    )
    state = program.shapes._replace(**dict(zip(parts, restored, strict=True)))
    trained, trained_stats = program.evaluated(state)
    clusters = processes.to_host(method.clusters(state.method))[: len(train)]
    found["learned"] = evaluation.scores(
      subject(trained, trained_stats, clusters)
    )

    learner, *weights = semi.classifier(random, probe.num_classes(random))
    recipe = probe.Recipe(
      num_epochs=epochs,
      batch_size=config.batch_size,
      decay_epochs=(0.6 * epochs, 0.8 * epochs),
      decay_rate=0.2,
    )
    learned = probe.trainer(random, learner, recipe)(
      *weights, {"backbone": rate, "head": rate}, 5e-4, random.train
    )
    supervised = (
      {**params, "backbone": learned.params["backbone"]},
      {**batch_stats, "backbone": learned.batch_stats["backbone"]},
    )
    found["supervised"] = evaluation.scores(subject(*supervised))
    found["supervised"]["train loss"] = learned.losses[-1]
  return found


def main() -> None:
  """Tries the networks of every run, and prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", nargs="+", type=pathlib.Path, required=True)
  parser.add_argument("--evals", type=lambda text: text.split(","), default=[])
  parser.add_argument("--epochs", type=int, default=50)
  parser.add_argument("--learning-rate", type=float, default=0.05)
  args = parser.parse_args()
  logging.set_verbosity(logging.WARNING)
  runs = [
    scores(workdir, args.evals, args.epochs, args.learning_rate)
    for workdir in args.workdir
  ]
  networks = list(runs[0])
  names = sorted({name for run in runs for row in run.values() for name in row})
  table = {
    name: {
      network: statistics.median(run[network][name] for run in runs)
      for network in networks
      if name in runs[0][network]
    }
    for name in names
  }
  width = max(map(len, names))
  print(f"\n{'':{width}}  " + "  ".join(f"{n:>10}" for n in networks))
  for name, row in table.items():
    cells = (f"{row[n]:10.4f}" if n in row else " " * 10 for n in networks)
    print(f"{name:{width}}  " + "  ".join(cells))
  print(json.dumps({"runs": len(runs), "medians": table, "of each": runs}))


if __name__ == "__main__":
  main()
