"""Pennyweight makes a network smaller and says, with a stated confidence, how much worse it became."""
