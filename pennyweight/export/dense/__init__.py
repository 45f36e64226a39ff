"""Plain float checkpoints, for engines that know of nothing else."""
