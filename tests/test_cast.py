"""Who and what a small world is made of: splits that share nothing, and what is missing is said."""

import os
from pathlib import Path

import pytest

from gamut.data import sources
from gamut.evals.cast import Cast, recorded_orders
from gamut.io.env import shipped

DATA = Path(os.environ.get("GAMUT_DATA", "/nowhere"), "speech")
recordings = pytest.mark.skipif(
    not (DATA / "fsdd_8k.npz").exists() or not (DATA / "coffee_commands_16k.parquet").exists(),
    reason="needs recordings: set GAMUT_DATA to a folder with speech/fsdd_8k.npz and coffee_commands_16k.parquet",
)


@recordings
def test_nothing_is_learned_that_is_examined():
    train, test = (Cast.of(split, voice="theo", fold=3) for split in ("train", "test"))
    assert train.names[0] == "theo" and set(train.names) == set(test.names)
    assert not {clip.name for clip in train.spoken} & {clip.name for clip in test.spoken}
    names = [{clip.name for clip in cast.orders.clips} for cast in (train, test)]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 530
    folds = [{clip.name for clip in recorded_orders().fold(fold)[1].clips} for fold in range(5)]
    assert sum(map(len, folds)) == 530 and len(set.union(*folds)) == 530


@recordings
def test_a_person_left_out_is_nowhere():
    train, test = (Cast.of(split, voice="jackson", without="theo") for split in ("train", "test"))
    for cast in (train, test):
        assert set(cast.names) == {"george", "jackson", "lucas", "nicolas", "yweweler"}
        assert {clip.speaker for clip in cast.world.digits.clips} == set(cast.names)
        assert [voice.name for voice in cast.people] == list(cast.names)
    with pytest.raises(ValueError, match="nobody to leave out is called 'jackson'; there are george, lucas, nicolas"):
        Cast.of("train", voice="jackson", without="jackson")


@recordings
def test_every_voice_can_be_found_and_spoken_in():
    cast = Cast.of("train", voice="lucas")
    codec = cast.codec(shipped("weights/step_audio_2_codec"))
    assert list(codec.voices) == ["lucas"] and [voice.name for voice in cast.people] == list(cast.names)
    found = {call: cast.tools.tools["audio_search"].run(query=call) for call in ("a man with a Greek accent",)}
    assert "Greek" in found["a man with a Greek accent"].text
    assert [schema["function"]["name"] for schema in cast.schemas] == [
        "calculator", "date_and_time", "audio_search", "order"]  # fmt: skip


@recordings
def test_without_orders_there_is_no_counter(monkeypatch, tmp_path):
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / "fsdd_8k.npz").symlink_to(DATA.resolve() / "fsdd_8k.npz")
    monkeypatch.setenv("GAMUT_DATA", str(tmp_path))
    recorded_orders.cache_clear()
    with pytest.warns(UserWarning, match=r"nothing about coffee: speech/coffee_commands_16k\.parquet is not under"):
        cast = Cast.of("test")
    recorded_orders.cache_clear()
    assert cast.orders is None and cast.menu == {} and len(cast.schemas) == 3
    assert cast.origin == f"{sources.digits('test').origin} (CC BY-SA 4.0)"
