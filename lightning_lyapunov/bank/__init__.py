"""Tasks, populations of small networks that are trained on them at once, and the records they leave."""
