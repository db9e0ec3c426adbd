"""Prompts: tasks put as texts, answered by a language model as it is.

builtin       forms of GPT-2, GPT-3, T5 and decaNLP for the tasks here
promptsource  templates in promptsource's files (`pip install 'flaxlm[prompts]'`)
fields        the fields of an example by the names that such files use
sandbox       their Jinja, which can read the example and nothing else
contexts      examples in front of a question, as many as fit
rank          which candidate a model finds likeliest
evaluate      a task through templates and seeds, as a table
chain         chains of thought, and the answer that most of them come to

`flaxlm.objectives.templates` has the plain template and what it makes of an example.
"""

from flaxlm.objectives.templates import Asked, Template

__all__ = ["Asked", "Template"]
