"""Replay of videos from files to files, its report page, and evaluation and calibration of it."""
