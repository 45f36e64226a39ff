"""What a network is made of, found by running its code without weights."""
