from __future__ import annotations

import statistics

import pytest

from edgellm.bench import peak_rss_bytes, weight_bytes_per_token
from edgellm.model import load

SMALL = ["-p", "8", "-n", "4", "--repetitions", "3", "--threads", "2"]


def check_contract(found):
    assert [result["test"] for result in found["results"]] == ["pp8", "tg4"]
    for result in found["results"]:
        speed = result["tokens_per_second"]
        assert len(speed["samples"]) == 3
        assert speed["median"] == statistics.median(speed["samples"]) > 0
    assert found["threads"] == 2
    assert found["bandwidth"]["stream_bytes_per_second"] > 1e8
    assert found["memory"]["peak_rss_bytes"] > found["memory"]["weights_bytes"] > 0


def test_json_has_the_fields_of_the_contract(json_of, tiny):
    found = json_of("bench", tiny, *SMALL)
    check_contract(found)
    assert found["model"] == str(tiny)
    assert found["simd"] in ("generic", "avx2", "avx512", "neon")
    # 2 blocks, keys and values, 2 heads of 16, two bytes or more each, 8 positions
    assert found["memory"]["kv_bytes"] >= 2 * 2 * 2 * 16 * 2 * 8
    decode = found["results"][1]["tokens_per_second"]["median"]
    bandwidth = found["bandwidth"]
    assert bandwidth["achieved_bytes_per_second"] == pytest.approx(
        decode * bandwidth["weights_bytes_per_token"]
    )


def test_json_tells_of_each_op_what_bounds_it(json_of, tiny):
    found = json_of("bench", tiny, *SMALL)
    assert found["peak"]["int8_macs_per_second"] > 1e7
    decode, prefill = found["ops"]["decode"], found["ops"]["prefill"]
    assert (decode["tokens"], prefill["tokens"]) == (1, 8)
    for step in (decode, prefill):
        ops = {op["label"]: op for op in step["ops"]}
        assert ops["ffn_down"]["calls"] == 2  # one a layer
        assert ops["norm+quantize"]["calls"] == 5
        assert ops["norm+quantize"]["bound"] is None
        assert 0 < sum(op["mean_seconds"] for op in step["ops"]) <= 1.5 * step["step_seconds"]
    down = {op["label"]: op for op in decode["ops"]}["ffn_down"]
    stream = found["bandwidth"]["stream_bytes_per_second"]
    if down["bound"] == "memory":
        assert down["share"] == pytest.approx(down["weight_bytes"] / stream / down["seconds"])


def test_ops_are_told_to_a_person_who_asks(edgellm, tiny):
    plain, told = (
        edgellm("bench", tiny, *SMALL, *more).stdout for more in ([], ["--ops", "--sequences", "3"])
    )
    assert "ffn_down" not in plain
    assert "decode: " in told
    assert "prefill of 8 tokens: " in told
    assert "decode of 3 sequences: " in told
    assert told.count("ffn_down") == 3


@pytest.mark.parametrize("executor", ["native", "reference"])
def test_several_sequences_are_decoded_at_once(json_of, tiny, executor):
    found = json_of("bench", tiny, *SMALL, "--sequences", "3", "--executor", executor, "--depth", "5")
    assert [result["test"] for result in found["results"]] == ["pp8", "tg4", "tg4x3"]
    together = found["results"][2]["tokens_per_second"]
    assert len(together["samples"]) == 3
    assert together["median"] > 0


def test_the_cache_of_all_sequences_is_counted(json_of, tiny):
    one, three = (
        json_of("bench", tiny, *SMALL, "-p", "0", "--sequences", n)["memory"]["kv_bytes"] for n in (1, 3)
    )
    assert three == 3 * one


def test_the_reference_executor_is_measured_too(json_of, tiny):
    found = json_of("bench", tiny, *SMALL, "--executor", "reference")
    check_contract(found)
    assert found["simd"] == "numpy"
    assert found["ops"] is found["peak"] is None


def test_a_test_of_no_tokens_is_left_out_and_depth_is_told(json_of, tiny):
    found = json_of("bench", tiny, *SMALL, "-p", "0", "--depth", "32", "--executor", "reference")
    assert [(result["test"], result["depth"]) for result in found["results"]] == [("tg4", 32)]


def test_the_table_names_the_tests(edgellm, tiny):
    process = edgellm("bench", tiny, *SMALL, "--executor", "reference")
    assert process.stderr == ""
    assert "pp8" in process.stdout
    assert "tg4" in process.stdout


def test_a_depth_beyond_the_models_context_is_one_sentence(edgellm, sentence, tiny):
    assert "1 to 128 tokens, not 1008" in sentence(edgellm("bench", tiny, *SMALL, "--depth", "1000"))


def test_a_token_needs_every_weight_but_one_row_of_the_embedding(tiny):
    with load(tiny, executor="reference") as model:
        tensors = model.checkpoint.tensors
        rest = sum(tensor.nbytes for name, tensor in tensors.items() if name != "token_embd.weight")
        assert weight_bytes_per_token(model) == rest + 64 // 32 * 34  # Q8_0: 34 bytes for 32 values


def test_peak_memory_grows_with_what_is_touched():
    before = peak_rss_bytes()
    block = b"x" * (before + (64 << 20))  # more than was ever held
    assert before + (32 << 20) < peak_rss_bytes() < before + len(block) + (64 << 20)
