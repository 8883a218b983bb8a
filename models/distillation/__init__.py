"""Parts of `models/distill.py`: crops and their augmentation, networks, metrics."""
