"""streamproc finds the people that a tracker counted twice.

from streamproc import replay

result = replay("video.mp4", persons="tracks.npz")
result.similarity, result.candidates, result.embeddings, result.skipped
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamproc.version import __version__

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from streamproc.decisions import AnyDecision
    from streamproc.offline.merge import Merged
    from streamproc.offline.results import Result
    from streamproc.types import WrittenFormat

__all__ = ["__version__", "decide", "merge", "replay"]


def replay(
    video: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    persons: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    out: str | os.PathLike[str] | None = None,
    gallery: str | None = None,
    config: str | os.PathLike[str] | None = None,
    decisions: str | os.PathLike[str] | None = None,
    **settings: object,
) -> Result:
    """Find duplicates in a video, or across several in one gallery, as `streamproc replay` does.

    `persons`: the track file of each video (absent: looked for beside it, and where there is none,
    people are found in the frames). Files are written only where `out` names a folder. `decisions`
    is a file of what reviewers decided on an earlier run, see `streamproc review`. `settings` are
    those of deploy/README.md, `clustering__similarity_threshold=0.8` for a nested one. Raises
    `streamproc.errors.StreamprocError`; may be called where an event loop runs (a notebook), and
    from several threads at once. Ctrl-C gives up, and leaves no files.
    """
    import os
    from pathlib import Path

    from streamproc.errors import UsageError
    from streamproc.offline.sources import find_sources, read_ahead

    def paths(
        given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
    ) -> list[Path]:
        if given is None:
            return []
        return (
            [Path(given)]
            if isinstance(given, str | os.PathLike)
            else [Path(path) for path in given]
        )

    videos = paths(video)
    if len(videos) > 1 and gallery is None:
        raise UsageError("several videos are compared in one gallery: expected gallery=NAME")
    sources = find_sources(videos, paths(persons))
    with read_ahead(sources):
        from streamproc.offline.replay import Replay, run_in_thread
        from streamproc.settings import load_settings

        flags = {key.replace("__", "."): value for key, value in settings.items()}
        loaded = load_settings(flags, config_file=None if config is None else Path(config))
        work = Replay(
            sources,
            loaded,
            gallery=gallery,
            out=None if out is None else Path(out),
            decisions=None if decisions is None else Path(decisions),
        )
        return run_in_thread(work)[0]


def merge(
    output: str | os.PathLike[str],
    to: str | os.PathLike[str] | None = None,
    *,
    written: WrittenFormat | None = None,
    decisions: str | os.PathLike[str] | None = None,
    with_likely: bool = False,
    only_selected: bool = False,
) -> Merged:
    """Put the tracks of a replay's folder under the decided identities, as `streamproc merge` does.

    They are written to the file or folder `to`, if one is named; `written` is the format, absent
    the one that the name says. Raises `streamproc.errors.StreamprocError`.
    """
    from pathlib import Path

    from streamproc.offline.merge import merge_folder, write

    merged = merge_folder(
        Path(output),
        decisions=None if decisions is None else Path(decisions),
        with_likely=with_likely,
        only_selected=only_selected,
    )
    if to is not None:
        write(merged, Path(to), written)
    return merged


def decide(
    *decisions: AnyDecision,
    config: str | os.PathLike[str] | None = None,
    **settings: object,
) -> None:
    """Send decisions to the stream, on the topic `review-decisions`.

    Each is one of `streamproc.decisions`, such as `PairDecision.make(gallery_id="lobby", …)`.
    `settings` are those of deploy/README.md, `bootstrap="host:9092"` for one. Raises
    `streamproc.errors.StreamprocError`; may be called where an event loop runs.
    """
    import asyncio
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    from streamproc.kafka import client
    from streamproc.settings import load_settings

    flags = {key.replace("__", "."): value for key, value in settings.items()}
    loaded = load_settings(flags, config_file=None if config is None else Path(config))
    with ThreadPoolExecutor(1) as pool:  # a thread has no event loop yet
        pool.submit(asyncio.run, client.decide(loaded, decisions)).result()
