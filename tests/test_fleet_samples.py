"""Samples that travel with the jobs of a fleet: through the database, or through a directory that all hosts share."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest
from fleets import CHILD, Bench, Place, a_store, ask, database, opened, place, run_sql, workers
from harness import wav
from stored import a_job, a_voice, send

from useapi_voice import CloneRefused, CloneRequest, ConfigurationError, StoreError, VoiceClient
from useapi_voice._jobs import Fingerprint, Job, JobState, advance, ending_of
from useapi_voice.stores import _contents, _fleet_sql, postgres
from useapi_voice.stores._contents import MARK, InDatabase, InDirectory
from useapi_voice.stores.postgres import PostgresStore

__all__ = ["database", "place"]

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

CONTENT = b"one content"
SHA = hashlib.sha256(CONTENT).hexdigest()
LONG_AGO = time.time() - 10 * 24 * 3600


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Give a directory that all hosts share."""
    directory = tmp_path / "shared"
    directory.mkdir()
    return directory


@pytest.fixture(autouse=True)
def untidy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each sweep be one, and have no patience with what nobody needs."""
    monkeypatch.setattr(postgres, "TIDY_AFTER_S", -1.0)
    monkeypatch.setattr(_contents, "ROW_GRACE_S", 0.0)


def needs(seq: int, content: bytes = CONTENT) -> Job:
    """Make a job that needs a content."""
    job = a_job(seq, sample=content)
    job.fingerprints = (Fingerprint("a.wav", hashlib.sha256(content).hexdigest(), len(content), None),)
    return job


def submit(store: PostgresStore, content: bytes = CONTENT) -> Path:
    """Copy a content to where the store wants it, as the intake does, and return where that is."""
    assert store.spool_directory is not None
    path = Path(store.spool_directory, hashlib.sha256(content).hexdigest())
    path.write_bytes(content)
    return path


def grow_old(*paths: Path) -> None:
    """Make files old."""
    for path in paths:
        os.utime(path, (LONG_AGO, LONG_AGO))


async def end(store: PostgresStore, job: Job) -> None:
    """End a job."""
    told = asyncio.Event()
    advance(job, ending_of(a_voice(job.seq)))
    store.settled(job, a_voice(job.seq), told.set)
    await told.wait()


def names(directory: Path) -> set[str]:
    """Return the contents that a directory has."""
    return {entry.name for entry in directory.iterdir()} - {MARK}


# --- a directory that all share ---------------------------------------------------------------------------------------


async def test_jobs_travel_with_files_of_a_shared_directory(
    place: Place, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Submitted here, made elsewhere: a content is one file, the database has none, and all are gone in the end."""
    monkeypatch.setattr(_contents, "FILE_GRACE_S", 0.0)
    requests = [
        CloneRequest(voice_name=f"voice {n}", language_tag="English", samples=[wav(tone=n % 3)]) for n in range(6)
    ]
    async with place.client(work=False, sample_directory=shared) as api:
        with workers(2, **place.options, **CHILD, sample_directory=str(shared)):
            jobs = await api.submit_many(requests)
            assert len(names(shared)) == 3
            rows = run_sql(place.url, "SELECT size_bytes, content IS NULL AS is_bare FROM useapi_voice.samples")[0]
            assert [(row["size_bytes"], row["is_bare"]) for row in rows] == [(len(wav()), True)] * 3
            for job in jobs:
                await job
    place.check([f"voice {n}" for n in range(6)])
    async with opened(place.url, sample_directory=str(shared)) as store:
        await store.tidy()
    assert names(shared) == set()
    assert run_sql(place.url, "SELECT * FROM useapi_voice.samples") == [[]]


@pytest.mark.parametrize("harm", ["gone", "altered", "replaced"])
async def test_a_file_that_is_not_what_it_was_fails_its_job_alone(place: Place, shared: Path, harm: str) -> None:
    """The job says so in the words of a changed sample; another job goes on."""
    async with place.client(work=False, sample_directory=shared) as api:
        bad, good = await api.submit_many(
            [CloneRequest(voice_name=f"of {n}", language_tag="English", samples=[wav(tone=n)]) for n in (1, 2)]
        )
        path = shared / hashlib.sha256(wav(tone=1)).hexdigest()
        if harm == "gone":
            path.unlink()
        else:
            path.write_bytes(wav(tone=9) if harm == "replaced" else b"noise")
        with workers(1, **place.options, **CHILD, sample_directory=str(shared)):
            assert (await good).voice_name == "of 2"
            with pytest.raises(CloneRefused, match="a sample is no longer what was submitted") as raised:
                await bad
    if harm == "replaced":
        assert "has other content than when it was submitted" in str(raised.value)
    place.check(["of 2"])


async def test_all_processes_mean_one_directory(database: str, shared: Path, tmp_path: Path) -> None:
    """Who has none, or another, is refused, and told what to do; the fleet goes on as it was."""
    other = tmp_path / "other"
    other.mkdir()
    for _ in range(2):
        async with opened(database, sample_directory=str(shared)):
            pass
    with pytest.raises(ConfigurationError, match="was given none: pass sample_directory"):
        await a_store(database).open()
    with pytest.raises(ConfigurationError, match=r"other' is not the directory that the fleet shares.*mounted"):
        await a_store(database, sample_directory=str(other)).open()
    with pytest.raises(ConfigurationError, match="nowhere' is no directory"):
        a_store(database, sample_directory=str(tmp_path / "nowhere"))
    (other / MARK).write_text("another", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="belongs to another fleet"):
        await a_store(database, sample_directory=str(other)).open()
    (shared / MARK).unlink()
    (shared / MARK).mkdir()
    with pytest.raises(ConfigurationError, match="shared' cannot be used: Is a directory"):
        await a_store(database, sample_directory=str(shared)).open()


async def test_a_fleet_that_keeps_samples_in_the_database_goes_on_so(database: str, shared: Path) -> None:
    """One replica cannot change that alone; the error names the way."""
    async with opened(database):
        with pytest.raises(ConfigurationError, match="fleet samples reset"):
            await a_store(database, sample_directory=str(shared)).open()
    assert names(shared) == set()
    assert not (shared / MARK).exists()


def test_a_sample_directory_needs_a_fleet(tmp_path: Path) -> None:
    """Without a fleet store it means nothing, and an empty one is none; both are said at once."""
    for store in (None, tmp_path / "jobs.db"):
        with pytest.raises(ConfigurationError, match="store='postgresql://"):
            VoiceClient("user:1-token", store=store, sample_directory=tmp_path)
    with pytest.raises(ConfigurationError, match="sample_directory is empty"):
        VoiceClient("user:1-token", store="postgresql://nowhere/fleet", sample_directory="")


async def test_a_copy_that_is_gone_or_damaged_refuses_the_submit(database: str, shared: Path) -> None:
    """Nothing is accepted that nobody could make; submitted again, it is."""
    async with opened(database, sample_directory=str(shared)) as store:
        with pytest.raises(StoreError, match=r"is gone; .*submit again"):
            await store.add([needs(1)])
        submit(store).write_bytes(CONTENT[:-1])
        with pytest.raises(StoreError, match=f"is damaged: it has {len(CONTENT) - 1} bytes, not {len(CONTENT)}"):
            await store.add([needs(2)])
        submit(store)
        await store.add([needs(3)])
        assert [job.seq async for job in store.jobs(None)] == [3]


async def test_a_sweep_leaves_what_a_job_needs_or_somebody_just_submitted(database: str, shared: Path) -> None:
    """A file goes when its last job has ended, it is old, and no row of it was touched lately."""
    async with opened(database, sample_directory=str(shared)) as store:
        path = submit(store)
        one, two = needs(1), needs(2)
        await store.add([one, two])
        grow_old(path)
        await end(store, send(one))
        await store.tidy()
        assert names(shared) == {SHA}
        await end(store, send(two))
        os.utime(path)
        await store.tidy()
        assert names(shared) == {SHA}
        grow_old(path)
        await store.tidy()
        assert names(shared) == set()


async def test_a_row_whose_file_is_gone_is_swept_too(database: str, shared: Path) -> None:
    """Somebody tidied up by hand."""
    async with opened(database, sample_directory=str(shared)) as store:
        path, job = submit(store), needs(1)
        await store.add([job])
        await end(store, send(job))
        path.unlink()
        await store.tidy()
    assert run_sql(database, "SELECT * FROM useapi_voice.samples") == [[]]


async def test_files_of_which_nobody_knows_are_swept_after_an_hour(database: str, shared: Path) -> None:
    """What a process left behind that died before its job was kept, and what was never written to the end."""
    old, partial, young = (shared / name for name in ("a" * 64, "b" * 64 + ".1234.partial", "c" * 64))
    foreign = shared / "notes.txt"
    async with opened(database, sample_directory=str(shared)) as store:
        for path in (old, partial, young, foreign):
            path.write_bytes(b"")
        needed = submit(store)
        grow_old(old, partial, foreign, needed)
        await store.add([needs(1)])
        await store.tidy()
        assert names(shared) == {young.name, foreign.name, SHA}
        grow_old(young)
        await store.tidy()
        assert young.exists(), "it looks for these once an hour"
    assert [row["sha256"] for row in run_sql(database, "SELECT sha256 FROM useapi_voice.samples")[0]] == [SHA]


async def test_a_directory_that_is_not_mounted_is_not_swept(database: str, shared: Path) -> None:
    """Without its mark nothing is taken for gone, and the error does not blame the database."""
    async with opened(database, sample_directory=str(shared)) as store:
        job = needs(1)
        submit(store)
        await store.add([job])
        await end(store, send(job))
        (shared / MARK).unlink()
        with pytest.raises(StoreError, match="samples cannot be swept"):
            await store.tidy()
    assert len(run_sql(database, "SELECT * FROM useapi_voice.samples")[0]) == 1


async def test_an_add_that_meets_a_sweep_waits_and_does_not_lose_its_file(
    database: str, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The sweep of one host holds the row while it deletes the file; the other's `add` goes on after it, finds the file
    gone, and says so. No job is accepted without its file.
    """
    is_deleting, may_delete = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    unlink_all = InDirectory._unlink_all

    def delete_when_told(self: InDirectory, shas: Any) -> None:
        if shas:
            loop.call_soon_threadsafe(is_deleting.set)
            asyncio.run_coroutine_threadsafe(may_delete.wait(), loop).result()
        unlink_all(self, shas)

    monkeypatch.setattr(InDirectory, "_unlink_all", delete_when_told)
    options = {"sample_directory": str(shared)}
    async with opened(database, **options) as one, opened(database, **options) as other:
        path, job = submit(one), needs(1)
        await one.add([job])
        await end(one, send(job))
        grow_old(path)
        sweep = asyncio.create_task(one.tidy())
        await is_deleting.wait()
        add = asyncio.create_task(other.add([needs(2)]))
        await wait_for_lock(database)
        assert not add.done()
        may_delete.set()
        await sweep
        with pytest.raises(StoreError, match=r"is gone; .*submit again"):
            await add
        submit(other)
        await other.add([needs(3)])
        assert names(shared) == {SHA}
        await one.tidy()
        assert names(shared) == {SHA}


async def wait_for_lock(url: str) -> None:
    """Wait until some statement waits for a row that another holds."""
    waits = "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    while not (await asyncio.to_thread(run_sql, url, waits))[0][0]["n"]:
        await asyncio.sleep(0)


@pytest.mark.parametrize("is_shared", [False, True])
async def test_a_sweep_overlooks_what_is_being_added(database: str, shared: Path, is_shared: bool) -> None:
    """A sample whose row an `add` holds is left alone, as its job is there in a moment."""
    options = {"sample_directory": str(shared)} if is_shared else {}
    async with opened(database, **options) as store, store.database.borrow() as connection:
        job = needs(1)
        grow_old(submit(store))
        await store.add([job])
        await end(store, send(job))
        async with connection.transaction():
            await connection.fetch(_fleet_sql.TOUCH_SAMPLES, [SHA])
            await store.tidy()
    assert len(run_sql(database, "SELECT * FROM useapi_voice.samples")[0]) == 1


# --- in the database --------------------------------------------------------------------------------------------------


async def test_a_sample_that_is_swept_before_its_job_is_kept_is_put_there_again(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uploading a large batch may take longer than a sweep is patient."""
    put, times = InDatabase.put, []

    async def put_and_lose(self: InDatabase, sizes: Any) -> None:
        await put(self, sizes)
        times.append(1)
        if len(times) == 1:
            run_sql(database, "DELETE FROM useapi_voice.samples")

    monkeypatch.setattr(InDatabase, "put", put_and_lose)
    async with opened(database) as store:
        submit(store)
        await store.add([needs(1)])
        await store.tidy()
        assert len(times) == 2
    assert run_sql(database, "SELECT content FROM useapi_voice.samples")[0][0]["content"] == CONTENT


async def test_copies_are_here_no_longer_than_they_are_needed(database: str) -> None:
    """Neither who submits for weeks nor who works for weeks fills its disk."""
    async with opened(database) as store:
        path = submit(store)
        async with asyncio.TaskGroup() as tasks:
            for seq in (1, 2):
                tasks.create_task(store.add([needs(seq)]))
        assert not path.exists()
        job = needs(3)
        await store.add([job])
        for holder in ("one", "two"):
            await store.fetch_samples(job, "north", holder)
        copy = Path(store.locate(SHA))
        assert copy.read_bytes() == CONTENT
        store.let_go_samples("one")
        assert copy.exists()
        store.let_go_samples("two")
        assert not copy.exists()
        store.let_go_samples("nobody")
        store.uploaded("north", SHA, "file")
        await store.flush()
        await store.fetch_samples(job, "north", "three")
        assert not copy.exists(), "it is uploaded, so nobody reads it"


async def test_a_sample_that_cannot_be_read_or_written_is_no_fault_of_the_database(database: str) -> None:
    """A copy that is gone before it was kept, and a disk that takes no copy, say so; nothing else is held up."""
    async with opened(database) as store:
        with pytest.raises(StoreError, match=r"cannot be kept: submit it again \(No such file"):
            await store.add([needs(1)])
        submit(store)
        await store.add([needs(2)])
        Path(store.locate(SHA)).parent.rmdir()
        with pytest.raises(StoreError, match="a sample cannot be copied"):
            await store.fetch_samples(needs(2), "north", "any")


async def test_a_sample_that_nobody_has_is_left_for_the_upload_to_miss(database: str) -> None:
    """The row is gone, against all promises: nothing is put here, and the job's own look says what is wrong."""
    async with opened(database) as store:
        await store.fetch_samples(needs(1), "north", "any")
        assert not Path(store.locate(SHA)).exists()


# --- the schema -------------------------------------------------------------------------------------------------------

OUR_TABLES = ("settings", "jobs", "accounts", "uploads", "samples", "replicas")
ADD_AS_VERSION_1 = """
    INSERT INTO useapi_voice.jobs (seq, id, key, state, priority, account, pinned, voice_name, payload, attempts, shas)
    SELECT seq, id, key, state, priority, account, pinned, voice_name, payload, attempts, shas
    FROM jobs_of_version_2
"""


async def test_a_fleet_of_version_1_is_brought_up_to_date_and_goes_on(place: Place) -> None:
    """Its waiting jobs and their samples are all there, and are made; its samples stay in the database."""
    async with place.client(work=False) as api:
        await api.submit_many([ask(f"voice {n}") for n in range(3)], keys=["0", "1", "2"])
    # The engine's own tables stay.
    run_sql(
        place.url,
        "CREATE TABLE jobs_of_version_2 AS SELECT * FROM useapi_voice.jobs",
        "CREATE TABLE samples_of_version_2 AS SELECT * FROM useapi_voice.samples",
        *(f"DROP TABLE useapi_voice.{name}" for name in OUR_TABLES),
        "DROP SEQUENCE useapi_voice.job_numbers",
        *_fleet_sql.MIGRATIONS[0],
        "INSERT INTO useapi_voice.settings (version, cap) VALUES (1, 2)",
        ADD_AS_VERSION_1,
        "INSERT INTO useapi_voice.samples (sha256, content) SELECT sha256, content FROM samples_of_version_2",
        "SELECT setval('useapi_voice.job_numbers', 3)",
    )
    async with place.client() as client:
        for key in ("0", "1", "2"):
            job = await client.find(key)
            assert job is not None
            await job
    settings = run_sql(place.url, "SELECT version, samples_in, mark FROM useapi_voice.settings")[0][0]
    assert (settings["version"], settings["samples_in"]) == (len(_fleet_sql.MIGRATIONS), "database")
    assert run_sql(place.url, "SELECT size_bytes FROM useapi_voice.samples")[0][0]["size_bytes"] == len(wav())
    place.check([f"voice {n}" for n in range(3)])


async def test_a_worker_adopts_jobs_with_their_samples_at_hand(database: str) -> None:
    """What a claim brings has its sample here until the job leaves."""
    bench = Bench()
    async with opened(database, bench, accounts=["north", "south"]) as store:
        submit(store)
        job = needs(1)
        await store.add([job])
        await bench.until(lambda: bench.adopted)
        (adopted, account, _), *_ = bench.adopted
        copy = Path(store.locate(SHA))
        assert (adopted.id, account, copy.read_bytes()) == (job.id, job.pinned, CONTENT)
        await store.sent(send(adopted))
        store.freed(adopted)
        await end(store, adopted)
        while copy.exists():
            await asyncio.sleep(0)
    assert adopted.state is JobState.CLONED
