"""From frames alone: people are detected, and linked into tracks."""
