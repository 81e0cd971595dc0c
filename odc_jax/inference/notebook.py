"""What a notebook draws of a run: HTML with pictures in it, and a map.

All of it is text that needs no network and no library of the notebook's:
pictures are WebP in base64, the map is SVG. Styles are inline, as notebooks
keep nothing else when they are saved or converted.
"""

import base64
import contextlib
import html
import json
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from odc_jax.results import groups

_FONT = "font:12px/1.4 system-ui,sans-serif"
_SIDE = 112  # of a picture on the screen, in pixels
_ROWS = 10  # of a table

# Of the map, in pixels.
_WIDTH, _MARGIN = 720, 10


class Html:
  """Something that a notebook draws.

  Attributes:
    html: What it draws; nothing outside of it is needed.
  """

  def __init__(self, html: str, said: str):
    """Keeps the two.

    Args:
      html: What a notebook draws.
      said: What stands for it where only text can be shown.
    """
    self.html, self._said = html, said

  def _repr_html_(self) -> str:
    return self.html

  def __repr__(self) -> str:
    return f"<{self._said}: a notebook draws it, .html is its text>"


class Picture(NamedTuple):
  """An image on the screen.

  Attributes:
    file: A WebP file; None: the image is gone or cannot be read.
    key: Its key.
    caption: What stands below it.
  """

  file: bytes | None
  key: str
  caption: str


def gallery(parts: Iterable[tuple[str, Sequence[Picture]]], said: str) -> Html:
  """Returns pictures below headings.

  Args:
    parts: Headings, and the pictures below each.
    said: As for `Html`.
  """
  text = "".join(
    f'<div style="{_FONT};font-weight:600;margin:10px 0 4px">'
    f"{html.escape(title)}</div>"
    '<div style="display:flex;flex-wrap:wrap;gap:8px">'
    f"{''.join(map(_figure, pictures))}</div>"
    for title, pictures in parts
  )
  return Html(f"<div>{text}</div>", said)


def _figure(picture: Picture) -> str:
  name = html.escape(picture.key)
  box = f"width:{_SIDE}px;height:{_SIDE}px"
  if picture.file is None:
    drawn = (
      f'<div style="{box};background:#8883;overflow:hidden" title="{name}">'
      f"{name}</div>"
    )
  else:
    data = base64.b64encode(picture.file).decode()
    drawn = (
      f'<img src="data:image/webp;base64,{data}" alt="{name}" title="{name}" '
      f'style="{box};object-fit:cover;display:block;margin:0">'
    )
  return (
    f'<div style="{_FONT};width:{_SIDE}px">{drawn}'
    f"<div>{html.escape(picture.caption)}</div></div>"
  )


def overview(workdir: pathlib.Path, shown: Html) -> str:
  """Returns what a run is, as HTML.

  Args:
    workdir: Of the run.
    shown: Some of its clusters.
  """
  described = groups.describe(workdir)
  summary = {}
  with contextlib.suppress(OSError, ValueError):  # it has none yet
    summary = json.loads((workdir / "summary.json").read_text())
  said = " ".join(
    [summary.get("verdict", ""), *summary.get("verdict_details", [])]
  )
  return (
    f'<div style="{_FONT}"><b>{html.escape(str(workdir))}</b>: '
    f"{described['num_images']:,} images in {described['num_clusters']:,} "
    f"clusters. {html.escape(said)}</div>{shown.html}"
  )


def points(
  places: Float[np.ndarray, "m 2"],
  clusters: Int[np.ndarray, "m"],
  names: dict[int, str],
  said: str,
) -> Html:
  """Returns a map: a dot for every image, a colour for every cluster.

  Args:
    places: Of the images.
    clusters: Of the images.
    names: Cluster -> its title.
    said: As for `Html`.
  """
  low, high = places.min(axis=0), places.max(axis=0)
  # One scale for both axes, or distances would be distorted.
  scale = (_WIDTH - 2 * _MARGIN) / max(float((high - low).max()), 1e-9)
  at = _MARGIN + (places - low) * scale
  height = float(at[:, 1].max()) + _MARGIN
  at[:, 1] = height - at[:, 1]  # SVG counts from the top
  drawn = []
  for cluster in np.unique(clusters).tolist():
    # The golden angle: neighbours in number are far apart in colour.
    hue = round(cluster * 137.508 % 360)
    light = (45, 60, 35)[cluster % 3]
    dots = "".join(
      f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'
      for x, y in at[clusters == cluster].tolist()
    )
    title = html.escape(names.get(cluster, f"cluster {cluster}"))
    drawn.append(
      f'<g fill="hsl({hue},65%,{light}%)"><title>{title}</title>{dots}</g>'
    )
  text = (
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" '
    f'height="{height:.0f}" viewBox="0 0 {_WIDTH} {height:.0f}" role="img" '
    f'aria-label="{html.escape(said)}" style="max-width:100%;height:auto">'
    f"{''.join(drawn)}</svg>"
  )
  return Html(text, said)


def table(rows: pa.Table) -> str | None:
  """Returns the first rows of a table of images, as HTML.

  Args:
    rows: A table.

  Returns:
    None of another table than those of a run: it is shown as ever.
  """
  if not {"key", "cluster"} <= set(rows.column_names):
    return None
  head = "".join(
    f'<th style="text-align:left;padding:2px 8px">{html.escape(name)}</th>'
    for name in rows.column_names
  )
  body = "".join(
    "<tr>"
    + "".join(
      f'<td style="padding:2px 8px">{_cell(value)}</td>'
      for value in row.values()
    )
    + "</tr>"
    for row in rows.slice(0, _ROWS).to_pylist()
  )
  return (
    f'<div style="{_FONT};overflow-x:auto"><table><thead><tr>{head}</tr>'
    f"</thead><tbody>{body}</tbody></table>"
    f"{len(rows):,} rows, {len(rows.column_names)} columns</div>"
  )


def _cell(value: Any) -> str:
  """Returns a value of a table, short."""
  if value is None:
    return ""
  if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
    data = base64.b64encode(value["bytes"]).decode()
    return f'<img src="data:image/webp;base64,{data}" style="height:48px">'
  if isinstance(value, float):
    return f"{value:.3g}"
  if isinstance(value, dict):
    value = next(iter(value.values()))  # of neighbours the rows
  if isinstance(value, list):
    value = ", ".join(map(str, value))
  text = str(value)
  return html.escape(text if len(text) <= 40 else f"{text[:39]}…")


def register() -> None:
  """Has IPython, where it runs, show the tables of runs as HTML.

  They are Arrow's own, which every library takes, and cannot be given a
  `_repr_html_`. Other tables are shown as ever.
  """
  get_shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
  if (shell := get_shell()) is None:
    return
  formatter = shell.display_formatter.formatters["text/html"]
  if pa.Table not in formatter.type_printers:
    formatter.for_type(pa.Table, table)
