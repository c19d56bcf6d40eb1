"""The states of jobs against a plain model of them: whatever happens, in whichever order."""

from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from living import emptied
from making import drawn, new

from limner.serve.jobs import ATTEMPTS, Failure, Job, State
from limner.serve.store import Store

BACK = st.sampled_from([0, 0, 0, 1])  # how many attempts too old the caller is
QUEUED, RUNNING, DONE, FAILED, CANCELLED = State


@dataclass
class Modelled:
    """What must be true of a job."""

    owner: str
    shape: str
    state: State = QUEUED
    attempts: int = 0
    strikes: int = 0
    cancel: bool = False
    pictures: int = 0
    ended: Job | None = None  # as the store had it when it ended, which is for ever


class Jobs(RuleBasedStateMachine):
    """Owners submit and cancel; workers claim, draw, die, wake up again and speak of old attempts."""

    jobs = Bundle("jobs")
    store: Store  # one for all examples: opening one takes longer than most of them

    def __init__(self) -> None:
        super().__init__()
        emptied(self.store, self.store.pictures)
        self.model: dict[str, Modelled] = {}

    @rule(target=jobs, owner=st.sampled_from("abc"), shape=st.sampled_from("xy"), cost=st.floats(0.1, 100))
    def submit(self, owner: str, shape: str, cost: float) -> str:
        job, _ = self.store.submit(new(owner=owner, shape=shape, cost=cost), most_waiting=1000)
        self.model[job.id] = Modelled(owner, shape)
        return job.id

    @rule(most=st.integers(1, 4))
    def claim(self, most: int) -> None:
        waiting = self.of(QUEUED)
        head = {self.store.get(id).position: id for id in waiting}.get(1)
        claimed = self.store.claim("w", most)
        assert [job.id for job in claimed[:1]] == ([head] if waiting else [])
        if claimed:
            alike = [id for id in waiting if self.model[id].shape == claimed[0].shape]
            assert len(claimed) == min(most, len(alike))
        for job in claimed:
            modelled = self.model[job.id]
            assert modelled.state is QUEUED
            modelled.state = RUNNING
            modelled.attempts += 1
            assert (job.attempts, job.shape) == (modelled.attempts, claimed[0].shape)

    @rule(id=jobs)
    def cancel(self, id: str) -> None:
        modelled = self.model[id]
        job = self.store.cancel(id, modelled.owner)
        if not modelled.state.terminal:
            modelled.cancel = True
        if modelled.state is QUEUED:
            modelled.state = CANCELLED
        assert job.state is modelled.state

    @rule(id=jobs, back=BACK, pictures=st.integers(0, 2))
    def finish(self, id: str, back: int, pictures: int) -> None:
        modelled = self.model[id]
        made = [drawn(job=id, index=index) for index in range(pictures)]
        said = self.store.finish(id, modelled.attempts - back, made, range(pictures))
        assert said == self.ends(modelled, back, DONE)
        if said and modelled.ended is None:
            modelled.pictures = pictures

    @rule(id=jobs, back=BACK)
    def fail(self, id: str, back: int) -> None:
        modelled = self.model[id]
        said = self.store.fail(id, modelled.attempts - back, Failure(code="hung", message="it hung"))
        assert said == self.ends(modelled, back, FAILED)

    @rule(id=jobs, back=BACK)
    def cancelled(self, id: str, back: int) -> None:
        modelled = self.model[id]
        asked = modelled.cancel or (modelled.state is RUNNING and back == 0)
        assert self.store.cancelled(id, modelled.attempts - back) == self.ends(modelled, back, CANCELLED)
        modelled.cancel = asked

    @rule(id=jobs, back=BACK, blame=st.booleans())
    def give_back(self, id: str, back: int, blame: bool) -> None:
        modelled = self.model[id]
        if modelled.state is RUNNING and back == 0:
            self.returns(modelled, blame)
        assert self.store.give_back(id, modelled.attempts - back, "x", blame=blame) is modelled.state

    @rule()
    def recover(self) -> None:
        running = self.of(RUNNING)
        for id in running:
            self.returns(self.model[id], True)
        assert self.store.recover() == running

    @rule(id=jobs, share=st.floats(0, 1))
    def progress(self, id: str, share: float) -> None:
        modelled = self.model[id]
        runs = modelled.state is RUNNING
        assert self.store.progress(id, modelled.attempts, share, "drawing") == runs
        if runs:
            assert self.store.get(id).progress == share

    @invariant()
    def everything_is_as_it_must_be(self) -> None:
        listed = {job.id: job for job in self.store.listed(None, limit=500)}
        assert listed.keys() == self.model.keys()
        for id, modelled in self.model.items():
            job = listed[id]
            assert (job.state, job.attempts, job.cancel) == (
                modelled.state,
                modelled.attempts,
                modelled.cancel,
            )
            assert (job.ended is not None) == job.state.terminal
            assert (job.failure is not None) == (job.state is FAILED)
            assert len(job.pictures) == modelled.pictures
            if modelled.ended is not None:
                assert job == modelled.ended
            elif job.state.terminal:
                modelled.ended = job
        positions = [job.position for job in listed.values() if job.position is not None]
        assert sorted(positions) == list(range(1, len(self.of(QUEUED)) + 1))

    def of(self, state: State) -> list[str]:
        return [id for id, modelled in self.model.items() if modelled.state is state]

    def ends(self, modelled: Modelled, back: int, state: State) -> bool:
        """Whether this attempt is told that it has ended the job so."""
        if modelled.state is RUNNING and back == 0:
            modelled.state = state
        return modelled.state is state and back == 0

    def returns(self, modelled: Modelled, blame: bool) -> None:
        """A running job that nobody draws any longer."""
        modelled.strikes += blame
        modelled.state = FAILED if modelled.strikes >= ATTEMPTS else QUEUED
        if modelled.cancel:
            modelled.state = CANCELLED


def test_states_of_jobs(sqlite, tmp_path: Path) -> None:
    Jobs.store = Store(sqlite(), tmp_path)
    try:
        Jobs.TestCase.settings = settings(
            max_examples=10,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        Jobs.TestCase().runTest()
    finally:
        Jobs.store.close()
