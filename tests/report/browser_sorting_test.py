"""Naming, merging, marking, selecting; and what becomes of it."""

import csv
import json

import pyarrow.parquet as pq
import pytest

from odc_jax import report
from odc_jax.results import annotations
from tests.report import runs
from tests.report.runs import N

pytestmark = pytest.mark.browser


def name(page, cluster, text):
  """Types the name of a cluster on its sheet."""
  field = page.locator(f'.sheet[data-cluster="{cluster}"] input.name')
  field.fill(text)
  field.press("Enter")


def open_cluster(page, cluster):
  page.evaluate(f"location.hash = '#cluster-{cluster}'")
  page.wait_for_selector("#dialog[open]")
  page.locator("#dialog-title", has_text=str(cluster)).wait_for()


def saved(page, button):
  """Returns the file that a button saves: its name and its text."""
  with page.expect_download() as download:
    button.click()
  path = download.value.path()
  return download.value.suggested_filename, path.read_text(encoding="utf-8")


def annotations_of(page):
  return json.loads(saved(page, page.locator("#save-work"))[1])


def keys(page, selector):
  return [tile.get_attribute("title") for tile in page.locator(selector).all()]


def test_a_name_is_kept_and_stands_wherever_the_cluster_does(page):
  name(page, 3, "  Dresses ")
  assert page.locator("#work-link").inner_text() == "Your sorting (not saved)"
  page.reload()
  field = page.locator('.sheet[data-cluster="3"] input.name')
  assert field.input_value() == "Dresses"
  open_cluster(page, 4)
  assert "Dresses" in page.locator("#dialog-body").inner_text()
  page.keyboard.press("Escape")
  page.locator("#search").fill("dress")
  page.locator("#clusters-status", has_text="1 cluster and").wait_for()
  assert page.locator(".sheet").get_attribute("data-cluster") == "3"
  page.locator("#map-search").fill("dresses")
  page.locator("#map-status", has_text="25 of 200 points").wait_for()
  found = annotations_of(page)
  assert found["names"] == [{"clusters": [3], "name": "Dresses"}]
  assert len(found["central"]["3"]) == 24
  assert page.locator("#work-link").inner_text() == "Your sorting"


def test_a_name_is_taken_away_and_a_change_undone(page):
  name(page, 3, "Dresses")
  name(page, 3, "")
  assert "beside its number" in page.locator("#work-text").inner_text()
  page.locator("#undo").click()
  assert "1 cluster named" in page.locator("#work-text").inner_text()
  field = page.locator('.sheet[data-cluster="3"] input.name')
  assert field.input_value() == "Dresses"
  page.locator("#undo").click()
  assert page.locator("#undo").is_disabled()
  # Escape leaves a name as it was.
  field.fill("Coats")
  field.press("Escape")
  assert field.input_value() == ""


def test_merged_clusters_are_taken_for_one(page):
  name(page, 3, "Dresses")
  open_cluster(page, 4)
  page.get_by_role("button", name="Merge with Dresses").click()
  page.locator("#dialog-title", has_text="Clusters 3 + 4: 50 images").wait_for()
  assert page.locator("#dialog input.name").input_value() == "Dresses"
  assert page.locator("#members .tile").count() == 50
  # The two that were in each other's place are at home now.
  facts = page.locator("#dialog-body > p").first.inner_text()
  assert "nearer to the centre of another" not in facts
  page.keyboard.press("Escape")
  page.wait_for_selector("#dialog", state="hidden")
  assert page.locator("#clusters-status").inner_text() == "7 clusters."
  sheet = page.locator(".sheet").first
  assert sheet.get_attribute("data-cluster") == "3"
  assert "18 of 50 images" in sheet.inner_text()
  assert annotations_of(page)["names"] == [
    {"clusters": [3, 4], "name": "Dresses"}
  ]
  # Its own numbers lead to it; taken apart, the larger one has the name.
  open_cluster(page, 4)
  page.get_by_role("button", name="Take apart again").click()
  page.locator("#dialog-title", has_text="25 images").wait_for()
  page.keyboard.press("Escape")
  assert page.locator("#clusters-status").inner_text() == "8 clusters."
  assert annotations_of(page)["names"] == [{"clusters": [3], "name": "Dresses"}]


def test_a_group_is_named_and_merged(page):
  page.locator("#groups-number").fill("4")
  page.keyboard.press("Enter")
  head = page.locator(".group-head").first
  head.locator("input.name").fill("Clothes")
  head.locator("input.name").press("Enter")
  found = annotations_of(page)["groups"]
  assert [x["name"] for x in found] == ["Clothes"]
  assert len(found[0]["clusters"]) >= 2
  # At another cut it is another group; back again it has its name.
  page.locator("#groups-number").fill("3")
  page.keyboard.press("Enter")
  page.locator("#groups-number").fill("4")
  page.keyboard.press("Enter")
  fields = page.locator(".group-head input.name")
  assert "Clothes" in [x.input_value() for x in fields.all()]
  head.get_by_role("button", name="Merge into one cluster").click()
  merged = annotations_of(page)["names"]
  assert merged == [{"clusters": found[0]["clusters"], "name": ""}]


def test_images_are_marked_with_keys(page):
  tile = page.locator('.sheet[data-cluster="2"] .tile')
  tile.first.focus()
  page.keyboard.press("k")
  page.keyboard.press("ArrowRight")
  page.keyboard.press("e")
  page.keyboard.press("ArrowRight")
  page.keyboard.press("w")
  badges = tile.locator(".badge").all_text_contents()
  assert badges[:4] == ["keep", "exclude", "wrong cluster", ""]
  # The same mark again takes it away, another one takes its place.
  page.keyboard.press("w")
  page.keyboard.press("ArrowLeft")
  page.keyboard.press("k")
  badges = tile.locator(".badge").all_text_contents()
  assert badges[:4] == ["keep", "keep", "", ""]
  page.reload()
  badges = tile.locator(".badge").all_text_contents()
  assert badges[:4] == ["keep", "keep", "", ""]
  page.locator("#marked-list summary").click()
  page.wait_for_selector("#marked-galleries .tile")  # drawn when it is open
  assert keys(page, "#marked-galleries .tile") == sorted(
    keys(page, '.sheet[data-cluster="2"] .tile')[:2],
    key=lambda key: keys(page, "#marked-galleries .tile").index(key),
  )
  assert "Keep: 2" in page.locator("#marked-galleries").inner_text()


def test_an_image_is_marked_in_the_large_view(page):
  page.locator('.sheet[data-cluster="2"] .tile').first.click()
  page.wait_for_selector("#viewer[open]")
  page.keyboard.press("e")
  pressed = page.locator('#viewer-marks [aria-pressed="true"]')
  assert pressed.all_text_contents() == ["Exclude"]
  page.get_by_role("button", name="Keep").click()
  assert pressed.all_text_contents() == ["Keep"]
  page.keyboard.press("ArrowRight")
  page.locator("#viewer-place", has_text="2 of 25").wait_for()
  assert pressed.count() == 0
  page.keyboard.press("Escape")
  page.wait_for_selector("#viewer", state="hidden")
  tile = page.locator('.sheet[data-cluster="2"] .tile').first
  assert tile.get_attribute("data-mark") == "keep"


def test_many_images_are_selected_and_marked(page):
  open_cluster(page, 5)
  tiles = page.locator("#members .tile")
  tiles.nth(2).hover()
  tiles.nth(2).locator(".check").click()
  assert page.locator("#bar-count").inner_text() == "1 selected"
  tiles.nth(6).click(modifiers=["Shift"])
  assert page.locator("#bar-count").inner_text() == "5 selected"
  tiles.nth(4).click(modifiers=["Control"])
  assert page.locator("#bar-count").inner_text() == "4 selected"
  # No image was opened by that.
  assert not page.locator("#viewer").is_visible()
  page.locator("#bar").get_by_role("button", name="Exclude").click()
  excluded = page.locator('#members .tile[data-mark="exclude"]')
  order = keys(page, "#members .tile")
  assert [x.get_attribute("title") for x in excluded.all()] == [
    order[i] for i in (2, 3, 5, 6)
  ]
  # A key on one of them marks all of them.
  tiles.nth(5).focus()
  page.keyboard.press("k")
  assert page.locator('#members .tile[data-mark="keep"]').count() == 4
  page.locator("#bar").get_by_role("button", name="Clear").click()
  assert not page.locator("#bar").is_visible()


def test_the_keyboard_selects(page):
  open_cluster(page, 5)
  page.locator("#members .tile").first.focus()
  page.keyboard.press("Space")
  page.keyboard.press("ArrowRight")
  page.keyboard.press("Shift+ArrowRight")
  assert page.locator("#bar-count").inner_text() == "3 selected"
  page.keyboard.press("Control+a")
  assert page.locator("#bar-count").inner_text() == "25 selected"
  assert page.evaluate("document.activeElement.ariaSelected") == "true"
  # The first Escape lets go of the selection, the second of the cluster.
  page.keyboard.press("Escape")
  assert not page.locator("#bar").is_visible()
  assert page.locator("#dialog").is_visible()
  page.keyboard.press("Escape")
  page.wait_for_selector("#dialog", state="hidden")


def test_a_selection_is_saved_as_paths(page, page_path):
  name(page, 5, 'Hats, "old"')
  open_cluster(page, 5)
  page.get_by_role("button", name="Select all").click()
  page.locator("#members .tile").first.focus()
  page.keyboard.press("k")
  bar = page.locator("#bar")
  file, text = saved(page, bar.get_by_role("button", name="Save as CSV"))
  assert file == "selection.csv"
  rows = list(csv.DictReader(text.splitlines()))
  table = pq.read_table(page_path.parent / "clusters.parquet").to_pylist()
  own = {row["key"]: row for row in table if row["cluster"] == 5}
  assert {row["key"] for row in rows} == set(own)
  folder = page_path.parent.parent / "images"
  for row in rows:
    assert row["path"] == str(folder / row["key"])
    assert int(row["index"]) == own[row["key"]]["index"]
    assert row["cluster_name"] == 'Hats, "old"'
    assert row["mark"] == "keep"
  file, text = saved(page, bar.get_by_role("button", name="Save as JSON"))
  assert file == "selection.json"
  assert [str(x["index"]) for x in json.loads(text)] == [
    row["index"] for row in rows
  ]
  bar.get_by_role("button", name="Show").click()
  page.locator("#dialog-title", has_text="Selected: 25 images").wait_for()
  page.keyboard.press("Escape")


def test_a_hostile_name_is_text_in_every_file(page):
  page.locator("#search").fill("onerror")
  page.wait_for_selector("#files .tile")
  page.locator("#files .tile").focus()
  page.keyboard.press("Space")
  bar = page.locator("#bar")
  _, text = saved(page, bar.get_by_role("button", name="Save as CSV"))
  assert next(csv.DictReader(text.splitlines()))["key"] == runs.HOSTILE[0]
  name(page, 0, runs.HOSTILE[0])
  page.reload()
  field = page.locator('.sheet[data-cluster="0"] input.name')
  assert field.input_value() == runs.HOSTILE[0]


def test_what_was_saved_comes_back_with_the_run(
  page, page_path, browser, tmp_path
):
  """The whole way: page, file, command, table, page."""
  name(page, 3, "Dresses")
  page.locator('.sheet[data-cluster="1"] .tile').first.focus()
  page.keyboard.press("e")
  excluded = keys(page, '.sheet[data-cluster="1"] .tile')[0]
  file, text = saved(page, page.locator("#save-work"))
  assert file == "annotations.json"
  saved_file = tmp_path / file
  saved_file.write_text(text, encoding="utf-8")
  workdir = tmp_path / "run"
  workdir.mkdir()
  for part in page_path.parent.iterdir():
    (workdir / part.name).write_bytes(part.read_bytes())
  annotations.apply(workdir, saved_file)
  found = annotations.load(workdir)
  assert found.names == {3: "Dresses"}
  assert found.marks == {excluded: "exclude"}
  table = pq.read_table(workdir / "clusters.parquet")
  names = table["cluster_name"].to_pylist()
  assert names.count("Dresses") == 25
  assert names.count(None) == N - 25
  again = browser.new_page()
  again.goto(report.write(workdir).as_uri())
  field = again.locator('.sheet[data-cluster="3"] input.name')
  assert field.input_value() == "Dresses"
  tile = again.locator('.sheet[data-cluster="1"] .tile').first
  assert tile.get_attribute("data-mark") == "exclude"
  assert again.locator("#work-link").inner_text() == "Your sorting"
  again.close()


def test_a_file_is_loaded_into_the_page(page, tmp_path):
  name(page, 3, "Dresses")
  page.locator('.sheet[data-cluster="1"] .tile').first.focus()
  page.keyboard.press("w")
  text = saved(page, page.locator("#save-work"))[1]
  page.evaluate("localStorage.clear()")
  page.reload()
  assert page.locator("#save-work").is_disabled()
  path = tmp_path / "annotations.json"
  path.write_text(text, encoding="utf-8")
  page.locator("#load-work").set_input_files(path)
  page.locator("#work-text", has_text="1 cluster named, 1 image").wait_for()
  assert page.locator("#work-link").inner_text() == "Your sorting"
  # Of another run the marks are taken, and the names are not.
  path.write_text(json.dumps({**json.loads(text), "run": "another"}))
  page.evaluate("localStorage.clear()")
  page.reload()
  page.locator("#load-work").set_input_files(path)
  page.locator("#toast", has_text="Names are of another run").wait_for()
  assert page.locator("#work-text").inner_text().startswith("1 image marked.")
  for nonsense in ("{", "{}", json.dumps({**json.loads(text), "version": 9})):
    path.write_text(nonsense)
    page.locator("#load-work").set_input_files(path)
    page.locator("#toast", has_text="holds no annotations").wait_for()
  assert page.locator("#work-text").inner_text().startswith("1 image marked.")


def test_a_browser_that_keeps_nothing_says_so(open_page, page_path):
  page = open_page()
  page.add_init_script(
    "Storage.prototype.setItem = () => { throw new Error('full'); };"
  )
  page.reload()
  name(page, 3, "Dresses")
  text = page.locator("#work-text").inner_text()
  assert "This browser keeps nothing" in text
  saved(page, page.locator("#save-work"))
  assert "in a file" in page.locator("#work-text").inner_text()
