"""The command line: ``python -m lightning_lyapunov`` is ``lightning-lyapunov``."""

import sys

from lightning_lyapunov.cli import main

sys.exit(main())
