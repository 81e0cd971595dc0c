"""The page of a collection that has grown: what is new, novel and gone."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from odc_jax import report
from tests.report import runs

pytestmark = pytest.mark.browser

NUM_NEW, NOVEL, GONE = 20, (185, 190), (5, 182)


@pytest.fixture(scope="module")
def grown(page_path, tmp_path_factory):
  folder = tmp_path_factory.mktemp("grown")
  shutil.copytree(page_path.parent.parent, folder, dirs_exist_ok=True)
  workdir = folder / "run"
  table = pq.read_table(workdir / "clusters.parquet")
  rows = np.arange(runs.N)
  for name, column in (
    ("generation", pa.array(1 * (rows >= runs.N - NUM_NEW), pa.int32())),
    ("is_novel", pa.array(np.isin(rows, NOVEL))),
    ("is_missing", pa.array(np.isin(rows, GONE))),
  ):
    table = table.append_column(name, column)
  pq.write_table(table, workdir / "clusters.parquet")
  path = workdir / "clusters.json"
  growth = {"generation": 1, "new": NUM_NEW, "novel": 2, "missing": 2}
  path.write_text(
    json.dumps({**json.loads(path.read_text()), "growth": growth})
  )
  return report.write(workdir), table.to_pydict()


def test_what_is_new_is_shown_and_the_novel_first(browser, grown):
  path, table = grown
  page = browser.new_page()
  errors = []
  page.on("pageerror", lambda error: errors.append(str(error)))
  page.goto(path.as_uri())
  counts = page.locator(".counts").inner_text()
  assert "20 new images" in counts
  assert "2 of them novel" in counts
  # Three files are not there; all others have their pictures.
  assert page.locator("#sample").inner_text() == ""
  keys, similarity = table["key"], table["similarity"]

  def titles(name):
    tiles = page.locator(f'#new-list ul[aria-label="{name}"] .tile')
    return [tile.get_attribute("title") for tile in tiles.all()]

  # The file of 182 is gone, that of the last cannot be read: no pictures.
  new = range(runs.N - NUM_NEW, runs.N - 1)
  by_distance = sorted(new, key=lambda i: similarity[i])
  assert titles("Novel") == [keys[i] for i in by_distance if i in NOVEL]
  assert titles("The others") == [
    keys[i] for i in by_distance if i not in (*NOVEL, *GONE)
  ]
  page.locator("#new-list summary").click()
  gone = page.locator("#new-list details li").all_inner_texts()
  assert sorted(gone) == sorted(keys[i] for i in GONE)

  cluster = table["cluster"][NOVEL[0]]
  page.goto(f"{path.as_uri()}#cluster-{cluster}")
  page.wait_for_selector("#dialog[open]")
  page.locator("#member-order").select_option("fresh")
  first = page.locator("#members .tile").first
  assert first.get_attribute("title") in [keys[i] for i in new]
  page.goto(f"{path.as_uri()}#image-{NOVEL[0]}")
  page.wait_for_selector("#viewer[open]")
  assert "yes, and novel" in page.locator("#viewer").inner_text()
  assert not errors
  page.close()


def test_without_growth_nothing_is_said_of_it(page_path):
  text = page_path.read_text()
  assert 'id="new"' not in text
  assert 'href="#new"' not in text
