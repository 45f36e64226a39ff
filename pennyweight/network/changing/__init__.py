"""Networks made from another: transforms folded in, structure rebuilt, weights rounded."""
