"""The measurement itself, on torch alone: chains of maps, their tangents, and what follows from them."""
