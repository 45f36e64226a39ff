"""The search with measurements in it: options carried out once, choices tried end to end, every answer remembered."""
