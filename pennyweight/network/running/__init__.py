"""Running a network block by block, and looking at what its weights read and write."""
