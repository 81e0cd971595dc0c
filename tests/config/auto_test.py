"""What "auto" becomes, by hand."""

import pytest

from configs import odc_folder
from odc_jax.config import auto
from odc_jax.errors import UserError
from odc_jax.methods import METHODS

OWN = METHODS["odc"].AUTO


def folder_config(**overrides):
  config = odc_folder.get_config("scratch")
  config.update_from_flattened_dict(overrides)
  return config


@pytest.mark.parametrize(
  ("n", "batch", "clusters", "least", "epochs"),
  [
    # 1,281,167 / 128 is 10,009; 0.16 of 128 images is 20.
    (1_281_167, 256, 10_009, 20, 100),
    (50_000, 256, 391, 20, 200),
    # 3,000 / 16 = 187; 3,000 / 128 = 23.4; 0.16 * 3,000 / 23 = 20.9.
    (3_000, 128, 23, 21, 400),
    # At least ten clusters, of 20 images each: 0.16 of that is 3.2.
    (200, 8, 10, 3, 400),
    (12, 8, 3, 1, 400),
    (5, 5, 2, 1, 400),
  ],
)
def test_sizes_follow_from_the_number_of_images(
  n, batch, clusters, least, epochs
):
  config, lines = auto.fill(folder_config(), n, 1, OWN)
  assert config.batch_size == batch
  assert config.num_clusters == clusters
  assert config.odc.min_cluster == least
  assert config.num_epochs == config.optimizer.num_epochs == epochs
  assert config.optimizer.decay_epochs == (round(epochs * 10 / 11, 2),)
  assert config.eval.every_epochs == epochs // 20
  text = "\n".join(lines)
  for name in ("num_clusters", "batch_size", "odc.min_cluster", "num_epochs"):
    assert f"{name} = " in text
  assert f"num_clusters = {clusters}: {n:,} images / 128" in text
  # Where the images lie is decided later, by the devices too.
  config.data.resident = "off"
  assert "auto" not in config.to_json()
  assert "auto" in folder_config().to_json()


@pytest.mark.parametrize(
  ("n", "clusters"),
  # sqrt(n / 2), and at least n / 4 of few images.
  [(5, 2), (12, 3), (200, 10), (1500, 27), (50_000, 158), (1_281_167, 800)],
)
def test_clusters_of_a_frozen_network_go_by_the_square_root(n, clusters):
  config, lines = auto.fill(odc_folder.get_config(), n, 1, OWN)
  assert config.num_clusters == clusters
  assert any(
    line.startswith(f"num_clusters = {clusters}: the square root")
    for line in lines
  )


def test_batches_can_be_split_over_the_devices():
  for devices in (1, 2, 6, 8, 32):
    config, _ = auto.fill(folder_config(), 500, devices, OWN)
    assert config.batch_size % devices == 0
    assert config.batch_size >= 16


def test_a_number_on_the_command_line_arrives_as_text():
  given = {
    "num_clusters": "50",
    "optimizer.decay_epochs": "8,9.5",
    "num_epochs": "10",
  }
  config, lines = auto.fill(folder_config(**given), 3000, 1, OWN)
  assert config.num_clusters == 50
  assert config.num_epochs == config.optimizer.num_epochs == 10
  assert isinstance(config.num_epochs, int)
  assert config.optimizer.decay_epochs == (8.0, 9.5)
  # Later rules follow the numbers given.
  assert config.odc.min_cluster == round(0.16 * 3000 / 50)
  assert config.eval.every_epochs == 1
  assert not any(line.startswith("num_clusters") for line in lines)


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("num_clusters", "many"),
    ("num_clusters", "2.5"),
    ("num_epochs", "ten"),
    ("optimizer.decay_epochs", "8;9"),
  ],
)
def test_what_is_no_number_is_refused(name, value):
  with pytest.raises(UserError, match=f"{name}='{value}' is neither auto nor"):
    auto.fill(folder_config(**{name: value}), 3000, 1, OWN)
