"""The command line ``lightning-lyapunov``: measure, score and report without writing a script.

What a command finds goes to standard output, and nothing else does; messages go to standard error.
"""

from lightning_lyapunov.cli.entry import main

__all__ = ["main"]
