"""The page in a browser: what a reader does, with mouse and keyboard."""

import itertools
import json
import os
import re
import shutil

import numpy as np
import pytest
from scipy.cluster import hierarchy

from odc_jax import report
from tests.report import runs

pytestmark = pytest.mark.browser
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
HOSTILE = [
  "<img src=x onerror=alert(1)>.png",
  "a</script><script>alert(2).png",
  'z" onmouseover="alert(3).png',
]
# 8 clusters of 25 images, on 8 places of a circle.
K, N = 8, 200


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
  folder = tmp_path_factory.mktemp("report")
  keys = [*HOSTILE[:2], *(f"cat/{i:03d}.png" for i in range(N - 3)), HOSTILE[2]]
  runs.write_images(folder / "images", keys)
  (folder / "images" / HOSTILE[2]).write_bytes(b"no image")
  workdir = folder / "run"
  runs.write_history(workdir, f"folder:{folder / 'images'}", K, N)
  clusters = np.arange(N) % K
  angle = clusters * (2 * np.pi / K)
  draw = np.random.default_rng(0)
  circle = np.stack([np.cos(angle), np.sin(angle)], 1)
  embeddings = circle + draw.normal(0, 0.05, (N, 2))
  runs.write_clusters(
    workdir,
    keys,
    embeddings,
    clusters,
    K,
    labels=clusters // 2,
    duplicates=[[0, 1], [8, 16, 24]],
  )
  return report.write(workdir)


@pytest.fixture(scope="module")
def browser():
  sync_api = pytest.importorskip("playwright.sync_api")
  if not CHROMIUM:
    pytest.fail("no chromium on the PATH; install it, or name it in CHROMIUM")
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(
      executable_path=CHROMIUM,
      args=[
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
      ],
    )
    yield browser
    browser.close()


@pytest.fixture
def open_page(browser, page_path):
  """Opens the page; afterwards, nothing may have gone wrong on it."""
  troubles, contexts = [], []

  def dialog(box):
    troubles.append(f"a script ran: {box.message}")
    box.dismiss()

  def requested(request):
    if request.url != page_path.as_uri() and not request.url.startswith(
      "data:"
    ):
      troubles.append(f"asked for {request.url}")

  def console(message):
    if message.type in ("error", "warning"):
      troubles.append(message.text)

  def open_(**options):
    context = browser.new_context(**options)
    contexts.append(context)
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", console)
    page.on("dialog", dialog)
    page.on("request", requested)
    page.goto(page_path.as_uri())
    return page

  yield open_
  for context in contexts:
    context.close()
  assert troubles == []


@pytest.fixture
def page(open_page):
  return open_page(viewport={"width": 1280, "height": 900})


def texts(locator):
  return locator.all_text_contents()


def wait_for(page, selector, text):
  page.locator(selector, has_text=text).wait_for()


def test_there_is_a_card_for_every_cluster(page):
  assert texts(page.locator(".card .open")) == [
    f"Cluster {c}" for c in range(K)
  ]
  assert page.locator("#clusters-status").inner_text() == "8 clusters."
  first = page.locator(".card").first
  assert "25 images" in first.inner_text()
  assert "8 of 25 shown" in first.inner_text()
  assert first.locator("img").count() == 8


def test_pictures_are_drawn(page):
  page.locator(".montage img").first.scroll_into_view_if_needed()
  # Evaluated in the page at once: its policy forbids to wait by polling.
  width = page.locator(".montage img").first.evaluate(
    "image => image.decode().then(() => image.naturalWidth)"
  )
  assert width == 32


def test_the_slider_groups_the_clusters(page):
  slider = page.locator("#groups")
  slider.fill("0")
  assert texts(page.locator(".group h3")) == ["Group 0 8 clusters, 200 images"]
  page.locator("#groups-number").fill("4")
  page.keyboard.press("Enter")
  assert page.locator(".group h3").count() == 4
  assert (
    page.locator("#clusters-status").inner_text() == "8 clusters in 4 groups."
  )
  sizes = [
    re.findall(r"\d+", text)[1:] for text in texts(page.locator(".group h3"))
  ]
  assert sum(int(clusters) for clusters, _ in sizes) == K
  assert sum(int(images) for _, images in sizes) == N
  # An arrow key moves by one group.
  slider.focus()
  page.keyboard.press("ArrowRight")
  assert page.locator(".group h3").count() == 5
  page.get_by_role("button", name="no groups").click()
  assert page.locator(".group h3").count() == 0


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
  page.locator("#sort").select_option("outliers")
  counts = [
    int((re.findall(r"outliers(\d+)", text) or [0])[0])
    for text in texts(page.locator(".card"))
  ]
  assert counts == sorted(counts, reverse=True)
  assert counts[0] > 0
  page.locator("#sort").select_option("tight")
  cohesion = [
    float(re.findall(r"cohesion(\d\.\d\d)", text)[0])
    for text in texts(page.locator(".card"))
  ]
  assert cohesion == sorted(cohesion, reverse=True)


def test_search_finds_files_and_clusters(page):
  search, status = page.locator("#search"), page.locator("#clusters-status")
  search.fill("cat/017")
  wait_for(page, "#clusters-status", "1 file")
  assert status.inner_text() == "1 cluster and 1 file found."
  # Two names stand before cat/000.
  assert texts(page.locator(".card .open")) == [f"Cluster {19 % K}"]
  assert texts(page.locator("#files .file")) == ["cat/017.png"]
  search.fill("#5")
  wait_for(page, "#clusters-status", "0 files")
  assert texts(page.locator(".card .open")) == ["Cluster 5"]
  page.keyboard.press("Enter")
  assert page.locator("#dialog-title").inner_text() == "Cluster 5: 25 images"
  page.keyboard.press("Escape")
  search.fill("no such thing")
  wait_for(page, "#clusters-status", "0 clusters")
  assert status.inner_text() == "0 clusters and 0 files found."


def test_a_click_opens_a_cluster_and_escape_closes_it(page):
  dialog = page.locator("#dialog")
  page.locator(".card").nth(3).click()
  assert dialog.is_visible()
  assert page.locator("#dialog-title").inner_text() == "Cluster 3: 25 images"
  assert texts(dialog.locator("h3"))[:2] == [
    "Representatives",
    "Boundary cases",
  ]
  names = texts(dialog.locator(".figures .file"))
  assert len(names) >= 12
  assert "margin" in dialog.inner_text()
  # On a circle the nearest are those beside it.
  nearest = texts(dialog.locator(".links").first.locator("button"))
  assert {re.findall(r"\d+", text)[0] for text in nearest[:2]} == {"2", "4"}
  dialog.locator(".links").first.locator("button").first.click()
  assert (
    page.locator("#dialog-title")
    .inner_text()
    .startswith(f"Cluster {re.findall(r'[0-9]+', nearest[0])[0]}:")
  )
  page.keyboard.press("Escape")
  assert not dialog.is_visible()


def test_names_with_markup_are_shown_and_not_run(page):
  page.locator("#search").fill("alert(")
  page.wait_for_selector("#files .file")
  assert sorted(texts(page.locator("#files .file"))) == sorted(HOSTILE)
  assert page.locator("#files img[src='x']").count() == 0
  # Two of them have a picture, the third has none and says so.
  assert page.locator("#files img").count() == 2
  assert page.locator("#files .none").get_attribute("aria-label") == HOSTILE[2]
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
  assert page.evaluate("document.activeElement.textContent") == name


def test_the_map_by_keyboard(page):
  page.locator("#canvas").focus()
  page.keyboard.press("ArrowRight")
  before = page.locator("#map-status").inner_text()
  assert re.search(r"cluster \d", before)
  page.keyboard.press("ArrowUp")
  assert page.locator("#map-status").inner_text() != before
  assert page.locator("#tip").is_visible()
  for key in ("+", "+", "-", "Shift+ArrowLeft", "0"):
    page.keyboard.press(key)
  cluster = re.findall(
    r"cluster (\d)", page.locator("#map-status").inner_text()
  )[0]
  page.keyboard.press("Enter")
  title = page.locator("#dialog-title").inner_text()
  assert title.startswith(f"Cluster {cluster}:")


def test_the_map_by_mouse(page):
  canvas = page.locator("#canvas")
  canvas.scroll_into_view_if_needed()
  page.locator("#map-search").fill("#2")
  wait_for(page, "#map-status", "25 of")
  page.locator("#colour").select_option("label")
  assert "label 3" in page.locator("#map-legend").inner_text()
  page.locator("#colour").select_option("outlier")
  # Cluster 2 lies at the top of the circle.
  box = canvas.bounding_box()
  page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
  for y in range(20, 90, 3):
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + y)
    if page.locator("#tip").is_visible():
      break
  assert "cluster 2" in page.locator("#tip").inner_text()
  page.mouse.down()
  page.mouse.up()
  title = page.locator("#dialog-title").inner_text()
  assert title == "Cluster 2: 25 images"


def test_a_cluster_is_shown_on_the_map(page):
  page.locator(".card").nth(6).click()
  page.get_by_role("button", name="Show its images on the map").click()
  assert page.locator("#map-status").inner_text() == "25 of 200 points shown."
  assert page.locator("#map-search").input_value() == "#6"


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
  width = page.evaluate("document.documentElement.scrollWidth")
  assert width <= 360
  page.locator(".card .open").first.click()
  assert page.locator("#dialog").bounding_box()["width"] <= 360


def test_every_control_has_a_name_and_headings_are_in_order(page):
  nameless = page.evaluate(
    """[...document.querySelectorAll("input, select, button, canvas, img")]
    .filter((e) => !(e.labels?.length || e.ariaLabel || e.alt
      || e.textContent.trim() || e.hidden)).map((e) => e.outerHTML)"""
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
    page.locator('nav a[href="#summary"]').click()
    page.wait_for_timeout(2000)
