"""Where tracks come from: files today, later a detector and a tracker."""

from streamproc.tracks.files import find_track_file, fit_to_video, load_tracks, save_tracks

__all__ = ["find_track_file", "fit_to_video", "load_tracks", "save_tracks"]
