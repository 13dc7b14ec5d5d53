"""Watching a network while it trains, by whatever loop: layers, budget, scores, history, loggers."""
