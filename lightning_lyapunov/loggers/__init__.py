"""How a spectrum looks: histograms in TensorBoard and Weights & Biases, figures of a run."""
