"""``python -m clients.depth timm rows.jsonl``: check the models of one library, in an environment that has it."""

import sys
import warnings
from pathlib import Path

from clients.depth.checks import run

warnings.simplefilter("ignore")
run(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
