"""From what is shown to one HTML file that needs nothing else."""

import base64
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import jinja2

from odc_jax.config import kinds
from odc_jax.logs import scalars
from odc_jax.report.contents import Contents
from odc_jax.report.curves import Curve
from odc_jax.report.history import History
from odc_jax.report.pictures import Pictures
from odc_jax.results import table

_PARTS = pathlib.Path(__file__).parent / "page"
# Parts of the script, in the order in which they are joined: they share one
# scope, and code that runs at once uses what earlier parts define.
_SCRIPTS = (
  "base.js",
  "work.js",
  "names.js",
  "tree.js",
  "route.js",
  "selection.js",
  "gallery.js",
  "sheets.js",
  "controls.js",
  "cluster_view.js",
  "viewer.js",
  "lists.js",
  "growth.js",
  "work_panel.js",
  "map.js",
  "map_colours.js",
  "map_draw.js",
  "map_input.js",
  "start.js",
)
# Shares of all images that lie nearest to the centre of their own cluster.
_FEW, _MOST = 0.5, 0.85
_ELSEWHERE = (
  "image nearer to another cluster",
  "images nearer to another cluster",
)
_DUPLICATES = ("near-duplicate", "near-duplicates")
# Bad images that are named; the rest are in bad_images.txt.
_BAD_IMAGES = 20

# Scalar -> what it is called, and what it means. In this order.
_NUMBERS = {
  "eval/knn_top1": (
    "kNN accuracy",
    "images whose nearest neighbours, by the network's features, have their "
    "true label",
  ),
  "eval/purity_labels": (
    "Purity",
    "images that have their cluster's most common true label",
  ),
  "eval/nmi_labels": (
    "NMI with the labels",
    "what the clusters tell about the true labels: 0 nothing, 1 all",
  ),
  "eval/ari_labels": (
    "Adjusted Rand index",
    "pairs of images on which clusters and true labels agree: 0 is chance, "
    "1 all",
  ),
  "cluster/nmi_previous": (
    "NMI with the previous epoch",
    "how settled the clusters are: 1 when no image moved in the last epoch",
  ),
  "cluster/label_change": (
    "Label change",
    "images of the last batches whose cluster changed",
  ),
  "cluster/min_size": ("Smallest cluster", "images in it"),
  "cluster/max_size": ("Largest cluster", "images in it"),
  "cluster/empty": ("Empty clusters", "clusters without an image"),
}
_FRACTIONS = {"eval/knn_top1", "eval/purity_labels", "cluster/label_change"}
_COUNTS = {"cluster/min_size", "cluster/max_size", "cluster/empty"}


def render(
  history: History,
  curves: Sequence[Curve],
  reference: dict[str, Any] | None,
  missing: Sequence[str],
  contents: Contents | None,
  pictures: Pictures | None,
  annotated: dict[str, Any] | None,
) -> str:
  """Returns the page.

  Args:
    history: Of the run.
    curves: Of its scalars.
    reference: What lies behind the curves, if anything.
    missing: Files with the clusters that are not there.
    contents: The clusters, if they are there.
    pictures: Of the images in `contents`.
    annotated: Names and marks that were made before, as
      `results.annotations` reads them.
  """
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_PARTS),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  script = _script()
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  config = history.config
  data = None
  if contents is not None and pictures is not None:
    images = {**contents.data["images"], "picture": pictures.of}
    data = {
      **contents.data,
      "images": images,
      "folder": pictures.folder,
      "pictures_left_out": pictures.left_out,
    }
  verdict, details = _verdict(history, contents)
  return environment.get_template("page.html.jinja").render(
    title=_title(config),
    heading=_heading(config),
    verdict=verdict,
    verdict_details=details,
    counts=_counts(history, contents),
    facts=_facts(history),
    numbers=_numbers(history.summary),
    evaluations=_evaluations(history.summary),
    finished=history.finished,
    findings=history.findings,
    bad_images=history.bad_images[:_BAD_IMAGES],
    num_bad_images=len(history.bad_images),
    advice=contents.advice if contents else "",
    missing=missing,
    curves=curves,
    reference=reference,
    data=data,
    pictures=pictures,
    annotated=annotated,
    columns=table.COLUMNS,
    css=(_PARTS / "page.css").read_text("utf-8"),
    script=script,
    # The browser runs this script and no other, whatever a file is called.
    script_digest=digest,
  )


def _script() -> str:
  """Returns the page's script, which leaves no name behind on the page."""
  parts = "\n".join((_PARTS / name).read_text("utf-8") for name in _SCRIPTS)
  return f'(() => {{\n"use strict";\n{parts}}})();\n'


def _title(config: dict[str, Any]) -> str:
  return (
    f"{_method(config)} on {_data_set(config)}: "
    f"{config['num_clusters']:,} clusters of {config['num_examples']:,} images"
  )


def _heading(config: dict[str, Any]) -> str:
  return (
    f"{_data_set(config)}: {config['num_examples']:,} images in "
    f"{config['num_clusters']:,} clusters"
  )


def _verdict(
  history: History, contents: Contents | None
) -> tuple[str, list[str]]:
  """Returns what is to be thought of the clusters, and why.

  The run's own word, where `summary.json` has one. Otherwise what the clusters
  say of themselves, which is little: how many images lie where they belong.
  """
  if verdict := history.summary.get("verdict"):
    details = history.summary.get("verdict_details") or []
    if isinstance(details, str):
      details = [details]
    if isinstance(details, dict):
      details = [f"{name}: {value}" for name, value in details.items()]
    return str(verdict), [str(detail) for detail in details]
  if contents is None:
    return "", []
  share = f"{contents.agreement:.0%} of the images lie nearest to the centre"
  if contents.agreement < _FEW:
    return (
      f"Not to be relied on: only {share} of their own cluster.",
      ["The clusters lag behind the network: train longer."],
    )
  if contents.agreement < _MOST:
    return f"To be used with care: {share} of their own cluster.", []
  return f"Settled: {share} of their own cluster.", []


def _counts(
  history: History, contents: Contents | None
) -> list[tuple[str, str, str]]:
  """Returns what there is to be seen: the section, how many, of what."""
  if contents is None:
    return []
  data = contents.data
  clusters = sum(size > 0 for size in data["clusters"]["size"])
  found = [
    ("clusters", clusters, "cluster", "clusters"),
    ("clusters", data["num_elsewhere"], *_ELSEWHERE),
    ("duplicates", data["num_duplicates"], *_DUPLICATES),
    ("outliers", data["num_outliers"], "outlier", "outliers"),
  ]
  if growth := data["growth"]:
    found += [
      ("new", growth["new"], "new image", "new images"),
      ("new", growth["novel"], "of them novel", "of them novel"),
      ("new", growth["missing"], "removed", "removed"),
    ]
  counts = [("map", f"{data['num_images']:,}", "images")]
  return counts + [
    (section, f"{number:,}", one if number == 1 else many)
    for section, number, one, many in found
  ]


def _method(config: dict[str, Any]) -> str:
  """Returns what its paper calls the method."""
  return config.get("method_name", config["method"])


def _data_set(config: dict[str, Any]) -> str:
  """Returns what people call the data set: no path."""
  kind, _, name = config["data"]["source"].partition(":")
  split = config["data"]["split"]
  if kind in ("folder", "features", "sequences"):
    name = pathlib.PurePath(name).name or "a folder"
  name = name or kind
  return f"{name} ({split})" if split else name


def _facts(history: History) -> dict[str, str]:
  """Returns what was run, in words."""
  config = history.config
  epoch = max(line["epoch"] for line in history.lines)
  of = config["num_epochs"]
  model = config["model"]
  size = config["data"]["image_size"]
  network = f"{model['name']}, width {model['width']}, {size} px"
  if config["data"]["source"].startswith(kinds.FEATURES):
    network = f"none: {model['settings']['size']:,} given features of an image"
  return {
    "Method": _method(config),
    "Data set": _data_set(config),
    "Images": f"{config['num_examples']:,}",
    "Clusters": f"{config['num_clusters']:,}",
    "Epochs": f"{of:,}" if epoch >= of else f"{epoch:,.1f} of {of:,}",
    "Network": network,
    "Batch": f"{config['batch_size']:,} images",
    "Seed": str(config["seed"]),
  }


def _numbers(summary: dict[str, Any]) -> list[dict[str, str]]:
  """Returns the headline numbers: scalar, name, value, meaning."""
  found = []
  for scalar, (name, text) in _NUMBERS.items():
    if scalar not in summary:
      continue
    value = summary[scalar]
    if scalar in _FRACTIONS:
      shown = f"{value:.1%}"
    elif scalar in _COUNTS:
      shown = f"{value:,.0f}"
    else:
      shown = f"{value:.3f}"
    found.append({"scalar": scalar, "name": name, "value": shown, "text": text})
  return found


def _evaluations(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
  """Returns every evaluation: scalar, value, protocol."""
  return [
    (scalar, f"{value:.4f}", scalars.declared(scalar) or "")
    for scalar, value in sorted(summary.items())
    if scalar.startswith("eval/")
  ]
