"""Slow, obvious twins in float64 of what the package does fast; they share no code with it."""
