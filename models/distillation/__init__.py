"""Parts of `models/distill.py`: crops, their augmentation, networks, figures on what is held out."""
