"""The command for those who work in a clone; `pip install .` makes another.

python run.py --config=configs/odc_digits.py
python run.py --mode=assign --workdir=runs/odc_digits --images=new/images
python run.py --help
"""

from odc_jax.cli import main

if __name__ == "__main__":
  main.program()
