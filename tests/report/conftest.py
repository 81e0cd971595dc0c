"""A page in a browser, for all tests of it."""

import json
import os
import shutil

import numpy as np
import pytest

from odc_jax import report
from tests.report import runs

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")


@pytest.fixture(scope="session")
def page_path(tmp_path_factory):
  folder = tmp_path_factory.mktemp("report")
  keys = [
    *runs.HOSTILE[:2],
    *(f"cat/{i:03d}.png" for i in range(runs.N - 3)),
    runs.HOSTILE[2],
  ]
  runs.write_images(folder / "images", keys)
  (folder / "images" / runs.HOSTILE[2]).write_bytes(b"no image")
  workdir = folder / "run"
  runs.write_history(workdir, f"folder:{folder / 'images'}", runs.K, runs.N)
  clusters = np.arange(runs.N) % runs.K
  angle = clusters * (2 * np.pi / runs.K)
  draw = np.random.default_rng(0)
  circle = np.stack([np.cos(angle), np.sin(angle)], 1)
  embeddings = circle + draw.normal(0, 0.05, (runs.N, 2))
  labels = clusters // 2
  # One of cluster 3 and one of cluster 4 are in the other's place.
  clusters[[43, 44]] = clusters[[44, 43]]
  runs.write_clusters(
    workdir,
    keys,
    embeddings,
    clusters,
    runs.K,
    labels=labels,
    duplicates=[[0, 1], [8, 16, 24]],
  )
  told = [[] for _ in range(runs.K)]
  told[3] = [["hat = <b>red</b>", 0.8, 0.25]]
  (workdir / "attributes.json").write_text(json.dumps(told))
  return report.write(workdir)


@pytest.fixture(scope="session")
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
    # Of its own folder it may show the pictures.
    folder = page_path.parent.parent.as_uri()
    own = (f"{folder}/run/report.html", f"{folder}/images/", "data:", "blob:")
    if not request.url.startswith(own):
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
