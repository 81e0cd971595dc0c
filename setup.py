"""What pyproject.toml cannot say: configs/ is installed within the package.

There it meets no other package of that name; `odc_jax.cli.configs` finds it.
"""

from setuptools import find_packages, setup

setup(
  packages=[*find_packages(include=["odc_jax*"]), "odc_jax.configs"],
  package_dir={"odc_jax.configs": "configs"},
)
