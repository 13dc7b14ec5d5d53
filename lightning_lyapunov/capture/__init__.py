"""What drives the layers of somebody's model: which they are, and the inputs that reach them."""
