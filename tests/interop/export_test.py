"""The way out: what --mode=export writes, and what it refuses."""

import json
import pathlib
import re
import shlex

import jax
import numpy as np
import pytest
import safetensors.numpy

from configs import odc_folder
from odc_jax import UserError
from odc_jax import mesh as mesh_lib
from odc_jax.config import check as config_lib
from odc_jax.config import store
from odc_jax.interop import card as card_lib
from odc_jax.interop import export
from odc_jax.interop.describe import fill
from odc_jax.logs import scalars
from odc_jax.methods import METHODS
from odc_jax.training import checkpoint
from odc_jax.training.programs import assemble
from tests.interop.networks import assert_equal, experiment, random_weights
from tests.program import assert_refused, run

STEP = 56  # two epochs of 28 steps


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
  """A run that has saved a checkpoint and not ended, and what it saved."""
  workdir = tmp_path_factory.mktemp("begun") / "run"
  config = experiment(name="resnet18", stem="imagenet", width=4)
  config = config_lib.resolve(config, 1797, 1)
  store.write(config, workdir, resuming=False)
  mesh = mesh_lib.make_mesh(1)
  with jax.set_mesh(mesh):
    program = assemble(config, METHODS["odc"], mesh)
    # Zeros but for the network: drawing all of it takes half a minute.
    params, batch_stats = random_weights(config)
    state = jax.tree.map(
      lambda leaf: np.zeros(leaf.shape, leaf.dtype),
      program.shapes._replace(key=None),
    )._replace(
      step=np.int32(STEP),
      params=params,
      batch_stats=batch_stats,
      key=jax.random.key(0),
    )
    state = jax.device_put(state, program.shardings)
    checkpoints = checkpoint.Checkpoints(workdir, keep=2)
    checkpoints.save(state, STEP)
    checkpoints.close()
  lines = [
    {"step": 28, "epoch": 1.0, "time": 1.0, "eval/knn_top1": 0.5},
    {"step": 56, "epoch": 2.0, "time": 2.0, "eval/knn_top1": 0.625},
  ]
  (workdir / "metrics.jsonl").write_text(
    "".join(json.dumps(line) + "\n" for line in lines)
  )
  return workdir, state


def test_the_files_hold_the_last_checkpoint(begun, tmp_path):
  workdir, state = begun
  folder = tmp_path / "a" / "b"
  said = export.write(workdir, folder)
  assert said == f"step {STEP} of {workdir}, written to {folder}"
  expected = export.state_dict(state.params, state.batch_stats, STEP)
  backbone = safetensors.numpy.load_file(folder / "model.safetensors")
  assert_equal(backbone, expected["backbone"])
  assert backbone["conv1.weight"].shape == (4, 3, 7, 7)
  others = safetensors.numpy.load_file(folder / "neck_and_head.safetensors")
  assert {name.split(".")[0] for name in others} == {"neck", "head"}
  for name, array in others.items():
    part, name = name.split(".", 1)
    np.testing.assert_array_equal(array, expected[part][name])
  hub = json.loads((folder / "config.json").read_text())
  assert hub["architecture"] == "resnet18"
  # Not a copy that could grow old: the module that is checked and tested.
  module = pathlib.Path(card_lib.__file__).with_name("model.py")
  assert (folder / "model.py").read_bytes() == module.read_bytes()
  card = (folder / "README.md").read_text()
  assert "| epochs | 2 (56 steps of 64 images); the run has not ended |" in card
  assert "| `eval/knn_top1` | 0.625 | kNN top-1" in card
  # Once more, over itself, and the same.
  before = {path.name: path.read_bytes() for path in folder.iterdir()}
  export.write(workdir, folder)
  assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_command_writes_into_the_work_directory(environment, begun):
  workdir, state = begun
  status, out, err = run(environment, workdir, "--mode=export")
  assert status == 0, err
  assert f"written to {workdir / 'export'}" in out
  backbone = safetensors.numpy.load_file(workdir / "export/model.safetensors")
  np.testing.assert_array_equal(
    backbone["bn1.weight"], state.params["backbone"]["bn1"]["scale"]
  )
  # The run's own config is beside it, and as it was.
  config = json.loads((workdir / "config.json").read_text())
  assert config["num_examples"] == 1797


def test_mistakes_are_named(environment, begun, tmp_path):
  workdir, _ = begun
  none = tmp_path / "none"
  with pytest.raises(UserError, match=r"none holds no run: config.json"):
    export.write(none, tmp_path / "out")
  with pytest.raises(UserError, match="that no export wrote"):
    export.write(workdir, workdir)
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="file is a file; choose a folder"):
    export.write(workdir, tmp_path / "file")
  with pytest.raises(UserError, match="cannot write to"):
    export.write(workdir, tmp_path / "file" / "folder")
  none.mkdir()
  (none / "config.json").write_bytes((workdir / "config.json").read_bytes())
  with pytest.raises(UserError, match=r"no checkpoint in .* can be read"):
    export.write(none, tmp_path / "out")
  (none / "config.json").write_text("{")
  with pytest.raises(UserError, match=r"config.json is damaged"):
    export.write(none, tmp_path / "out")
  assert not (tmp_path / "out").exists()
  assert_refused(
    run(environment, none, "--mode=report", "--output=x"),
    "--output needs --mode=assign or export",
  )


def test_timms_config_describes_the_network_and_its_input():
  config = experiment(name="resnet50", stem="imagenet", width=64)
  config.data.image_size, config.data.eval_resize = 224, 256
  found = card_lib.describe(config)
  assert found["architecture"] == "resnet50"
  assert (found["num_classes"], found["num_features"]) == (0, 2048)
  assert "model_args" not in found
  described = found["pretrained_cfg"]
  assert described["input_size"] == [3, 224, 224]
  assert described["crop_pct"] == 0.875
  assert described["interpolation"] == "bilinear"
  assert described["mean"] == list(config.augment.mean)
  assert described["std"] == list(config.augment.std)
  assert (described["first_conv"], described["classifier"]) == ("conv1", "fc")
  narrow = experiment(name="resnet18", stem="imagenet", width=16)
  narrow.augment.sobel = True
  found = card_lib.describe(narrow)
  assert found["model_args"] == {"channels": [16, 32, 64, 128]}
  assert found["num_features"] == 128
  assert found["pretrained_cfg"]["input_size"][0] == 2
  assert found["odc_jax"] == {
    "sobel": True,
    "neck": "nonlinear",
    "head": "linear",
    "stem": "imagenet",
    "width": 16,
  }


def test_timm_resizes_as_evaluation_does(monkeypatch):
  """It takes floor(crop / crop_pct) pixels for the short side."""
  config = experiment()
  # Which traces the network, a third of a second for every size.
  length = card_lib.num_features(config.model)
  monkeypatch.setattr(card_lib, "num_features", lambda _: length)
  for size in range(8, 400):
    for resize in (size, size + 1, size * 8 // 7, size * 256 // 224 + 1):
      config.data.image_size, config.data.eval_resize = size, resize
      fraction = card_lib.describe(config)["pretrained_cfg"]["crop_pct"]
      assert int(size / fraction) == resize


def card(config, step=280, numbers=None, finished=True, weights=None):
  return card_lib.render(config, step, numbers or {}, finished, weights or {})


def test_the_card_says_what_the_network_is():
  config = experiment(name="resnet50", stem="imagenet", width=64)
  found = card(config, numbers={"eval/nmi_labels": 0.7, "cluster/empty": 0})
  header = found.split("---\n")[1]
  assert "library_name: timm\n" in header
  assert "\nlicense:" not in header  # is the user's to choose
  for words in (
    "# resnet50 by odc on digits",
    "| clusters | 10 |",
    "| epochs | 10 (280 steps of 64 images) |",
    "| features | 2,048, averaged over space |",
    "| started from | random weights |",
    '"num_clusters": 10',
    "arXiv:2006.10645",
    "from model import load",
    'timm.create_model("local-dir:.", pretrained=True)',
    "model = torchvision.models.resnet50()",
    "transforms.Normalize((0.305, 0.305, 0.305), (0.376, 0.376, 0.376))",
    "| `eval/nmi_labels` | 0.7 | NMI (arithmetic) of the clusters with",
  ):
    assert words in found
  assert "cluster/empty" not in found
  assert "obel" not in found.split("## Config")[0].replace("sobel=False", "")


@pytest.mark.parametrize(
  ("source", "shown"),
  [
    ("folder:/home/somebody/birds", "folder:birds"),
    ("voc:/home/somebody/VOCdevkit/", "voc:VOCdevkit"),
    # No path: the data set has it for a name.
    ("tfds:cifar10_corrupted/fog_1", "tfds:cifar10_corrupted/fog_1"),
  ],
)
def test_the_card_shows_no_path_of_the_machine(source, shown):
  config = experiment()
  config.data.source = source
  config.eval.semi.percent1.list = "/home/somebody/1percent.txt"
  config.eval.attributes = "/home/somebody/birds.csv"
  config.model.weights = "/home/somebody/resnet50.pth"
  found = card(config, step=0)
  assert "somebody" not in found
  assert f"# resnet18 by odc on {shown}\n" in found
  assert f"of `{shown}`" in found
  written = json.loads(found.split("```json\n")[1].split("```")[0])
  assert written["data"]["source"] == shown
  assert written["eval"]["semi"]["percent1"]["list"] == "1percent.txt"
  assert written["eval"]["attributes"] == "birds.csv"
  assert "has the weights of `resnet50.pth`, not trained" in found


def test_the_card_says_what_the_weights_before_it_were():
  config = experiment()
  config.model.weights = "hf:timm/resnet18.a1_in1k"
  weights = {"sha256": "abc", "trained_on": "many words", "licence": "mit"}
  found = card(config, weights=weights)
  assert "| started from | `hf:timm/resnet18.a1_in1k` |" in found
  assert "trained on many words; licence mit; sha256 abc |" in found
  assert "mind that of the images, and of the weights below" in found
  weights |= {"trained_on": "", "licence": ""}
  found = card(config, weights=weights)
  assert "| which are | licence not stated; sha256 abc |" in found


def test_the_card_says_what_timm_and_torchvision_lack():
  config = experiment(name="resnet18", stem="small", width=16)
  config.augment.sobel = True
  found = card(config)
  assert "timm has no name for this network" in found
  assert "torchvision.models" not in found
  assert "has the Sobel filter and applies it" in found
  assert "None: the images have no labels" in found


def test_the_card_says_what_numbers_in_names_mean():
  numbers = {"eval/knn_top1_k10": 0.5, "eval/retrieval_recall_at1": 0.25}
  for line in card(experiment(), numbers=numbers).splitlines():
    for name, value in numbers.items():
      if name in line:
        assert line == f"| `{name}` | {value} | {scalars.declared(name)} |"
        numbers = {k: v for k, v in numbers.items() if k != name}
  assert not numbers


def test_the_card_of_random_weights_says_so():
  found = " ".join(card(experiment(), step=0).split())
  assert "a network that has random weights and was not trained." in found
  assert "learned without labels" not in found
  assert "weights of" not in found


@pytest.mark.parametrize("size", [32, 224])
def test_the_cards_command_makes_the_same_network_and_input(tmp_path, size):
  config = experiment(name="resnet18", stem="small", width=4)
  config.data.image_size, config.data.eval_resize = size, size + 7
  text = card(config)
  export.write_files(
    tmp_path,
    export.state_dict(*random_weights(config), 0),
    card_lib.describe(config),
    text,
  )
  command = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)[0]
  words = shlex.split(command)
  assert "--config=configs/odc_folder.py" in words
  assert "--config.model.weights=/path/to/this/folder" in words
  started = odc_folder.get_config()
  started.model.weights = str(tmp_path)
  found, _ = fill(started)
  for name in (
    "data.image_size",
    "data.eval_resize",
    "model.name",
    "model.stem",
    "model.width",
    "augment.sobel",
    "augment.mean",
    "augment.std",
  ):
    section, key = name.split(".")
    assert found[section][key] == config[section][key], name
