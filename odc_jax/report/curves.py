"""Scalars over epochs, as SVG that takes its colours from the page."""

import io
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from odc_jax.report.history import Series

# matplotlib takes colours, not names of colours to come: these stand for the
# variables of page.css and are replaced in the text of the SVG.
_COLOURS = {
  "#010101": "var(--text-soft)",
  "#020202": "var(--line)",
  "#030303": "var(--accent)",
  "#040404": "var(--band)",
  "#050505": "var(--band-line)",
}
_TEXT, _LINE, _ACCENT, _BAND, _BAND_LINE = _COLOURS
_SETTINGS = {
  "svg.fonttype": "none",  # text stays text
  "font.size": 9,
  "text.color": _TEXT,
  "axes.edgecolor": _LINE,
  "axes.linewidth": 0.8,
  "xtick.color": _TEXT,
  "ytick.color": _TEXT,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.unicode_minus": False,
  "figure.facecolor": "none",
  "axes.facecolor": "none",
}
# Rows of the table behind a curve; a longer one is thinned.
_MOST_ROWS = 100


class Panel(NamedTuple):
  """One small plot.

  Attributes:
    title: What is plotted.
    text: What it means, and what is normal.
    scalars: Name -> how its line is called, where there is more than one.
    log: Whether the axis is logarithmic.
    level: "ln k" or "n / k" for a dashed line there.
    level_text: What that level means.
  """

  title: str
  text: str
  scalars: dict[str, str]
  log: bool = False
  level: str = ""
  level_text: str = ""


class Curve(NamedTuple):
  """A panel, drawn.

  Attributes:
    title: As the panel's.
    text: As the panel's.
    svg: The plot: an <svg> element.
    head: Column names of the table with the same numbers.
    rows: Rows of that table.
    thinned: Whether the table leaves out some of the epochs.
  """

  title: str
  text: str
  svg: str
  head: list[str]
  rows: list[list[str]]
  thinned: bool


PANELS = (
  Panel(
    "Loss",
    "What is minimised: the classifier's surprise at the clusters. Falls, "
    "slowly. It says nothing about how good the clusters are.",
    {"train/loss": ""},
    level="ln k",
    level_text="guessing",
  ),
  Panel(
    "Label change",
    "Fraction of a batch's images whose cluster changes. Falls to a few "
    "percent as the clusters settle.",
    {"cluster/label_change": ""},
  ),
  Panel(
    "NMI with the previous epoch",
    "How much of the clustering of an epoch ago is still there; 1 when no "
    "image has moved. Steadiness, not quality.",
    {"cluster/nmi_previous": ""},
  ),
  Panel(
    "NMI with the labels",
    "How much the clusters tell about the true labels; 1 when they are the "
    "same. More clusters than labels keep it below 1.",
    {"eval/nmi_labels": ""},
  ),
  Panel(
    "kNN accuracy",
    "Images whose nearest neighbours, by the network's features, have their "
    "true label.",
    {"eval/knn_top1": ""},
  ),
  Panel(
    "Cluster sizes",
    "Images in the largest and in the smallest cluster.",
    {"cluster/max_size": "largest", "cluster/min_size": "smallest"},
    log=True,
    level="n / k",
    level_text="mean",
  ),
  Panel(
    "Evenness of the sizes",
    "Entropy of the cluster sizes, in nats. At its most when all are equal; "
    "falls when a few clusters swallow the others.",
    {"cluster/entropy": ""},
    level="ln k",
    level_text="all equal",
  ),
)


def draw(
  series: Series,
  reference: Mapping[str, Any] | None,
  num_clusters: int,
  num_images: int,
) -> list[Curve]:
  """Draws every panel for which there is something to draw.

  Args:
    series: As `history.by_epoch` gives it.
    reference: As `history.reference` gives it.
    num_clusters: K.
    num_images: In the data set.

  Returns:
    The curves, in the order of `PANELS`.
  """
  levels = {"ln k": math.log(num_clusters), "n / k": num_images / num_clusters}
  bands = reference["scalars"] if reference else {}
  # All to the same epoch, so that they can be read one below another. Behind
  # the last one of the run the reference is not of interest.
  last = max((epochs[-1] for epochs, _ in series.values()), default=0)
  curves = []
  for number, panel in enumerate(PANELS):
    names = [name for name in panel.scalars if name in series]
    if not names:
      continue
    svg = _svg(panel, names, series, bands, levels.get(panel.level), last)
    rows = _rows([series[name] for name in names])
    every = -(-len(rows) // _MOST_ROWS)
    shown = rows[::-every][::-1] if every else rows
    curves.append(
      Curve(
        title=panel.title,
        text=panel.text,
        svg=_for_page(svg, f"curve{number}", _summary(panel, names, series)),
        head=["epoch", *(panel.scalars[name] or panel.title for name in names)],
        rows=shown,
        thinned=len(shown) < len(rows),
      )
    )
  return curves


def _svg(panel, names, series, bands, level, last) -> str:
  """Returns a panel as matplotlib writes it."""
  # Any: its keys are a type of their own.
  settings: Any = {**_SETTINGS, "svg.hashsalt": panel.title}
  with matplotlib.rc_context(settings):
    figure = Figure(figsize=(4.1, 2.2), layout="constrained")
    axes = figure.add_subplot()
    if level is not None:
      _draw_level(axes, panel, level)
    for name in names:
      epochs, values = series[name]
      if band := bands.get(name):
        _draw_band(axes, band)
      axes.plot(
        epochs,
        values,
        color=_ACCENT,
        linewidth=1.6,
        solid_capstyle="round",
        marker="o" if len(epochs) < 12 else "",
        markersize=3,
      )
      if panel.scalars[name]:
        _draw_name(axes, panel.scalars[name], epochs, values, name == names[0])
    axes.margins(y=0.14)
    if panel.log:
      _scale_log(axes, [value for name in names for value in series[name][1]])
    axes.set_xlim(0, max(last, 1))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if not panel.log:
      axes.yaxis.set_major_locator(MaxNLocator(4))
      axes.grid(axis="y", color=_LINE, linewidth=0.5)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("epoch", fontsize=8, color=_TEXT, loc="right", labelpad=1)
    axes.set_axisbelow(True)
    file = io.StringIO()
    FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
  return file.getvalue()


def _draw_level(axes, panel, level):
  """Draws a dashed line at `level`, and writes what it means."""
  axes.axhline(level, color=_TEXT, linewidth=0.8, dashes=(2, 3))
  axes.annotate(
    panel.level_text,
    (0.02 if panel.log else 1, level),
    xycoords=axes.get_yaxis_transform(),
    xytext=(0, 2),
    textcoords="offset points",
    # On the right, lines in one panel have their names.
    ha="left" if panel.log else "right",
    va="bottom",
    fontsize=8,
  )


def _draw_band(axes, band):
  """Draws the range of the reference runs, and their median."""
  axes.fill_between(
    band["epoch"],
    band["low"],
    band["high"],
    color=_BAND,
    linewidth=0,
    gid="band",
  )
  axes.plot(band["epoch"], band["median"], color=_BAND_LINE, linewidth=1)


def _draw_name(axes, text, epochs, values, above):
  """Writes a line's name above or below its end."""
  end = values[-max(1, len(values) // 4) :]  # what the name lies over
  axes.annotate(
    text,
    (epochs[-1], max(end) if above else min(end)),
    xytext=(0, 4 if above else -4),
    textcoords="offset points",
    ha="right",
    va="bottom" if above else "top",
    fontsize=8,
    color=_ACCENT,
  )


def _scale_log(axes, values):
  """Makes the axis of the values logarithmic."""
  low, high = min(values), max(values)
  # A cluster may be empty.
  axes.set_yscale("symlog" if low <= 0 else "log")
  if high < 300 * low:
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
  axes.yaxis.set_minor_formatter(lambda value, _: "")


def _for_page(svg: str, prefix: str, summary: str) -> str:
  """Returns the <svg> element alone, with names of its own."""
  svg = svg[svg.index("<svg") :]
  svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
  svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
  svg = re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", svg)
  for colour, variable in _COLOURS.items():
    svg = svg.replace(colour, variable)
  # Our own words and numbers, nothing of the user's.
  head = f'<svg role="img" aria-label="{summary}"'
  svg = re.sub(r'^<svg|(?<=") (width|height)="[\d.]+pt"', "", svg, count=3)
  return head + svg


def _summary(panel, names, series) -> str:
  """Says in words what a plot shows."""
  parts = []
  for name in names:
    epochs, values = series[name]
    what = " ".join(filter(None, [panel.title, panel.scalars[name]]))
    parts.append(
      f"{what}: {_number(values[0])} at epoch {epochs[0]}, "
      f"{_number(values[-1])} at epoch {epochs[-1]}"
    )
  return "; ".join(parts)


def _rows(columns) -> list[list[str]]:
  """Returns a row per epoch, with a gap where a scalar was not measured."""
  values = [dict(zip(*column, strict=True)) for column in columns]
  epochs = sorted({epoch for column, _ in columns for epoch in column})
  return [
    [str(epoch), *(_number(v[epoch]) if epoch in v else "" for v in values)]
    for epoch in epochs
  ]


def _number(value: float) -> str:
  return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
