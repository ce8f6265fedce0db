"""Runs inside OpenVINO GenAI's own environment: `python genai_child.py MODEL THREADS REPETITIONS`.

Prints one JSON object: test -> tokens per second of every repetition. Prefill is the prompt's tokens over
the time to the first token; prompts are random and different each time, so that none is found in a cache.
"""

import json
import sys

import numpy as np
import openvino
import openvino_genai

PROMPTS = (128, 512)
GENERATE = 64


def main(model: str, threads: int, repetitions: int) -> None:
    pipeline = openvino_genai.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=threads)
    rng = np.random.default_rng(0)

    def generate(prompt: int, new: int) -> openvino_genai.PerfMetrics:
        ids = rng.integers(100, 30000, (1, prompt)).astype(np.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.do_sample, config.ignore_eos = new, False, True
        return pipeline.generate(inputs, config).perf_metrics

    found = {}
    for prompt in PROMPTS:
        generate(prompt, 1)
        times = [generate(prompt, 1).get_ttft().mean for _ in range(repetitions)]  # milliseconds
        found[f"pp{prompt}"] = [prompt / (ms / 1e3) for ms in times]
    times = [generate(1, GENERATE + 1).get_tpot().mean for _ in range(repetitions)]
    found[f"tg{GENERATE}"] = [1e3 / ms for ms in times]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
