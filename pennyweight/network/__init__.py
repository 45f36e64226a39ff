"""Networks: reading weights, sites and edges, and running block by block."""
