"""Work in pieces that do not know where they are done: in this process, or by workers on one machine or many."""
