"""A finished run in use: from Python, and with --mode=assign."""

import html
import json
import re
import shutil
import sys
import types
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import odc_jax
from odc_jax import inference
from odc_jax.inference.assigned import MERGED
from odc_jax.results import table
from tests.program import assert_refused, run, run_here

NUM_IMAGES, NUM_CLUSTERS = 300, 8


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """A folder of digits, enlarged so that a file holds what is decoded."""
  folder = tmp_path_factory.mktemp("images")
  digits = load_digits()
  for i in range(NUM_IMAGES):
    pixels = np.round(digits.images[i] * 255 / 16).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"{i:03d}.png")
  return folder


@pytest.fixture(scope="module")
def workdir(environment, images, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("trained") / "run"
  status, _, err = run(
    environment,
    workdir,
    "--config=configs/odc_digits.py:quick",
    f"--config.data.source=folder:{images}",
    f"--config.num_clusters={NUM_CLUSTERS}",
    "--config.num_epochs=20",
    "--config.model.width=8",
    "--config.batch_size=50",
    "--num_groups=3",
  )
  assert status == 0, err
  return workdir


@pytest.fixture(scope="module")
def loaded(workdir):
  return odc_jax.load(workdir)


def columns(path):
  return pq.read_table(path).to_pydict()


def test_the_files_agree_with_each_other(workdir, loaded):
  rows = loaded.clusters().to_pydict()
  assert rows["index"] == list(range(NUM_IMAGES))
  embeddings = np.load(workdir / "embeddings.npy").astype(np.float32)
  features = np.load(workdir / "features.npy").astype(np.float32)
  centroids = np.load(workdir / "centroids.npy")
  clusters = np.array(rows["cluster"])
  means = np.stack(
    [embeddings[clusters == i].mean(axis=0) for i in range(NUM_CLUSTERS)]
  )
  np.testing.assert_allclose(centroids, means, atol=2e-3)
  unit = means / np.linalg.norm(means, axis=1, keepdims=True)
  cosines = embeddings @ unit.T
  own = cosines[np.arange(NUM_IMAGES), clusters]
  np.testing.assert_allclose(rows["similarity"], own, atol=3e-3)
  cosines[np.arange(NUM_IMAGES), clusters] = -2
  np.testing.assert_allclose(
    rows["margin"], own - cosines.max(axis=1), atol=5e-3
  )
  assert (np.array(rows["second_cluster"]) != clusters).all()
  likeness = features @ features.T
  np.fill_diagonal(likeness, -2)
  nearest = np.sort(likeness, axis=1)[:, :-11:-1]
  np.testing.assert_allclose(
    [row["distances"] for row in rows["neighbors"]], 1 - nearest, atol=3e-3
  )
  np.testing.assert_allclose(
    rows["outlier_score"], (1 - nearest.mean(axis=1)) / 2, atol=3e-3
  )


def test_groups_join_whole_clusters(workdir, loaded):
  rows = loaded.clusters().to_pydict()
  groups = loaded.groups(3)
  assert rows["cluster_group"] == groups[rows["cluster"]].tolist()
  counts = np.bincount(rows["cluster_group"])
  assert len(counts) == 3
  assert counts.tolist() == sorted(counts, reverse=True)
  described = json.loads((workdir / "clusters.json").read_text())
  assert described["num_groups"] == 3
  with pytest.raises(odc_jax.UserError, match="num_groups=9"):
    loaded.groups(NUM_CLUSTERS + 1)


def test_the_training_images_get_the_clusters_that_the_table_holds(
  workdir, images, loaded
):
  rows = loaded.clusters().to_pydict()
  found = loaded.assign(images).to_pydict()
  assert set(found) == set(inference.ASSIGNED)
  assert found["key"] == rows["key"]
  same = np.array(found["cluster"]) == np.array(rows["cluster"])
  described = json.loads((workdir / "clusters.json").read_text())
  # The table says how many: by the network of the end, in another batch.
  assert np.mean(same) == pytest.approx(described["agreement"], abs=0.01)
  assert np.mean(same) > 0.6
  for name in ("similarity", "margin", "confidence"):
    np.testing.assert_allclose(
      np.array(found[name])[same], np.array(rows[name])[same], atol=3e-3
    )
  groups = loaded.groups(3)
  assert found["cluster_group"] == groups[found["cluster"]].tolist()
  # Each finds itself, and then what the table calls its neighbours.
  assert [keys[0] for keys in found["nearest"]] == rows["key"]
  assert not any(
    found["is_novel"][i] for i in np.argsort(rows["similarity"])[-9:]
  )


def test_an_image_is_the_same_however_it_is_given(images, loaded):
  paths = sorted(images.iterdir())[:5]
  arrays = [np.asarray(Image.open(path)) for path in paths]
  opened = [Image.open(path) for path in paths]
  whole = loaded.embed(images)
  assert whole.shape == (NUM_IMAGES, 256)
  np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, rtol=1e-5)
  for given in (paths, map(str, paths), arrays, opened):
    np.testing.assert_allclose(loaded.embed(given), whole[:5], atol=1e-5)
  features = loaded.features(arrays)
  assert features.shape == (5, 64)
  assert loaded.assign(paths)["key"].to_pylist() == list(map(str, paths))


def test_what_is_unlike_the_training_images_is_told(
  workdir, images, loaded, tmp_path
):
  scores = loaded.clusters()["outlier_score"].to_numpy()
  described = json.loads((workdir / "clusters.json").read_text())
  threshold = described["novelty_threshold"]
  assert threshold == pytest.approx(np.quantile(scores, 0.99), rel=1e-5)
  seen = [np.asarray(Image.open(path)) for path in sorted(images.iterdir())]
  assert np.mean(loaded.assign(seen)["is_novel"].to_numpy()) < 0.01
  # What counts as unlike is for the table to say, not for the network of a
  # minute: half of the negatives lie above their own median.
  negatives = [255 - image for image in seen]
  scores = loaded.assign(negatives)["outlier_score"].to_numpy()
  copy = shutil.copytree(workdir, tmp_path / "run")
  described["novelty_threshold"] = float(np.median(scores))
  (copy / "clusters.json").write_text(json.dumps(described))
  found = odc_jax.load(copy).assign(negatives)["is_novel"].to_pylist()
  assert found == (scores > np.median(scores)).tolist()
  assert 100 < sum(found) < 200


def test_broken_images_have_no_row_and_their_embedding_is_zero(
  images, loaded, tmp_path
):
  good = (images / "007.png").read_bytes()
  (tmp_path / "b.png").write_bytes(good[:60])
  (tmp_path / "a.png").write_bytes(good)
  (tmp_path / "c.png").write_bytes(b"")
  with pytest.warns(UserWarning, match=r"2 images cannot be read.*'b.png'"):
    assert loaded.assign(tmp_path)["key"].to_pylist() == ["a.png"]
  with pytest.warns(UserWarning, match="2 images cannot be read"):
    embeddings = loaded.embed(tmp_path)
  np.testing.assert_allclose(embeddings[0], loaded.embed([good])[0], atol=1e-5)
  np.testing.assert_array_equal(embeddings[1:], 0)


# The command.


def assign(environment, workdir, *flags):
  return run(environment, workdir, "--mode=assign", *flags)


def assign_refuses(monkeypatch, workdir, flags, words):
  with pytest.raises(odc_jax.UserError) as refused:
    run_here(monkeypatch, f"--workdir={workdir}", "--mode=assign", *flags)
  for word in words:
    assert word in str(refused.value)


def test_the_command_writes_what_python_returns(
  environment, workdir, images, loaded, tmp_path
):
  folder = shutil.copytree(images, tmp_path / "new")
  (folder / "broken.png").write_bytes(b"no image")
  output = tmp_path / "out.parquet"
  status, out, err = assign(
    environment, workdir, f"--images={folder}", f"--output={output}"
  )
  assert status == 0, err
  assert f"{NUM_IMAGES} images assigned" in out
  assert "1 could not be read" in out
  bad = (tmp_path / "out.parquet.bad_images.txt").read_text()
  assert bad.startswith(f"{NUM_IMAGES}\tbroken.png\t")
  written, returned = columns(output), loaded.assign(images).to_pydict()
  assert written["cluster"] == returned["cluster"]
  assert written["nearest"] == returned["nearest"]


def test_a_second_call_overwrites_nothing_and_all_rows_can_be_merged(
  workdir, images, loaded, tmp_path, monkeypatch, capsys
):
  copy = shutil.copytree(workdir, tmp_path / "run")
  first, second = tmp_path / "first", tmp_path / "second"
  for folder, numbers in ((first, (0, 1, 2)), (second, (2, 3))):
    folder.mkdir()
    for i in numbers:
      shutil.copy(images / f"{i:03d}.png", folder)
  before = {path: path.read_bytes() for path in copy.glob("*.*")}
  for folder in (first, second, first):
    run_here(
      monkeypatch, f"--workdir={copy}", "--mode=assign", f"--images={folder}"
    )
  said = capsys.readouterr().out
  assert said.count("is there already and stays as it is") == 2
  assert f"written to {copy / 'assigned_3.parquet'}" in said
  for path, data in before.items():
    assert path.read_bytes() == data
  again = odc_jax.load(copy)
  names = ("assigned.parquet", "assigned_2.parquet", "assigned_3.parquet")
  tables = [pq.read_table(copy / name) for name in names]
  assert [len(rows) for rows in tables] == [3, 2, 3]
  assert tables[0].schema.metadata[b"odc_jax.folder"] == bytes(first)
  merged = again.merged()
  # The third has the rows of the first again; 002.png is in two folders.
  assert len(merged) == NUM_IMAGES + 5
  assert merged.column_names == [*again.clusters().column_names, *MERGED]
  own = merged.slice(0, NUM_IMAGES)
  assert own.select(again.clusters().column_names) == (
    again.clusters().replace_schema_metadata(own.schema.metadata)
  )
  rows = merged.slice(NUM_IMAGES).to_pydict()
  assert rows["key"] == [
    "002.png",
    "003.png",
    *(f"00{i}.png" for i in range(3)),
  ]
  assert rows["folder"] == [str(second)] * 2 + [str(first)] * 3
  assert rows["index"] == [None] * 5
  assert rows["cluster"] == [
    *tables[1]["cluster"].to_pylist(),
    *tables[2]["cluster"].to_pylist(),
  ]
  sizes = dict(
    zip(
      own["cluster"].to_pylist(), own["cluster_size"].to_pylist(), strict=True
    )
  )
  assert rows["cluster_size"] == [sizes[c] for c in rows["cluster"]]
  groups = again.groups(3)
  assert rows["cluster_group"] == groups[rows["cluster"]].tolist()
  assert rows["is_assigned"] == [True] * 5
  assert not any(own["is_assigned"].to_pylist())
  assert set(rows["is_novel"]) <= {True, False}
  some = again.merged([copy / names[1], tables[0]])
  assert len(some) == NUM_IMAGES + 5
  assert len(again.merged(loaded.assign([images / "000.png"]))) == (
    NUM_IMAGES + 1
  )
  said = {"pandas_type": "int64", "numpy_type": "Int64"}
  kept = json.loads(merged.schema.metadata[b"pandas"])["columns"]
  assert said.items() <= next(c for c in kept if c["name"] == "index").items()
  other = tables[0].replace_schema_metadata({"odc_jax.run": "another"})
  with pytest.raises(odc_jax.UserError, match="assign them again"):
    again.merged(other)
  with pytest.raises(odc_jax.UserError, match="missing or damaged"):
    again.merged(tmp_path / "nowhere.parquet")


def test_a_notebook_draws_clusters_images_and_the_map(
  workdir, images, loaded, tmp_path
):
  sizes = {
    c["cluster"]: c["size"]
    for c in json.loads((workdir / "clusters.json").read_text())["clusters"]
  }
  shown = loaded.show(3, 2)
  assert shown.html.count("<img ") == 6
  largest = max(sizes, key=lambda cluster: sizes[cluster])
  assert f"cluster {largest}, {sizes[largest]} images" in shown.html
  assert shown.html.startswith("<div")
  assert shown._repr_html_() == shown.html
  own = loaded.images(largest, 1000).html
  assert own.count("<img ") == sizes[largest]
  rows = loaded.clusters().to_pydict()
  best = max(
    (i for i in range(NUM_IMAGES) if rows["cluster"][i] == largest),
    key=lambda i: rows["similarity"][i],
  )
  assert re.findall(r'alt="(\w+.png)"', own)[0] == rows["key"][best]
  with pytest.raises(odc_jax.UserError, match="no image is in cluster 99"):
    loaded.images(99)
  # The same neighbours, whichever way an image is named.
  near = [rows["key"][i] for i in rows["neighbors"][7]["ids"][:5]]
  for image in (7, "007.png"):
    found = re.findall(r'alt="(\w+.png)"', loaded.similar(image, 5).html)
    assert found == near
  given = re.findall(
    r'alt="(\w+.png)"', loaded.similar(images / "007.png", 6).html
  )
  assert given == ["007.png", *near]
  with pytest.raises(odc_jax.UserError, match="no training image"):
    loaded.similar(NUM_IMAGES)
  with pytest.raises(odc_jax.UserError, match="cannot be read"):
    loaded.similar(b"no image")
  drawn = ElementTree.fromstring(loaded.plot_map().html)
  svg = "{http://www.w3.org/2000/svg}"
  assert len(drawn.findall(f"{svg}g")) == len([s for s in sizes.values() if s])
  dots = drawn.findall(f".//{svg}circle")
  assert len(dots) == NUM_IMAGES
  places = np.array([[float(d.get("cx")), float(d.get("cy"))] for d in dots])
  assert places.min() >= 0
  assert (places.max(axis=0) <= [720, float(drawn.get("height"))]).all()
  assert len(re.findall("<circle", loaded.plot_map(50).html)) == 50
  summary = json.loads((workdir / "summary.json").read_text())
  assert html.escape(summary["verdict"]) in loaded._repr_html_()
  # Of images that are gone the names are left.
  copy = shutil.copytree(workdir, tmp_path / "run")
  config = json.loads((copy / "config.json").read_text())
  config["data"]["source"] = f"folder:{tmp_path}/gone"
  (copy / "config.json").write_text(json.dumps(config))
  rows = loaded.clusters().replace_schema_metadata()
  pq.write_table(rows, copy / "clusters.parquet")
  with pytest.warns(UserWarning, match="there are no pictures"):
    without = odc_jax.load(copy).show(2, 3).html
  assert "<img" not in without
  assert without.count('.png"') == 6


def test_ipython_shows_the_tables_of_a_run(workdir, loaded, monkeypatch):
  printers = {}
  formatter = types.SimpleNamespace(
    type_printers=printers, for_type=printers.__setitem__
  )
  shell = types.SimpleNamespace(
    display_formatter=types.SimpleNamespace(formatters={"text/html": formatter})
  )
  ipython = types.SimpleNamespace(get_ipython=lambda: shell)
  monkeypatch.setitem(sys.modules, "IPython", ipython)
  odc_jax.load(workdir)
  draw = printers[pa.Table]
  drawn = draw(loaded.clusters())
  assert drawn.count("<tr>") == 11
  assert "<td" in drawn
  assert "007.png" in drawn
  assert f"{NUM_IMAGES} rows" in drawn
  hostile = {"key": ["<script>"], "cluster": [0], "image": [{"bytes": b"x"}]}
  drawn = draw(pa.table(hostile))
  assert "<script>" not in drawn
  assert "data:image/webp;base64,eA==" in drawn
  assert draw(pa.table({"other": [1]})) is None


def test_mistakes_are_named(workdir, images, tmp_path, monkeypatch):
  empty = tmp_path / "empty"
  empty.mkdir()
  for flags, words in (
    ([], ["--images"]),
    ([f"--images={empty}"], ["no images"]),
    ([f"--images={images}", "--num_groups=99"], ["--num_groups=99", "8"]),
    ([f"--images={images}", "--output=/no/such/x"], ["/no/such", "--output"]),
    ([f"--images={images}", f"--output={empty}"], ["folder", "--output"]),
    (
      [f"--images={images}", f"--output={workdir / 'clusters.parquet'}"],
      ["a file of the run", "--output"],
    ),
    (
      [f"--images={images}", f"--output={workdir / 'images.txt'}"],
      ["a file of the run", "--output"],
    ),
    (
      [f"--images={images}", f"--output={workdir / 'warnings.jsonl'}"],
      ["a file of the run", "--output"],
    ),
    (
      [
        f"--images={images}",
        f"--output={workdir / 'checkpoints' / 'x.parquet'}",
      ],
      ["a file of the run", "--output"],
    ),
    (
      [f"--images={images}", f"--output={images / '000.png'}"],
      ["no table of --mode=assign", "--output"],
    ),
    ([f"--images={images / '000.png'}"], ["is a file", "--images"]),
  ):
    assign_refuses(monkeypatch, workdir, flags, words)
  assign_refuses(
    monkeypatch,
    tmp_path / "none",
    [f"--images={images}"],
    ["no finished run", "config.json"],
  )


def test_a_run_whose_last_checkpoint_is_damaged_uses_the_one_before(
  environment, workdir, images, tmp_path
):
  copy = shutil.copytree(workdir, tmp_path / "run")
  steps = sorted((copy / "checkpoints").iterdir(), key=lambda p: int(p.name))
  for path in steps[-1].rglob("d/*"):
    path.write_bytes(path.read_bytes()[::-1])
  assert odc_jax.load(copy).embed(images).shape == (NUM_IMAGES, 256)
  assert steps[-1].exists()  # nothing is thrown away
  for step in steps[:-1]:
    shutil.rmtree(step)
  with pytest.raises(odc_jax.UserError, match="has changed"):
    odc_jax.load(copy).embed(images)


@pytest.mark.parametrize(
  "name", ["clusters.json", "centroids.npy", "features.npy", "components.npz"]
)
def test_a_damaged_file_is_named(workdir, images, tmp_path, name):
  copy = shutil.copytree(workdir, tmp_path / "run")
  data = (copy / name).read_bytes()
  (copy / name).write_bytes(data[: len(data) // 2])
  with pytest.raises(odc_jax.UserError, match=f"{name} is missing or damaged"):
    odc_jax.load(copy).assign([images / "000.png"])


def test_without_comparisons_there_are_clusters_all_the_same(
  workdir, images, tmp_path
):
  """As of a run of more images than are compared with each other."""
  copy = shutil.copytree(workdir, tmp_path / "run")
  described = json.loads((copy / "clusters.json").read_text())
  described |= {"outlier_threshold": None, "novelty_threshold": None}
  (copy / "clusters.json").write_text(json.dumps(described))
  found = odc_jax.load(copy).assign([images / "000.png"])
  assert found.num_rows == 1
  assert not {"outlier_score", "is_novel", "nearest"} & set(found.column_names)


def test_every_column_is_explained(workdir):
  names = pq.read_schema(workdir / "clusters.parquet").names
  lacking = [name for name in table.COLUMNS if name not in names]
  of_growth = ["generation", "is_novel", "is_missing"]
  assert lacking == ["label", "cluster_name", *of_growth, "taken", "image"]


def test_the_command_takes_in_names_and_marks(environment, workdir, tmp_path):
  copy = shutil.copytree(workdir, tmp_path / "run")
  rows = columns(copy / "clusters.parquet")
  own = [
    key
    for key, cluster in zip(rows["key"], rows["cluster"], strict=True)
    if cluster == 5
  ]
  saved = {
    "format": "odc_jax annotations",
    "version": 1,
    "run": "another, over the same images",
    "edited": "2025-01-31T12:00:00.000Z",
    "names": [{"clusters": [0], "name": "sevens"}],
    "groups": [],
    "images": [{"key": own[0], "mark": "exclude"}],
    "central": {"0": own[:5]},
  }
  path = tmp_path / "annotations.json"
  path.write_text(json.dumps(saved))
  assert odc_jax.load(copy).annotations().names == {}
  assert_refused(
    run(environment, copy, "--mode=export", f"--annotations={path}"),
    "--annotations needs --mode=report",
  )
  assert_refused(
    run(environment, copy, "--mode=report", "--annotations=nowhere.json"),
    "nowhere.json",
    "--annotations",
  )
  status, out, err = run(
    environment, copy, "--mode=report", f"--annotations={path}"
  )
  assert status == 0, err
  assert "1 named or merged cluster, 1 marked image" in out
  found = odc_jax.load(copy).annotations()
  assert found.names == {5: "sevens"}
  assert found.marks == {own[0]: "exclude"}
  names = columns(copy / "clusters.parquet")["cluster_name"]
  assert names.count("sevens") == len(own)
  assert "sevens" in (copy / "report.html").read_text()


@pytest.mark.slow
def test_a_run_without_training_takes_over_the_network_of_another(
  environment, workdir, images, loaded, tmp_path
):
  """Out with --mode=export, in as model.weights, then used like any run."""
  network, other = tmp_path / "network", tmp_path / "run"
  status, _, err = run(
    environment, workdir, "--mode=export", f"--output={network}"
  )
  assert status == 0, err
  status, out, err = run(
    environment,
    other,
    "--config=configs/odc_digits.py:quick",
    f"--config.data.source=folder:{images}",
    f"--config.model.weights={network}",
    "--config.num_clusters=5",
    "--config.num_epochs=0",
    "--config.model.width=8",
    "--config.batch_size=50",
  )
  assert status == 0, err
  assert f"weights of backbone and neck from {network}" in out
  taken_over = odc_jax.load(other)
  some = sorted(images.iterdir())[:40]
  for name in ("features", "embed"):
    np.testing.assert_allclose(
      getattr(taken_over, name)(some), getattr(loaded, name)(some), atol=1e-5
    )
  # Nothing has moved since the first clustering.
  described = json.loads((other / "clusters.json").read_text())
  assert described["agreement"] > 0.95
  status, _, err = assign(environment, other, f"--images={images}")
  assert status == 0, err
  assert columns(other / "assigned.parquet")["key"] == [
    path.name for path in sorted(images.iterdir())
  ]
  for flags in (["--mode=report"], ["--mode=report", "--num_groups=2"]):
    status, _, err = run(environment, other, *flags)
    assert status == 0, err
  # And out again.
  again = tmp_path / "again"
  status, _, err = run(environment, other, "--mode=export", f"--output={again}")
  assert status == 0, err
  card = " ".join((again / "README.md").read_text().split())
  assert "has the weights of `network`, not trained further" in card


@pytest.mark.slow
def test_heads_that_voted_give_training_images_their_clusters_again(
  environment, images, tmp_path
):
  workdir = tmp_path / "run"
  status, out, err = run(
    environment,
    workdir,
    "--config=configs/temi_digits.py:quick",
    f"--config.data.source=folder:{images}",
    f"--config.num_clusters={NUM_CLUSTERS}",
    "--config.temi.num_heads=4",
    "--config.model.width=8",
    "--config.batch_size=50",
  )
  assert status == 0, err
  # A random network, and it says so whatever the heads say.
  assert "Not to be relied on: the network has random weights" in out
  loaded = odc_jax.load(workdir)
  rows = loaded.clusters().to_pydict()
  again = loaded.assign(images).to_pydict()
  assert again["cluster"] == rows["cluster"]
  assert again["confidence"] == rows["confidence"]
  assert {*rows["confidence"]} <= {0.25, 0.5, 0.75, 1.0}
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary["verdict"].startswith("Not to be relied on")
  agreement = np.mean(rows["confidence"])
  assert summary["verdict/heads_agreement"] == pytest.approx(agreement)
