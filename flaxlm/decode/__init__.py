"""Generation from trained models.

settings   what to generate, and how
cache      a text that grows: the model's keys and values of what stands there
scores     what settings do to the next token's distribution
search     the loop that all ways share
sampling   one token at a time: the most likely, or drawn; sample-and-rank
beams      beam search
prompts    texts into padded batches of a few sizes, and what comes back into texts
full       without a cache, through `objectives.base.Apply`, for a few examples
"""

from flaxlm.decode.full import greedy
from flaxlm.decode.settings import Settings

__all__ = ["Settings", "greedy"]
