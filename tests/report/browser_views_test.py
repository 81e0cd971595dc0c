"""A cluster and an image, opened: by mouse, by keyboard, by the address."""

import re

import numpy as np
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def table(page_path):
  return pq.read_table(page_path.parent / "clusters.parquet").to_pylist()


def best(table, cluster, column, sign=1):
  """Rows of a cluster, those with the least of a column first."""
  own = [row for row in table if row["cluster"] == cluster]
  return sorted(own, key=lambda row: sign * row[column])


def names(locator):
  return [tile.get_attribute("title") for tile in locator.all()]


def address(page):
  return page.evaluate("location.hash")


def opened(page, dialog):
  page.wait_for_selector(f"#{dialog}[open]")


def closed(page, dialog):
  page.wait_for_selector(f"#{dialog}", state="hidden")


def test_a_cluster_opens_to_all_its_members(page, table):
  page.locator('.sheet[data-cluster="3"]').get_by_text("See all 25").click()
  opened(page, "dialog")
  assert address(page) == "#cluster-3"
  assert page.locator("#dialog-title").inner_text() == "Cluster 3: 25 images"
  own = best(table, 3, "similarity", -1)
  shown = names(page.locator("#members .tile"))
  assert sorted(shown) == sorted(row["key"] for row in own)
  assert (shown[0], shown[-1]) == (own[0]["key"], own[-1]["key"])


def test_a_cluster_says_which_attributes_tell_it(page):
  """The value is markup, and stays text."""
  page.goto(page.url + "#cluster-3")
  opened(page, "dialog")
  told = "What tells it best: hat = <b>red</b> (80 % of them, 25 % of all)."
  assert told in page.locator("#dialog-body > p").first.inner_text()
  page.goto(page.url.replace("cluster-3", "cluster-4"))
  page.wait_for_selector("#dialog-title:has-text('Cluster 4')")
  assert "tells it best" not in page.locator("#dialog-body").inner_text()


@pytest.mark.parametrize(
  ("order", "column", "sign"),
  [("doubt", "margin", 1), ("unlike", "outlier_score", -1)],
)
def test_members_in_another_order(page, table, order, column, sign):
  page.goto(page.url + "#cluster-3")
  opened(page, "dialog")
  page.locator("#member-order").select_option(order)
  own = {row["key"]: sign * row[column] for row in best(table, 3, column)}
  shown = names(page.locator("#members .tile"))
  assert sorted(shown) == sorted(own)
  values = [own[name] for name in shown]
  # The page has three digits of them.
  assert np.diff(values).min() >= -1e-3
  assert values[0] == pytest.approx(min(values), abs=1e-3)


def test_what_lies_nearer_to_another_cluster_is_called_that(page, table):
  moved = best(table, 3, "margin")
  assert (moved[0]["index"], moved[0]["second_cluster"]) == (44, 4)
  assert moved[0]["margin"] < 0 < moved[1]["margin"]
  sheet = page.locator('.sheet[data-cluster="3"]').inner_text()
  assert "1 nearer to another cluster" in sheet
  page.goto(page.url + "#cluster-3")
  opened(page, "dialog")
  text = page.locator("#dialog-body").inner_text()
  assert "1 of its images lies nearer to the centre of another" in text
  page.locator("#member-order").select_option("doubt")
  notes = page.locator("#members .note-line").all_text_contents()
  assert notes[0] == "nearer to cluster 4"
  assert notes[1] == f"next: cluster {moved[1]['second_cluster']}"
  page.locator("#members .tile").first.click()
  opened(page, "viewer")
  facts = page.locator("#viewer-facts dt").all_text_contents()
  assert "Nearer to" in facts


def test_the_nearest_clusters_are_those_beside_it(page):
  page.goto(page.url + "#cluster-3")
  opened(page, "dialog")
  nearest = page.locator("#dialog-body > .links").first.locator("button")
  texts = nearest.locator("span:first-of-type").all_text_contents()
  found = [re.findall(r"\d+", text)[0] for text in texts[:2]]
  assert set(found) == {"2", "4"}
  nearest.first.click()
  title = page.locator("#dialog-title")
  title.get_by_text(f"Cluster {found[0]}:").wait_for()
  assert address(page) == f"#cluster-{found[0]}"
  page.go_back()
  title.get_by_text("Cluster 3:").wait_for()
  page.go_back()
  closed(page, "dialog")


def test_from_cluster_to_cluster_in_their_order(page):
  page.locator("#sort").select_option("number")
  page.locator(".sheet .open").first.click()
  opened(page, "dialog")
  before = page.get_by_role("button", name="Previous cluster")
  assert before.is_disabled()
  page.get_by_role("button", name="Next cluster").click()
  page.locator("#dialog-title").get_by_text("Cluster 1:").wait_for()
  before.click()
  page.locator("#dialog-title").get_by_text("Cluster 0:").wait_for()
  # Turning the pages is one step back.
  page.keyboard.press("Escape")
  closed(page, "dialog")
  assert address(page) == ""


def test_an_image_opens_with_what_is_known_of_it(page, table):
  page.locator('.sheet[data-cluster="2"] .tile').first.click()
  opened(page, "viewer")
  key = page.evaluate("document.querySelector('#copy-path').textContent")
  row = next(row for row in table if key.endswith(row["key"]))
  assert row["cluster"] == 2
  assert address(page) == f"#image-{row['index']}"
  facts = page.locator("#viewer-facts").inner_text()
  assert "Cluster 2" in facts
  second = row["similarity"] - row["margin"]
  assert f"{row['similarity']:.2f}" in facts
  assert f"Cluster {row['second_cluster']} ({second:.2f})" in facts
  assert f"{row['outlier_score']:.2f}" in facts
  assert "label 1" in facts
  assert "1 of 25: Cluster 2" in page.locator("#viewer-place").inner_text()
  near = names(page.locator("#viewer-facts .tile"))
  assert near == [table[i]["key"] for i in row["neighbors"]["ids"]]


def test_the_file_is_shown_and_linked_where_it_still_is(page, page_path):
  page.goto(page.url + "#image-20")
  opened(page, "viewer")
  link = page.locator("#file-state a")
  link.wait_for()
  file = page_path.parent.parent / "images" / "cat" / "018.png"
  assert link.get_attribute("href") == file.as_uri()
  assert link.get_attribute("rel") == "noopener"
  assert "(32 \u00d7 24)" in page.locator("#file-state").inner_text()
  shown = page.locator("#viewer-picture img")
  assert shown.get_attribute("src") == file.as_uri()


def test_without_the_file_the_small_picture_is_kept(
  browser, page_path, tmp_path
):
  alone = tmp_path / "report.html"
  alone.write_bytes(page_path.read_bytes())
  page = browser.new_page()
  page.goto(alone.as_uri() + "#image-20")
  page.locator("#file-state", has_text="not there any more").wait_for()
  source = page.locator("#viewer-picture img").get_attribute("src")
  assert source.startswith("data:image/webp;base64,")
  page.close()


def test_a_click_copies_the_path(open_page, page_path):
  page = open_page(permissions=["clipboard-read", "clipboard-write"])
  page.goto(page.url + "#image-20")
  opened(page, "viewer")
  page.locator("#copy-path").click()
  page.locator("#toast", has_text="Copied").wait_for()
  file = page_path.parent.parent / "images" / "cat" / "018.png"
  assert page.evaluate("navigator.clipboard.readText()") == str(file)


def test_arrow_keys_turn_to_the_next_image_and_escape_goes_back(page):
  page.locator('.sheet[data-cluster="5"] .open').click()
  opened(page, "dialog")
  order = names(page.locator("#members .tile"))
  page.locator("#members .tile").nth(1).click()
  opened(page, "viewer")
  path = "document.querySelector('#copy-path').textContent"
  assert page.evaluate(path).endswith(order[1])
  page.keyboard.press("ArrowRight")
  page.keyboard.press("ArrowRight")
  page.locator("#viewer-place", has_text="4 of 25").wait_for()
  assert page.evaluate(path).endswith(order[3])
  page.keyboard.press("ArrowLeft")
  page.locator("#viewer-place", has_text="3 of 25").wait_for()
  # However many were looked at, one step leads back to the cluster.
  page.keyboard.press("Escape")
  closed(page, "viewer")
  assert page.locator("#dialog").is_visible()
  assert address(page) == "#cluster-5"
  page.keyboard.press("Escape")
  closed(page, "dialog")
  assert address(page) == ""
  page.go_forward()
  opened(page, "dialog")
  page.go_forward()
  opened(page, "viewer")
  assert page.evaluate(path).endswith(order[2])


def test_the_ends_of_a_list_are_ends(page):
  page.locator('.sheet[data-cluster="5"] .tile').first.click()
  opened(page, "viewer")
  assert page.locator("#viewer-last").is_disabled()
  page.keyboard.press("ArrowLeft")
  assert "1 of 25" in page.locator("#viewer-place").inner_text()


def test_an_address_opens_what_it_names_and_nothing_else(page):
  url = page.url
  page.goto(url + "#image-20")
  page.reload()
  opened(page, "viewer")
  assert page.locator("#viewer-title").inner_text() == "018.png"
  page.keyboard.press("Escape")
  closed(page, "viewer")
  for nothing in ("#cluster-8", "#image-200", "#image-x", "#nonsense"):
    page.evaluate(f"location.hash = {nothing!r}")
    page.wait_for_timeout(100)
    assert not page.locator("dialog[open]").count(), nothing


def test_a_page_opened_at_an_image_can_be_left(open_page, page_path):
  page = open_page()
  page.goto("about:blank")
  page.goto(page_path.as_uri() + "#image-20")
  opened(page, "viewer")
  page.keyboard.press("Escape")
  closed(page, "viewer")
  assert address(page) == "#clusters"


def test_more_like_this(page, table):
  page.goto(page.url + "#image-20")
  opened(page, "viewer")
  page.get_by_role("button", name="More like this").click()
  opened(page, "dialog")
  closed(page, "viewer")
  assert address(page) == "#like-20"
  shown = names(page.locator("#dialog .tile"))
  assert shown[0] == table[20]["key"]
  near = [table[i]["key"] for i in table[20]["neighbors"]["ids"]]
  assert set(near) <= set(shown)
  assert shown[1] == near[0]
  assert len(shown) > 20
  # It goes on from there to the images beside.
  page.locator("#dialog .tile").nth(2).click()
  opened(page, "viewer")
  page.keyboard.press("Escape")
  closed(page, "viewer")
  assert address(page) == "#like-20"
