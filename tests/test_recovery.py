"""Recovery: simulated worlds in which a clone's answer was lost, and what may be concluded in each."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from useapi_voice._models import VoiceInfo
from useapi_voice._recovery import (
    BLIND_CLOCK_TOLERANCE_S,
    CLOCK_TOLERANCE_S,
    FAILURES_TO_GIVE_UP,
    LOOKS_AT,
    LOOKS_TO_PROVE,
    SURELY_OLDER_S,
    Absent,
    Evidence,
    Found,
    Listing,
    ListingFailed,
    Looking,
    Unclear,
    Waiting,
    begin,
    candidates,
    voice_key,
)

NAME = "Zoë"
SENT_T = 1000.0
SENT_AT_MS = 1_787_745_905_000.0
SETTLE_S = 75.0
FAILED = ListingFailed("503", is_final=False)


def evidence(
    *, has_baseline: bool = True, tolerance_s: float = CLOCK_TOLERANCE_S, settle_s: float = SETTLE_S
) -> Evidence:
    """Make the evidence of an attempt that was just sent."""
    return Evidence(NAME, SENT_T, SENT_AT_MS, tolerance_s, has_baseline, settle_s)


def voice(voice_id: str, after_s: float | None = 10.0, name: str | None = NAME) -> VoiceInfo:
    """Make a voice that was created so many seconds after the request left, by the server's clock."""
    create_time = None if after_s is None else SENT_AT_MS + after_s * 1000
    return VoiceInfo(voice_id=voice_id, voice_name=name, create_time=create_time)


def look(
    seen: Sequence[VoiceInfo] | ListingFailed, at_s: float, known: Evidence, claimed: Sequence[str] = ()
) -> object:
    """Look once, so many seconds after the request left."""
    now_t = SENT_T + at_s
    listing = seen if isinstance(seen, ListingFailed) else Listing(seen, now_t)
    return Looking(known).next(listing, set(claimed), now_t)


# --- simulated worlds -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """
    What really happened; times in seconds since the request left.

    `fails` says which lists fail in turn; the last answer goes on for ever. `skew_error_s` is how wrong our idea of the
    server's clock is.
    """

    made_at_s: float | None
    lag_s: float
    begin_s: float
    list_takes_s: float
    fails: tuple[bool, ...]
    final_failure: bool
    has_baseline: bool
    older_s: tuple[float | None, ...]
    is_blind: bool
    skew_error_s: float
    has_create_time: bool
    noise: bool
    has_stranger: bool
    settle_s: float

    @property
    def tolerance_s(self) -> float:
        """How wrong our idea of the server's clock may be."""
        return BLIND_CLOCK_TOLERANCE_S if self.is_blind else CLOCK_TOLERANCE_S

    def evidence(self) -> Evidence:
        """Tell what the client knows."""
        known = evidence(has_baseline=self.has_baseline, tolerance_s=self.tolerance_s, settle_s=self.settle_s)
        return replace(known, sent_at_ms=SENT_AT_MS + self.skew_error_s * 1000)

    def older(self) -> list[VoiceInfo]:
        """Voices of the same name that were there before."""
        # Without a baseline only age can tell them, and age cannot tell what is younger than the clocks' error.
        least_s = 0.001 if self.has_baseline else 2 * self.tolerance_s + 0.001
        return [
            voice(f"older-{index}", None if age_s is None else -max(age_s, least_s))
            for index, age_s in enumerate(self.older_s)
        ]

    def claimed(self) -> set[str]:
        """Voices that are known to be somebody else's."""
        before = {voice_key(older.voice_id) for older in self.older()} if self.has_baseline else set()
        return {"another-job", *before}

    def voices(self, at_s: float) -> list[VoiceInfo]:
        """Answer a list that is asked for now."""
        rows = self.older()
        if self.has_stranger:
            rows.append(voice("stranger", -2 * self.tolerance_s - 1))
        if self.noise:
            rows += [voice("another-job", 5.0), voice("other-name", 5.0, "Ada"), voice("no-name", 5.0, None)]
        if self.made_at_s is not None and at_s >= self.made_at_s + self.lag_s:
            rows.append(voice("user:1-minimax:A-voice:mine", self.made_at_s if self.has_create_time else None))
        return rows


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Draw a world in which a voice, if made, is visible when the remote is said to be done."""
    settle_s = draw(st.sampled_from([0.05, 75.0, 600.0]))
    is_made = draw(st.booleans())
    made_at_s = draw(st.floats(0, settle_s)) if is_made else None
    lag_s = draw(st.floats(0, 1)) * (settle_s - (made_at_s or 0.0))
    is_blind = draw(st.booleans())
    tolerance_s = BLIND_CLOCK_TOLERANCE_S if is_blind else CLOCK_TOLERANCE_S
    return World(
        made_at_s=made_at_s,
        lag_s=max(0.0, min(lag_s, settle_s - (made_at_s or 0.0))),
        begin_s=draw(st.floats(0, 2)) * settle_s,
        list_takes_s=draw(st.floats(0, 30)),
        fails=tuple(draw(st.lists(st.booleans(), max_size=12))) or (False,),
        final_failure=draw(st.booleans()),
        has_baseline=draw(st.booleans()),
        older_s=tuple(draw(st.lists(st.none() | st.floats(0, 1e6), max_size=3))),
        is_blind=is_blind,
        skew_error_s=draw(st.floats(-tolerance_s, tolerance_s)),
        has_create_time=draw(st.booleans()),
        noise=draw(st.booleans()),
        has_stranger=draw(st.booleans()),
        settle_s=settle_s,
    )


@pytest.mark.slow  # many examples
@given(worlds())
@settings(derandomize=True, deadline=None, max_examples=600)
def test_every_world_is_judged_rightly(world: World) -> None:
    """Never another's voice, never Absent for a voice that is there, Unclear only with a reason, and always an end."""
    now_t = SENT_T + world.begin_s
    claimed = world.claimed()
    state: object = begin(world.evidence(), now_t)
    looks = 0
    complete = 0
    asked_t = now_t
    while isinstance(state, Waiting | Looking):
        if isinstance(state, Waiting):
            assert state.until_t > now_t
            assert state.until_t >= SENT_T + LOOKS_AT[0] * world.settle_s
            now_t = state.until_t
            state = state.next()
            continue
        fails = world.fails[min(looks, len(world.fails) - 1)]
        looks += 1
        asked_t = now_t
        seen = (
            ListingFailed("no", is_final=world.final_failure)
            if fails
            else Listing(world.voices(asked_t - SENT_T), asked_t)
        )
        complete += not fails
        now_t += world.list_takes_s
        state = state.next(seen, claimed, now_t)
        assert looks <= len(LOOKS_AT) + len(world.fails) + LOOKS_TO_PROVE + 2 * FAILURES_TO_GIVE_UP
    # Nobody's, perhaps new, and yet too old; or without a date where nobody knows what was there before.
    least_s = SURELY_OLDER_S + 2 * world.tolerance_s
    is_strange = not world.has_baseline and any(age_s is not None and age_s <= least_s for age_s in world.older_s)
    is_doubtful = not world.has_baseline and (None in world.older_s or not world.has_create_time)
    match state:
        case Found(found, others):
            assert world.made_at_s is not None
            assert voice_key(found.voice_id) == "mine"
            assert {voice_key(other.voice_id) for other in others} <= {voice_key(row.voice_id) for row in world.older()}
            assert not {voice_key(other.voice_id) for other in others} & claimed
            assert not others or is_doubtful
        case Absent(known):
            assert world.made_at_s is None
            assert not world.has_stranger
            assert asked_t >= SENT_T + world.settle_s
            assert complete >= known.looks >= LOOKS_TO_PROVE
        case Unclear():
            assert any(world.fails) or is_doubtful or is_strange or world.has_stranger
        case _:
            raise AssertionError(state)


@pytest.mark.parametrize("made_at_s", [0.0, 7.0, 20.0, 59.0, 75.0])
def test_found_at_the_first_look_after_it_is_made(made_at_s: float) -> None:
    """With the default settings a voice is found within a few seconds of being visible."""
    state = begin(evidence(), SENT_T).next()
    now_t = SENT_T + LOOKS_AT[0] * SETTLE_S
    while True:
        rows = [voice("mine", made_at_s)] if now_t >= SENT_T + made_at_s else []
        after = state.next(Listing(rows, now_t), set(), now_t)
        if isinstance(after, Found):
            break
        assert isinstance(after, Waiting)
        now_t, state = after.until_t, after.next()
    assert now_t - (SENT_T + made_at_s) <= max(7.5, 15.0)


# --- when to look -----------------------------------------------------------------------------------------------------


def test_looks_at_the_stated_times() -> None:
    """With 75 s: at 7.5, 15, 22.5, 33.75, 45, 60 and 75 s, and then every 5 s, four failures long."""
    state = begin(evidence(), SENT_T)
    times = []
    for _ in range(12):
        times.append(state.until_t - SENT_T)
        after = state.next().next(FAILED, set(), state.until_t)
        if isinstance(after, Unclear):
            break
        assert isinstance(after, Waiting)
        state = after
    assert times == pytest.approx([7.5, 15, 22.5, 33.75, 45, 60, 75, 80, 85, 90])


@pytest.mark.parametrize(("begin_s", "first_s"), [(0, 7.5), (7, 8), (30, 31), (200, 201)])
def test_begins_soon_but_not_before_a_voice_can_be_there(begin_s: float, first_s: float) -> None:
    """An answer that was lost early is looked after when there can be a voice; one that was lost late, at once."""
    assert begin(evidence(), SENT_T + begin_s).until_t == pytest.approx(SENT_T + first_s)


def test_absence_takes_two_lists_a_pause_apart() -> None:
    """A single list proves nothing, however late it is."""
    first = look([], 200, evidence())
    assert isinstance(first, Waiting)
    assert first.until_t == pytest.approx(SENT_T + 205)
    assert isinstance(look([], 205, first.evidence), Absent)


@pytest.mark.parametrize(("asked_s", "kind"), [(74.9, Waiting), (75.0, Absent)])
def test_absence_counts_from_when_the_list_was_asked_for(asked_s: float, kind: type) -> None:
    """A list that was asked for before the remote was surely done proves nothing, whenever it arrives."""
    known = replace(evidence(), looks=5, proofs=1)
    state = Looking(known).next(Listing([], SENT_T + asked_s), set(), SENT_T + 100)
    assert type(state) is kind


@pytest.mark.parametrize(
    ("failures", "at_s", "is_final", "kind"),
    [
        (0, 200, False, Waiting),
        (FAILURES_TO_GIVE_UP - 2, 200, False, Waiting),
        (FAILURES_TO_GIVE_UP - 1, 200, False, Unclear),
        (0, 74, False, Waiting),
        (0, 8, True, Unclear),
    ],
)
def test_giving_up_on_lists(failures: int, at_s: float, is_final: bool, kind: type) -> None:
    """Lists that fail are asked for again, for as long as the remote may be at work and some time after."""
    known = replace(evidence(), failures=failures)
    state = look(ListingFailed("why", is_final=is_final), at_s, known)
    assert type(state) is kind
    if isinstance(state, Unclear):
        assert (state.reason, state.evidence.failures) == ("why", failures + (at_s >= SETTLE_S))


def test_a_list_that_succeeds_forgives_those_that_failed() -> None:
    """Only failures in a row count."""
    state = look([], 20, replace(evidence(), failures=3))
    assert isinstance(state, Waiting)
    assert (state.evidence.failures, state.evidence.looks) == (0, 1)


# --- which voice ------------------------------------------------------------------------------------------------------


def test_two_candidates() -> None:
    """The newest is kept, and the others are reported."""
    state = look([voice("b", 20), voice("c", 30), voice("a", 10)], 40, evidence())
    assert state == Found(voice("c", 30), (voice("b", 20), voice("a", 10)))


def test_one_voice_listed_twice_is_one() -> None:
    """A list that names one voice twice, in two spellings, makes no surplus of it."""
    state = look([voice("user:1-minimax:A-audio:7"), voice("7")], 40, evidence())
    assert isinstance(state, Found)
    assert (voice_key(state.voice.voice_id), state.others) == ("7", ())


@pytest.mark.parametrize(
    ("row", "fits"),
    [
        (voice("v"), True),
        (voice("v", name=f"  {NAME} "), True),
        (voice("v", name=unicodedata.normalize("NFD", NAME)), True),
        (voice("v", name="zoë"), False),
        (voice("v", name=None), False),
        (voice("v", -CLOCK_TOLERANCE_S), True),
        (voice("v", -CLOCK_TOLERANCE_S - 0.1), False),
        (voice("v", None), True),
        (VoiceInfo(voice_id="v", voice_name=NAME, create_time=0), True),
        (VoiceInfo(voice_id="v", voice_name=NAME, create_time=(SENT_AT_MS - 1e9) / 1000), True),
        (VoiceInfo.model_validate({"voice_id": "v", "voice_name": NAME, "create_time": float("nan")}), True),
        (voice("claimed"), False),
        (voice("user:1-minimax:A-voice:claimed"), False),
    ],
)
def test_which_voices_fit(row: VoiceInfo, fits: bool) -> None:
    """The name must be the same, the age must be right as far as it is told, and nobody else may own it."""
    assert candidates([row], evidence(), {"claimed"}) == ([row] if fits else [])


def test_a_new_voice_that_seems_too_old_proves_nothing() -> None:
    """It may be new and is nobody's: neither adopted, nor taken for absence; only one that is surely old is old."""
    row = voice("v", -1000.0)
    doubtful = look([row], 100, replace(evidence(), looks=5))
    assert isinstance(doubtful, Waiting)
    end = look([row], 100, replace(evidence(), failures=FAILURES_TO_GIVE_UP - 1))
    assert isinstance(end, Unclear)
    assert "seems older" in end.reason
    assert isinstance(look([row], 100, replace(evidence(has_baseline=False), proofs=1)), Waiting)
    row = voice("v", -SURELY_OLDER_S - 1000)
    assert isinstance(look([row], 100, replace(evidence(), proofs=1)), Waiting)
    assert isinstance(look([row], 100, replace(evidence(has_baseline=False), proofs=1)), Absent)
    assert isinstance(look([row], 100, replace(evidence(), proofs=1), ["v"]), Absent)


def test_a_row_without_an_id_is_no_absence() -> None:
    """A voice may be listed before it can be used; another name's row, or a voice that can be, is no matter."""
    now_t = SENT_T + 100
    known = Looking(replace(evidence(), proofs=1))
    doubtful = known.next(Listing([], now_t, [f" {NAME}"]), set(), now_t)
    assert isinstance(doubtful, Waiting)
    assert doubtful.evidence.proofs == 1
    assert isinstance(known.next(Listing([], now_t, ["Ada"]), set(), now_t), Absent)
    assert isinstance(known.next(Listing([voice("v")], now_t, [NAME]), set(), now_t), Found)


@pytest.mark.parametrize("unset", [None, 0, -1, SENT_AT_MS / 1000])
def test_a_voice_without_age_needs_a_baseline(unset: float | None) -> None:
    """It is adopted where the voices before are known; else it may have been there before, and the end is Unclear."""
    row = VoiceInfo(voice_id="v", voice_name=NAME, create_time=unset)
    assert look([row], 40, evidence()) == Found(row, ())
    doubtful = look([row], 40, evidence(has_baseline=False))
    assert isinstance(doubtful, Waiting)
    known = replace(evidence(has_baseline=False), failures=FAILURES_TO_GIVE_UP - 1)
    end = look([row], 100, known)
    assert isinstance(end, Unclear)
    assert "has no create_time" in end.reason


@pytest.mark.parametrize(
    ("voice_id", "key"),
    [
        ("user:1-minimax:A-audio:7", "7"),
        ("user:1-minimax:A-voice:7", "7"),
        ("7", "7"),
        ("", ""),
    ],
)
def test_keys_of_spellings(voice_id: str, key: str) -> None:
    """All documented spellings of one voice's id share a key."""
    assert voice_key(voice_id) == key


def test_times_follow_settle_after_s() -> None:
    """All times are parts of `settle_after_s`, so that a test's tenth of a second works like 75 s."""
    moments: list[Callable[[Evidence], float]] = [
        lambda known: known.settles_t - SENT_T,
        lambda known: begin(known, SENT_T).until_t - SENT_T,
    ]
    for moment in moments:
        assert moment(evidence(settle_s=0.75)) == pytest.approx(moment(evidence()) / 100)
