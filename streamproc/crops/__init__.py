"""Crops of persons: planned from the tracks, cut, judged, and collected in one bucket a person."""

from streamproc.crops.buckets import Buckets
from streamproc.crops.cutter import cut_frames, resized
from streamproc.crops.pixel_store import PixelStore
from streamproc.crops.plan import CropOptions, Plan, plan_crops

__all__ = ["Buckets", "CropOptions", "PixelStore", "Plan", "cut_frames", "plan_crops", "resized"]
