"""The end of a run: what its user takes away."""

from odc_jax.distributed import processes
from odc_jax.files import write_json
from odc_jax.logs import writer
from odc_jax.passes.extract import Features
from odc_jax.results.collect import hand_over
from odc_jax.training.setup import Run
from odc_jax.training.state import TrainState


def finish(
  run: Run,
  state: TrainState,
  features: Features,
  num_groups: int | None,
  verdict: str,
) -> dict[str, int | float]:
  """Writes the tables, the summary and the report of a run.

  All processes have to call; the first one writes, the others wait.

  Args:
    run: The run.
    state: After the last step.
    features: What its network makes of the training set.
    num_groups: How many groups to merge the clusters into, if any.
    verdict: What held the run up, to be said; "" if nothing is known.

  Returns:
    What is in `summary.json`.

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
  )
  summary = None
  if processes.is_first():
    # Late: Matplotlib and Jinja take a second to import.
    from odc_jax import report

    summary = writer.last_values(run.workdir)
    write_json(run.workdir / "summary.json", summary, indent=2)
    report.write(run.workdir)
  for bad in (bad_train, bad_test):
    if len(bad):
      processes.say(f"{bad}, named in {run.workdir / 'bad_images.txt'}")
  if verdict:
    processes.say(verdict)
  # Also keeps the others until all is written.
  return processes.gather(summary)[0]


def _all_keys(features: Features) -> dict[int, str]:
  """Returns the names of the images that all processes have read."""
  keys = {}
  for part in processes.gather(list(features.keys.items())):
    keys.update(part)
  return keys
