from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from edgellm.cli.app import main
from edgellm.cli.run import model_and_prompt
from edgellm.errors import EdgeError
from edgellm.hub import packs
from tests.e2e.tiny_model import CONTEXT, vocabulary, write_tiny_gguf

GREEDY = ["--temp", "0", "--executor", "reference"]


@pytest.fixture
def run_json(json_of):
    return lambda *arguments, **more: json_of("run", *arguments, **more)


def test_json_has_the_fields_of_the_contract(run_json, tiny):
    found = run_json(tiny, "hello", "-n", "8", *GREEDY)
    assert isinstance(found["text"], str)
    assert len(found["tokens"]) == 8
    assert all(isinstance(token, int) for token in found["tokens"])
    assert found["stop_reason"] == "length"
    # <|im_start|> u s e r \n hello <|im_end|> \n <|im_start|> a s s i s t a n t \n
    assert found["prompt_tokens"] == 1 + 3 + 1 + 1 + 1 + 1 + 1 + 9 + 1
    timings = found["timings"]
    assert set(timings) == {
        "load_s",
        "ttft_s",
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
    }
    assert all(value > 0 for value in timings.values())


def test_text_is_streamed_to_standard_output_alone(edgellm, run_json, tiny):
    expected = run_json(tiny, "hello", "-n", "8", *GREEDY)["text"]
    process = edgellm("run", tiny, "hello", "-n", "8", *GREEDY)
    assert process.stdout.removesuffix("\n") == expected.removesuffix("\n")
    assert process.stderr == ""


def test_verbose_tells_paths_and_timings_on_standard_error(edgellm, tiny):
    process = edgellm("run", tiny, "hello", "-n", "4", "-v", *GREEDY)
    assert "NumPy float32, dequantised from Q8_0: token_embd.weight and 15 more" in process.stderr
    assert "chat template applied" in process.stderr
    assert "tokens/s" in process.stderr


def test_greedy_repeats_itself_and_ignores_the_seed(run_json, tiny):
    first, second = (run_json(tiny, "hello", "-n", "16", "--seed", seed, *GREEDY) for seed in (1, 2))
    assert first["tokens"] == second["tokens"]


def test_a_seed_fixes_the_samples_and_another_changes_them(run_json, tiny):
    def tokens(seed):
        options = ["--executor", "reference", "--temp", "1.5", "--top-k", "0", "--seed", seed]
        return run_json(tiny, "hello", "-n", "16", *options)["tokens"]

    assert tokens(7) == tokens(7)
    assert tokens(7) != tokens(8)


def test_without_a_seed_the_one_drawn_is_told(run_json, tiny):
    options = ["-n", "16", "--executor", "reference", "--temp", "1.5"]
    first = run_json(tiny, "hello", *options)
    assert first["tokens"] == run_json(tiny, "hello", *options, "--seed", first["seed"])["tokens"]


def test_a_stop_string_ends_the_text_before_it(run_json, tiny):
    text = run_json(tiny, "hello", "-n", "24", *GREEDY)["text"]
    stop = text[4:6]
    found = run_json(tiny, "hello", "-n", "24", "--stop", stop, "--stop", "never this", *GREEDY)
    assert found["text"] == text[: text.index(stop)]
    assert found["stop_reason"] == "stop"


def test_the_end_token_ends_the_turn_and_is_not_part_of_it(run_json, tiny):
    bias = f"{vocabulary().index('<|im_end|>')}=1000"
    found = run_json(tiny, "hello", "--logit-bias", bias, *GREEDY)
    assert (found["text"], found["tokens"], found["stop_reason"]) == ("", [], "end_of_turn")
    assert found["timings"]["decode_tokens_per_second"] is None


def test_logit_bias_forbids_a_token(run_json, tiny):
    first = run_json(tiny, "hello", "-n", "1", *GREEDY)["tokens"][0]
    found = run_json(tiny, "hello", "-n", "1", "--logit-bias", f"{first}=-inf", *GREEDY)
    assert found["tokens"] != [first]


def test_a_full_context_ends_the_run(run_json, tiny):
    found = run_json(tiny, "hello", "-n", "1000", "--raw", "--ctx", "12", *GREEDY)
    assert found["stop_reason"] == "context"
    assert found["prompt_tokens"] + len(found["tokens"]) == 12 + 1  # the last one needs no place


def test_raw_leaves_the_template_out(run_json, tiny):
    assert run_json(tiny, "hello world", "-n", "1", "--raw", *GREEDY)["prompt_tokens"] == 2


def test_a_model_without_template_continues_the_prompt(run_json, tmp_path):
    model = write_tiny_gguf(tmp_path / "base.gguf", chat_template=False)
    assert run_json(model, "hello world", "-n", "1", *GREEDY)["prompt_tokens"] == 2


def test_the_system_message_is_part_of_the_prompt(run_json, tiny):
    plain = run_json(tiny, "hello", "-n", "1", *GREEDY)["prompt_tokens"]
    told = run_json(tiny, "hello", "-n", "1", "--system", "hello", *GREEDY)["prompt_tokens"]
    assert told == plain + 1 + len("system\n") + 1 + 1 + 1


@pytest.mark.parametrize("words", [["-"], []])
def test_the_prompt_is_read_from_standard_input(run_json, tiny, words):
    expected = run_json(tiny, "hello world", "-n", "4", *GREEDY)
    found = run_json("--model", tiny, *words, "-n", "4", *GREEDY, input="hello world")
    assert found["tokens"] == expected["tokens"]


def test_a_model_file_alone_takes_the_prompt_from_standard_input(run_json, tiny):
    expected = run_json(tiny, "hello world", "-n", "4", *GREEDY)
    assert run_json(tiny, "-n", "4", *GREEDY, input="hello world")["tokens"] == expected["tokens"]


def test_bad_input_is_one_sentence(edgellm, sentence, tiny, tmp_path):
    base = write_tiny_gguf(tmp_path / "base.gguf", chat_template=False)
    truncated = tmp_path / "truncated.gguf"
    truncated.write_bytes(tiny.read_bytes()[:50_000])
    text = tmp_path / "text.gguf"
    text.write_text("not a model")
    cases = [
        ([tiny, ""], "prompt is empty"),
        ([tiny, "-"], "prompt is empty"),
        ([tiny, "hello " * 200], f"longer than the context of {CONTEXT}"),
        ([tiny, "hello", "--ctx", "4"], "longer than the context of 4"),
        ([tiny, "hello", "--ctx", CONTEXT + 1], f"1 to {CONTEXT} tokens"),
        ([tiny, "hello", "--stop", ""], "stop string is empty"),
        ([tiny, "hello", "--logit-bias", "100000=1"], "100000"),
        ([tiny, "hello", "--raw", "--system", "x"], "--system"),
        ([base, "hello", "--system", "x"], "no chat template"),
        ([tmp_path / "missing.gguf", "hello"], "missing.gguf: no such model file"),
        ([truncated, "hello"], "truncated.gguf"),
        ([text, "hello"], "text.gguf"),
    ]
    for arguments, phrase in cases:
        assert phrase in sentence(edgellm("run", *arguments, *GREEDY))


def test_standard_input_that_is_not_text_is_one_sentence(edgellm, tiny):
    process = edgellm("run", tiny, "-", *GREEDY, input=b"\xff\xfe", text=False)
    assert process.returncode == 2
    assert process.stderr.count(b"\n") == 1
    assert b"UTF-8" in process.stderr


def test_a_reader_that_leaves_early_is_no_error(environment, tiny):
    command = [sys.executable, "-m", "edgellm", "run", tiny, "hello", *GREEDY]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_disk_under_standard_output_is_one_sentence(environment, tiny, options):
    command = [sys.executable, "-m", "edgellm", "run", tiny, "hello", *GREEDY, *options]
    with open("/dev/full", "w") as full:
        process = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (process.returncode, process.stderr) == (2, "edgellm: No space left on device.\n")


@pytest.mark.parametrize(
    ("closing", "code", "error"),
    [(">&-", 0, ""), ("<&-", 2, "edgellm: The prompt is empty; give some text.\n")],
)
def test_closed_streams_lead_nowhere(environment, tiny, closing, code, error):
    prompt = "hello" if ">" in closing else ""
    command = f"exec {sys.executable} -m edgellm run -m {tiny} {prompt} {' '.join(GREEDY)} {closing}"
    process = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True)
    assert (process.returncode, process.stdout, process.stderr) == (code, "", error)


def test_without_a_prompt_at_a_terminal_it_is_asked_for(tiny, monkeypatch):
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    for words, model in (([], None), ([str(tiny)], None), ([], "smollm2")):
        with pytest.raises(EdgeError, match="The prompt is missing"):
            model_and_prompt(words, model)


def test_ctrl_c_exits_with_130_and_no_traceback(environment, tmp_path):
    model = write_tiny_gguf(tmp_path / "long.gguf", context=100_000)
    command = [sys.executable, "-m", "edgellm", "run", model, "hello", "-n", "100000", "--ctx", "100000"]
    forbid = [f"--logit-bias={vocabulary().index(name)}=-inf" for name in ("<|im_end|>", "<|endoftext|>")]
    with subprocess.Popen(
        [*command, *forbid, *GREEDY],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout.read(1)  # it has begun
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert errors == b""


def test_cache_that_takes_no_packed_weights_is_one_line_on_standard_error(
    tiny, tmp_path, monkeypatch, capsys
):
    (tmp_path / "packed").touch()
    monkeypatch.setattr(packs, "cache_root", lambda: tmp_path)
    monkeypatch.setenv("EDGELLM_PACKED", "on")
    assert main(["run", str(tiny), "hello", "-n", "2", "--raw", "--verbose"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("compiling")]
    assert "packed weights cannot be kept (file exists), so every start will pack them again" in lines[0]
    assert [line for line in lines if "packed" in line][1:] == ["weights packed into memory (file exists)"]


def test_verbose_tells_where_the_weights_came_from(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(packs, "cache_root", lambda: tmp_path)
    monkeypatch.setenv("EDGELLM_PACKED", "on")
    for _ in range(2):
        assert main(["run", str(tiny), "hello", "-n", "2", "--raw", "--verbose"]) == 0
        assert f"weights mapped from {packs.pack_path(tiny)}\n" in capsys.readouterr().err
    assert main(["inspect", str(tiny)]) == 0
    assert f"packed        {packs.pack_path(tiny)} (" in capsys.readouterr().out
