"""A small T5 v1.1, span corruption on a Korean text of yours: minutes on a laptop.

Command   python -m flaxlm.train --experiment tiny_t5_ko --data.sources.0.uri=text:FILE
Hardware  2 CPU cores, nothing to download.
Data      A long text file (it is cut into documents of 65,536 characters); "lines:FILE" takes
          every line for a document, "jsonl:FILE" every record. The vocabulary is trained on it:
          4,000 unigram pieces, rare syllables left to bytes.
Measured  5 minutes beside other work, on 690,000 characters of petitions: text tokens 6.21 nat held
          out, 0.25 nat under their unigram entropy.
"""

from dataclasses import replace

from experiments.t5_span import experiment as english
from flaxlm.data.spec import Source, Vocabulary

experiment = replace(
    english,
    model=english.model.clone(size=replace(english.model.size, vocab=4224)),
    data=replace(
        english.data,
        sources=(Source("text:korean.txt"),),
        vocabulary=Vocabulary(size=4000, coverage=0.9995),
    ),
)
