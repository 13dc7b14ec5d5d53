"""Small sequence tasks of many families, for networks that are trained by the thousand.

A task draws batches of input sequences and says what should be read out of a network that sees them, one step at a
time. Variants of one *family* share a sampler and differ in delay, length, noise or difficulty; they are one task asked
in several ways, so a claim about "a task never seen" leaves out a whole family.

Three choices run through all of them. Sequences are short (at most 64 steps), as thousands of networks see thousands of
batches of them. Difficulty is *graded*: a task asks several things, some near and some far, or is noisy, so that its
outcome is a scale rather than learnt or not learnt. And inputs and targets are of order one, so that a rate which suits
one task suits the others.
"""

from lightning_lyapunov.bank.tasks.table import CURRENT, SET_ASIDE, TASKS
from lightning_lyapunov.bank.tasks.task import Batch, Task, loss, metric
from lightning_lyapunov.bank.tasks.text import text_sha256

__all__ = ["CURRENT", "SET_ASIDE", "TASKS", "Batch", "Task", "loss", "metric", "text_sha256"]
