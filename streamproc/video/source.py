"""Opens a local file so that it can reach nothing else, and refuses what cannot be used."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
from av.stream import Discard, Disposition

from streamproc.errors import VideoError
from streamproc.video.truncation import lacks_moov

if TYPE_CHECKING:
    from pathlib import Path

    from av.container import InputContainer
    from av.video.stream import VideoStream

# FFmpeg needs both lists: with a list of protocols alone, an ffconcat text that is named .mp4 opens
# other files.
_PROTOCOLS = "file"
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,asf,ogg,"
    "ivf,obu,h264,hevc,mjpeg,nut,mxf"
)
_COMMON_FORMATS = "mp4, mov, mkv, webm, avi, ts, mpg, flv, wmv, ogg, mxf"

# A title that is not UTF-8 is no reason to refuse a video. PyAV 19 replaces bad bytes by itself.
_FIRST_PYAV_THAT_REPLACES = 19
_METADATA_OPTIONS: dict[str, Any] = {}
if int(av.__version__.partition(".")[0]) < _FIRST_PYAV_THAT_REPLACES:
    _METADATA_OPTIONS = {"metadata_errors": "replace"}


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a video may have.

    A file over a limit is refused with a `VideoError` before it is decoded.
    """

    max_pixels_per_frame: int = 8192 * 4608
    max_frames: int = 5_000_000
    max_duration_seconds: float = 48 * 3600.0
    max_file_bytes: int = 256 * 2**30

    def check(self, name: str, setting: str, value: float, what: str) -> None:
        """Check that `value` is within the limit `setting`; `name` and `what` are for the message.

        Raises:
            VideoError: It is over the limit.
        """
        allowed = getattr(self, setting)
        if value > allowed:
            raise VideoError(
                f"{name}: {what} {value:,.10g} is over the limit of {allowed:,.10g}; "
                f"raise {setting} if you trust this file"
            )


@dataclass(frozen=True, slots=True)
class Source:
    """A video file and the limits that hold for it."""

    path: Path
    limits: Limits


def check_file(path: Path, limits: Limits) -> None:
    """Refuse what is not a readable plain file with content, within the limit on bytes.

    Raises:
        VideoError: Says what is wrong.
    """
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            path.open("rb").close()
    except FileNotFoundError as error:
        raise VideoError(f"{path}: no such file; check the path") from error
    except (OSError, ValueError) as error:
        raise VideoError(
            f"{path}: cannot be read ({error}); check the path and its permissions"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(
            f"{path}: is not a plain file (a directory or a device); name a video file"
        )
    if status.st_size == 0:
        raise VideoError(f"{path}: is empty (0 bytes); fetch or record it again")
    limits.check(path.name, "max_file_bytes", status.st_size, "file size in bytes")


def open_stream(source: Source, threads: int) -> tuple[InputContainer, VideoStream]:
    """Open the container and its first video stream, ready to decode.

    With `threads` 0 FFmpeg chooses how many threads decode.

    Raises:
        VideoError: It is no video, holds none, cannot be decoded here, or is over a limit.
    """
    path = source.path
    # "file:" keeps FFmpeg from reading a protocol out of a name such as "concat:a|b".
    url = f"file:{path.absolute()}"
    options = {"protocol_whitelist": _PROTOCOLS, "format_whitelist": _FORMATS}
    try:
        container = av.open(url, mode="r", options=options, **_METADATA_OPTIONS)
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(_why_not_opened(path, error)) from error
    try:
        stream = _choose_stream(path, container)
        _prepare(path, stream, source.limits, threads)
    except BaseException:
        container.close()
        raise
    return container, stream


def _why_not_opened(path: Path, error: Exception) -> str:
    if lacks_moov(path):
        return (
            f"{path.name}: was cut off before its index (moov); copy it again or repair it, "
            "then retry"
        )
    reason = getattr(error, "strerror", None) or error
    return f"{path.name}: cannot be read as a video ({reason}); expected one of {_COMMON_FORMATS}"


def _choose_stream(path: Path, container: InputContainer) -> VideoStream:
    """The first video stream that is no cover picture; packets of all others are discarded."""
    chosen = None
    for stream in container.streams:
        is_video = stream.type == "video" and not stream.disposition & Disposition.attached_pic
        if is_video and chosen is None:
            chosen = stream
        else:
            stream.discard = Discard.all
    if chosen is None:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "no streams"
        raise VideoError(
            f"{path.name}: holds no video (it holds: {kinds}); name a file with a picture track"
        )
    return chosen  # type: ignore[return-value]


def _prepare(path: Path, stream: VideoStream, limits: Limits, threads: int) -> None:
    context = stream.codec_context
    if context is None:
        raise VideoError(
            f"{path.name}: no decoder for its video codec; convert it to H.264, HEVC, VP9 or AV1"
        )
    if not stream.time_base:
        raise VideoError(f"{path.name}: its video track has no time base; convert it to mp4 or mkv")
    frame_pixels = context.width * context.height
    limits.check(path.name, "max_pixels_per_frame", frame_pixels, "frame size in pixels")
    # A frame may grow in the middle of the stream: the decoder itself must refuse it, before it
    # takes the memory. It counts padding too, hence twice the limit.
    context.options = {"max_pixels": str(2 * limits.max_pixels_per_frame)}
    context.thread_type = "AUTO"
    context.thread_count = threads


def seconds_per_tick(stream: VideoStream) -> Fraction:
    """The stream's time base, whose type differs between versions of PyAV."""
    base = stream.time_base
    assert base is not None  # open_stream refused it
    return Fraction(base.numerator, base.denominator)


def declared_seconds(container: InputContainer, stream: VideoStream) -> float:
    """How long the container says that the video is; 0 where it does not say."""
    if stream.duration:
        return float(stream.duration * seconds_per_tick(stream))
    if container.duration:
        return container.duration / av.time_base
    return 0.0
