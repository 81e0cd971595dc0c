"""Which file a name stands for, and what is said of one that fails."""

import pathlib

import pytest
from absl import flags
from ml_collections import ConfigDict

from odc_jax import UserError
from odc_jax.cli import configs, main, usage

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def parse(tmp_path):
  """Returns a function: text of a file -> its config."""

  def parsed(text, variant=""):
    file = tmp_path / "mine.py"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return configs.Parser("config").parse(f"{file}{variant}")

  return parsed


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("import os\ndef get_config():\n  os.environ['NO SUCH']\n",
     r"mine\.py, line 3: KeyError: 'NO SUCH'"),
    ("import os\ndef get_config():\n  return os.no_such\n",
     r"mine\.py, line 3: AttributeError: module 'os' has no attribute"),
    ("import no_such_module\n", r"line 1: ModuleNotFoundError"),
    ("def get_config(:\n", r"mine\.py, line 1: SyntaxError"),
    (b"x = 'caf\xe9'\n", "SyntaxError"),
    (b"x = 1\0", "mine.py.*null bytes"),
    ("1 / 0\n", "line 1: ZeroDivisionError: division by zero"),
    ("def get_config(): return get_config()\n", "RecursionError"),
    ("raise SystemExit\n", "line 1: SystemExit"),
    ("def get_config():\n  raise ValueError('a\\nb')",
     "line 2: ValueError: a b"),
    ("x = 1\n", "has no function get_config"),
    ("get_config = 3\n", "has no function get_config"),
    ("def get_config(): return {'method': 'x'}\n", "returns a dict"),
    ("def get_config(): pass\n", "returns nothing"),
    ("def get_config():\n  from ml_collections import ConfigDict\n"
     "  return ConfigDict()\n", "names no method"),
  ],
)  # fmt: skip
def test_what_is_wrong_in_a_users_own_file_is_said_of_it(parse, text, says):
  with pytest.raises(UserError, match=says) as error:
    parse(text)
  assert "\n" not in str(error.value)
  assert "has no key" not in str(error.value)


def test_a_variant_that_a_file_does_not_take_is_said_of_it(parse):
  with pytest.raises(UserError, match=r"get_config\(\) takes 0 positional"):
    parse("def get_config(): pass\n", ":quick")


def test_a_file_may_build_on_those_that_come_along(
  parse, tmp_path, monkeypatch
):
  for module in ("configs", "configs.common", "configs.odc_digits"):
    monkeypatch.delitem(configs.sys.modules, module, raising=False)
  monkeypatch.setattr("sys.path", [p for p in configs.sys.path if p != ""])
  config = parse(
    "from configs import odc_digits\n"
    "def get_config(variant=''):\n"
    "  return odc_digits.get_config('quick')\n"
  )
  assert isinstance(config, ConfigDict)
  assert config.is_locked
  assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_names_are_looked_up_here_first_then_among_those_that_come_along(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  shipped = ROOT / "configs" / "odc_digits.py"
  for name in ("odc_digits.py", "odc_digits", "configs/odc_digits.py"):
    assert configs.find(name) == shipped
  assert configs.find(str(shipped)) == shipped
  (tmp_path / "odc_digits.py").touch()
  assert configs.find("odc_digits.py") == pathlib.Path("odc_digits.py")
  for name in ("odc_digit.py", "mine/odc_digits.py", "x" * 5000, "a\0b", ""):
    with pytest.raises(UserError, match="there is no config"):
      configs.find(name)
  with pytest.raises(UserError, match=r"did you mean odc_digits\.py"):
    configs.find("odc_digit.py")


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpshort"])
def test_help_is_a_page_that_names_every_flag(flag, monkeypatch, capsys):
  monkeypatch.setattr("sys.argv", ["/usr/bin/command", flag])
  with pytest.raises(SystemExit) as left:
    main.parse(["command", flag])
  assert left.value.code == 0
  page = capsys.readouterr().out
  lines = page.splitlines()
  assert lines[0].startswith("usage: command --config=FILE")
  assert max(map(len, lines)) <= 80
  assert len(lines) < 90
  ours = flags.FLAGS.flags_by_module_dict()[main.__name__]
  names = {flag.name for flag in ours if "." not in flag.name} | {"config"}
  for name in names:
    assert f"--{name}" in page
  for name in (*main.MODES, *configs.names()):
    assert name in page
  assert "__init__" not in page
  monkeypatch.setattr("sys.argv", ["/a clone/run.py"])
  assert usage.program() == "python /a clone/run.py"
