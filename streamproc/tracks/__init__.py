"""Tracks: reading and writing track files, fitting them to a video, and where tracks come from."""

from streamproc.tracks.files import (
    TRACK_FILE_PATTERNS,
    ReadOptions,
    find_track_file,
    load_tracks,
    track_files_beside,
)
from streamproc.tracks.fit import fit_to_video
from streamproc.tracks.npz import save_tracks
from streamproc.tracks.problems import problem_text
from streamproc.tracks.reading import read_tracks, tracks_from_file
from streamproc.tracks.source import (
    FrameTracker,
    TracksFound,
    TracksFromFile,
    TrackSource,
    VideoFacts,
)
from streamproc.tracks.writing import (
    ENDINGS,
    MergedTrack,
    format_of,
    write_merged,
)

__all__ = [
    "ENDINGS",
    "TRACK_FILE_PATTERNS",
    "FrameTracker",
    "MergedTrack",
    "ReadOptions",
    "TrackSource",
    "TracksFound",
    "TracksFromFile",
    "VideoFacts",
    "find_track_file",
    "fit_to_video",
    "format_of",
    "load_tracks",
    "problem_text",
    "read_tracks",
    "save_tracks",
    "track_files_beside",
    "tracks_from_file",
    "write_merged",
]
