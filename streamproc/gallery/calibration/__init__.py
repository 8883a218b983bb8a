"""How likely a pair is one person: curves, what a gallery says of itself, and how both are fitted and judged."""
