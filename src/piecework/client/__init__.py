"""Enqueue jobs, follow them, and act on them."""
