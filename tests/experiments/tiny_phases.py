"""`tiny_span` with rows that grow on the way."""

from dataclasses import replace

from experiments.tiny_span import experiment as base

from flaxlm.data.spec import Phase

experiment = replace(base, data=replace(base.data, phases=(Phase(20, 48, 16), Phase(40, 48, 8))))
