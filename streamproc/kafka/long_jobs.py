"""Long jobs on Kafka: records whose work takes minutes, several at once, none lost and none done for ever again.

A consumer that works inside its poll loop is thrown out of its group after `max_poll_interval_ms`,
and the job starts again, for ever. Here the loop keeps polling while jobs run beside it:

- An offset is committed only when its job and all earlier ones of the partition are done.
- aiokafka revokes every partition at every join or leave. Jobs go on meanwhile; only those whose
  partition went to another member are cancelled, and redeliveries of those that stayed are dropped.
- Each start is counted in the commit's metadata before the work begins, and taken back where it
  ends in any other way than with the process. So a record that kills the process is known
  afterwards: it is tried again alone, so that it takes no other with it, and given up after
  `jobs.attempts` starts.
- A fault of the machine (`MachineError`) stops intake and is tried again until it works; bad input
  (`InputError`) is given up at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import orjson
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.structs import OffsetAndMetadata

from streamproc.errors import InputError, MachineError
from streamproc.kafka.connection import client_options, group_of, unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from streamproc.kafka.records import Record
    from streamproc.settings import Settings

log = logging.getLogger(__name__)

POLL_MS = 100
MAX_BACKOFF_FACTOR = 64
_LAST_COMMIT_SECONDS = 5.0


class JobHandler(Protocol):
    """The work.

    All three may be called for several records at once, never twice at a time for one.
    """

    async def handle(self, record: Record, attempt: int) -> None:
        """Do the job; returns when everything that follows from it is acknowledged.

        May be cancelled at any time.

        Raises InputError where it can never be done, MachineError where it may be later.
        """

    async def refuse(self, record: Record, *, code: str, text: str, attempts: int) -> None:
        """Give the record up, with the reason."""

    async def retrying(self, record: Record, attempt: int, error: Exception) -> None:
        """Note that the job will be tried again."""


@dataclass(slots=True, eq=False)
class _Job:
    record: Record
    suspect: bool
    """A process died while it ran, so it runs alone now."""
    task: asyncio.Task[None] | None = None


@dataclass(slots=True, eq=False)
class _Partition:
    """What has been taken of one partition, and how often each offset that is not done was started."""

    next_offset: int | None
    starts: dict[int, int]
    jobs: dict[int, _Job] = field(default_factory=dict)  # taken and not done, in order
    committed: tuple[int, str] | None = None

    def low_water(self) -> int | None:
        """All offsets before this one are done."""
        return next(iter(self.jobs), self.next_offset)

    def metadata(self, *, without_running: bool) -> str:
        """How often each offset was started and not ended."""
        counts = {}
        for offset, starts in sorted(self.starts.items()):
            job = self.jobs.get(offset)
            running = job is not None and job.task is not None
            if left := starts - (running and without_running):
                counts[str(offset)] = left
        return orjson.dumps({"starts": counts}).decode() if counts else ""


def starts_of(metadata: str | None) -> dict[int, int]:
    """Read a commit's metadata; whatever is not ours counts as nothing."""
    try:
        counts = orjson.loads(metadata or "{}")["starts"]
        return {int(offset): int(starts) for offset, starts in counts.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


class LongJobs(ConsumerRebalanceListener):  # type: ignore[misc] # aiokafka is untyped
    """Takes the records of one topic as long jobs, as a member of the group of `name`.

    `on_ready` is called with whether records are taken, each time that this changes. No record is
    taken once `stop` is set.

    Public for metrics and tests: `running`, `waiting`, `lag`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        name: str,
        topic: str,
        handler: JobHandler,
        stop: asyncio.Event,
        on_ready: Callable[[bool], None],
    ) -> None:
        self._settings = settings
        self._name = name
        self._handler = handler
        self._stop = stop
        self._on_ready = on_ready
        self._topic = settings.kafka.topic_prefix + topic
        self._group = group_of(settings, name)
        self._partitions: dict[TopicPartition, _Partition] = {}
        self._frozen = True  # between a revocation and the next assignment nothing is committed
        self._recount = False
        self._failed: Exception | None = None
        self._in_trouble: set[int] = set()
        self._leaving: set[asyncio.Task[None]] = (
            set()
        )  # cancelled, their partition is another member's
        self._committing = asyncio.Lock()
        self._consumer: AIOKafkaConsumer | None = None

    @property
    def running(self) -> int:
        """How many jobs run."""
        return sum(job.task is not None for job in self._jobs())

    @property
    def waiting(self) -> int:
        """How many records were taken whose jobs have not begun."""
        return sum(job.task is None for job in self._jobs())

    @property
    def lag(self) -> int:
        """Records of the own partitions that are not done."""
        total = 0
        for partition, state in self._partitions.items():
            end = None if self._consumer is None else self._consumer.highwater(partition)
            low_water = state.low_water()
            total += 0 if end is None or low_water is None else max(0, end - low_water)
        return total

    def _jobs(self) -> Iterable[_Job]:
        return (job for state in self._partitions.values() for job in state.jobs.values())

    async def run(self) -> None:
        """Work until `stop`, then finish what runs within the grace time, or give it up; nothing is lost.

        May be called again after a MachineError: Kafka was away, or refused.
        """
        self._partitions, self._frozen, self._failed = {}, True, None
        self._consumer = self._make_consumer()
        self._consumer.subscribe([self._topic], listener=self)
        try:
            await self._consumer.start()
        except KafkaConnectionError as error:
            await self._consumer.stop()
            raise unreachable(self._settings, error) from error
        try:
            while not self._stop.is_set():
                await self._turn(taking=True)
            await self._drain()
        except KafkaError as error:
            raise MachineError(f"{self._topic}: Kafka gave no records ({error!r})") from error
        finally:
            self._on_ready(False)
            await self._give_up()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_COMMIT_SECONDS):
                    await self._commit(self._partitions, last=True)
            await self._consumer.stop()

    def _make_consumer(self) -> AIOKafkaConsumer:
        kafka = self._settings.kafka
        session_ms = int(kafka.session_timeout_seconds * 1000)
        return AIOKafkaConsumer(
            **client_options(self._settings, self._name),
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=session_ms // 4,
            max_poll_interval_ms=int(kafka.max_poll_interval_seconds * 1000),
            partition_assignment_strategy=(
                StickyPartitionAssignor,
            ),  # a running job's partition should stay
            max_partition_fetch_bytes=2 * kafka.max_event_bytes,
        )

    async def _turn(self, *, taking: bool) -> None:
        """Poll once, which also tells the group that this member lives, and start what may start."""
        assert self._consumer is not None
        if self._failed is not None:
            raise self._failed
        room = self._settings.jobs.videos_at_once - sum(1 for _ in self._jobs())
        if not taking or self._in_trouble or any(job.suspect for job in self._jobs()):
            room = 0
        assigned = self._consumer.assignment()
        if room > 0:
            self._consumer.resume(*assigned)
        else:
            self._consumer.pause(*assigned)
        taken = await self._consumer.getmany(timeout_ms=POLL_MS, max_records=max(1, room))
        for partition, records in taken.items():
            for record in records:
                self._take(partition, record)
        if self._recount and not self._frozen:
            self._recount = False
            await self._commit(self._partitions)
        if taking and not self._frozen:  # a start that cannot be counted must wait
            self._start_some()

    def _take(self, partition: TopicPartition, record: Record) -> None:
        state = self._partitions.get(partition)
        if state is None or (state.next_offset is not None and record.offset < state.next_offset):
            return  # not yet known, and it will come again; or it came again, and runs or is done
        state.next_offset = record.offset + 1
        state.jobs[record.offset] = _Job(record, suspect=state.starts.get(record.offset, 0) > 0)

    def _start_some(self) -> None:
        """Start waiting jobs, as many as may run; one that may have killed a process only by itself."""
        for partition, state in self._partitions.items():
            for offset, job in state.jobs.items():
                alone = self.running == 0
                crowded = self.running >= self._settings.jobs.videos_at_once or self._suspect_runs()
                if (
                    job.task is None
                    and not self._in_trouble
                    and (alone if job.suspect else not crowded)
                ):
                    job.task = asyncio.create_task(
                        self._work(partition, state, offset, job), name=f"job {offset}"
                    )

    def _suspect_runs(self) -> bool:
        return any(job.suspect and job.task is not None for job in self._jobs())

    async def _work(
        self, partition: TopicPartition, state: _Partition, offset: int, job: _Job
    ) -> None:
        before = state.starts.get(offset, 0)
        state.starts[offset] = before + 1
        try:
            while not await self._commit({partition: state}):  # noqa: ASYNC110 - until Kafka has it, which sets no event
                await asyncio.sleep(POLL_MS / 1000)
            await self._until_settled(job.record, before)
        except Exception as error:  # noqa: BLE001 - a bug here must end the service, not stall a partition for ever
            self._failed = error
            return
        finally:
            self._in_trouble.discard(id(job.record))
        del state.jobs[offset]
        del state.starts[offset]
        await self._commit({partition: state})

    async def _until_settled(self, record: Record, starts_before: int) -> None:
        """Do the job or give it up; tries again after faults of the machine until it works."""
        jobs = self._settings.jobs
        attempt, unexpected, wait_seconds = starts_before + 1, 0, jobs.retry_seconds
        refusal: tuple[str, str] | None = None
        if starts_before >= jobs.attempts:
            attempt = starts_before  # this one only gives it up
            refusal = (
                "killed-the-process",
                f"the process ended {starts_before} times while it worked on this",
            )
        while True:
            try:
                if refusal is not None:
                    await self._handler.refuse(
                        record, code=refusal[0], text=refusal[1], attempts=attempt
                    )
                    return
                await self._handler.handle(record, attempt)
            except InputError as error:
                refusal = error.code, str(error)
                continue
            except MachineError as error:
                trouble: Exception = error
            except Exception as error:
                log.exception("offset %d: unexpected", record.offset)
                trouble, unexpected = error, unexpected + 1
                if unexpected >= jobs.attempts:
                    refusal = "internal", f"{type(error).__name__}: {error}"
                    continue
            else:
                return
            self._in_trouble.add(id(record))
            log.warning(
                "offset %d: %s; trying again in %.0f s", record.offset, trouble, wait_seconds
            )
            with contextlib.suppress(MachineError):
                await self._handler.retrying(record, attempt, trouble)
            await asyncio.sleep(wait_seconds)
            attempt, wait_seconds = (
                attempt + 1,
                min(wait_seconds * 2, jobs.retry_seconds * MAX_BACKOFF_FACTOR),
            )

    async def _drain(self) -> None:
        """Finish what runs, still polling; stop in time to commit and leave the group in order."""
        end = asyncio.get_running_loop().time() + 0.8 * self._settings.service.grace_seconds
        while self.running and not self._in_trouble and asyncio.get_running_loop().time() < end:
            await self._turn(taking=False)

    async def _give_up(self) -> None:
        """Cancel all jobs and wait for their end; one that did not end the process counts as not started."""
        tasks = [job.task for job in self._jobs() if job.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._leaving, return_exceptions=True)

    async def _commit(
        self, partitions: Mapping[TopicPartition, _Partition], *, last: bool = False
    ) -> bool:
        """Commit what is done, and the starts of what is not; returns whether Kafka has it.

        `last`: what runs will not end with this process, so its start does not count.
        """
        assert self._consumer is not None
        async with self._committing:
            offsets = {}
            for partition, state in list(partitions.items()):
                low_water = state.low_water()
                if (
                    low_water is None
                    or self._partitions.get(partition) is not state
                    or (self._frozen and not last)
                ):
                    continue
                entry = (low_water, state.metadata(without_running=last))
                if entry != state.committed:
                    offsets[partition] = OffsetAndMetadata(*entry)
            if not offsets:
                return not self._frozen
            try:
                await self._consumer.commit(offsets)
            except (
                KafkaError
            ) as error:  # the group has moved on: whoever has the partition now does it again
                log.info("offsets were not committed (%r)", error)
                return False
            for partition, entry in offsets.items():
                partitions[partition].committed = (entry.offset, entry.metadata)
            return True

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Commit a last time, with the starts of running jobs taken back, then freeze.

        They go on meanwhile.
        """
        del revoked  # always all of them
        if not self._frozen:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_COMMIT_SECONDS):
                    await self._commit(self._partitions, last=True)
        self._frozen = True

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Cancel the jobs of partitions that are gone, go on with those that stayed, learn the starts of new ones."""
        assert self._consumer is not None
        now = set(assigned)
        try:
            lost = [
                self._partitions.pop(partition)
                for partition in [*self._partitions]
                if partition not in now
            ]
            for task in (
                job.task for state in lost for job in state.jobs.values() if job.task is not None
            ):
                task.cancel()  # not awaited: the group waits for this call, a thread may take a while
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)
            new = await self._learn(now - self._partitions.keys())
            self._partitions |= new
            for partition, state in self._partitions.items():
                state.committed = None
                # Also what is new: its first records may have come, and been left, while this was
                # waiting.
                if state.next_offset is not None:
                    self._consumer.seek(partition, state.next_offset)
                else:
                    await self._consumer.seek_to_beginning(partition)
        except Exception as error:  # noqa: BLE001 - aiokafka would only log it
            self._failed = error
            return
        self._frozen, self._recount = False, True
        self._on_ready(True)
        log.info(
            "partitions: %s",
            ", ".join(str(partition.partition) for partition in sorted(now)) or "none",
        )

    async def _learn(self, partitions: set[TopicPartition]) -> dict[TopicPartition, _Partition]:
        """Read what others committed: aiokafka's consumer gives no metadata, its admin client does."""
        if not partitions:
            return {}
        admin = AIOKafkaAdminClient(**client_options(self._settings, self._name))
        try:
            await admin.start()
            committed = await admin.list_consumer_group_offsets(
                self._group, partitions=list(partitions)
            )
        finally:
            await admin.close()
        learned = {}
        for partition in partitions:
            entry = committed.get(partition)
            known = entry is not None and entry.offset >= 0
            starts = starts_of(entry.metadata) if known else {}
            learned[partition] = _Partition(entry.offset if known else None, starts)
        return learned
