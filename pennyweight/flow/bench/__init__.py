"""How quick files are in the engines that read them, on this machine."""
