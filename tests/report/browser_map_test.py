"""The map: points, pictures, colours, the lasso."""

import io
import itertools
import re

import numpy as np
import pytest
from PIL import Image

from odc_jax import report
from tests.report import runs
from tests.report.runs import K

pytestmark = pytest.mark.browser


def wait_for(page, selector, text):
  page.locator(selector, has_text=text).wait_for()


def drawn(page):
  """Returns the map as it is drawn, uint8 [h, w, 3]."""
  page.wait_for_timeout(300)  # a frame, and the pictures that it asks for
  shot = page.locator("#canvas").screenshot()
  return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))


def places(page):
  """Returns x and y in the page of the middle of the map."""
  canvas = page.locator("#canvas")
  canvas.scroll_into_view_if_needed()
  box = canvas.bounding_box()
  return box["x"] + box["width"] / 2, box["y"]


def cluster_of(page):
  return page.locator("#viewer-facts dd").first.inner_text()


def test_by_keyboard(page):
  page.locator("#canvas").focus()
  page.keyboard.press("ArrowRight")
  before = page.locator("#map-status").inner_text()
  assert re.search(r"cluster \d", before)
  page.keyboard.press("ArrowUp")
  status = page.locator("#map-status").inner_text()
  assert status != before
  assert page.locator("#tip").is_visible()
  for key in ("+", "+", "-", "Shift+ArrowLeft", "0"):
    page.keyboard.press(key)
  page.keyboard.press("Space")
  assert page.locator("#bar-count").inner_text() == "1 selected"
  page.keyboard.press("e")
  page.keyboard.press("Enter")
  page.wait_for_selector("#viewer[open]")
  name = status.partition(": ")[0]
  assert page.locator("#viewer-title").inner_text() == name.split("/")[-1]
  cluster = re.findall(r"cluster (\d)", status)[0]
  assert cluster_of(page) == f"Cluster {cluster}"
  pressed = page.locator('#viewer-marks [data-mark][aria-pressed="true"]')
  assert pressed.inner_text() == "Exclude"


def test_by_mouse(page):
  x, y = places(page)
  page.locator("#map-search").fill("#2")
  wait_for(page, "#map-status", "25 of")
  page.locator("#colour").select_option("label")
  assert "label 3" in page.locator("#map-legend").inner_text()
  page.locator("#colour").select_option("outlier")
  # Cluster 2 lies at the top of the circle.
  for down in range(20, 90, 3):
    page.mouse.move(x, y + down)
    if page.locator("#tip").is_visible():
      break
  assert "cluster 2" in page.locator("#tip").inner_text()
  page.mouse.down()
  page.mouse.up()
  page.wait_for_selector("#viewer[open]")
  assert cluster_of(page) == "Cluster 2"


def test_a_cluster_is_shown_on_the_map(page):
  page.locator(".sheet .open").nth(6).click()
  c = re.findall(r"\d+", page.locator("#dialog-title").inner_text())[0]
  page.get_by_role("button", name="Show on the map").click()
  page.wait_for_selector("#dialog", state="hidden")
  assert page.locator("#map-status").inner_text() == "25 of 200 points shown."
  assert page.locator("#map-search").input_value() == f"#{c}"


def test_near_by_there_are_pictures(page, page_path):
  file = page_path.parent.parent / "images" / "cat" / "017.png"
  colour = np.asarray(Image.open(file)).mean((0, 1))

  def seen():
    """Pixels of the picture's colours, about."""
    off = np.abs(drawn(page).astype(int) - colour).max(-1)
    return int((off < 25).sum())

  page.locator("#canvas").scroll_into_view_if_needed()
  page.locator("#map-search").fill("cat/017")
  wait_for(page, "#map-status", "1 of")
  picture = seen()
  assert picture > 600  # of 30 x 30
  page.locator("#map-pictures").select_option("never")
  assert seen() < picture / 4
  page.locator("#map-pictures").select_option("near")
  page.locator("#map-search").fill("")
  wait_for(page, "#map-legend", "Cluster 7")
  page.locator("#map-status", has_text="shown").wait_for(state="detached")
  far = len(np.unique(drawn(page).reshape(-1, 3), axis=0))
  for _ in range(4):
    page.keyboard.press("Tab")
  page.locator("#canvas").focus()
  page.keyboard.press("ArrowRight")
  for _ in range(5):
    page.keyboard.press("+")
  page.keyboard.press("ArrowUp")
  # A picture has hundreds of colours, points have eight.
  assert len(np.unique(drawn(page).reshape(-1, 3), axis=0)) > 3 * far


def test_a_lasso_selects(page):
  x, y = places(page)
  page.locator("#lasso").click()
  assert page.locator("#lasso").get_attribute("aria-pressed") == "true"
  page.mouse.move(x - 70, y + 4)
  page.mouse.down()
  for dx, dy in ((70, 4), (70, 120), (-70, 120)):
    page.mouse.move(x + dx, y + dy, steps=4)
  page.mouse.up()
  assert page.locator("#lasso").get_attribute("aria-pressed") == "false"
  assert page.locator("#map-status").inner_text() == "25 images selected."
  page.locator("#bar").get_by_role("button", name="Show").click()
  page.wait_for_selector("#dialog[open]")
  page.locator("#dialog .tile").first.click()
  page.wait_for_selector("#viewer[open]")
  assert cluster_of(page) == "Cluster 2"


def test_shift_and_dragging_is_a_lasso_and_dragging_is_none(page):
  x, y = places(page)

  def drag():
    page.mouse.move(x - 70, y + 4)
    page.mouse.down()
    for dx, dy in ((70, 4), (70, 120), (-70, 120)):
      page.mouse.move(x + dx, y + dy, steps=4)
    page.mouse.up()

  page.keyboard.down("Shift")
  drag()
  page.keyboard.up("Shift")
  assert page.locator("#bar-count").inner_text() == "25 selected"
  page.locator("#bar").get_by_role("button", name="Clear").click()
  before = drawn(page)
  drag()
  assert not page.locator("#bar").is_visible()
  assert (drawn(page) != before).any()


def test_what_is_in_view_is_selected_without_a_mouse(page):
  page.locator("#map-search").fill("#5")
  wait_for(page, "#map-status", "25 of")
  page.locator("#pick-seen").press("Enter")
  assert page.locator("#bar-count").inner_text() == "25 selected"


def test_one_kind_alone_is_in_colour(page):
  places(page)

  def coloured():
    pixels = drawn(page).astype(int)
    return int((np.ptp(pixels, axis=-1) > 40).sum())

  every = coloured()
  item = page.locator("#map-legend button", has_text="Cluster 3")
  item.click()
  assert item.get_attribute("aria-pressed") == "true"
  alone = coloured()
  assert every / K / 2 < alone < every / K * 2
  item.click()
  assert coloured() == pytest.approx(every, rel=0.05)


def test_marks_have_colours(page):
  assert "mark" not in page.locator("#colour").inner_html()
  page.locator(".sheet .tile").first.focus()
  page.keyboard.press("k")
  page.locator("#colour").select_option("mark")
  assert "keep" in page.locator("#map-legend").inner_text()


@pytest.fixture(scope="module")
def many(tmp_path_factory):
  """A page of 40 clusters on a grid of 8 x 5 places."""
  folder = tmp_path_factory.mktemp("many")
  n, k = 400, 40
  keys = [f"{i:03d}.png" for i in range(n)]
  runs.write_images(folder / "images", keys)
  runs.write_history(folder / "run", f"folder:{folder / 'images'}", k, n)
  clusters = np.arange(n) % k
  draw = np.random.default_rng(0)
  centres = draw.normal(size=(k, 16))
  grid = np.stack([clusters % 8, clusters // 8], 1)
  runs.write_clusters(
    folder / "run",
    keys,
    centres[clusters] + draw.normal(0, 0.1, (n, 16)),
    clusters,
    k,
    projection=grid + draw.uniform(-0.2, 0.2, (n, 2)),
  )
  return report.write(folder / "run")


def test_neighbours_among_many_clusters_have_colours_far_apart(browser, many):
  page = browser.new_page()
  page.goto(many.as_uri())
  looks = {
    int(re.findall(r"\d+", item.inner_text())[0]): (
      item.locator("path").get_attribute("fill"),
      item.locator("path").get_attribute("d"),
    )
    for item in page.locator("#map-legend button").all()
  }
  page.close()
  assert len(looks) == 40
  # No two are drawn alike, and no two side by side have one colour.
  assert len(set(looks.values())) == 40
  for a, b in itertools.combinations(range(40), 2):
    beside = abs(a % 8 - b % 8) + abs(a // 8 - b // 8) == 1
    if beside:
      assert looks[a][0] != looks[b][0], (a, b)
