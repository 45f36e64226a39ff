"""From one kind of files to another: the same numbers where there is room for them, and a word where there is not."""
