"""Plug-and-play steering of a decoder-only model (PPLM, Dathathri et al. 2020, "Plug and play
language models", arXiv:1912.02164): before each new token the keys and values of the text so far
are moved a little, so that what comes next has an attribute, and stays likely for the model itself.

    bag = steer.Bag.of(lm.vocab, ["planet", "rocket", "orbit"])
    steer.steered(lm, ["The"], [bag], steer.Steering(step=0.03, window=5, fusion=0.99))

An attribute is a bag of words (the probability of its words is raised) or a linear head on the mean
hidden state (the probability of a class is). Several are added up, each with its weight.
"""

from flaxlm.steer.attributes import Attribute, Bag, Head
from flaxlm.steer.fit import fit_head, mean_hidden
from flaxlm.steer.run import steered
from flaxlm.steer.settings import Steering

__all__ = ["Attribute", "Bag", "Head", "Steering", "fit_head", "mean_hidden", "steered"]
