"""The guest in a Lightning Trainer: when it measures, what it logs, and stopping on what it says."""
