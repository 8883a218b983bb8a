"""The stages of one video and how they are wired: READ `pipeline.py` FIRST."""
