"""Compress any module in memory, and certify what it cost on outputs that the user names."""
