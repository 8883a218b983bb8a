"""Long jobs on Kafka: records whose work takes minutes, several at once, none lost.

A consumer that works inside its poll loop is removed from its group after `max_poll_interval_ms`,
and its job starts again, for ever. Here the loop keeps polling while jobs run beside it:

- An offset is committed only when its job and all earlier ones of the partition are done.
- aiokafka revokes every partition at every join or leave. Jobs go on meanwhile. Only those whose
  partition went to another member are cancelled, and redeliveries of those that stayed are dropped.
- Each start of a job is counted in the commit's metadata before the work begins, and taken back
  unless the process dies. So a record that kills the process is known afterwards: it is tried again
  alone, so that it harms no other, and refused after `jobs.attempts` starts.
- After a fault of the machine (`MachineError`) a job is tried again, `jobs.fault_attempts` times at
  most, while others go on. Only while Kafka itself is away (`BrokerError`) no job is started.
- Bad input (`InputError`) is refused at once. What is no job at first sight takes no room: it is
  passed over beside the real ones, thousands a second.
- More jobs are begun than may work at once, so that no video waits for another's download. Each
  waits for its turn before the part that takes processor and memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Protocol, TypeAlias

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import IllegalStateError, KafkaConnectionError, KafkaError
from aiokafka.structs import OffsetAndMetadata

from streamproc.errors import BrokerError, InputError, MachineError
from streamproc.kafka.connection import COMMITTED_ONLY, client_options, group_of, unreachable
from streamproc.kafka.taken import Job, Refusal, Taken, starts_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from streamproc.kafka.readiness import Readiness
    from streamproc.kafka.records import Record
    from streamproc.settings import Settings

log = logging.getLogger(__name__)

POLL_MS = 100
MAX_BACKOFF_FACTOR = 64
_LAST_COMMIT_SECONDS = 5.0
_JOIN_SHARE = 0.8
"""Of the grace time: for running jobs to end. The rest is for committing and leaving the group."""
PREPARING_AT_ONCE = 16
"""Jobs that may be begun beside those whose turn it is: their files are fetched meanwhile."""
_JUNK_AT_ONCE = 500
_WAITING_AT_ONCE = 256
"""If so many jobs wait for another attempt, no more are taken until one has ended."""
_COMMIT_SECONDS = 0.2
"""How often junk is committed; other jobs are at their end."""

Turn: TypeAlias = "AbstractAsyncContextManager[None]"


class JobHandler(Protocol):
    """The work. All may run for several records at once, but only once at a time for each."""

    def check(self, record: Record) -> None:
        """Raise InputError, without waiting for anything, if a record can be no job."""

    async def handle(self, record: Record, attempt: int, turn: Turn) -> None:
        """Do the job; return when everything that follows from it is acknowledged.

        What takes processor or memory is done inside `async with turn`. May be cancelled at any
        time. Raises InputError if it can never be done, MachineError if it may work later.
        """

    async def refuse(self, record: Record, *, code: str, text: str, attempts: int) -> None:
        """Report that the job will never be done, and why."""

    async def retrying(self, record: Record, attempt: int, error: Exception) -> None:
        """Report that the job will be tried again after `error`."""


class LongJobs(ConsumerRebalanceListener):  # type: ignore[misc] # aiokafka is untyped
    """Takes the records of some topics as long jobs, as a member of the group of `name`.

    `ready` is set while records can be taken. No record is taken once `stop` is set. One event loop
    uses it. Public for metrics: `running`, `waiting`, `lag`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        name: str,
        topics: Sequence[str],
        handler: JobHandler,
        stop: asyncio.Event,
        ready: Readiness,
    ) -> None:
        self._settings = settings
        self._name = name
        self._handler = handler
        self._stop = stop
        self._ready = ready
        self._topics = [settings.kafka.topic_prefix + topic for topic in topics]
        self._group = group_of(settings, name)
        self._partitions: dict[TopicPartition, Taken] = {}
        # True between a revocation and the next assignment: nothing is committed then.
        self._rebalancing = True
        # After a rebalance the starts of running jobs, which were taken back, are committed again.
        self._commit_due = False
        self._failure: BaseException | None = None
        self._turns = asyncio.Semaphore(settings.jobs.videos_at_once)
        self._away: set[Job] = set()  # those that found Kafka away, until their next attempt
        self._commit_at = 0.0
        # Cancelled, since their partition belongs to another member now.
        self._cancelled: set[asyncio.Task[None]] = set()
        self._committing = asyncio.Lock()
        self._consumer: AIOKafkaConsumer | None = None

    @property
    def running(self) -> int:
        """How many jobs run, or wait for another attempt."""
        return sum(job.task is not None for job in self._jobs())

    @property
    def waiting(self) -> int:
        """How many records were taken whose jobs have not begun."""
        return sum(job.task is None for job in self._jobs())

    @property
    def lag(self) -> int:
        """How many records of the own partitions are not done."""
        total = 0
        for partition, state in self._partitions.items():
            end = self._end_of(partition)
            low_water = state.low_water()
            if end is not None and low_water is not None:
                total += max(0, end - low_water)
        return total

    def _end_of(self, partition: TopicPartition) -> int | None:
        """Return the offset after the last record, None where that is not known."""
        if self._consumer is None or partition not in self._consumer.assignment():
            return None
        end: int | None = self._consumer.highwater(partition)
        return end

    def _jobs(self) -> Iterable[Job]:
        for state in self._partitions.values():
            yield from state.jobs.values()

    async def run(self) -> None:
        """Work until `stop`, then let running jobs end within the grace time, or cancel them.

        Nothing is lost: what did not end is done again. May be called again after a MachineError,
        which is raised if Kafka is away or refuses.
        """
        self._partitions = {}
        self._rebalancing = True
        self._failure = None
        self._away.clear()
        self._consumer = self._make_consumer()
        self._consumer.subscribe(self._topics, listener=self)
        try:
            await self._consumer.start()
        except KafkaConnectionError as error:
            await self._consumer.stop()
            raise unreachable(self._settings, error) from error
        try:
            while not self._stop.is_set():
                await self._poll(accepting=True)
            await self._join()
        except KafkaError as error:
            topics = ", ".join(self._topics)
            raise MachineError(f"{topics}: Kafka gave no records ({error!r})") from error
        finally:
            self._ready.clear("it takes no records now")
            await self._terminate()
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
            isolation_level=COMMITTED_ONLY,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=session_ms // 4,
            max_poll_interval_ms=int(kafka.max_poll_interval_seconds * 1000),
            # Sticky: the partitions of running jobs stay here if they can.
            partition_assignment_strategy=(StickyPartitionAssignor,),
            max_partition_fetch_bytes=2 * kafka.max_event_bytes,
        )

    async def _poll(self, *, accepting: bool) -> None:
        """Poll once, which also tells the group that this member is alive, and start jobs."""
        assert self._consumer is not None
        if self._failure is not None:
            raise self._failure
        room = self._room() if accepting else 0
        assigned = self._consumer.assignment()
        if room > 0:
            self._consumer.resume(*assigned)
        else:
            self._consumer.pause(*assigned)
        polled = await self._consumer.getmany(timeout_ms=POLL_MS, max_records=max(1, room))
        for partition, records in polled.items():
            for record in records:
                self._submit(partition, record)
        await self._pass_what_is_no_record(partition for partition in assigned - polled.keys())
        self._check_ends()
        now = asyncio.get_running_loop().time()
        if self._commit_due and not self._rebalancing and now >= self._commit_at:
            self._commit_due = False
            self._commit_at = now + _COMMIT_SECONDS
            await self._commit(self._partitions)
        self._say_whether_ready()
        # While nothing can be committed, a start could not be counted, so no job starts.
        if accepting and not self._rebalancing:
            self._start_jobs()

    def _check_ends(self) -> None:
        """Raise MachineError if a partition ends before what was read of it: it is another one."""
        for partition, state in self._partitions.items():
            end = self._end_of(partition)
            if end is not None and state.next_offset is not None and end < state.next_offset:
                raise MachineError(
                    f"{partition.topic}[{partition.partition}] ends at offset {end}, but was read "
                    f"to {state.next_offset}: the topic was made again; reading it from its "
                    "beginning"
                )

    def _say_whether_ready(self) -> None:
        """Say why no records are taken, if that is so for longer than a rebalance."""
        assert self._consumer is not None
        if self._rebalancing:
            return
        waiting = sum(job.is_waiting for job in self._jobs())
        missing = [
            topic for topic in self._topics if not self._consumer.partitions_for_topic(topic)
        ]
        if missing:
            self._ready.clear(f"topic {missing[0]}: missing; `streamproc topics create` makes it")
        elif self._away:
            self._ready.clear("Kafka is away, or takes no events")
        elif waiting >= _WAITING_AT_ONCE:
            self._ready.clear(f"{waiting} videos wait for another attempt: see the log for faults")
        else:
            self._ready.set()

    def _room(self) -> int:
        """How many more records to take."""
        jobs = list(self._jobs())
        waiting = sum(job.is_waiting for job in jobs)
        junk = sum(job.is_junk for job in jobs)
        if self._away or waiting >= _WAITING_AT_ONCE or junk >= _JUNK_AT_ONCE:
            return 0
        if any(job.suspect for job in jobs):
            return 0
        at_once = self._settings.jobs.videos_at_once + PREPARING_AT_ONCE
        return at_once - sum(not (job.is_waiting or job.is_junk) for job in jobs)

    def _submit(self, partition: TopicPartition, record: Record) -> None:
        state = self._partitions.get(partition)
        if state is None:
            return  # not known yet: the record will come again
        if state.next_offset is not None and record.offset < state.next_offset:
            return  # came again: its job is done or runs
        state.next_offset = record.offset + 1
        suspect = state.starts.get(record.offset, 0) > 0
        job = Job(record, suspect)
        if not suspect:
            try:
                self._handler.check(record)
            except InputError as error:
                job.refusal = Refusal(error.code, str(error))
                job.is_junk = job.is_ending = True
        state.jobs[record.offset] = job

    async def _pass_what_is_no_record(self, silent: Iterable[TopicPartition]) -> None:
        """Note where offsets of partitions are no records: aborted, or the end of a transaction."""
        assert self._consumer is not None
        for partition in silent:
            state = self._partitions.get(partition)
            end = self._end_of(partition)
            if self._rebalancing or state is None or state.jobs or end is None:
                continue
            if state.next_offset is None or state.next_offset >= end:
                continue
            with contextlib.suppress(TimeoutError, IllegalStateError):
                async with asyncio.timeout(POLL_MS / 1000):
                    position = await self._consumer.position(partition)
                if position > state.next_offset:
                    state.next_offset = position
                    self._commit_due = True

    def _start_jobs(self) -> None:
        """Start as many waiting jobs as may run."""
        for partition, state in self._partitions.items():
            for offset, job in state.jobs.items():
                if job.task is None and self._may_start(job):
                    work = self._work(partition, state, offset, job)
                    job.task = asyncio.create_task(work, name=f"job {offset}")
                    job.task.add_done_callback(self._note_failure)

    def _may_start(self, job: Job) -> bool:
        if self._away:
            return False
        if job.is_junk:
            return True
        others = [other for other in self._jobs() if not other.is_junk and other.is_active]
        if job.suspect:
            return not others
        at_once = self._settings.jobs.videos_at_once + PREPARING_AT_ONCE
        return len(others) < at_once and not any(other.suspect for other in others)

    def _note_failure(self, task: asyncio.Task[None]) -> None:
        """Keep what a job raised for `_poll`: a bug must end the service, not stall a partition."""
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()

    async def _work(self, partition: TopicPartition, state: Taken, offset: int, job: Job) -> None:
        if job.is_junk:
            await self._carry_out(partition, state, job, attempt=1)
            del state.jobs[offset]
            self._commit_due = True  # many of them together
            return
        starts_before = state.starts.get(offset, 0)
        state.starts[offset] = starts_before + 1
        try:
            await self._commit_start(partition, state)
            attempt = starts_before + 1
            if starts_before >= self._settings.jobs.attempts:
                attempt = starts_before  # this start only refuses it
                text = f"the process ended {starts_before} times while it worked on this"
                self._refuse(job, Refusal("killed-the-process", text))
            await self._carry_out(partition, state, job, attempt)
        finally:
            self._away.discard(job)
        del state.jobs[offset]
        del state.starts[offset]
        await self._commit({partition: state})

    async def _commit_start(self, partition: TopicPartition, state: Taken) -> None:
        """Return when Kafka has the count of a job's starts."""
        while True:
            if await self._commit({partition: state}):
                return
            await asyncio.sleep(POLL_MS / 1000)

    @contextlib.asynccontextmanager
    async def _turn(self, job: Job) -> AsyncIterator[None]:
        """While inside, at most `jobs.videos_at_once` jobs are; none enters once `stop` is set."""
        async with self._turns:
            if self._stop.is_set():
                await asyncio.Event().wait()  # until it is cancelled, as it has not begun
            job.is_ending = True
            yield

    def _refuse(self, job: Job, refusal: Refusal) -> None:
        job.refusal = refusal
        job.is_ending = True

    async def _carry_out(
        self, partition: TopicPartition, state: Taken, job: Job, attempt: int
    ) -> None:
        """Do the job, or refuse it after the stated attempts; what it waits for holds up nobody."""
        wait_seconds = self._settings.jobs.retry_seconds
        unexpected = faults = 0
        while True:
            try:
                await self._attempt(job, attempt)
            except BrokerError as error:
                fault: Exception = error
                self._away.add(job)
            except MachineError as error:
                fault = error
                faults += 1
                if job.refusal is None and faults >= self._settings.jobs.fault_attempts:
                    self._refuse(job, Refusal("machine", f"{error} ({faults} attempts)"))
                    continue
            except Exception as error:
                log.exception("offset %d: unexpected error", job.record.offset)
                fault = error
                unexpected += 1
                if job.refusal is None and unexpected >= self._settings.jobs.attempts:
                    self._refuse(job, Refusal("internal", f"{type(error).__name__}: {error}"))
                    continue
            else:
                return
            await self._wait_for_next(partition, state, job, attempt, fault, wait_seconds)
            attempt += 1
            wait_seconds = min(
                wait_seconds * 2, self._settings.jobs.retry_seconds * MAX_BACKOFF_FACTOR
            )

    async def _attempt(self, job: Job, attempt: int) -> None:
        """Do the job once; if it turns out to be impossible, refuse it."""
        record = job.record
        if job.refusal is None:
            try:
                await self._handler.handle(record, attempt, self._turn(job))
            except InputError as error:
                self._refuse(job, Refusal(error.code, str(error)))
        if job.refusal is not None:
            code, text = job.refusal.code, job.refusal.text
            await self._handler.refuse(record, code=code, text=text, attempts=attempt)

    async def _wait_for_next(
        self,
        partition: TopicPartition,
        state: Taken,
        job: Job,
        attempt: int,
        fault: Exception,
        wait_seconds: float,
    ) -> None:
        """Wait before the next attempt, so that other jobs may have their turn."""
        record = job.record
        log.warning("offset %d: %s; trying again in %.0f s", record.offset, fault, wait_seconds)
        with contextlib.suppress(MachineError):
            await self._handler.retrying(record, attempt, fault)
        job.is_waiting = True
        job.is_ending = job.refusal is not None
        self._commit_due = True
        await asyncio.sleep(wait_seconds)
        # Polled, as a job has many ways to end.
        while any(other.suspect and other.is_active for other in self._jobs()):  # noqa: ASYNC110
            await asyncio.sleep(POLL_MS / 1000)
        job.is_waiting = False
        self._away.discard(job)
        if not job.is_junk:
            await self._commit_start(partition, state)

    async def _join(self) -> None:
        """Wait for jobs that had their turn, still polling; not for other attempts to come."""
        loop = asyncio.get_running_loop()
        end = loop.time() + _JOIN_SHARE * self._settings.service.grace_seconds
        while any(job.is_ending and job.is_active for job in self._jobs()) and loop.time() < end:
            await self._poll(accepting=False)

    async def _terminate(self) -> None:
        """Cancel all jobs and wait for their end."""
        tasks = [job.task for job in self._jobs() if job.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._cancelled, return_exceptions=True)

    async def _commit(
        self, partitions: Mapping[TopicPartition, Taken], *, last: bool = False
    ) -> bool:
        """Commit what is done, and the starts of what is not; return whether Kafka has it.

        With `last`, running jobs will not end with this process, so their starts do not count.
        """
        assert self._consumer is not None
        async with self._committing:
            if self._rebalancing and not last:
                return False
            offsets = {}
            for partition, state in list(partitions.items()):
                low_water = state.low_water()
                # A partition may have been lost, or lost and regained, since the job began.
                if low_water is None or self._partitions.get(partition) is not state:
                    continue
                entry = (low_water, state.metadata(without_running=last))
                if entry != state.committed:
                    offsets[partition] = OffsetAndMetadata(*entry)
            if not offsets:
                return not self._rebalancing
            try:
                await self._consumer.commit(offsets)
            except KafkaError as error:
                # The group has moved on: whoever has the partition now does the job again.
                log.info("offsets were not committed (%r)", error)
                return False
            for partition, entry in offsets.items():
                partitions[partition].committed = (entry.offset, entry.metadata)
            return True

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Commit once more, with the starts of running jobs taken back. The jobs go on."""
        del revoked  # always all of them
        if not self._rebalancing:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_COMMIT_SECONDS):
                    await self._commit(self._partitions, last=True)
        self._rebalancing = True

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Cancel the jobs of lost partitions, keep those that stayed, learn what others counted."""
        assert self._consumer is not None
        own = set(assigned)
        try:
            self._cancel_lost(own)
            self._partitions |= await self._learn(own - self._partitions.keys())
            for partition, state in self._partitions.items():
                state.committed = None
                # New partitions too: while `_learn` waited, their first records may have been
                # polled and dropped.
                if state.next_offset is not None:
                    self._consumer.seek(partition, state.next_offset)
                else:
                    await self._consumer.seek_to_beginning(partition)
        except Exception as error:  # noqa: BLE001 - aiokafka would only log it
            self._failure = error
            return
        self._rebalancing = False
        self._commit_due = True
        self._commit_at = 0.0
        self._say_whether_ready()
        names = ", ".join(f"{partition.topic}[{partition.partition}]" for partition in sorted(own))
        log.info("partitions: %s", names or "none")

    def _cancel_lost(self, own: set[TopicPartition]) -> None:
        """Forget the partitions that are not `own` any more, and cancel their jobs."""
        for partition in self._partitions.keys() - own:
            state = self._partitions.pop(partition)
            for job in state.jobs.values():
                if job.task is not None:
                    # Not awaited: a thread may take a while to end, and the group waits for this.
                    job.task.cancel()
                    self._cancelled.add(job.task)
                    job.task.add_done_callback(self._cancelled.discard)

    async def _learn(self, partitions: set[TopicPartition]) -> dict[TopicPartition, Taken]:
        """Read what was committed. aiokafka's consumer gives no metadata, its admin client does."""
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
        assert self._consumer is not None
        ends = await self._consumer.end_offsets(list(partitions))
        learned = {}
        for partition in partitions:
            entry = committed.get(partition)
            # Nothing was committed yet, or that was before the topic was made again.
            if entry is None or not 0 <= entry.offset <= ends[partition]:
                learned[partition] = Taken(None, {})
            else:
                learned[partition] = Taken(entry.offset, starts_of(entry.metadata))
        return learned
