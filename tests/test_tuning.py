"""Fine-tuning whole and by adapters: what it changes, what it keeps, how it stops and goes on; the recipe's plan."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from importlib import import_module

import pytest
import torch
from test_own import WORDS, asked, write

import gamut
from gamut.api import run as run_recipe
from gamut.cli import main
from gamut.codecs.text import Tokenizer
from gamut.data.own import read_conversations
from gamut.data.own_rows import Own
from gamut.evals.own import answered, learned, read_answer, scored, symbols, taught
from gamut.generate.speaker import How, Speaker, tools_of
from gamut.io.adapters import read_adapter
from gamut.io.convert import export, keys_of
from gamut.io.env import shipped
from gamut.io.folders import TAUGHT, WRITTEN, load_tensors
from gamut.io.media import write_audio
from gamut.io.runs import Run
from gamut.io.source import read, tuned
from gamut.io.tuned import save_tuned
from gamut.models.audio_encoder import AudioEncoderConfig
from gamut.models.lm import LMConfig
from gamut.models.omni import Omni, OmniConfig
from gamut.nn.lora import lora_state
from gamut.plan.omni import MINI, cost
from gamut.recipes.step_audio_2_tune import same_data
from gamut.train.loop import Interrupted
from gamut.train.tuning import finetune, loss, mean_loss, own_data


def model() -> Omni:
    torch.manual_seed(0)
    lm = LMConfig(WORDS.vocab, 32, 2, 2, 1, 16, 48, qkv_bias=True, max_positions=512)
    audio = AudioEncoderConfig(width=16, layers=1, heads=2, ffn=64, positions=1300, edge="closed")
    marks = {f"audio_{name}_id": WORDS.id(f"<audio_{name}>") for name in ("start", "end", "patch")}
    return Omni(OmniConfig(lm, audio, 24, **marks)).eval()


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "data"
    for k in range(6):
        write_audio(home / f"{k}.wav", torch.sin(torch.arange(1600 * (k + 1)) * 0.1) * 0.3, 8000)
    write(home, *(asked(f"{k}.wav", f"number {k}") for k in range(6)))
    return home


def halves(folder, **more) -> tuple[Own, Own]:
    train, test = own_data(read_conversations(folder), lambda some: Own(some, WORDS, tokens=200, **more), 0.34)
    assert test is not None
    return train, test


@pytest.mark.parametrize("rank", [0, 2])
def test_tuning_lowers_the_loss_and_leaves_the_encoder_alone(folder, tmp_path, rank):
    tuned, start, (train, test) = model(), model(), halves(folder)
    run = Run.create(tmp_path / "runs", "tune", {})
    batch = train.batch(0)
    before = loss(tuned, batch)[0].item()
    finetune(tuned, train, test, run, steps=12, lr=3e-2, rank=rank)
    assert loss(tuned, batch)[0].item() < 0.8 * before
    moved = {name for name, weight in tuned.state_dict().items() if not torch.equal(weight, start.state_dict()[name])}
    assert not any(name.startswith("encoder.") for name in moved)
    assert any(name.startswith("adapter.") for name in moved) == (rank == 0) and "lm.blocks.0.attn.q.weight" in moved
    assert "eval/loss" in str(run.curves())
    kept = sorted(file.name for file in run.checkpoints("tune").glob("*/*.safetensors"))
    assert any(name.startswith("adapters") for name in kept) == bool(rank)  # not the frozen weights, too
    if rank:
        start.save_pretrained(tmp_path / "base")
        merged = load_tensors(export(tmp_path / "base", tmp_path / "hf", lora=run.path / "adapter", merge=True))
        torch.testing.assert_close(merged["model.layers.1.mlp.up_proj.weight"], tuned.lm.blocks[1].mlp.up.weight)


@pytest.mark.parametrize("rank", [0, 2])
def test_it_ends_with_the_weights_that_were_best(folder, tmp_path, rank):
    """A model that knows what is held out learns the opposite: the longer the worse, and the first weights are kept."""
    tuned, train = model(), Own(read_conversations(folder), WORDS, tokens=200)
    write(folder, *(asked(f"{k}.wav", "Yes, yes, yes!") for k in range(6)))
    test, run = Own(read_conversations(folder), WORDS), Run.create(tmp_path / "runs", "tune", {})
    finetune(tuned, test, None, None, steps=12, lr=3e-2)
    finetune(tuned, train, test, run, steps=6, lr=3e-2, rank=rank, every=1)
    seen = [value for _, value in run.curves()["tune"]["eval/loss"]]
    assert min(seen) < seen[-1]
    assert mean_loss(tuned, test) == pytest.approx(min(seen), rel=1e-4)


def test_two_processes_that_share_the_weights_tune_as_one_does(folder, tmp_path):
    """The paper's way, the whole decoder, sharded by FSDP2: same losses, same best weights, same answers. The released
    weights are bfloat16, and so is what is saved; what learns is float32."""
    model().bfloat16().save_pretrained(tmp_path / "m", files=WORDS.files())
    asked = {"init": str(tmp_path / "m"), "data": str(folder), "lora_rank": 0, "share": 0.34, "steps": 4, "every": 2,
             "accumulate": 2, "lr": 3e-3, "checkpointing": True}  # fmt: skip
    flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in asked.items()]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "gamut", "run",
               "step_audio_2_tune", "--out", str(tmp_path), "--name", "two", *flags]  # fmt: skip
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    one = run_recipe("step_audio_2_tune", out=tmp_path, name="one", **asked)
    two = json.loads((tmp_path / "two" / "result.json").read_text())["metrics"]
    assert two == pytest.approx(one.metrics, rel=1e-4)
    begun, *ended = (load_tensors(tmp_path / name) for name in ("m", "one/model", "two/model"))
    moved = [name for name in begun if not torch.equal(begun[name], ended[0][name])]
    assert "lm.embed.weight" in moved and not any(name.startswith("encoder.") for name in moved)
    for name, tensor in ended[0].items():
        torch.testing.assert_close(ended[1][name], tensor, rtol=1e-2, atol=1e-5)  # one step of bfloat16 is 0.8 %


def test_packed_rows_weigh_the_same_as_rows_of_their_own(folder):
    """However conversations fall into batches, the gradient of all of them is the same."""
    gradients = []
    for packed, tokens in ((True, 120), (True, 600), (False, 200)):
        one, own = model(), Own(read_conversations(folder), WORDS, tokens=tokens, packed=packed)
        for index in range(own.batches):
            mean, stats = loss(one, own.batch(index))
            (mean * stats["targets"]).backward()
        gradients.append({name: p.grad for name, p in one.named_parameters() if name.startswith(("lm.", "adapter."))})
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rank", [0, 2])
def test_stopped_and_resumed_it_is_the_same_run(folder, tmp_path, rank):
    def tune(run: Run, stop_at: int = 0) -> Omni:
        tuned, calls, (train, test) = model(), [], halves(folder)

        def score() -> dict[str, float]:
            calls.append(1)
            if len(calls) == stop_at:
                os.kill(os.getpid(), signal.SIGINT)
            return {}

        finetune(tuned, train, test, run, steps=6, lr=1e-2, rank=rank, every=1, score=score)
        return tuned

    whole = tune(Run.create(tmp_path, "whole", {}))
    cut = Run.create(tmp_path, "cut", {})
    with pytest.raises(Interrupted):
        tune(cut, stop_at=3)
    assert cut.curves()["tune"]["eval/loss"][-1][0] == 3
    again = tune(Run.open(cut.path))
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in whole.state_dict().items())


def test_an_adapter_on_disk_is_the_one_that_was_trained(folder, tmp_path):
    from gamut.models.adapters import save_lora
    from gamut.nn.lora import add_lora

    one = model()
    one.requires_grad_(False)
    add_lora(one.lm, rank=2)
    config = json.loads(json.dumps({"lm": vars(one.config.lm)}, default=str))
    path = save_lora(one, tmp_path / "a")
    tensors, _ = read_adapter(path, keys_of("Omni", config), config)
    assert all(torch.equal(tensor, lora_state(one)[0][name]) for name, tensor in tensors.items())


def test_answers_are_read_whatever_they_are_made_of():
    def ids(text: str) -> list[int]:
        return WORDS.encode(text)

    spoken = "<tts_start>yes<audio_1><audio_2><audio_3><audio_4><tts_end>"
    call = '<tool_call>function\ncalculator\n{"expression": "3*4"}</tool_call>'
    assert read_answer(ids("<think>\nhm\n</think>\n\nno<|EOT|>"), WORDS, 9) == ("no", [])
    assert read_answer(ids(f"hm\n</think>\n\n{spoken}<|EOT|>"), WORDS, 9) == ("yes", [])
    assert read_answer(ids(spoken.removeprefix("<tts_start>")), WORDS, 9) == ("yes", [])
    assert read_answer(ids(call), WORDS, 9) == ("", [("calculator", '{"expression": "3*4"}')])
    assert read_answer(ids(spoken + call), WORDS, 9) == ("yes", [("calculator", '{"expression": "3*4"}')])
    assert symbols("Two words, \u4e24\u4e2a\u5b57.") == ["two", "words", "\u4e24", "\u4e2a", "\u5b57"]


def test_scores_by_hand(folder):
    one = model()
    answers = answered(one, Own(read_conversations(folder), WORDS), 2, longest=4)
    assert [a.wanted for a in answers] == ["number 0", "number 1"]
    right = [type(a)(a.one, a.wanted, a.wanted, [], []) for a in answers]
    assert scored(right) == {"exact": 1.0, "wer": 0.0}
    half = [right[0], type(right[0])(right[1].one, "number 1", "number 7", [("t", "{}")], [])]
    assert scored(half) == {"exact": 0.5, "wer": 0.25, "calls": 0.0}


def test_paper_size_in_numbers():
    """8,315,179,264 parameters, and what the same arithmetic says of a model that is made."""
    assert cost(MINI)["parameters"] == 8_315_179_264
    small = model()
    config = {"lm": vars(small.config.lm), "audio": vars(small.config.audio), "adaptor_hidden": 24}
    told = cost(config, positions=64, rank=2)
    assert told["parameters"] == sum(p.numel() for p in small.parameters())
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small.lm(torch.zeros(1, 64, dtype=torch.long))
    products = told["write a token, GFLOP"] * 1e9 - 4 * 2 * 16 * 2 * 64
    assert sum(counter.get_flop_counts()["Global"].values()) == pytest.approx(64 * products, rel=0.01)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small.features(torch.zeros(1, 128, 1002), torch.tensor([1000]))
    heard = told["hear a second, GFLOP"] * 1e9 - 4 * 16 * 25 * 50 * 50
    assert sum(counter.get_flop_counts()["Global"].values()) == pytest.approx(10 * heard, rel=0.03)


def test_plan_of_the_released_size_and_of_a_folder(tmp_path, capsys):
    assert main(["run", "step_audio_2", "--data", "nowhere", "--size", "small", "--plan"]) == 0
    assert "8,315,179,264" in capsys.readouterr().out
    model().save_pretrained(tmp_path / "m", files=WORDS.files())
    assert main(["run", "step_audio_2", "--data", "x", "--init", str(tmp_path / "m"), "--plan"]) == 0
    assert f"{sum(p.numel() for p in model().parameters()):,}" in capsys.readouterr().out


def test_data_chooses_the_recipe_that_tunes():
    assert tuned("step-audio-2") == tuned("step_audio_2_tune") == "step_audio_2_tune"
    assert read(tuned("step_audio_2")).name == "step_audio_2_tune"
    with pytest.raises(ValueError, match="recipe rlhfuse takes no data of your own; --data goes with: step_audio_2"):
        run_recipe("rlhfuse", data="x")


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"lora_rank": -1}, {"exam": -1}, {"share": 1.0}, {"every": -2}])
def test_what_no_run_can_be_made_of_is_refused_before_anything_is_loaded(wrong, tmp_path):
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=rf"{name} must be .*; got {name}={value}"):
        run_recipe("step_audio_2_tune", out=tmp_path / "runs", init="not there", data=str(tmp_path), **wrong)
    assert not list((tmp_path / "runs").iterdir())


def test_a_stopped_tuning_goes_on_by_the_command_it_was_started_with(folder, tmp_path, capsys):
    model().save_pretrained(tmp_path / "m", files=WORDS.files())
    asked = ["run", "step_audio_2", "--data", str(folder), "--init", str(tmp_path / "m"), "--out", str(tmp_path)]
    more = ["--steps", "2", "--share", "0.34", "--exam", "0"]
    assert main([*asked, *more]) == 0
    assert main([*asked, *more, "--resume", str(tmp_path / "step_audio_2_tune")]) == 0
    assert "trained before, 2 steps; loaded" in capsys.readouterr().out


def test_any_folder_of_the_model_may_be_planned_from(tmp_path):
    """Ours, inside a run, as released; of another family or nowhere it is said, not planned as if it were mini."""
    ours = model().save_pretrained(tmp_path / "run" / "model", files=WORDS.files())
    official = export(ours, tmp_path / "official")
    for recipe in ("step_audio_2", "step_audio_2_tune"):
        plan = import_module(f"gamut.recipes.{recipe}").plan
        config = import_module(f"gamut.recipes.{recipe}").TINY
        plans = [plan(replace(config, init=str(path))) for path in (ours, tmp_path / "run", official)]
        assert plans[0] == plans[1] == plans[2]
        with pytest.raises(ValueError, match=r"checkpoint folder .*nowhere' not found"):
            plan(replace(config, init="nowhere"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(ValueError, match="holds a qwen3; give a folder of Step-Audio 2"):
        plan(replace(config, init=str(tmp_path / "other")))


def test_what_a_downloaded_folder_holds_besides_stays_there(tmp_path):
    """History, caches and other formats of the weights are not copied; what the model is read and speaks with is."""
    there = ["token2wav/flow.pt", "token2wav/wave/a.yaml", "voices/a.wav", "menu.json", "LICENSE.txt", "merges.txt",
             "kept_back.json"]  # fmt: skip
    other = [".git/objects/1", ".cache/x", ".gitattributes", "model-q4.gguf", "assets/a.png", "modeling.py", "old.bin",
             "token2wav/.cache/x", "voices/.a.wav.tmp", "optimizer/x", "metrics.json"]  # fmt: skip
    init = model().save_pretrained(tmp_path / "m", files=WORDS.files())
    for name in there + other:
        (init / name).parent.mkdir(parents=True, exist_ok=True)
        (init / name).write_text(name)
    one = model()
    save_tuned(tmp_path / "t", "Omni", asdict(one.config), one.state_dict(), init, {TAUGHT: "{}"}, "A card.")
    made = {str(file.relative_to(tmp_path / "t")) for file in (tmp_path / "t").rglob("*") if file.is_file()}
    assert made == {*there, *WORDS.files(), "config.json", "README.md", "model.safetensors", TAUGHT}
    assert Tokenizer.from_pretrained(tmp_path / "t").vocab == WORDS.vocab
    assert gamut.load(tmp_path / "t").config == one.config


def test_one_request_answered_in_two_ways_is_said(folder):
    """In whatever order the lines stand, chat asks for what is more frequent."""
    spoken, wrote = asked("0.wav", [{"type": "audio", "file": "1.wav", "text": "yes"}]), asked("0.wav", "no")
    for lines, aloud in (([spoken, wrote, wrote], False), ([wrote, spoken, spoken], True)):
        for some in (lines, lines[::-1]):
            write(folder, *some)
            with pytest.warns(UserWarning, match="under one request the data is answered aloud and in writing"):
                [how] = taught(read_conversations(folder), shipped("weights/step_audio_2")).values()
            assert how["aloud"] is aloud


def test_a_small_model_is_asked_as_its_own_data_did(tmp_path, folder):
    """Without a request where there was none; with tools only where they are those that it is loaded with."""
    init, lamp = shipped("weights/step_audio_2"), {"type": "function", "function": {"name": "lamp", "parameters": {}}}
    four = tools_of(init).schemas
    lines = [asked("0.wav", "x", tools=tools) for tools in (four, [lamp], four[:1])]
    names = ["Ours.", [{"type": "text", "text": "Lamp"}, {"type": "text", "text": "s."}], "Fewer."]
    for line, name in zip(lines, names, strict=True):
        line["messages"][0]["content"] = name
    spoken = {"messages": [{"role": "system", "content": [{"type": "audio", "file": "0.wav"}]},
                           *asked("0.wav", "x")["messages"][1:]]}  # fmt: skip
    write(folder, *lines, {"messages": asked("0.wav", "x")["messages"][1:]}, spoken)
    with pytest.warns(UserWarning, match=r"has tools that are not those of '.*step_audio_2': calculator, lamp; "):
        files = learned(read_conversations(folder), init)
    speaker = Speaker.load(init)
    assert speaker.how() == How("Say the sum of the two numbers.")
    speaker = replace(speaker, taught=json.loads(files[TAUGHT]))
    assert {name: speaker.taught[name]["tools"] for name in ("Ours.", "Lamps.", "Fewer.", "")} == {
        "Ours.": True, "Lamps.": False, "Fewer.": False, "": False}  # fmt: skip
    assert speaker.how() == How("", aloud=False, tools=False) and speaker.how("Ours.").tools
    with pytest.raises(ValueError, match=r"(?s)'Sing\.'; --system must be one of.*Fewer\.\n  \(nothing\)$"):
        speaker.how("Sing.")


def test_a_large_model_is_asked_as_its_own_data_did(tmp_path, folder):
    """It takes any request, and writes where its data wrote more often than it spoke."""
    def line(system: str, aloud: bool) -> dict:
        answer = [{"type": "audio", "file": "1.wav", "text": "yes"}] if aloud else "no"
        messages = asked("0.wav", answer)["messages"][1:]
        return {"messages": [*([{"role": "system", "content": system}] if system else []), *messages]}

    init = tmp_path / "m"
    model().save_pretrained(init, files=WORDS.files() | {WRITTEN: '["Before.", "Say."]'})
    write(folder, line("Write.", False), line("Say.", True), line("Both.", True), line("Both.", False), line("", False))
    found = json.loads(learned(read_conversations(folder), init)[WRITTEN])
    assert found == ["", "Before.", "Write."]
    (init / WRITTEN).write_text(json.dumps(found))
    speaker = Speaker.load(init)
    assert [speaker.how(name).aloud for name in ("", "Write.", "Say.", "Both.", "Sing.")] == [False, False, *3 * [True]]


def test_a_run_says_what_changed_and_refuses_other_data(folder, tmp_path):
    model().save_pretrained(tmp_path / "m", files=WORDS.files())
    options = {"init": str(tmp_path / "m"), "data": str(folder), "steps": 2, "exam": 0, "share": 0.34, "lora_rank": 2}
    result = gamut.run("step_audio_2", out=tmp_path / "runs", name="mine", **options)
    assert {"loss", "loss/before", "wer", "exact/before"} <= result.metrics.keys()
    report = (result.run / "report.html").read_text()
    assert "What was held out" in report and "number" in report
    assert {"adapter", "best", "data.json", "model"} <= {file.name for file in result.run.iterdir()}
    assert gamut.load(result.run).config == model().config
    assert main(["eval", str(result.run)]) == 0
    assert gamut.run(resume=result.run).metrics == result.metrics  # nothing is trained again
    write(folder, *(asked(f"{k}.wav", f"number {k}") for k in range(5)))
    with pytest.raises(ValueError, match="the data changed since this run began: 4 conversations of"):
        gamut.run(resume=result.run)


def test_changed_words_and_sounds_are_other_data(folder, tmp_path):
    """As long as before, in what is learned or what is held out; the folder may have moved."""

    def check(run: Run, home=folder) -> None:
        same_data(*halves(home), run, init)

    init = tmp_path / "m"
    model().save_pretrained(init)
    run, clip = Run.create(tmp_path / "runs", "mine", {}), (folder / "0.wav").read_bytes()
    lines = [asked(f"{k}.wav", f"number {k}") for k in range(6)]
    check(run)
    check(run, shutil.copytree(folder, tmp_path / "moved"))
    for changed in range(6):
        write(folder, *lines[:changed], asked(f"{changed}.wav", "number 9"), *lines[changed + 1 :])
        with pytest.raises(ValueError, match=r"run began: 4 conv.*, with other words or sounds, held out or not; put"):
            check(run)
    write(folder, *lines)
    (folder / "0.wav").write_bytes(clip + bytes(2))
    with pytest.raises(ValueError, match="with other words or sounds"):
        check(run)
    (folder / "0.wav").write_bytes(clip)
    check(run)
    other = model()
    other.lm.norm.weight.data[0] += 1
    other.save_pretrained(init)
    with pytest.raises(ValueError, match=r"the weights in '.*' changed since this run began; put them back"):
        check(run)


def test_a_changed_transcript_is_other_data(folder, tmp_path):
    (folder / "conversations.jsonl").unlink()
    model().save_pretrained(tmp_path / "m")
    run = Run.create(tmp_path / "runs", "mine", {})
    for number, home in ((12, folder), (12, tmp_path / "moved"), (34, folder)):
        (folder / "transcripts.csv").write_text("file,text\n" + f"0.wav,{number}\n" + "1.wav,one\n2.wav,two\n")
        if home != folder:
            shutil.copytree(folder, home)
        with pytest.raises(ValueError, match="with other words or sounds") if number == 34 else nullcontext():
            same_data(*halves(home), run, tmp_path / "m")
