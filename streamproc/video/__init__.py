"""Opens a video safely, finds its frames, and decodes only those that are wanted."""

from streamproc.video.pixels import Frame
from streamproc.video.source import Limits
from streamproc.video.video import Video, open_video

__all__ = ["Frame", "Limits", "Video", "open_video"]
