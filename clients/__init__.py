"""Other libraries' models with our callbacks: what `make clients` runs and docs/libraries.md shows."""
