"""Models of other libraries measured across depth, and what must come out."""

from clients.depth.on_cpu import prepare

prepare()  # before Lightning, which imports torchvision too
