"""How a measurement reaches the loggers: histograms, pictures and a table, in TensorBoard and Weights & Biases."""
