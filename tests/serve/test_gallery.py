"""Pictures: searched, starred, rated, removed with their files, uploaded."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from making import drawn, new

from limner.errors import RequestError
from limner.serve.files import keep
from limner.serve.jobs import Conflict, Drawn, NotFound, cursor, new_id
from limner.serve.store import Store

PROMPTS = {
    "cat": "A RED cat on the Straße",
    "dog": "two dogs, 100% blue_ish, in Ⅳ acts",
    "owl": "owl\\night / ÉCLAIR [x]",
    "nul": "zero \0 half \ud83d end",
}


@pytest.fixture
def shown(store: Store) -> dict[str, Drawn]:
    """Pictures of two owners: anna's by the names in PROMPTS, oldest first, the last two not by "mini"."""
    pictures = {}
    for age, (name, prompt) in enumerate(PROMPTS.items()):
        model = "mini" if age < 2 else "sdxl"
        pictures[name] = finished(store, "anna", prompt, 1000.0 + age, model)
    finished(store, "bert", "a red cat of bert", 2000.0, "mini")
    return pictures


def finished(store: Store, owner: str, prompt: str, created: float, model: str = "mini") -> Drawn:
    store.submit(new(owner=owner, model=model), most_waiting=99)
    [job] = store.claim("w")
    picture = drawn(job=job.id, prompt=prompt, created=created)
    assert store.finish(job.id, job.attempts, [picture], [1])
    return picture


def test_search(store: Store, shown: dict[str, Drawn]) -> None:
    searches = {
        "": ["nul", "owl", "dog", "cat"],
        "red": ["cat"],
        "CAT rEd": ["cat"],
        "red dog": [],
        "strasse": ["cat"],
        "STRAẞE": ["cat"],
        "éclair": ["owl"],
        "e\u0301CLAIR": ["owl"],
        "eclair": [],
        "iv": ["dog"],
        "100%": ["dog"],
        "%": ["dog"],
        "r%d": [],
        "_": ["dog"],
        "b_ue": [],
        "\\": ["owl"],
        "/": ["owl"],
        "[x]": ["owl"],
        "'": [],
        "zero \0": ["nul"],
        "\ud83d": ["nul"],
    }
    for search, names in searches.items():
        assert store.gallery("anna", search=search) == [shown[name] for name in names], ascii(search)


def test_filters(store: Store, shown: dict[str, Drawn]) -> None:
    assert len(store.gallery(None)) == 5
    assert store.gallery("carl") == []
    assert store.gallery("anna", model="sdxl") == [shown["nul"], shown["owl"]]
    store.rate(shown["dog"].id, "anna", starred=True)
    assert [picture.id for picture in store.gallery("anna", starred=True)] == [shown["dog"].id]
    assert len(store.gallery("anna", starred=False)) == 3
    assert store.gallery("anna", starred=True, search="cat") == []
    with pytest.raises(RequestError, match="1000 characters at most"):
        store.gallery("anna", search="x" * 1001)
    store.gallery("anna", search="% " * 500)
    with pytest.raises(RequestError, match="place in a list"):
        store.gallery("anna", before="' or 1=1")


def test_the_gallery_goes_on_where_the_page_ended(store: Store) -> None:
    """Also while pictures of one moment are removed and new ones are drawn between two pages."""
    pictures = [finished(store, "anna", "x", created) for created in (5.0, 7.0, 7.0, 7.0, 9.000001)]
    order = sorted(pictures, key=lambda picture: (picture.created, picture.id), reverse=True)
    first = store.gallery("anna", limit=2)
    assert first == order[:2]
    store.remove(first[-1].id, "anna")
    finished(store, "anna", "x", 10.0)
    second = store.gallery("anna", before=cursor(first[-1]), limit=2)
    assert second == order[2:4]
    assert store.gallery("anna", before=cursor(second[-1]), limit=2) == order[4:]
    assert store.gallery("anna", before=cursor(order[4]), limit=2) == []


def test_ratings(store: Store, shown: dict[str, Drawn]) -> None:
    cat = shown["cat"]
    assert store.picture(cat.id) == store.picture(cat.id, "anna") == cat
    starred = store.rate(cat.id, "anna", starred=True)
    assert (starred.starred, starred.rating) == (True, None)
    rated = store.rate(cat.id, "anna", rating=5)
    assert (rated.starred, rated.rating) == (True, 5)
    assert store.rate(cat.id, None) == store.picture(cat.id) == rated
    assert store.gallery("anna", search="red") == [rated]
    assert store.get(cat.job or "").pictures == (rated,)
    assert store.rate(cat.id, "anna", starred=False, rating=0) == cat
    for wrong in (-1, 6, 2**40):
        with pytest.raises(RequestError, match="1 to 5"):
            store.rate(cat.id, "anna", starred=True, rating=wrong)
    assert store.picture(cat.id) == cat
    with pytest.raises(NotFound):
        store.rate(cat.id, "bert", rating=1)
    with pytest.raises(NotFound):
        store.rate("\0", "anna", rating=1)


def test_uploads(store: Store) -> None:
    mine = drawn(job=None, prompt="")
    store.add_upload("anna", mine)
    assert store.picture(mine.id, "anna") == mine
    assert store.gallery("anna") == []
    assert store.files() == {mine.file}
    with pytest.raises(NotFound):
        store.picture(mine.id, "bert")
    with pytest.raises(NotFound):
        store.remove(mine.id, "bert")


def test_a_removed_picture_is_gone_with_its_file(store: Store, shown: dict[str, Drawn]) -> None:
    cat = shown["cat"]
    path = keep(store.pictures, cat.file, b"png")
    with pytest.raises(NotFound):
        store.remove(cat.id, "bert")
    assert path.exists()
    store.remove(cat.id, "anna")
    assert not path.exists()
    assert store.get(cat.job or "").pictures == ()
    for _ in range(2):
        with pytest.raises(NotFound):
            store.remove(cat.id, "anna")
    store.remove(shown["dog"].id, "anna")  # whose file is lost already


def test_a_picture_that_is_needed_stays(store: Store) -> None:
    mine = drawn(job=None)
    store.add_upload("anna", mine)
    job, _ = store.submit(new(request={"prompt": "x", "image": {"picture": mine.id}}), most_waiting=9)
    with pytest.raises(Conflict, match="begins with this picture"):
        store.remove(mine.id, "anna")
    store.claim("w")
    with pytest.raises(Conflict):
        store.remove(mine.id, "anna")
    assert store.finish(job.id, 1, [], [])
    store.remove(mine.id, "anna")


def test_two_pictures_never_share_a_file(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removing one of them would take the other's. What the log says of it names no prompt."""
    from dataclasses import replace

    from limner.errors import LimnerError

    monkeypatch.setattr(logging.getLogger("limner.serve.database"), "disabled", False)  # by other libraries
    caplog.set_level(logging.ERROR, "limner.serve.database")
    mine = drawn(job=None)
    store.add_upload("anna", mine)
    with pytest.raises(LimnerError, match="refused") as told:
        store.add_upload("anna", replace(mine, id=new_id()))
    assert mine.file not in str(told.value)
    assert "refused a statement" in caplog.text
    assert mine.prompt not in caplog.text


def test_pictures_survive_a_restart(open_store: Callable[[], Store], tmp_path: Path) -> None:
    store = open_store()
    picture = finished(store, "anna", "x", 5.0)
    store.rate(picture.id, "anna", starred=True, rating=3)
    store.close()
    [again] = open_store().gallery("anna")
    assert (again.id, again.starred, again.rating) == (picture.id, True, 3)
