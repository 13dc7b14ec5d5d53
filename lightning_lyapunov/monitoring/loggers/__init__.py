"""How a measurement reaches the loggers: histograms, pictures and a table, as far as each of them takes these."""
