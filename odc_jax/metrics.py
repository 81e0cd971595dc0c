"""Names of every logged scalar, and where they are written."""

import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

from odc_jax import progress
from odc_jax.files import write_whole
from odc_jax.health import Finding, Health

# What `--mode=evaluate` leaves, a list of {"step": of which checkpoint,
# "source" and others: on which images and how, "of_run": whether as the run
# itself evaluates, "scores": {"eval/...": value}}.
EVALUATION = "evaluation.json"

# Every scalar that a run can log; # stands for any number. Names are a
# contract: scripts read them. "labels" in a name means ground truth; the
# pseudo-labels are "clusters".
SCALARS = {
  "train/loss": "the loss that is minimised",
  "train/cluster_accuracy": "batch images classified as their cluster",
  "train/center_loss": "the part of the loss that the centres learn from",
  "train/embedding_std": "spread of the batch's embeddings over the sphere: 0 "
  "where all are the same, at most 1",
  "train/learning_rate": "of the backbone",
  "train/bad_images": "training images met so far that cannot be read",
  "cluster/label_change": "batch images whose cluster changed",
  "cluster/nmi_previous": "NMI (arithmetic) of the clusters with those of "
  "an epoch ago",
  "cluster/empty": "clusters without an image",
  "cluster/min_size": "images in the smallest cluster",
  "cluster/max_size": "images in the largest cluster",
  "cluster/entropy": "of the cluster sizes, in nats; at most ln K",
  "cluster/dissolved": "small clusters dissolved in this step",
  "cluster/dissolved_epoch": "small clusters dissolved since the epoch began",
  "cluster/transport_iterations": "Sinkhorn-Knopp iterations of the last solve",
  "eval/knn_top1": "kNN top-1 on frozen backbone features, with eval.knn_k "
  "neighbours and eval.knn_temperature",
  "eval/knn_top1_k#": "kNN top-1 on frozen backbone features, with # "
  "neighbours and the published temperature of 0.07",
  "eval/nmi_labels": "NMI (arithmetic) of the clusters with the labels",
  "eval/nmi_geometric_labels": "NMI (geometric) of the clusters with the "
  "labels",
  "eval/ami_labels": "adjusted mutual information of the clusters with the "
  "labels",
  "eval/ari_labels": "adjusted Rand index of the clusters with the labels",
  "eval/purity_labels": "images that have their cluster's majority label",
  "eval/acc_labels": "images whose label is the one matched to their cluster, "
  "one to one; only where there are as many clusters as labels",
  "eval/kmeans_acc_labels": "accuracy, one to one, of k-means on the features, "
  "with as many clusters as labels",
  "eval/kmeans_nmi_labels": "NMI (arithmetic) of k-means on the features "
  "with the labels",
  "eval/kmeans_nmi_geometric_labels": "NMI (geometric) of k-means on the "
  "features with the labels",
  "eval/kmeans_ami_labels": "adjusted mutual information of k-means on the "
  "features with the labels",
  "eval/kmeans_ari_labels": "adjusted Rand index of k-means on the features "
  "with the labels",
  "eval/retrieval_recall_at#": "test images that have one of their label among "
  "the # most similar training images",
  "eval/retrieval_map": "mean average precision over all training images, "
  "ranked by similarity to a test image",
  "eval/retrieval_map_#q": "mean average precision over all training images, "
  "ranked by similarity to one of # test images",
  "eval/linear_top1_lbfgs": "logistic regression on the pooled features",
  "eval/linear_top5_lbfgs": "logistic regression on the pooled features, top-5",
  "eval/linear_top1_sgd#": "linear layer on the pooled features, # epochs of "
  "SGD, the last of them",
  "eval/linear_top5_sgd#": "linear layer on the pooled features, # epochs of "
  "SGD, the last of them, top-5",
  "eval/linear_top1_sgd#_best": "linear layer on the pooled features, # epochs "
  "of SGD, the best of them on the test set",
  "eval/linear_top5_sgd#_best": "linear layer on the pooled features, # epochs "
  "of SGD, the best of them on the test set, top-5",
  "eval/linear_top1_stage#_sgd#": "linear layer on stage #, pooled to at most "
  "9,216 numbers, # epochs of SGD",
  "eval/linear_top5_stage#_sgd#": "linear layer on stage #, pooled to at most "
  "9,216 numbers, # epochs of SGD, top-5",
  "eval/semi_#pct_top1_best_of_#": "all weights fine-tuned with # % of the "
  "labels, the best on the test set of # settings",
  "eval/semi_#pct_top5_best_of_#": "all weights fine-tuned with # % of the "
  "labels, the best on the test set of # settings, top-5",
  "eval/svm_map_cv3": "linear SVMs on the last stage, mean average precision, "
  "costs chosen by cross-validation",
  "eval/low_shot_map_k#_best_c": "linear SVMs from # images of a class, mean "
  "average precision, the best cost on the test set",
  "speed/images_per_second": "since the last log line",
  "speed/step_ms": "milliseconds per step, since the last log line",
  "speed/data_wait": "fraction of the time in which the devices had nothing to "
  "do because the next batch was not there",
}


class MetricWriter:
  """Writes scalars to `metrics.jsonl`, TensorBoard and the terminal.

  What they say about the run's health goes to standard error and, an object a
  line, to `warnings.jsonl`, which is not there while all is well.

  Attributes:
    logged_at_start: Names that were already logged for the step at which the
      run goes on.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    resumed_at: int | None,
    num_steps: int,
    health: Health | None = None,
  ):
    """Opens the files.

    Args:
      workdir: The work directory.
      resumed_at: The step at which the run goes on, or None for a new run:
        later lines of `metrics.jsonl`, which it will write again, are removed.
      num_steps: Where it ends, for the progress bar.
      health: Judges every line, those of before as well; None: nobody does.
    """
    self._path = workdir / "metrics.jsonl"
    self.logged_at_start: set[str] = set()
    self._health, self._warnings_path = health, workdir / "warnings.jsonl"
    kept = []
    if self._path.exists():
      kept = [
        line
        for line in _whole_lines(self._path)
        if resumed_at is not None and json.loads(line)["step"] <= resumed_at
      ]
      for line in map(json.loads, kept):
        if line["step"] == resumed_at:
          self.logged_at_start |= line.keys()
      # Whole or not at all: the history survives a kill at this moment.
      write_whole(self._path, "".join(line + "\n" for line in kept).encode())
    # Judged again instead of kept: nothing is lost or doubled by a kill between
    # the writing of a line and of its warnings.
    self._warnings_path.unlink(missing_ok=True)
    for line in kept:
      self._judge(json.loads(line))
    self._file = self._path.open("a")
    self._tensorboard = _tensorboard(workdir / "tensorboard")
    self._start = time.time()
    self._progress = progress.on_terminal()
    if self._progress is not None:
      self._progress.start()
      self._task = self._progress.add_task(
        "training", total=num_steps, completed=resumed_at or 0, note=""
      )
    self._num_steps = num_steps

  def write(self, step: int, epoch: float, scalars: Mapping[str, Any]) -> None:
    """Writes the scalars that belong to `step`.

    Raises:
      KeyError: If a name is not declared in `SCALARS`.
    """
    if unknown := {name for name in scalars if declared(name) is None}:
      raise KeyError(f"undeclared scalars {sorted(unknown)}")
    values = {
      name: value.item() if hasattr(value, "item") else value
      for name, value in scalars.items()
    }
    line = {
      "step": step,
      "epoch": round(epoch, 4),
      "time": round(time.time() - self._start, 3),
      **values,
    }
    self._file.write(json.dumps(line) + "\n")
    self._file.flush()
    if self._tensorboard is not None:
      self._tensorboard.write_scalars(step, values)
    self._show(step, epoch, values)
    for finding in self._judge(line):
      # A progress bar makes way for what is printed to standard error.
      print(
        f"warning: step {step}: {finding.text}", file=sys.stderr, flush=True
      )

  def _judge(self, line: Mapping[str, Any]) -> list[Finding]:
    """Returns what the line shows of the run's health, and keeps it."""
    findings = self._health.judge(line) if self._health else []
    if findings:
      with self._warnings_path.open("a") as file:
        for finding in findings:
          file.write(json.dumps(finding._asdict()) + "\n")
    return findings

  def _show(self, step: int, epoch: float, values: Mapping[str, Any]) -> None:
    shown = [
      f"{name.split('/')[1]} {value:.4g}"
      for name, value in values.items()
      if name in _ON_TERMINAL
    ]
    if self._progress is None:
      print(
        f"step {step}/{self._num_steps}  epoch {epoch:.1f}  "
        + "  ".join(shown),
        flush=True,
      )
      return
    if any(name.startswith("eval/") for name in values):
      self._progress.console.print(f"epoch {epoch:.1f}  " + "  ".join(shown))
    else:
      self._progress.update(self._task, note="  ".join(shown))

  def advance(self, step: int) -> None:
    """Moves the progress bar."""
    if self._progress is not None:
      self._progress.update(self._task, completed=step)

  def flush(self) -> None:
    """Puts everything on disk."""
    self._file.flush()
    if self._tensorboard is not None:
      self._tensorboard.flush()

  def close(self) -> None:
    """Flushes and closes everything."""
    if self._progress is not None:
      self._progress.stop()
    self._file.close()
    if self._tensorboard is not None:
      self._tensorboard.close()


class SilentWriter:
  """In place of a `MetricWriter`, in all processes but the first."""

  def __init__(self):
    """Opens nothing."""
    self.logged_at_start: set[str] = set()

  def write(self, step: int, epoch: float, scalars: Mapping[str, Any]) -> None:
    """Writes nothing."""

  def advance(self, step: int) -> None:
    """Shows nothing."""

  def flush(self) -> None:
    """Has nothing to flush."""

  def close(self) -> None:
    """Has nothing to close."""


_ON_TERMINAL = {
  "train/loss",
  "cluster/label_change",
  "cluster/nmi_previous",
  "speed/images_per_second",
  # Those with a number in their name are for `summary.json`.
  *(name for name in SCALARS if name.startswith("eval/") and "#" not in name),
}


def declared(name: str) -> str | None:
  """Returns what a scalar's name means, or None where it is not declared."""
  for pattern, text in SCALARS.items():
    if found := re.fullmatch(pattern.replace("#", r"(\d+)"), name):
      for number in found.groups():
        text = text.replace("#", number, 1)
      return text
  return None


def last_values(workdir: pathlib.Path) -> dict[str, int | float]:
  """Returns the last value of every evaluation and cluster scalar so far.

  Evaluations after the run count where they are of its last checkpoint and of
  its own images.
  """
  values, step = {}, 0
  lines = []
  if (path := workdir / "metrics.jsonl").exists():
    lines = [json.loads(line) for line in _whole_lines(path)]
    step = max((line["step"] for line in lines), default=0)
  if (path := workdir / EVALUATION).exists():
    for entry in json.loads(path.read_text()):
      if entry["of_run"] and entry["step"] >= step:
        lines.append(entry["scores"])
  for line in lines:
    for name, value in line.items():
      if name.startswith(("eval/", "cluster/")):
        values[name] = value
  return values


def _whole_lines(path: pathlib.Path) -> list[str]:
  """Returns the lines that were written to their end."""
  text = path.read_text()
  return text[: text.rfind("\n") + 1].splitlines()


def _tensorboard(folder: pathlib.Path):
  """Returns clu's TensorBoard writer, or None where TensorFlow is missing."""
  # TensorFlow greets with a warning about a library that scalars do not need.
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
  # Late: importing TensorFlow takes seconds.
  try:
    import tensorflow as tf
    from clu import metric_writers
  except ImportError as error:
    print(
      f"no TensorBoard files: {error}; pip install -r requirements.txt",
      file=sys.stderr,
    )
    return None
  # Otherwise writing the first scalar takes all of the GPUs' memory.
  tf.config.set_visible_devices([], "GPU")
  return metric_writers.SummaryWriter(str(folder))
