"""Any file or directory as one smaller file, and back, bit for bit."""
