from __future__ import annotations

import numpy as np
import torch

from hgrnx.evaluation.scoring import score_tokens
from hgrnx.models import LanguageModel


def test_long_rows_are_scored_in_parts_of_the_head(model: LanguageModel) -> None:
    row = np.random.default_rng(0).integers(0, model.vocab_size, 1500)
    with torch.no_grad():
        log_probs = model(torch.tensor(row[None, :-1]))[0].double().log_softmax(-1)
    wanted = float(log_probs.gather(1, torch.tensor(row[1:, None])).sum())
    np.testing.assert_allclose(score_tokens(model, [row], batch_tokens=64), [wanted], rtol=1e-5)
