"""How likely two tracklets are one person, on broken tracks too; prepared, not in the product."""
