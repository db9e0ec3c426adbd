"""flaxlm: pretraining in JAX/Flax, TPU first."""

__version__ = "0.1.0"


def load(path, *, model=None, compute=None):
    """A model with parameters and vocabulary, of a run directory or a Hugging Face folder: see
    `flaxlm.lm.load`, which this is.
    """
    from flaxlm import lm  # jax is imported by those alone who need it

    return lm.load(path, model=model, compute=compute)
