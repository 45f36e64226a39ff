"""Everything two models differ in, with intervals; nothing is claimed."""
