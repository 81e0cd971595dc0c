"""The evaluations of the configs against the papers' own codes, as numbers.

Official file and line of each value are in docs/evaluation.md.
"""

import json

import numpy as np
import pytest
from PIL import Image

from configs import (
  coke_imagenet,
  common,
  deepcluster_imagenet,
  deepcluster_v2_imagenet,
  mira_digits,
  mira_imagenet,
  odc_digits,
  odc_imagenet,
  sela_imagenet,
  swav_imagenet,
)
from odc_jax.config import check, former, options, store
from odc_jax.data import fixed_crops
from odc_jax.errors import UserError
from odc_jax.evals import evaluate, linear, probe, semi
from odc_jax.evals.inputs import Subject
from odc_jax.logs import scalars
from odc_jax.methods import METHODS

# torchvision's RandomResizedCrop(224), flips, and a centre crop.
PLAIN = {
  "image_size": 0,
  "eval_resize": 0,
  "momentum": 0.9,
  "nesterov": False,
  "train_crops": "resized",
  "crop_scale": (0.08, 1.0),
  "crop_ratio": (3 / 4, 4 / 3),
  "flip": 0.5,
  "jitter": 0.0,
  "lighting": 0.0,
  "test_views": "center",
}
COSINE = {**PLAIN, "schedule": "cosine", "weight_decay": 1e-6}
SWAV = {**COSINE, "num_epochs": 100, "batch_size": 256, "learning_rate": 0.3}
MIRA = {
  **PLAIN,
  "num_epochs": 100,
  "batch_size": 1024,
  "learning_rate": 0.3,
  "schedule": "cosine",
  "weight_decay": 0.0,
}
COKE = {**COSINE, "num_epochs": 90, "batch_size": 1024, "learning_rate": 0.4}
STEP = {**PLAIN, "schedule": "step", "decay_rate": 0.1}
OPENSELFSUP = {
  **STEP,
  "num_epochs": 100,
  "batch_size": 256,
  "learning_rate": 30.0,
  "decay_epochs": (60, 80),
  "weight_decay": 0.0,
}
SELA_RESNET = {
  **STEP,
  "num_epochs": 146,
  "batch_size": 1024,
  "learning_rate": 0.1,
  "decay_epochs": (85, 128),
  "weight_decay": 0.0,
  "test_views": "ten_logits",
}
MULTI = {
  **STEP,
  "num_epochs": 90,
  "batch_size": 256,
  "learning_rate": 0.01,
  "decay_epochs": (30, 60),
  "nesterov": True,
  "weight_decay": 1e-4,
  "jitter": 0.4,
  "lighting": 0.1,
  "pooling": "mean",
  "batch_norm": True,
  "epoch": "last",
}
SELA_ALEXNET = {
  **STEP,
  "num_epochs": 36,
  "batch_size": 192,
  "learning_rate": 0.01,
  "decay_epochs": (10, 20, 30),
  "weight_decay": 1e-5,
  "pooling": "max",
  "batch_norm": True,
  "test_views": "ten_logits",
}
DEEPCLUSTER_ALEXNET = {
  **PLAIN,
  "num_epochs": 90,
  "batch_size": 256,
  "learning_rate": 0.01,
  "schedule": "inverse_sqrt",
  "weight_decay": 1e-7,
  "train_crops": "fixed",
  "pooling": "mean",
  "batch_norm": False,
  "epoch": "best",
  "test_views": "ten_softmax",
}


@pytest.mark.parametrize(
  ("module", "variant", "section", "official"),
  [
    (odc_imagenet, "", "linear_sgd", OPENSELFSUP),
    (odc_imagenet, "", "linear_stages", MULTI),
    (deepcluster_imagenet, "", "linear_stages", DEEPCLUSTER_ALEXNET),
    (deepcluster_imagenet, "resnet50_sobel", "linear_sgd", OPENSELFSUP),
    (deepcluster_imagenet, "resnet50_sobel", "linear_stages", MULTI),
    (sela_imagenet, "", "linear_stages", SELA_ALEXNET),
    (sela_imagenet, "resnet50", "linear_sgd", SELA_RESNET),
    (swav_imagenet, "", "linear_sgd", SWAV),
    (swav_imagenet, "batch256", "linear_sgd", SWAV),
    (deepcluster_v2_imagenet, "", "linear_sgd", SWAV),
    (mira_imagenet, "", "linear_sgd", MIRA),
    (coke_imagenet, "", "linear_sgd", COKE),
    (coke_imagenet, "single", "linear_sgd", {**COKE, "learning_rate": 0.2}),
    (coke_imagenet, "multicrop", "linear_sgd", COKE),
  ],
)
def test_probes_are_the_papers(module, variant, section, official):
  found = module.get_config(variant).eval[section].to_dict()
  assert {key: found[key] for key in official} == official


class LookedError(Exception):
  """The sizes of the images that an evaluator would learn from."""


@pytest.mark.parametrize(
  ("module", "variant", "sizes"),
  [
    # swav eval_linear.py and eval_semisup.py look at 224 pixels of 256.
    (deepcluster_v2_imagenet, "crops160", (224, 256)),
    (deepcluster_v2_imagenet, "quick", (64, 73)),
  ],
)
@pytest.mark.parametrize(
  ("room", "evaluator", "parts"),
  [
    (linear, "last_sgd", "_last"),
    (linear, "stages_sgd", "_stages"),
    (semi, "evaluate", "classifier"),
  ],
)
def test_probes_look_at_the_official_size(
  module, variant, sizes, room, evaluator, parts, monkeypatch
):
  def trainer(subject, learner, recipe):
    raise LookedError(subject.config.data.image_size, *learner)

  def made(subject, *_):
    return (subject.config.data.eval_resize,), None, None

  monkeypatch.setattr(probe, "num_classes", lambda _: 1000)
  monkeypatch.setattr(probe, "scorer", lambda *_: None)
  monkeypatch.setattr(probe, "trainer", trainer)
  monkeypatch.setattr(room, parts, made)
  monkeypatch.setattr(semi, "_drawn", lambda *_: None)
  config = module.get_config(variant)
  own = config.data.to_dict()
  subject = Subject(config, *[None] * 9)
  with pytest.raises(LookedError) as looked:
    list(getattr(room, evaluator)(subject))
  assert looked.value.args == sizes
  assert config.data.to_dict() == own


def test_few_labels_are_the_papers():
  """OpenSelfSup's nine settings, and SwAV's one for each share."""
  semi = odc_imagenet.get_config().eval.semi
  for part, weight_decay in ((semi.percent1, 5e-4), (semi.percent10, 1e-4)):
    assert part.weight_decay == weight_decay
    assert part.learning_rates == (0.001, 0.01, 0.1)
    assert part.head_multipliers == (1, 10, 100)
  assert semi.epoch == "last"
  for module in (swav_imagenet, deepcluster_v2_imagenet):
    semi = module.get_config().eval.semi
    assert (semi.num_epochs, semi.batch_size) == (20, 256)
    assert (semi.decay_epochs, semi.decay_rate) == ((12, 16), 0.2)
    assert semi.epoch == "best"
    parts = ((semi.percent1, 0.02, 5), (semi.percent10, 0.01, 0.2))
    for part, trunk, head in parts:
      assert part.weight_decay == 0
      assert part.learning_rates == (trunk,)
      assert trunk * part.head_multipliers[0] == pytest.approx(head)


def rates(epochs, steps, **kwargs):
  """Returns the rate of every step."""
  recipe = probe.Recipe(epochs, 1, **kwargs)
  return [
    probe._rates(recipe, {"heads": 0.3}, 1e-2, step // steps, step)["heads"]
    for step in range(epochs * steps)
  ]


def test_schedules_are_the_official_formulas():
  # CosineAnnealingLR, stepped by epoch: SwAV's and CoKe's.
  cosine = [0.15 * (1 + np.cos(np.pi * (t // 3) / 5)) for t in range(15)]
  assert rates(5, 3, schedule="cosine") == pytest.approx(cosine, rel=1e-6)
  # deepcluster util.py: learning_rate_decay, by step.
  root = [0.3 / np.sqrt(1 + 0.3 * 1e-2 * t) for t in range(15)]
  assert rates(5, 3, schedule="inverse_sqrt") == pytest.approx(root, rel=1e-6)
  step = [0.3] * 6 + [0.06] * 3 + [0.012] * 6
  found = rates(5, 3, schedule="step", decay_epochs=(2, 3), decay_rate=0.2)
  assert found == pytest.approx(step, rel=1e-6)


@pytest.fixture
def photograph():
  """A landscape whose sides do not divide."""
  pixels = np.random.default_rng(0).integers(0, 256, (61, 90, 3), np.uint8)
  return Image.fromarray(pixels)


def test_ten_crops_are_torchvisions(photograph):
  """Resize and TenCrop: the five of the image, then of the mirrored image."""
  found = fixed_crops.ten_crops(np.asarray(photograph), 40, 33)
  # 40 * 90 // 61 = 59; the centre begins at round(26 / 2) and round(7 / 2).
  for image, crops in (
    (photograph, found[:5]),
    (photograph.transpose(Image.Transpose.FLIP_LEFT_RIGHT), found[5:]),
  ):
    whole = np.asarray(image.resize((59, 40), Image.Resampling.BILINEAR))
    places = [(0, 0), (26, 0), (0, 7), (26, 7), (13, 4)]
    for (left, top), crop in zip(places, crops, strict=True):
      expected = whole[top : top + 33, left : left + 33]
      assert np.abs(expected.astype(int) - crop).max() <= 1


def test_fixed_crops_lie_everywhere_in_the_middle(photograph):
  """Resize(40), CenterCrop(40) and RandomCrop(33) of 59 x 40 pixels."""
  whole = np.asarray(photograph.resize((59, 40), Image.Resampling.BILINEAR))
  # round(19 / 2) is 10 by Python's rule.
  known = {
    whole[top : top + 33, left : left + 33].tobytes(): (left - 10, top)
    for left in range(10, 18)
    for top in range(8)
  }
  crop = fixed_crops.FixedCrop(33, 40)
  rngs = [np.random.default_rng(seed) for seed in range(400)]
  image = np.asarray(photograph)
  found = fixed_crops.random_fixed_crops(image, crop, rngs)
  places = {known[view.tobytes()] for view in found}
  assert len(places) == 64  # all 8 x 8, and none elsewhere


def test_names_say_how():
  section = common.stages(
    num_epochs=36, schedule="cosine", test_views="ten_logits"
  )
  assert probe.protocol(section) == "sgd36_cosine_tencrop"
  for name in (
    "linear_top1_sgd100",
    "linear_top5_sgd100_cosine_best",
    "linear_top1_stage5_sgd36_tencrop",
    "linear_top1_stage3_sgd90_inverse_sqrt_tencrop_best",
    "semi_1pct_top1_best_of_1_best_epoch",
  ):
    assert scalars.declared(f"eval/{name}")
  cosine = scalars.declared("eval/linear_top1_sgd100_cosine")
  assert "100 epochs" in cosine
  assert "cosine" in cosine
  assert cosine != scalars.declared("eval/linear_top1_sgd100")


# Configs of earlier versions.

OLD = {
  "evaluators": ["knn", "clustering"],
  "split": "",
  "every_epochs": 10,
  "batch_size": 256,
  "knn_k": 5,
  "knn_temperature": 0.0,
  "linear_learning_rate": 0.3,
  "linear_epochs": 30,
  "stages_learning_rate": 0.01,
  "stages_epochs": 30,
  "probe_batch_size": 64,
  "semi_epochs": 20,
  "semi_learning_rates": [0.001, 0.01, 0.1],
  "semi_head_multipliers": [1, 10, 100],
  "semi_lists": ["", "ten.txt"],
  "attributes": "",
}


def test_a_run_of_an_earlier_version_is_evaluated_as_it_was(tmp_path):
  config = check.resolve(odc_digits.get_config(), 1797, 1)
  store.write(config, tmp_path, resuming=False)
  path = tmp_path / "config.json"
  values = json.loads(path.read_text())
  path.write_text(json.dumps(values | {"eval": OLD}))
  read = store.read(tmp_path)
  options.check(read, METHODS["odc"])
  # What the config of then, the same experiment, says in this version.
  config.eval.semi.percent10.list = "ten.txt"
  assert json.loads(read.to_json()) == json.loads(config.to_json())
  # What is of this version is left as it is.
  assert former.upgraded(values) == values


def test_a_config_of_an_earlier_version_is_told_the_new_key():
  config = odc_digits.get_config()
  config.eval.probe_batch_size = 32
  with pytest.raises(UserError) as error:
    options.check(config, METHODS["odc"])
  assert "\n" not in str(error.value)
  assert "eval.probe_batch_size is of an earlier version" in str(error.value)
  assert "eval.semi.batch_size now" in str(error.value)


def test_mistakes_in_a_protocol_are_told():
  def refused(says, **values):
    config = odc_digits.get_config()
    config.eval.linear_sgd.update(values)
    with pytest.raises(UserError, match=says):
      check.check_values(config)

  refused(r"decay_epochs=\(18, 24\).*the 20 epochs", num_epochs=20)
  refused(r"linear_sgd\.schedule 'cos'; choose step, cosine", schedule="cos")
  refused("linear_sgd.batch_size=0 is less than 1", batch_size=0)
  config = odc_digits.get_config()
  config.eval.linear_sgd.update({"num_epochs": 20, "schedule": "cosine"})
  check.check_values(config)  # which does not read when the rate falls
  with pytest.raises(UserError, match=r"decay_epochs=.*does nothing with"):
    options.check(config, METHODS["odc"], ["eval.linear_sgd.decay_epochs"])


def test_numbers_of_two_settings_stand_side_by_side(tmp_path):
  """And what an earlier version wrote stays, where it can be read."""
  former_entry = {"step": 3, "knn_k": 5, "of_run": True, "scores": {"a": 1.0}}
  path = tmp_path / "evaluation.json"
  path.write_text(json.dumps([former_entry]))
  config = odc_digits.get_config()
  for rate, value in ((0.3, 0.98), (3.0, 0.89), (0.3, 0.97)):
    config.eval.linear_sgd.learning_rate = rate
    about = {"step": 3, **evaluate._protocol(config, "linear_sgd")}
    about["of_run"] = False
    evaluate._write(tmp_path, about, {"eval/linear_top1_sgd30": value})
  # Of other evaluators' settings they do not depend.
  config.eval.knn.k = 9
  assert evaluate._protocol(config, "linear_sgd") == {
    key: about[key] for key in about if key not in ("step", "of_run")
  }
  first, slow, fast = json.loads(path.read_text())
  assert first == former_entry
  for entry, rate, value in ((slow, 3.0, 0.89), (fast, 0.3, 0.97)):
    assert entry["settings"]["learning_rate"] == rate
    assert entry["scores"] == {"eval/linear_top1_sgd30": value}


def test_every_setting_and_seed_is_stored():
  config = swav_imagenet.get_config()
  found = evaluate._protocol(config, "semi")
  assert found["settings"] == json.loads(config.eval.semi.to_json())
  assert (found["seed"], found["std"]) == (0, [0.228, 0.224, 0.225])
  assert evaluate._protocol(config, "retrieval")["settings"] == {}
  of_teacher = mira_digits.get_config()
  student = mira_digits.get_config()
  student.eval.network = "student"
  assert evaluate._protocol(of_teacher, "knn") != evaluate._protocol(
    student, "knn"
  )
