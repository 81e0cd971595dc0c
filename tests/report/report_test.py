"""The page as a file: what is in it, and what is not."""

import base64
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
from odc_jax.report import contents, curves, history, page, pictures
from tests.report import runs

HOSTILE = ["<img src=x onerror=alert(1)>.png", "a</script><!--b.png"]


def read(path, element="data"):
  """Returns what the page's script is given."""
  found = re.search(
    rf'<script type="application/json" id="{element}">(.*?)</script>',
    path.read_text(),
  )
  return json.loads(found[1])


def small_run(tmp_path, labelled=True, num_clusters=5, **options):
  """Writes a work directory over 60 images in 3 folders; returns both."""
  folder = tmp_path / "images"
  keys = [
    f"{name}/{i:02d}.png" for name in ("cat", "dog", "eel") for i in range(20)
  ]
  if not folder.exists():
    runs.write_images(folder, keys)
  workdir = tmp_path / "run"
  runs.write_history(
    workdir, f"folder:{folder}", num_clusters, len(keys), labelled=labelled
  )
  draw = np.random.default_rng(0)
  # The last cluster may be left empty.
  clusters = np.arange(60) % options.pop("num_full", num_clusters)
  embeddings = np.eye(num_clusters, 6)[clusters] + draw.normal(0, 0.2, (60, 6))
  runs.write_clusters(
    workdir,
    options.pop("keys", keys),
    embeddings,
    clusters,
    num_clusters,
    labels=np.repeat([0, 1, 2], 20) if labelled else None,
    duplicates=[[3, 4], [10, 11, 12]],
    **options,
  )
  return workdir, folder


def test_every_image_is_there_with_its_picture_and_its_numbers(tmp_path):
  workdir, _ = small_run(tmp_path)
  path = report.write(workdir)
  assert path == workdir / "report.html"
  data, images = read(path), read(path)["images"]
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
  workdir, _ = small_run(tmp_path)
  text = report.write(workdir).read_text()
  row = re.search(r"<tr>[^\n]*eval/knn_top1_k100</code>[^\n]*</tr>", text)
  assert row
  assert "<td>0.8765</td>" in row.group()
  assert "with 100 neighbours and the published temperature" in row.group()
  # Among the headlines there is one kNN accuracy.
  assert text.count('class="name">kNN accuracy</span>') == 1


def test_a_picture_is_that_of_its_image(tmp_path):
  workdir, folder = small_run(tmp_path)
  path = report.write(workdir)
  data, encoded = read(path), read(path, "pictures")
  for i, key in enumerate(data["images"]["key"]):
    shown = Image.open(
      io.BytesIO(base64.b64decode(encoded[data["images"]["picture"][i]]))
    )
    colour = np.asarray(shown.convert("RGB")).mean((0, 1))
    there = np.asarray(Image.open(folder / key)).mean((0, 1))
    np.testing.assert_allclose(colour, there, atol=6)


def test_lists_of_a_cluster_name_its_own_images_best_first(tmp_path):
  workdir, _ = small_run(tmp_path)
  data = contents.read(workdir).data
  images = data["images"]
  for c in range(5):
    shown = data["clusters"]["representatives"][c]
    assert len(shown) == 8
    assert {images["cluster"][i] for i in shown} == {c}
    similar = [images["similarity"][i] for i in shown]
    assert similar == sorted(similar, reverse=True)
    margins = [images["margin"][i] for i in data["clusters"]["boundary"][c]]
    assert margins == sorted(margins)


def test_nearest_clusters_are_those_of_the_centroids(tmp_path):
  workdir, _ = small_run(tmp_path)
  nearest = contents.read(workdir).data["clusters"]["nearest"]
  centroids = np.load(workdir / "centroids.npy")
  cosine = centroids @ centroids.T - 2 * np.eye(5)
  for c in range(5):
    order = np.argsort(-cosine[c])[:4]
    assert [other for other, _ in nearest[c]] == order.tolist()
    assert nearest[c][0][1] == pytest.approx(cosine[c].max(), abs=0.006)
  (workdir / "centroids.npy").unlink()
  nearest = contents.read(workdir).data["clusters"]["nearest"]
  assert nearest[0] == [[int(cosine[0].argmax()), None]]


def test_unreadable_images_have_no_row_and_are_named(tmp_path):
  # Index 7 is not there: rows and indices differ from there on.
  keys = [f"cat/{i:02d}.png" for i in range(61) if i != 7]
  workdir, folder = small_run(
    tmp_path, index=[i for i in range(61) if i != 7], keys=keys
  )
  shutil.rmtree(folder)
  runs.write_images(folder, [f"cat/{i:02d}.png" for i in range(61)])
  (workdir / "bad_images.txt").write_text("train\t7\tcat/<b>07.png\tempty\n")
  path = report.write(workdir)
  data = read(path)
  assert -1 not in data["images"]["picture"]
  text = path.read_text()
  assert "1 image could not be read" in text
  assert "cat/&lt;b&gt;07.png" in text
  assert "<b>07.png" not in text
  shown = contents.read(workdir)
  for key, index in zip(shown.data["images"]["key"], shown.index, strict=True):
    assert key == f"cat/{index:02d}.png"


def test_names_with_markup_stay_names(tmp_path):
  keys = [*HOSTILE, *(f"x/{i}.png" for i in range(58))]
  workdir, _ = small_run(tmp_path, keys=keys)
  config = json.loads((workdir / "config.json").read_text())
  config["data"]["source"] = "folder:<b>nowhere</b>"
  (workdir / "config.json").write_text(json.dumps(config))
  path = report.write(workdir)
  text = path.read_text()
  assert "<img src=x" not in text
  assert "<b>nowhere" not in text
  # Data, pictures, the script; no fourth one opened or closed by a name.
  assert text.count("</script>") == text.count("<script") == 3
  assert "<!--" not in text
  assert set(HOSTILE) <= set(read(path)["images"]["key"])


def test_the_page_asks_for_nothing_from_elsewhere(tmp_path):
  workdir, _ = small_run(tmp_path)
  text = report.write(workdir).read_text()
  loads = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\')\s>]+)', text)
  assert loads
  assert all(x.startswith(("#", "data:", "`data:")) for x in loads)
  assert "default-src 'none'" in text
  assert str(workdir) not in text


def test_images_that_were_not_compared_have_a_page(tmp_path):
  """As of a run of more images than one host compares with each other."""
  workdir, _ = small_run(tmp_path)
  path = workdir / "clusters.parquet"
  table = pq.read_table(path).drop_columns(
    [
      "outlier_score",
      "is_outlier",
      "near_duplicate_group",
      "projection_x",
      "projection_y",
    ]
  )
  pq.write_table(table, path)
  data = read(report.write(workdir))
  assert len(data["images"]["key"]) > 30
  assert data["outliers"] == []
  assert data["duplicates"] == []
  assert data["map"]["image"] == []


def test_the_source_is_gone(tmp_path, capsys):
  workdir, folder = small_run(tmp_path)
  shutil.rmtree(folder)
  path = report.write(workdir)
  assert set(read(path)["images"]["picture"]) == {-1}
  assert "Pictures are missing" in path.read_text()
  assert "there is no such folder" in path.read_text()
  assert "lacks pictures" in capsys.readouterr().err


def test_a_file_that_is_now_another_lends_its_picture_to_nobody(tmp_path):
  workdir, folder = small_run(tmp_path)
  (folder / "cat" / "00.png").unlink()
  (folder / "eel" / "99.png").write_bytes(b"no image")
  path = report.write(workdir)
  # Every file has moved up by one.
  assert set(read(path)["images"]["picture"]) == {-1}
  assert "60 of the images are no longer there" in path.read_text()


def test_without_labels_nothing_speaks_of_them(tmp_path):
  workdir, _ = small_run(tmp_path, labelled=False)
  path = report.write(workdir)
  assert "label" not in read(path)["images"]
  assert "NMI with the labels" not in path.read_text()
  assert "NMI with the previous epoch" in path.read_text()


def test_two_clusters(tmp_path):
  workdir, _ = small_run(tmp_path, num_clusters=2)
  data = contents.read(workdir).data
  assert [[other for other, _ in x] for x in data["clusters"]["nearest"]] == [
    [1],
    [0],
  ]
  assert len(data["tree"]) == 1
  assert data["clusters"]["group"] is None


def test_an_empty_cluster_has_nothing_and_is_nobodys_neighbour(tmp_path):
  workdir, _ = small_run(tmp_path, num_full=4)
  data = contents.read(workdir).data["clusters"]
  assert data["size"] == [15, 15, 15, 15, 0]
  assert data["representatives"][4] == data["nearest"][4] == []
  assert data["cohesion"][4] is None
  assert all(4 not in [other for other, _ in x] for x in data["nearest"])


def test_groups_are_those_that_the_table_has(tmp_path):
  workdir, _ = small_run(tmp_path, num_groups=3)
  data = contents.read(workdir).data
  assert data["num_groups"] == 3
  assert sorted(set(data["clusters"]["group"])) == [0, 1, 2]


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
  workdir, _ = small_run(tmp_path)
  (workdir / name).write_text(text)
  with pytest.raises(UserError, match=words):
    report.write(workdir)
  assert not (workdir / "report.html").exists()


def test_there_is_no_such_work_directory(tmp_path):
  with pytest.raises(UserError, match="no such work directory"):
    report.write(tmp_path / "nowhere")


def test_what_is_shown_depends_on_nothing_but_the_run(tmp_path):
  workdir, _ = small_run(tmp_path)
  first = report.write(workdir).read_bytes()
  assert report.write(workdir).read_bytes() == first


def test_budgets_cut_what_matters_least(tmp_path, monkeypatch):
  workdir, _ = small_run(tmp_path)
  monkeypatch.setattr(contents, "MAP_POINTS", 20)
  data = contents.read(workdir).data
  assert len(data["map"]["image"]) == 20
  # Room for some twenty images: every cluster still has its first.
  monkeypatch.setattr(contents, "IMAGE_BYTES", 20 * 57)
  shown = contents.read(workdir)
  assert len(shown.data["images"]["key"]) == 20
  assert all(shown.data["clusters"]["representatives"])
  assert len(shown.index) == 20
  monkeypatch.setattr(pictures, "PICTURES", 5)
  config = json.loads((workdir / "config.json").read_text())
  made = pictures.take(
    config,
    shown.data["images"]["key"],
    shown.index,
    shown.with_pictures,
    shown.on_map_only,
  )
  assert len(made.data) == 5
  assert not made.problem
  first = [x[0] for x in shown.data["clusters"]["representatives"]]
  assert sorted(made.of[i] for i in first) == [0, 1, 2, 3, 4]
  monkeypatch.setattr(pictures, "PICTURES", 100)
  monkeypatch.setattr(pictures, "PICTURE_BYTES", 3 * len(made.data[0]))
  made = pictures.take(
    config,
    shown.data["images"]["key"],
    shown.index,
    shown.with_pictures,
    shown.on_map_only,
  )
  assert 0 < sum(map(len, made.data)) <= pictures.PICTURE_BYTES


def test_jax_is_not_needed(tmp_path):
  workdir, _ = small_run(tmp_path)
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
  sources.make = lambda name, split: Photographs(num)
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
  data = read(path)
  assert all(data["clusters"]["representatives"])
  assert len(data["map"]["image"]) == contents.MAP_POINTS
