"""The page in a browser: what a reader does, with mouse and keyboard."""

import itertools
import json
import re

import numpy as np
import pytest
from scipy.cluster import hierarchy

from tests.report.runs import HOSTILE, K, N

pytestmark = pytest.mark.browser


def texts(locator):
  return locator.all_text_contents()


def wait_for(page, selector, text):
  page.locator(selector, has_text=text).wait_for()


def titles(page):
  return texts(page.locator(".sheet .open"))


def test_pictures_lead(page):
  """On the first screen: what is to be thought of it, counts, pictures."""
  assert page.locator("h1").inner_text() == "images: 200 images in 8 clusters"
  assert "Settled" in page.locator(".verdict").inner_text()
  counts = page.locator(".counts").inner_text()
  assert "200 images" in counts
  assert "8 clusters" in counts
  assert "5 near-duplicates" in counts
  seen = page.evaluate(
    """[...document.querySelectorAll(".sheet img")].filter((e) =>
    e.getBoundingClientRect().bottom <= innerHeight).length"""
  )
  assert seen >= 24
  # The curves are there, at the end, for those who ask for them.
  assert not page.locator(".curve").first.is_visible()
  page.locator('nav a[href="#run"]').click()
  assert page.locator(".curve").first.is_visible()
  assert "No signs of collapse" in page.locator("#run-details").inner_text()


def test_every_cluster_is_a_contact_sheet(page):
  assert sorted(titles(page)) == [f"Cluster {c}" for c in range(K)]
  assert page.locator("#clusters-status").inner_text() == "8 clusters."
  first = page.locator(".sheet").first
  assert "18 of 25 images" in first.inner_text()
  assert first.locator("img").count() == 18
  for tile in first.locator(".tile").all():
    box = tile.bounding_box()
    assert box["width"] >= 96
    assert box["height"] == pytest.approx(box["width"], abs=1)


def test_of_near_duplicates_one_is_on_a_sheet(page):
  # Images 8, 16 and 24 are one picture in cluster 0, and are three files.
  sheet = page.locator('.sheet[data-cluster="0"]')
  names = {tile.get_attribute("title") for tile in sheet.locator(".tile").all()}
  copies = {f"cat/{i - 2:03d}.png" for i in (8, 16, 24)}
  assert len(names & copies) <= 1


def test_pictures_are_drawn(page):
  page.locator(".sheet img").first.scroll_into_view_if_needed()
  # Evaluated in the page at once: its policy forbids to wait by polling.
  width = page.locator(".sheet img").first.evaluate(
    "image => image.decode().then(() => image.naturalWidth)"
  )
  assert width == 32


def test_the_slider_groups_the_clusters(page):
  slider = page.locator("#groups")
  slider.fill("0")
  assert texts(page.locator(".group-head h3")) == [
    "Group 0 8 clusters, 200 images"
  ]
  page.locator("#groups-number").fill("4")
  page.keyboard.press("Enter")
  assert page.locator(".group-head h3").count() == 4
  assert (
    page.locator("#clusters-status").inner_text() == "8 clusters in 4 groups."
  )
  sizes = [
    re.findall(r"\d+", text)[1:]
    for text in texts(page.locator(".group-head h3"))
  ]
  assert sum(int(clusters) for clusters, _ in sizes) == K
  assert sum(int(images) for _, images in sizes) == N
  # An arrow key moves by one group.
  slider.focus()
  page.keyboard.press("ArrowRight")
  assert page.locator(".group-head h3").count() == 5
  page.get_by_role("button", name="no groups").click()
  assert page.locator(".group-head h3").count() == 0


def test_a_cut_of_the_tree_is_that_of_scipy(page, page_path):
  summary = json.loads((page_path.parent / "clusters.json").read_text())
  cut = hierarchy.cut_tree(np.array(summary["tree"]), 3)[:, 0]
  page.locator("#groups-number").fill("3")
  page.keyboard.press("Enter")
  groups = [
    sorted(int(text.split()[1]) for text in texts(group.locator(".open")))
    for group in page.locator(".group").all()
  ]
  assert sorted(groups) == sorted(
    np.flatnonzero(cut == g).tolist() for g in range(3)
  )


def test_sorting(page):
  sizes = [
    int(re.findall(r"of (\d+) images", text)[0])
    for text in texts(page.locator(".sheet-foot"))
  ]
  assert sizes == sorted(sizes, reverse=True)
  page.locator("#sort").select_option("outliers")
  counts = [
    int((re.findall(r"(\d+) outlier", text) or [0])[0])
    for text in texts(page.locator(".sheet-foot"))
  ]
  assert counts == sorted(counts, reverse=True)
  assert counts[0] > 0
  page.locator("#sort").select_option("number")
  assert titles(page) == [f"Cluster {c}" for c in range(K)]


def test_search_finds_files_and_clusters(page):
  search, status = page.locator("#search"), page.locator("#clusters-status")
  search.fill("cat/017")
  wait_for(page, "#clusters-status", "1 file")
  assert status.inner_text() == "1 cluster and 1 file found."
  assert titles(page) == [f"Cluster {19 % K}"]
  assert texts(page.locator("#files .note-line")) == ["017.png"]
  search.fill("#5")
  wait_for(page, "#clusters-status", "0 files")
  assert titles(page) == ["Cluster 5"]
  page.keyboard.press("Enter")
  assert page.locator("#dialog-title").inner_text() == "Cluster 5: 25 images"
  page.keyboard.press("Escape")
  search.fill("no such thing")
  wait_for(page, "#clusters-status", "0 clusters")
  assert status.inner_text() == "0 clusters and 0 files found."


def test_names_with_markup_are_shown_and_not_run(page):
  page.locator("#search").fill("alert(")
  page.wait_for_selector("#files .tile")
  tiles = page.locator("#files .tile")
  assert sorted(t.get_attribute("title") for t in tiles.all()) == sorted(
    HOSTILE
  )
  assert page.locator("#files img[src='x']").count() == 0
  # Two of them have a picture, the third has none and says so.
  assert tiles.locator("img").count() == 2
  assert page.locator("#files .none").get_attribute("aria-label") == HOSTILE[2]
  tiles.first.click()
  page.wait_for_selector("#viewer[open]")
  assert page.locator("#viewer-title").inner_text() in HOSTILE[0] + HOSTILE[1]
  page.keyboard.press("Escape")
  page.locator("#map-search").fill("onerror")
  page.locator("#canvas").focus()
  wait_for(page, "#map-status", "1 of")
  page.keyboard.press("ArrowRight")
  assert page.locator("#tip .file").inner_text() == HOSTILE[0]


def test_markup_that_got_in_would_not_run(browser, page_path):
  page = browser.new_page()
  page.goto(page_path.as_uri())
  page.evaluate(
    """() => {
      const p = document.createElement("p");
      document.body.append(p);
      p.innerHTML = '<svg onload="window.ran = 1"></svg>';
      p.append(Object.assign(document.createElement("script"),
        { textContent: "window.ran = 2" }));
    }"""
  )
  page.wait_for_timeout(100)
  assert page.evaluate("window.ran === undefined")
  page.close()


def test_the_keyboard_is_enough(page):
  page.keyboard.press("Tab")
  assert page.evaluate("document.activeElement.className") == "skip"
  page.locator("#search").focus()
  for _ in range(40):
    page.keyboard.press("Tab")
    if page.evaluate("document.activeElement.className") == "open":
      break
  name = page.evaluate("document.activeElement.textContent")
  page.keyboard.press("Enter")
  assert page.locator("#dialog-title").inner_text().startswith(name)
  assert page.evaluate("document.activeElement.id") == "dialog-title"
  # The focus stays inside while it is open.
  for _ in range(30):
    page.keyboard.press("Tab")
    assert page.evaluate(
      "document.activeElement === document.body"
      " || !!document.activeElement.closest('dialog')"
    )
  page.keyboard.press("Escape")
  page.wait_for_selector("#dialog", state="hidden")
  assert page.evaluate("document.activeElement.textContent") == name


def test_a_list_of_pictures_is_one_stop_of_the_tab_key(page):
  sheet = page.locator(".sheet").first
  sheet.locator("input.name").focus()
  page.keyboard.press("Tab")
  at = "document.activeElement.dataset.image"
  shown = [t.get_attribute("data-image") for t in sheet.locator(".tile").all()]
  assert page.evaluate(at) == shown[0]
  for key, place in (
    ("ArrowRight", 1),
    ("ArrowDown", 7),  # six in a row
    ("ArrowLeft", 6),
    ("ArrowUp", 0),
    ("ArrowUp", 0),
    ("End", 17),
    ("Home", 0),
    ("ArrowRight", 1),
  ):
    page.keyboard.press(key)
    assert page.evaluate(at) == shown[place], key
  page.keyboard.press("Tab")
  assert page.evaluate("document.activeElement.textContent") == "See all 25"
  page.keyboard.press("Shift+Tab")
  assert page.evaluate(at) == shown[1]
  page.keyboard.press("Enter")
  page.wait_for_selector("#viewer[open]")


def test_the_least_usual_and_near_duplicates_are_listed(page):
  assert (
    "5 images are nearly the same"
    in page.locator("#duplicates-text").inner_text()
  )
  assert page.locator(".duplicate").count() == 2
  assert page.locator(".duplicate").first.locator(".tile").count() == 3
  shown = page.locator("#outliers-list .tile").count()
  text = page.locator("#outliers-text").inner_text()
  assert f"{shown} of {shown} shown" in text


def luminance(colour):
  values = [int(x) / 255 for x in re.findall(r"\d+", colour)[:3]]
  linear = [
    x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in values
  ]
  return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_both_schemes(open_page, scheme):
  page = open_page(color_scheme=scheme)
  style = "getComputedStyle(document.querySelector('{}')).{}"
  paper = page.evaluate(style.format("body", "backgroundColor"))
  assert (luminance(paper) > 0.5) == (scheme == "light")
  for selector in ("body", ".soft", ".link", "summary"):
    ink = page.evaluate(style.format(selector, "color"))
    dark, light = sorted([luminance(ink), luminance(paper)])
    assert (light + 0.05) / (dark + 0.05) >= 4.5, selector
  # The curves follow.
  line = page.evaluate(
    "getComputedStyle(document.querySelector('.curve svg text')).fill"
  )
  dark, light = sorted([luminance(line), luminance(paper)])
  assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_a_phone_does_not_scroll_sideways(open_page):
  page = open_page(viewport={"width": 360, "height": 740}, has_touch=True)
  width = "document.documentElement.scrollWidth"
  assert page.evaluate(width) <= 360
  page.locator(".sheet .tile").first.click()
  page.wait_for_selector("#viewer[open]")
  assert page.locator("#viewer").bounding_box()["width"] <= 360
  assert page.evaluate("document.querySelector('#viewer').scrollWidth") <= 360
  page.keyboard.press("Escape")
  page.locator(".sheet .open").first.click()
  page.wait_for_selector("#dialog[open]")
  assert page.evaluate("document.querySelector('#dialog').scrollWidth") <= 360


def test_every_control_has_a_name_and_headings_are_in_order(page):
  nameless = page.evaluate(
    """[...document.querySelectorAll("input, select, button, canvas, img")]
    .filter((e) => !(e.labels?.length || e.ariaLabel || e.alt
      || e.closest("[aria-label]") || e.textContent.trim()
      || e.hidden)).map((e) => e.outerHTML)"""
  )
  assert nameless == []
  levels = page.evaluate(
    """[...document.querySelectorAll("main h1, main h2, main h3, main h4")]
    .filter((e) => e.checkVisibility()).map((e) => Number(e.tagName[1]))"""
  )
  assert levels[0] == 1
  assert levels.count(1) == 1
  assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
  names = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
  assert len(names) == len(set(names))


def test_the_navigation_arrives_where_it_says(open_page):
  page = open_page(viewport={"width": 390, "height": 700})
  for section in ("map", "outliers", "clusters"):
    link = page.locator(f'nav a[href="#{section}"]')
    link.click()
    page.wait_for_timeout(2000)
    place = page.locator(f"#{section}").bounding_box()["y"]
    assert place == pytest.approx(64, abs=4)
