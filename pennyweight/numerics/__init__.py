"""Tensor mathematics that knows no model."""
