"""The name of every figure that is logged across depth, with its unit, what it means and what to do about it.

The same table for chains of blocks as :mod:`lightning_lyapunov.names` is for recurrent networks. A prefix, ``depth``
unless another is given, is put before the names where they are logged.
"""

from __future__ import annotations

from lightning_lyapunov.names import Quantity, Table

_TABLE = (
    Quantity(
        "total",
        "nats",
        "largest growth across depth",
        "the most that a gradient can grow from the last block back to the first, ln σ₁ of the product of the blocks' "
        "Jacobians: e to this power is the factor, Euclidean",
        "above 10: lower the gain of the weights, normalise, or scale the branches down. Below −5: raise the gain, or "
        "add skips",
    ),
    Quantity(
        "total_error",
        "nats",
        "error of the largest growth",
        "half-width of the 95 % bar of `total`, the ± of every sentence and picture",
        "too wide to decide: more samples (`num_samples`), or a smaller `tolerance`",
    ),
    Quantity(
        "total_stderr",
        "nats",
        "standard error of the largest growth",
        "standard error of `total`, from the spread between samples alone",
        "falls with the number of samples; read `total_error` instead to judge `total`",
    ),
    Quantity(
        "max",
        "nats/block",
        "largest growth per block",
        "`total` over the number of blocks: the largest exponent across depth",
        "for comparing with rates of theory; whether a network trains shows in `total`, not in the rate",
    ),
    Quantity(
        "gain",
        "nats",
        "gain of a gradient across depth",
        "what a gradient of random direction grows by on the same way, root mean square, per unit of the state",
        "far below `total`: few directions carry the gradient",
    ),
    Quantity(
        "gain_error",
        "nats",
        "error of the gain",
        "half-width of the 95 % bar of `gain`",
        "too wide to decide: more samples (`num_samples`)",
    ),
    Quantity(
        "typical",
        "nats",
        "typical growth of a gradient",
        "mean logarithm of what a gradient of random direction grows by on the same way; never above `gain`",
        "far below `gain`: growth depends on the direction, as in deep and narrow networks",
    ),
    Quantity(
        "anisotropy",
        "nats",
        "anisotropy",
        "`total` − `gain`: 0 if the chain treats all directions alike",
        "grows with depth by itself, so compare networks of equal depth: the smaller, the easier to train",
    ),
    Quantity(
        "state_growth",
        "nats",
        "growth of the state",
        "what the states themselves grow by from the first block to the last, root mean square over their units",
        "for information: large in networks without normalisation",
    ),
    Quantity(
        "block_gain_max",
        "nats",
        "largest gain of a block",
        "largest gain of a single block by itself",
        "far above the others': that block is the one to look at; the picture and the findings name it",
    ),
    Quantity(
        "block_gain_min",
        "nats",
        "smallest gain of a block",
        "smallest gain of a single block by itself; −∞ where a block passes nothing on, logged as −100",
        "far below 0 while the others are not: the gradient ends at that block",
    ),
    Quantity(
        "trusted_fraction",
        "share",
        "trusted",
        "of the growths measured those that the iteration has settled",
        'below 1: a smaller `tolerance`, fewer growths by `k`, or `dtype="float64"`',
        summary="min",
    ),
    Quantity(
        "floored",
        "count",
        "dead directions",
        "of the leading growths those below −100, which are logged as −100, and those beyond the rank (−∞)",
        "above 0: a block narrower than `k`, or one that passes nothing on",
        summary="max",
    ),
    Quantity(
        "verdict",
        "0 to 2",
        "verdict",
        "0 healthy, 1 watch, 2 act: what was right of 80 %, or 95 %, of a benchmark's networks",
        "2: do what the finding says; 1: look at it again; 0: train on",
    ),
    Quantity(
        "seconds",
        "s",
        "seconds",
        "what the measurement took",
        "too much: fewer samples, or a larger `tolerance`",
        summary="max",
    ),
    Quantity(
        "overhead",
        "share",
        "share of the training time",
        "what recording, measuring, logging and pictures took, of the training time so far",
        "bounded by `max_overhead`",
    ),
    Quantity(
        "<block>/gain",
        "nats",
        "gain of a block",
        "the gain of each block by itself, of chains of many blocks that of 64 of them",
        "0 in a block with a skip: it passes everything on and adds little; −∞: it passes nothing on",
    ),
)

QUANTITIES = {quantity.name: quantity for quantity in _TABLE}
"""All of them, by name; that of a block under ``<block>/gain``."""
OF_A_BLOCK = "<block>/gain"
"""The name that those of all blocks stand under."""
MEASURED = tuple(name for name in QUANTITIES if name != OF_A_BLOCK)
"""Names of what is logged of every measurement."""
LOGGED = ("verdict", "total", "total_error", "gain", "block_gain_max", "block_gain_min", "overhead")
"""Names of what loggers get unless they are to get more."""
MOST_BLOCKS = 64
"""Blocks that have a figure of their own; of more, as many evenly chosen, the first and the last among them."""

DEPTH = Table(QUANTITIES, LOGGED, OF_A_BLOCK)
"""What is logged across depth: all of this module."""
