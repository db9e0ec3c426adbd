"""The cases of the goldens of generation, without torch: prompts and settings. Models and weights
are those of the sizes "c" of gpt_cases.py, t5_cases.py and bart_cases.py.
"""

import numpy as np

FAMILIES = ("gpt2", "t5_v1_0", "t5_v1_1", "bart")
LIMIT = 20  # new tokens
START = 2  # of decoders
# As both sides call them.
SETTINGS = {
    "greedy": dict(),
    "beams": dict(num_beams=4),
    "beams_early": dict(
        num_beams=4, early_stopping=True, length_penalty=2.0, no_repeat_ngram_size=2
    ),
    "beams_never": dict(
        num_beams=4, early_stopping="never", length_penalty=0.5, repetition_penalty=1.4
    ),
    "greedy_controlled": dict(repetition_penalty=1.2, no_repeat_ngram_size=3, min_new_tokens=6),
}


def prompts(count: int = 50) -> list[list[int]]:
    """Random ids of 1, 4, 9, 16 and 25 tokens in turn."""
    rng = np.random.default_rng(5)
    return [rng.integers(10, 130, (number % 5 + 1) ** 2).tolist() for number in range(count)]
