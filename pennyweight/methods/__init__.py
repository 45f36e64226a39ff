"""The rooms of methods: one file a method; the rooms do not know each other."""
