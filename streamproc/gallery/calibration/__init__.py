"""How likely a pair is one person: the curves, how they are applied, fitted and checked."""
