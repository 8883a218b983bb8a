"""How likely two tracklets are one person, by looks, motion and other pairs; groups of them."""
