"""Opening and closing; what is kept and restored is tested with whole runs."""

import threading

from odc_jax.training import checkpoint


def test_what_was_cut_short_is_removed_when_opened(tmp_path):
  folder = tmp_path / "checkpoints"
  for name in ("7", "9.orbax-checkpoint-tmp", "12.orbax-checkpoint-tmp-3"):
    (folder / name / "state").mkdir(parents=True)
  checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
  assert [path.name for path in folder.iterdir()] == ["7"]
  checkpoints.close()


def test_nothing_goes_on_after_closing(tmp_path):
  # What still ran would print tracebacks under the message of a run that is
  # refused.
  before = set(threading.enumerate())
  checkpoint.Checkpoints(tmp_path, keep=1).close()
  assert set(threading.enumerate()) <= before
