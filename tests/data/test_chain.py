"""Every step of curation can be sent to a worker, and a chain goes on where it stopped."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from limner.data.captions import Clean, Template
from limner.data.chain import all_taken, in_turn
from limner.data.dedup import Dedup, Hash
from limner.data.embeddings import Embed
from limner.data.endpoint import Endpoint
from limner.data.filters import Block, Filter
from limner.data.groups import Group
from limner.data.records import DataSet
from limner.data.rewrite import Rewrite
from limner.data.steps import Step, run, settings_of

STEPS: list[Step] = [
    Filter(block=Block(words=("x",))),
    Hash(),
    Dedup(),
    Embed(),
    Group(),
    Clean(),
    Template(template="a {caption}"),
    Rewrite(endpoint=Endpoint(url="http://localhost/v1", model="m"), journal=Path("answers")),
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_a_step_travels_and_its_settings_are_json(step: Step) -> None:
    assert pickle.loads(pickle.dumps(step)) == step  # noqa: S301 (our own)
    assert settings_of(step) == settings_of(pickle.loads(pickle.dumps(step)))  # noqa: S301


def test_a_chain_that_was_cut_short_goes_on(set_of: Callable[..., DataSet]) -> None:
    data = set_of({"a": Image.new("RGB", (8, 8))}, {"a": " cat "})
    chain: list[Step] = [Clean(), Template(template="a {caption}"), Template(template="see {caption}")]
    list(run(data, chain[0]))
    list(run(data, chain[1]))
    assert not all_taken(data, chain)
    list(in_turn(data, chain))
    assert all_taken(data, chain)
    list(in_turn(data, chain))
    (record,) = data.records()
    assert record.caption == "see a cat"
    assert record.facts["caption_was"] == " cat "
    late = DataSet.open(data.folder)
    list(in_turn(data, chain[:1]))
    list(in_turn(late, chain[:1]))  # sees what was done meanwhile
    assert [step.name for step in data.steps] == ["import", "clean", "template", "template", "clean"]
