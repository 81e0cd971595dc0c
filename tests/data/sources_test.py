"""From the name of a data set to the source that reads it."""

import pytest

from odc_jax.data import digits, folder, sources
from odc_jax.data import source as source_lib
from odc_jax.errors import UserError


def test_the_name_chooses_the_source(tmp_path):
  (tmp_path / "1.png").touch()
  chosen = sources.make("digits"), sources.make(f"folder:{tmp_path}")
  assert isinstance(chosen[0], digits.Digits)
  assert isinstance(chosen[1], folder.Folder)
  for source in chosen:
    assert isinstance(source, source_lib.Source)


@pytest.mark.parametrize(
  ("name", "split", "says"),
  [
    ("imagenet", "", ["'imagenet'", "'folder:PATH'"]),
    ("tfds:", "", ["'tfds:'", "'tfds:NAME'"]),
    ("voc:", "", ["'voc:'", "--config.data.source=voc:"]),
    ("digits", "train", ["'train'", "leave the split empty"]),
  ],
)
def test_mistakes_are_told_in_one_line(name, split, says):
  with pytest.raises(UserError) as error:
    sources.make(name, split)
  message = str(error.value)
  assert "\n" not in message
  for part in says:
    assert part in message
