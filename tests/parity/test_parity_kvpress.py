"""Parity with NVIDIA's kvpress: what is kept, its keys and values, and what the question reads after it."""

from __future__ import annotations

import pytest
import torch
from published import Case, Golden, close
from synopsis.compressors import compressor_class
from synopsis.compressors.eviction.section import SINKS


@pytest.mark.golden("kvpress*")
def test_streaming_llm(golden: Golden) -> None:
    cases = [case for fixture in golden.folders("kvpress*") for case in golden.cases(fixture).values()]
    chosen = [case for case in cases if case.record["press"] == "StreamingLLMPress" and case.record["kept"] > SINKS]
    assert chosen, "the set has other presses alone"
    for case in chosen:
        _as_published(case)


def _as_published(case: Case) -> None:
    record = case.record
    assert record["arguments"] == {"n_sink": SINKS}
    cls = compressor_class("eviction", case.document("config")["model_type"])
    model = case.model(cls, budget=record["kept"], rerotate=record["rerotated"])
    ids, question = case.shared("context_ids"), case.shared("question_ids")
    with torch.no_grad():
        context = model.compress(ids)
        logits = model(question, context=context).logits
    assert context.next_position.tolist() == [record["question_starts_at"]] * len(ids)
    for layer, (keys, values) in enumerate(zip(context.keys, context.values, strict=True)):
        close(keys, case[f"keys.{layer}"])
        close(values, case[f"values.{layer}"])
    close(logits, case["logits"])
