"""One family of maps a file, each with its step and its derivative in both directions."""
