"""The model card of an exported run: what it is, how to open it, scores, recipe."""

from __future__ import annotations

import json
from pathlib import Path

from hgrnx.report.tables import summary_markdown

_HEADER = """---
language: en
library_name: transformers
pipeline_tag: text-generation
tags:
- hgrnx
- babylm
- {architecture}
---

# {run}
"""

_OPEN = """```python
import hgrnx.models.hub  # or: from_pretrained(..., trust_remote_code=True)
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```"""


def model_card(run_dir: Path, architecture: str, folder_name: str) -> str:
    """``README.md`` for the Hugging Face folder of a finished run, in Markdown with its header of tags.

    Raises:
        UserError: the run has no scores yet, or its files are damaged.
    """
    environment = json.loads((run_dir / "environment.json").read_text(encoding="utf-8"))
    recipe = (run_dir / "recipe.yaml").read_text(encoding="utf-8")
    return f"""{_HEADER.format(architecture=architecture, run=run_dir.name)}
Trained with hgrnx {environment["versions"]["hgrnx"]} on the dataset with hash `{environment["data_hash"][:16]}`.

{_OPEN.format(folder=folder_name)}

A text is scored as it was trained: after the BOS token, each line with a space before it.

## Scores

{summary_markdown({run_dir.name: run_dir})}

## Recipe

```yaml
{recipe}```
"""


def milestone_card(run_dir: Path, architecture: str, revision: str, words: int) -> str:
    """``README.md`` for the weights of a run as they were after ``words`` words, in Markdown."""
    return f"""{_HEADER.format(architecture=architecture, run=run_dir.name)}
`{revision}`: the weights after {words:,} words seen in training. The last ones, with recipe and scores, are the
revision `main`.
"""
