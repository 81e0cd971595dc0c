"""embedding-atlas itself, by the README's command, and what it serves.

Its program brings PyTorch along, so it is in none of our lists: install it
somewhere and name it, EMBEDDING_ATLAS=/there/bin/embedding-atlas pytest -m
release tests/results/atlas_test.py.
"""

import io
import json
import os
import pathlib
import re
import shlex
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pyarrow.parquet as pq
import pytest

from odc_jax.results import table
from tests.program import ROOT, run_here
from tests.report import runs

ATLAS = os.environ.get("EMBEDDING_ATLAS") or shutil.which("embedding-atlas")
SECONDS = 300  # its libraries take long to import


def commands(workdir):
  """Returns the README's two commands, for another run."""
  text = (ROOT / "README.md").read_text()
  found = re.search(r"<!-- ci: atlas -->\n```sh\n(.*?)```", text, re.S)
  assert found is not None
  joined = (
    found[1].replace("\\\n", " ").replace("runs/odc_digits", str(workdir))
  )
  return [shlex.split(line) for line in joined.splitlines()]


def test_the_columns_that_the_readme_names_are_there(tmp_path, monkeypatch):
  workdir, _ = runs.small_run(tmp_path)
  ours, theirs = commands(workdir)
  assert ours[:2] == ["python", "run.py"]
  run_here(monkeypatch, *ours[2:])
  names = table.names(workdir / "clusters.parquet")
  flags = [word for word in theirs if word.startswith("--")]
  assert flags == ["--image", "--x", "--y", "--neighbors"]
  for flag in flags:
    assert theirs[theirs.index(flag) + 1] in names
  assert theirs[1] == str(workdir / "clusters.parquet")


@pytest.mark.release
@pytest.mark.skipif(not ATLAS, reason="there is no embedding-atlas")
def test_embedding_atlas_shows_the_pictures(tmp_path, monkeypatch):
  workdir, _ = runs.small_run(tmp_path)
  ours, theirs = commands(workdir)
  run_here(monkeypatch, *ours[2:])
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
  environment.pop("PYTHONPATH", None)
  log = tmp_path / "log"
  with log.open("w") as file:
    process = subprocess.Popen(
      [str(ATLAS), *theirs[1:], f"--port={port}"],
      env=environment,
      stdout=file,
      stderr=subprocess.STDOUT,
    )
  url = f"http://localhost:{port}"
  try:
    end = time.monotonic() + SECONDS
    while True:
      assert process.poll() is None, log.read_text()
      assert time.monotonic() < end, log.read_text()
      try:
        page = urllib.request.urlopen(url, timeout=10).read().decode()
        break
      except (urllib.error.URLError, OSError):
        time.sleep(1)
    metadata = json.load(
      urllib.request.urlopen(f"{url}/data/metadata.json", timeout=60)
    )
    data = urllib.request.urlopen(
      f"{url}/data/dataset.parquet", timeout=60
    ).read()
  finally:
    process.terminate()
    process.wait(timeout=60)
  assert "<title>" in page
  said = json.dumps(metadata)
  for name in ("projection_x", "projection_y", "neighbors", "image"):
    assert f'"{name}"' in said
  served = pq.read_table(io.BytesIO(data)).to_pydict()
  own = pq.read_table(pathlib.Path(workdir) / "clusters.parquet").to_pydict()
  for name in ("key", "cluster", "image", "neighbors"):
    assert served[name] == own[name]
