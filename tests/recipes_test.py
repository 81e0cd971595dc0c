"""Every experiment that follows an official one: all views, all magnitudes.

The numbers are read off the official codes, at the versions that METHODS.md
names, and written here once more, so that neither a key that reaches the wrong
view nor a value that somebody changes goes unseen.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odc_jax.config import options
from odc_jax.data import augment, loader
from tests.configs_test import ROOT, load

# What a view is made of: side, crop_scale, jitter_p, jitter (brightness,
# contrast, saturation, hue), gray, blur, solarize, rotation; and how crops are
# resized, bilinearly as torchvision does unasked.
OFF = {
  "jitter_p": 0.0,
  "jitter": (0.0, 0.0, 0.0, 0.0),
  "gray": 0.0,
  "blur": 0.0,
  "solarize": 0.0,
  "rotation": 0.0,
  "interpolation": "bilinear",
}
WHOLE = {"side": 224, "crop_scale": (0.08, 1.0)}

# OpenSelfSup configs/selfsup/odc/r50_v1.py:42-55, deepcluster/r50.py and
# r50_sobel.py: RandomRotation without a word on the interpolation.
ODC = {
  **OFF,
  **WHOLE,
  "jitter_p": 1.0,
  "jitter": (0.4, 0.4, 1.0, 0.5),
  "gray": 0.2,
  "rotation": 2.0,
}
# deepcluster clustering.py:142-145.
DEEPCLUSTER = {**OFF, **WHOLE}
# self-label data.py:53-60.
SELA = {
  **OFF,
  **WHOLE,
  "jitter_p": 1.0,
  "jitter": (0.4,) * 4,
  "gray": 0.2,
}
# swav src/multicropdataset.py:37-53, 64-94 and the scripts.
SWAV = {
  **OFF,
  "jitter_p": 0.8,
  "jitter": (0.8, 0.8, 0.8, 0.2),
  "gray": 0.2,
  "blur": 0.5,
}
SWAV_LARGE = {**SWAV, "side": 224, "crop_scale": (0.14, 1.0)}
SWAV_SMALL = {**SWAV, "side": 96, "crop_scale": (0.05, 0.14)}
SWAV_ALONE = {**SWAV, **WHOLE}
# CoKe main_double_view.py:233-256 and main_multi_view.py:238-262, SeCu
# main.py:261-285 and main_imagenet.py:248-272.
FIRST = {
  **OFF,
  **WHOLE,
  "jitter_p": 0.8,
  "jitter": (0.4, 0.4, 0.2, 0.1),
  "gray": 0.2,
  "blur": 1.0,
}
SECOND = {**FIRST, "blur": 0.1, "solarize": 0.2}
CIFAR = {"side": 32, "crop_scale": (0.3, 1.0)}  # run_cifar10.sh
# CoKe main_single_view.py:240-250; main_multi_view.py:264-274 has the same for
# its small views.
ALONE = {**SWAV, **WHOLE}
COKE_SMALL = {**SWAV, "side": 96, "crop_scale": (0.05, 0.6)}
# LocalAggregation-Pytorch src/agents/agents.py:282-290.
LOCAL = {**SELA, "crop_scale": (0.2, 1.0)}
# MIRA, its first view.
MIRA = {**FIRST, "crop_scale": (0.14, 1.0), "interpolation": "bicubic"}
# CARP modules/view_generator.py, its first view.
CARP = {**FIRST, "crop_scale": (0.2, 1.0), "interpolation": "bicubic"}
# solo-learn scripts/pretrain/cifar/augmentations/symmetric.yaml, and
# solo/data/pretrain_dataloader.py: CifarTransform.
SOLO = {
  **SWAV,
  "side": 32,
  "crop_scale": (0.08, 1.0),
  "interpolation": "bicubic",
}

RECIPES: dict[str, list[dict[str, Any]]] = {
  "odc_imagenet": [ODC],
  "deepcluster_imagenet": [DEEPCLUSTER],
  "deepcluster_imagenet:vgg16": [DEEPCLUSTER],
  "deepcluster_imagenet:resnet50": [ODC],
  "deepcluster_imagenet:resnet50_sobel": [ODC],
  "sela_imagenet": [SELA],
  "sela_imagenet:resnet50": [SELA],
  # scripts/swav_800ep_pretrain.sh:25-28 and their siblings.
  "swav_imagenet": [SWAV_LARGE] * 2 + [SWAV_SMALL] * 6,
  "swav_imagenet:batch256": [SWAV_LARGE] * 2 + [SWAV_SMALL] * 6,
  "swav_imagenet:two_views": [SWAV_ALONE] * 2,
  "deepcluster_v2_imagenet": [SWAV_LARGE] * 2 + [SWAV_SMALL] * 6,
  "deepcluster_v2_imagenet:two_views": [SWAV_ALONE] * 2,
  "deepcluster_v2_imagenet:crops160": [{**SWAV_ALONE, "side": 160}] * 2
  + [SWAV_SMALL] * 4,
  "coke_imagenet": [FIRST, SECOND],
  "coke_imagenet:single": [ALONE],
  "coke_imagenet:multicrop": [FIRST, SECOND] + [COKE_SMALL] * 6,
  "secu_imagenet": [FIRST, SECOND],
  "secu_cifar10": [{**FIRST, **CIFAR}, {**SECOND, **CIFAR}],
  "local_aggregation_imagenet": [LOCAL],
  "mira_imagenet": [MIRA, MIRA | {"blur": 0.1, "solarize": 0.2}]
  + [MIRA | {"side": 96, "crop_scale": (0.05, 0.14), "blur": 0.5}] * 6,
  "carp_imagenet": [CARP, CARP | {"blur": 0.1, "solarize": 0.2}]
  + [CARP | {"side": 96, "crop_scale": (0.05, 0.2), "blur": 0.5}] * 6,
  "swav_cifar10:sololearn": [SOLO] * 2,
  "deepcluster_v2_cifar10:sololearn": [SOLO] * 2,
}

# Mean and standard deviation of (red, green, blue).
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
STATISTICS = {
  # swav src/multicropdataset.py:39.
  "swav_imagenet": (IMAGENET[0], (0.228, 0.224, 0.225)),
  "deepcluster_v2_imagenet": (IMAGENET[0], (0.228, 0.224, 0.225)),
  "secu_cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
  # solo-learn solo/data/pretrain_dataloader.py:207.
  "swav_cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
  "deepcluster_v2_cifar10": (
    (0.4914, 0.4822, 0.4465),
    (0.2470, 0.2435, 0.2616),
  ),
}


def experiment(name):
  stem, _, variant = name.partition(":")
  return load(ROOT / "configs" / f"{stem}.py", variant)


def views_of(config):
  """Returns what each view is made of, as the program asks for it."""
  kinds = loader.crops(config.data)
  views = [kind for kind in kinds for _ in range(kind.views)]
  for number, kind in enumerate(views):
    recipe = augment.of_view(config.augment, number)
    jitter = tuple(
      getattr(recipe, name)
      for name in ("brightness", "contrast", "saturation", "hue")
    )
    yield {
      "side": kind.size,
      "crop_scale": tuple(kind.scale),
      "jitter_p": recipe.jitter_p,
      "jitter": jitter,
      "gray": recipe.gray,
      "blur": recipe.blur,
      "solarize": recipe.solarize,
      "rotation": recipe.rotation,
      "interpolation": kind.interpolation,
    }


@pytest.mark.parametrize("name", RECIPES)
def test_every_view_is_the_official_one(name):
  config = experiment(name)
  assert list(views_of(config)) == RECIPES[name]
  same = config.augment
  # What is the same everywhere, torchvision's defaults among it.
  assert (same.flip, same.translate, same.lighting) == (0.5, 0, 0.0)
  assert same.blur_sigma == (0.1, 2.0)
  assert same.rotation_interpolation == "nearest"
  assert config.data.crop_ratio == (3 / 4, 4 / 3)
  statistics = STATISTICS.get(name.partition(":")[0], IMAGENET)
  assert (same.mean, same.std) == statistics


def test_each_view_is_jittered_by_its_own_strength():
  """Seen in what comes out, of brightness; the rest is switched off."""
  config = experiment("coke_imagenet:multicrop").augment
  for name in ("contrast", "saturation", "hue", "blur", "solarize"):
    config[name] = (0.0, 0.0, 0.0)
  config.update({"flip": 0.0, "gray": 0.0, "jitter_p": 1.0})
  config.update({"mean": (0.0,) * 3, "std": (1.0,) * 3})
  images = tuple(
    jnp.full((64, views, 1, 1, 3), 100, jnp.uint8) for views in (2, 6)
  )
  key, index = jax.random.key(0), jnp.arange(64)
  views = jax.jit(
    lambda images: augment.augment_views(config, key, images, index)
  )(images)
  factors = np.concatenate(views, axis=1)[:, :, 0, 0, 0] * 2.55
  least, most = factors.min(0), factors.max(0)
  # These 64 draws come this close to the ends.
  np.testing.assert_allclose(least, [0.6] * 2 + [0.2] * 6, atol=0.1)
  np.testing.assert_allclose(most, [1.4] * 2 + [1.8] * 6, atol=0.1)
  assert (least >= [0.6 - 1e-5] * 2 + [0.2 - 1e-5] * 6).all()
  assert (most <= [1.4 + 1e-5] * 2 + [1.8 + 1e-5] * 6).all()


# How ResNets start: self-label models/resnetv2.py; swav src/resnet50.py:221;
# torchvision's models in CoKe and SeCu (nets/resnet_cifar.py:93); OpenSelfSup
# models/backbones/resnet.py.
INITS = {
  "odc_imagenet": "fan_in",
  "odc_folder:scratch": "fan_in",
  "deepcluster_imagenet:resnet50": "fan_in",
  "deepcluster_imagenet:resnet50_sobel": "fan_in",
  "sela_imagenet:resnet50": "torch",
  "swav_imagenet": "fan_out",
  "deepcluster_v2_imagenet": "fan_out",
  "coke_imagenet": "fan_out",
  "secu_imagenet": "fan_out",
  "secu_cifar10": "fan_out",
  "mira_imagenet": "fan_out",
  "carp_imagenet": "fan_out",
  "simclr_cifar10": "fan_out",
  "byol_cifar10": "fan_out",
  "swav_cifar10:sololearn": "fan_out",
  "deepcluster_v2_cifar10:sololearn": "fan_out",
}


@pytest.mark.parametrize("name", INITS)
def test_networks_start_as_officially(name):
  assert experiment(name).model.init == INITS[name]


@pytest.mark.parametrize(
  "name",
  # deepmind-research byol/utils/dataset.py and simclr data_util.py, by
  # tf.image.resize; solo-learn solo/data/pretrain_dataloader.py.
  ["byol_imagenet", "simclr_imagenet", "byol_cifar10", "simclr_cifar10"],
)
def test_crops_are_bicubic_where_they_are_officially(name):
  config = experiment(name)
  assert {x.interpolation for x in loader.crops(config.data)} == {"bicubic"}


# Images that share BatchNorm statistics, 0 for all: --sync_bn of the scripts,
# apex in groups of 8 GPUs with 64 images each, or pytorch.
GROUPS = {
  "swav_imagenet": 512,
  "swav_imagenet:two_views": 512,
  "swav_imagenet:batch256": 0,
  "deepcluster_v2_imagenet": 512,
  "deepcluster_v2_imagenet:crops160": 512,
  "deepcluster_v2_imagenet:two_views": 512,
}


@pytest.mark.parametrize("name", GROUPS)
def test_batchnorm_groups_are_the_official_ones(name):
  assert experiment(name).model.bn_group_size == GROUPS[name]


# solo-learn scripts/pretrain/cifar/swav.yaml and deepclusterv2.yaml, and the
# defaults of solo/methods/base.py:290-294.
SOLO_LEARN = {
  "swav_cifar10:sololearn": {
    "num_clusters": 3000,
    "swav.queue_length": 3840,
    "swav.queue_start_epoch": 50,
    "swav.temperature": 0.1,
    "swav.epsilon": 0.05,
    "swav.sinkhorn_iters": 3,
    "optimizer.head_freeze_epochs": 2,
    "optimizer.warmup_epochs": 10.0,
    "optimizer.warmup_from": 3e-5,
    "optimizer.final_learning_rate": 0.0,
  },
  "deepcluster_v2_cifar10:sololearn": {
    "num_clusters": 3000,
    "extra_clusters": (3000, 3000),
    "deepcluster_v2.temperature": 0.1,
    "deepcluster_v2.kmeans_iters": 10,
    "optimizer.warmup_epochs": 11.0,
    "optimizer.warmup_from": 0.0,
    "optimizer.final_learning_rate": 6e-4,
  },
}
BOTH = {
  "num_epochs": 1000,
  "batch_size": 256,
  "model.name": "resnet18",
  "model.neck": "mlp2",
  "model.neck_hidden": 2048,
  "model.embedding_dim": 128,
  "optimizer.name": "lars",
  "optimizer.learning_rate": 0.6,
  "optimizer.momentum": 0.9,
  "optimizer.weight_decay": 1e-6,
  "optimizer.adapt_all": False,
  "optimizer.trust": 0.02,
  "optimizer.clip": True,
  "optimizer.schedule": "cosine",
  "optimizer.num_epochs": 1000,
}


@pytest.mark.parametrize("name", SOLO_LEARN)
def test_solo_learn_s_values(name):
  values = options.flat(experiment(name).copy_and_resolve_references())
  wanted = BOTH | SOLO_LEARN[name]
  assert {key: values[key] for key in wanted} == wanted
