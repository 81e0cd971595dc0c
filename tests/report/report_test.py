"""The page as a file: what is in it, and what is not."""

import io
import json
import multiprocessing
import pathlib
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from odc_jax import report
from odc_jax.data import sources
from odc_jax.errors import UserError
from odc_jax.report import curves, history, page, sample
from tests.report import runs

HOSTILE = ["<img src=x onerror=alert(1)>.png", "a</script><!--b.png"]


def test_every_image_is_there_with_its_picture_and_its_numbers(tmp_path):
  workdir, _ = runs.small_run(tmp_path)
  path = report.write(workdir)
  assert path == workdir / "report.html"
  data, images = runs.read(path), runs.read(path)["images"]
  assert sorted(images["key"])[:2] == ["cat/00.png", "cat/01.png"]
  assert len(images["key"]) == 60
  assert sorted(images["picture"]) == list(range(60))
  assert sorted(data["map"]["image"]) == list(range(60))
  place = images["key"].index("dog/03.png")
  assert images["cluster"][place] == 23 % 5
  assert images["label"][place] == 1
  assert data["label_names"] == {"0": "cat", "1": "dog", "2": "eel"}
  # The largest group of near-duplicates first.
  first, second = data["duplicates"]
  assert [images["key"][i] for i in first["images"]] == [
    f"cat/{i}.png" for i in (10, 11, 12)
  ]
  assert (second["size"], data["num_duplicates"]) == (2, 5)
  assert data["num_outliers"] == len(data["outliers"]) == 2
  assert sum(data["clusters"]["num_outliers"]) == 2
  scores = [images["outlier_score"][i] for i in data["outliers"]]
  assert scores == sorted(scores, reverse=True)


def test_every_evaluation_is_there_with_its_protocol(tmp_path):
  workdir, _ = runs.small_run(tmp_path)
  text = report.write(workdir).read_text()
  row = re.search(r"<tr>[^\n]*eval/knn_top1_k100</code>[^\n]*</tr>", text)
  assert row
  assert "<td>0.8765</td>" in row.group()
  assert "with 100 neighbours and the published temperature" in row.group()
  # Among the headlines there is one kNN accuracy.
  assert text.count('class="name">kNN accuracy</span>') == 1


def test_unreadable_images_have_no_row_and_are_named(tmp_path):
  # Index 7 is not there: rows and indices differ from there on.
  keys = [f"cat/{i:02d}.png" for i in range(61) if i != 7]
  workdir, folder = runs.small_run(
    tmp_path, index=[i for i in range(61) if i != 7], keys=keys
  )
  shutil.rmtree(folder)
  runs.write_images(folder, [f"cat/{i:02d}.png" for i in range(61)])
  (workdir / "bad_images.txt").write_text("train\t7\tcat/<b>07.png\tempty\n")
  path = report.write(workdir)
  data = runs.read(path)
  assert -1 not in data["images"]["picture"]
  text = path.read_text()
  assert "1 image could not be read" in text
  assert "cat/&lt;b&gt;07.png" in text
  assert "<b>07.png" not in text
  shown = data["images"]
  for key, index in zip(shown["key"], shown["index"], strict=True):
    assert key == f"cat/{index:02d}.png"


def test_the_run_has_the_word_on_its_clusters(tmp_path):
  workdir, _ = runs.small_run(tmp_path)
  assert (
    "Settled: 100% of the images lie nearest"
    in report.write(workdir).read_text()
  )
  path = workdir / "summary.json"
  said = {"verdict": "No better than <colours>.", "verdict_details": ["a", "b"]}
  path.write_text(json.dumps(json.loads(path.read_text()) | said))
  text = report.write(workdir).read_text()
  assert '<p class="verdict">No better than &lt;colours&gt;.</p>' in text
  assert re.search(r"<li>a</li>\s*<li>b</li>", text)
  assert "Settled" not in text


@pytest.mark.parametrize(
  ("moved", "words"), [(3, "Settled"), (15, "with care"), (40, "Not to be")]
)
def test_clusters_that_lag_behind_are_not_praised(tmp_path, moved, words):
  workdir, _ = runs.small_run(tmp_path)
  path = workdir / "clusters.parquet"
  table = pq.read_table(path)
  margin = np.where(np.arange(60) < moved, -0.1, 0.1)
  at = table.column_names.index("margin")
  pq.write_table(table.set_column(at, "margin", [margin]), path)
  text = report.write(workdir).read_text()
  verdict = re.search(r'<p class="verdict">(.*?)</p>', text)[1]
  assert words in verdict
  assert f"{(60 - moved) / 60:.0%}" in verdict
  data = runs.read(workdir / "report.html")
  assert data["num_elsewhere"] == moved
  assert sum(data["clusters"]["num_elsewhere"]) == moved
  assert f"<strong>{moved}</strong> images nearer to another cluster" in text


def test_names_with_markup_stay_names(tmp_path):
  keys = [*HOSTILE, *(f"x/{i}.png" for i in range(58))]
  workdir, _ = runs.small_run(tmp_path, keys=keys)
  config = json.loads((workdir / "config.json").read_text())
  config["data"]["source"] = "folder:<b>nowhere</b>"
  (workdir / "config.json").write_text(json.dumps(config))
  path = report.write(workdir)
  text = path.read_text()
  assert "<img src=x" not in text
  assert "<b>nowhere" not in text
  # Data, annotations, pictures, the script; no fifth one opened by a name.
  assert text.count("</script>") == text.count("<script") == 4
  assert "<!--" not in text
  assert set(HOSTILE) <= set(runs.read(path)["images"]["key"])


def test_the_page_asks_for_nothing_from_elsewhere(tmp_path):
  workdir, _ = runs.small_run(tmp_path)
  text = report.write(workdir).read_text()
  markup = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
  loads = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\')\s>]+)', markup)
  assert loads
  assert all(x.startswith("#") for x in loads)
  # What the script may load: its own pictures, and files of this machine.
  policy = re.search(r'Content-Security-Policy" content="(.*?)"', text)[1]
  assert policy.startswith("default-src 'none'; img-src data: file:;")
  assert str(workdir) not in text


def test_a_run_that_is_not_done_has_curves_and_health(tmp_path):
  runs.write_history(tmp_path / "run", "digits", 5, 60)
  (tmp_path / "run" / "warnings.jsonl").write_text(
    json.dumps(
      {"step": 3, "epoch": 1.5, "sign": "chance", "text": "<i>it guesses"}
    )
    + "\n"
  )
  text = report.write(tmp_path / "run").read_text()
  assert "No clusters yet" in text
  assert "clusters.parquet and clusters.json are not in" in text
  assert text.count("<svg") == len(curves.PANELS)
  assert "&lt;i&gt;it guesses" in text
  assert "No signs of collapse" not in text
  assert "<script" not in text


def test_a_line_that_was_cut_off_is_passed_over(tmp_path):
  runs.write_history(tmp_path / "run", "digits", 5, 60)
  with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
    file.write('{"step": 999, "epo')
  assert history.read(tmp_path / "run").lines[-1]["step"] == 120


@pytest.mark.parametrize(
  ("name", "text", "words"),
  [
    ("metrics.jsonl", "", "nothing to report; train first"),
    ("metrics.jsonl", "{\n", "no JSON; remove that line"),
    ("config.json", "{", "config.json is missing or damaged"),
    ("summary.json", "{", "summary.json is damaged"),
    ("clusters.json", "{", "not as a run leaves it"),
    ("clusters.json", '{"clusters": [], "num_images": 60}', "has not"),
    ("clusters.parquet", "PAR1", "not as a run leaves it"),
  ],
)
def test_damage_is_a_mistake_that_can_be_mended(tmp_path, name, text, words):
  workdir, _ = runs.small_run(tmp_path)
  (workdir / name).write_text(text)
  with pytest.raises(UserError, match=words):
    report.write(workdir)
  assert not (workdir / "report.html").exists()


def test_there_is_no_such_work_directory(tmp_path):
  with pytest.raises(UserError, match="no such work directory"):
    report.write(tmp_path / "nowhere")


def test_what_is_shown_depends_on_nothing_but_the_run(tmp_path):
  workdir, _ = runs.small_run(tmp_path)
  first = report.write(workdir).read_bytes()
  assert report.write(workdir).read_bytes() == first


def test_jax_is_not_needed(tmp_path):
  workdir, _ = runs.small_run(tmp_path)
  code = (
    "import pathlib, sys\n"
    "from odc_jax import report\n"
    f"report.write(pathlib.Path({str(workdir)!r}))\n"
    "assert not {'jax', 'flax', 'tensorflow'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_part_of_the_page_is_in_it():
  folder = pathlib.Path(report.__file__).parent / "page"
  assert sorted(page._SCRIPTS) == sorted(x.name for x in folder.glob("*.js"))
  others = {x.name for x in folder.iterdir()} - set(page._SCRIPTS)
  assert others == {"page.css", "page.html.jinja"}


class Photographs:
  """A million JPEGs, all of one photograph, made up."""

  num_classes = keys = None

  def __init__(self, num):
    draw = np.random.default_rng(0)
    small = Image.fromarray(draw.integers(0, 256, (48, 64, 3), np.uint8))
    file = io.BytesIO()
    small.resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG")
    self._image, self._num = file.getvalue(), num

  def __len__(self):
    return self._num

  def __getitem__(self, index):
    return {
      "image": self._image,
      "index": index,
      "key": f"n{index % 1000:08d}/n{index % 1000:08d}_{index}.JPEG",
      "label": None,
    }


def write_million(workdir, num):
  """Writes the report; returns seconds and the process's peak in GB."""
  sources.make = lambda *args: Photographs(num)
  begin = time.monotonic()
  report.write(workdir)
  # Not getrusage: its peak is also that of the process that started this one.
  status = pathlib.Path("/proc/self/status").read_text()
  peak = int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])
  return time.monotonic() - begin, peak / 1e6


@pytest.mark.slow
def test_a_million_images_in_10_000_clusters_fit(tmp_path):
  n, k = 1_000_000, 10_000
  source = Photographs(n)
  runs.write_history(tmp_path, "digits", k, n)
  draw = np.random.default_rng(0)
  clusters = draw.integers(0, k, n)
  centres = draw.normal(size=(k, 8)).astype(np.float32)
  runs.write_clusters(
    tmp_path,
    [source[i]["key"] for i in range(n)],
    centres[clusters] + draw.normal(0, 0.3, (n, 8)).astype(np.float32),
    clusters,
    k,
    duplicates=draw.permutation(n)[:200_000].reshape(-1, 2).tolist(),
  )
  # Its own process, whose peak is that of the report alone.
  with multiprocessing.get_context("spawn").Pool(1) as pool:
    seconds, peak = pool.apply(write_million, (tmp_path, n))
  path = tmp_path / "report.html"
  size = path.stat().st_size
  print(f"{size / 1e6:.1f} MB in {seconds:.0f} s, with {peak:.2f} GB")
  assert size < 30e6
  assert peak < 2
  data = runs.read(path)
  assert all(data["clusters"]["representatives"])
  assert len(data["map"]["image"]) == sample.MAP_POINTS
