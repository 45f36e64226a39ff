"""Text written by a model: greedy answers, and the tail of what it might have written."""
