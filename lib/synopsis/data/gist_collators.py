"""Batches of instruction rows for gist models: `GistCollator` for decoders, `GistSeq2SeqCollator` for T5.

    collator = GistCollator(tokenizer, num_gist_tokens=2, max_length=512)
    batch = collator([{"instruction": "Name a city.", "input": "", "output": "Paris"}])
    loss = model(**batch).loss
    collator.dropped, collator.truncated        # what did not fit, counted over all batches of this process

There are two ways from text to ids, `tokenization=`:

- "clean", the default: instruction, input and output are tokenised each by itself, and the gist ids are put between
  them, so that a text has the same ids with and without gist tokens before it. Gist tokens are never cut off, only
  "human" rows get the human lengths, and a text that was cut has no end token.
- "published": the ids of the published collators under transformers 4.28.1, quirks included, to repeat or continue a
  published run. The gist token is text and takes or leaves the white space around it as the tokenizers of 2023 did
  (`published_tokenization`). One "human" row gives the whole batch the human lengths. Decoders: a row whose prompt and
  output have other ids when tokenised in one piece is left out (check_correctness). T5: the source is tokenised,
  decoded and tokenised again, and then cut where its length ends, even before the gist tokens.

Arguments have the published names and values. Models here make their masks from the gist ids; with "published",
masks=True adds the published masks exactly: a decoder's attention masks hold the *padding id* at padding, and
neg_control's cross mask is 1 there. Otherwise a mask is 1 at tokens and 0 at padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from synopsis.compressors.masks import CONDITIONS, gist_span, seen
from synopsis.data.prompts import GIST_TOKEN, gist_prompt, instruction_part, texts_of
from synopsis.data.published_tokenization import FastPublishedText, PublishedText, SlowPublishedText
from synopsis.data.sequences import IGNORED, begins_with_bos, encode, gist_prompt_ids, padded
from synopsis.errors import DataError, InputError

TOKENIZATIONS = ("clean", "published")


class Texts(NamedTuple):
    """A row whose columns have been looked at."""

    name: str
    instruction: str
    input: str
    output: str
    human: bool


# ------------------------------------------------------------------------------------------------------------- masks


def published_mask(input_ids: Tensor, gist_token: int, condition: str) -> Tensor:
    """The published gist mask, (batch, 1, length, length) of 0 and 1, without causality and padding.

    Positions up to the last gist token see nothing after it; of a decoder causality would hide that too. Gist tokens
    that stand apart are taken as they come.
    """
    if condition == "pos_control":
        return seen(input_ids, gist_token, condition).long()
    _, last = gist_span(input_ids, gist_token, together=False)
    after = torch.arange(input_ids.shape[1]) > last[:, None]  # (B, T)
    later = after[:, None, :, None] | ~after[:, None, None, :]
    return (seen(input_ids, gist_token, condition, together=False) & later).long()


# --------------------------------------------------------------------------------------------------------- collators


@dataclass
class _Collator:
    """What both collators share.

    num_gist_tokens: 1 or more; gist_condition: "gist", "pos_control" or "neg_control", which only the masks depend
    on; add_gist_token=False leaves the gist tokens out. InputError when the tokenizer has no gist or end-of-text token.
    """

    tokenizer: PreTrainedTokenizerBase
    num_gist_tokens: int = 1
    gist_condition: str = "gist"
    tokenization: str = "clean"
    add_gist_token: bool = True
    masks: bool = False
    dropped: int = field(default=0, init=False)
    """Rows left out so far."""
    truncated: int = field(default=0, init=False)
    """Rows that were kept and cut so far."""

    def __post_init__(self) -> None:
        for name, allowed in (("tokenization", TOKENIZATIONS), ("gist_condition", CONDITIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r}; expected one of {', '.join(allowed)}")
        if self.masks and self.tokenization == "clean":
            raise ValueError("masks belong to tokenization='published': models make theirs from the gist ids")
        if self.num_gist_tokens < 1:
            raise ValueError(f"num_gist_tokens {self.num_gist_tokens}; expected 1 or more")
        self.published = self.tokenization == "published"
        self.gist_count = self.num_gist_tokens if self.add_gist_token else 0
        self.gist_token: int = self.tokenizer.get_vocab().get(GIST_TOKEN, -1)
        if self.gist_token < 0:
            raise InputError(f"the tokenizer {self.tokenizer.name_or_path} has no token {GIST_TOKEN}: add it first")
        if self.tokenizer.eos_token_id is None:
            raise InputError(f"the tokenizer {self.tokenizer.name_or_path} has no end-of-text token")
        self.end: int = self.tokenizer.eos_token_id
        pad = self.tokenizer.pad_token_id
        self.pad: int = self.end if pad is None else pad

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        texts = self._texts(rows)
        examples = []
        for row in texts:
            example = self._example(row, any(other.human for other in texts) if self.published else row.human)
            self.dropped += example is None
            examples += [] if example is None else [example]
        if not examples:
            names = ", ".join(row.name for row in texts)
            raise DataError(f"no row can be used ({names}): outputs are empty{self._unusable()}")
        return self._batch(examples)

    def _example(self, row: Texts, human: bool) -> Any:
        """What `_batch` needs of a row, None where it is left out; counts a row that is cut."""
        raise NotImplementedError

    def _batch(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        raise NotImplementedError

    def _unusable(self) -> str:
        return ""

    def _texts(self, rows: Sequence[Mapping[str, Any]]) -> list[Texts]:
        found = []
        for index, row in enumerate(rows):
            name = f"row {row['id']}" if "id" in row else f"row {index} of the batch"
            values = texts_of({"input": None, **row}, name)
            # The published text may hold the gist token as it comes; between ids it would break the mask unnoticed.
            named = [column for column, text in values.items() if GIST_TOKEN in text and not self.published]
            if named:
                raise DataError(
                    f"{name}: column '{named[0]}' holds the gist token {GIST_TOKEN} as text, which would break the "
                    "mask; leave the row out or spell it otherwise"
                )
            found.append(Texts(name, **values, human="human" in str(row.get("split", ""))))
        if not found:
            raise DataError("the batch has no rows")
        return found


@dataclass
class GistCollator(_Collator):
    """Rows to a batch for a decoder, padded on the left: input_ids, labels and attention_mask, all (batch, length).

    Labels are the output and its end, -100 elsewhere. A row whose output is empty or lies wholly beyond max_length
    tokens is left out. "published" also gives prompt_* and completion_* (input_ids, attention_mask), which are never
    cut, and leaves out rows by check_correctness; masks=True adds attention_mask_gist (batch, 1, length, length).
    Raises DataError, naming row and column, for a row that is not text, and when no row of the batch is left.
    """

    max_length: int = 512
    max_length_human: int | None = 768
    check_correctness: bool = True
    """Only "published" asks it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.start = [self.tokenizer.bos_token_id] if begins_with_bos(self.tokenizer) else []
        if self.published:
            self.text: PublishedText = SlowPublishedText(self.tokenizer, self.gist_token)

    def _unusable(self) -> str:
        check = ", or fail check_correctness" if self.published and self.check_correctness else ""
        return f", beyond {self.max_length} tokens{check}"

    def _example(self, row: Texts, human: bool) -> tuple[list[int], list[int], int] | None:
        limit = self.max_length_human if human and self.max_length_human is not None else self.max_length
        prompt, output = self._published_parts(row) if self.published else self._clean_parts(row)
        if not output or len(prompt) >= limit:
            return None
        self.truncated += len(prompt) + len(output) > limit
        return prompt, output, limit

    def _published_parts(self, row: Texts) -> tuple[list[int], list[int]]:
        """Prompt and output; no output where they do not fit together."""
        text = gist_prompt(row.instruction, row.input, self.gist_count)
        prompt = self.start + self.text.encode(text)
        output = [*self.text.encode(row.output), self.end]
        joint = [*self.start, *self.text.encode(f"{text} {row.output}"), self.end]
        return prompt, [] if self.check_correctness and joint != prompt + output else output

    def _clean_parts(self, row: Texts) -> tuple[list[int], list[int]]:
        prompt = gist_prompt_ids(row._asdict(), self.tokenizer, self.gist_token, self.gist_count)
        return prompt, [*encode(self.tokenizer, " " + row.output), self.end] if row.output.strip() else []

    def _batch(self, examples: Sequence[tuple[list[int], list[int], int]]) -> dict[str, Tensor]:
        whole = [(prompt + output)[:limit] for prompt, output, limit in examples]
        labels = [([IGNORED] * len(prompt) + output)[:limit] for prompt, output, limit in examples]
        batch = self._ids_and_mask("", whole) | {"labels": padded(labels, IGNORED, "left")}
        if self.published:
            batch |= self._ids_and_mask("prompt_", [prompt for prompt, _, _ in examples])
            batch |= self._ids_and_mask("completion_", [output for _, output, _ in examples])
        for part in ("", "prompt_") if self.masks else ():
            ids = batch[f"{part}input_ids"]
            batch[f"{part}attention_mask_gist"] = published_mask(ids, self.gist_token, self.gist_condition)
        return batch

    def _ids_and_mask(self, part: str, ids: Sequence[list[int]]) -> dict[str, Tensor]:
        mask = padded([[1] * len(row) for row in ids], self.pad if self.masks else 0, "left")
        return {f"{part}input_ids": padded(ids, self.pad, "left"), f"{part}attention_mask": mask}


@dataclass
class GistSeq2SeqCollator(_Collator):
    """Rows to a batch for T5, padded on the right: input_ids and attention_mask (batch, S), labels (batch, T).

    The source is instruction, gist tokens, input and end; the labels are the output and its end, -100 at padding.
    decoder_start_token_id adds decoder_input_ids, the labels moved on by one. masks=True gives attention_mask as
    (batch, S, S) for gist and neg_control, and cross_attention_mask (batch, S). "clean" leaves out rows without an
    output and cuts a long source at the end of the input, then of the instruction. slow_tokenizer: "published" repeats
    T5Tokenizer instead of T5TokenizerFast, which the published runs had. Raises as GistCollator does.
    """

    max_source_length: int = 128
    max_target_length: int = 256
    max_source_length_human: int | None = 384
    max_target_length_human: int | None = 384
    pad_to_multiple_of: int = 1
    decoder_start_token_id: int | None = None
    slow_tokenizer: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        shortest = min(self.max_source_length, self.max_source_length_human or self.max_source_length)
        if not self.published and shortest < self.gist_count + 2:
            raise ValueError(
                f"{shortest} tokens of source hold no text beside {self.gist_count} gist tokens and the end"
            )
        if self.published:
            rules = SlowPublishedText if self.slow_tokenizer else FastPublishedText
            self.text: PublishedText = rules(self.tokenizer, self.gist_token)

    def _example(self, row: Texts, human: bool) -> tuple[list[int], list[int]] | None:
        longest, most = self.max_source_length, self.max_target_length
        if human:
            longest, most = self.max_source_length_human or longest, self.max_target_length_human or most
        before, after = instruction_part(row.instruction), f"\nInput: {row.input}" if row.input else ""
        if self.published:
            text = before + GIST_TOKEN * self.gist_count + after
            source = self.text.encode(self.text.decode(self.text.encode(text)))
            target = self.text.encode(row.output)
            self.truncated += len(source) >= longest or len(target) >= most
            return [*source[: longest - 1], self.end], [*target[: most - 1], self.end]
        if not row.output.strip():
            return None
        first, second = encode(self.tokenizer, before), encode(self.tokenizer, after)
        target = [*encode(self.tokenizer, row.output), self.end]
        room = longest - self.gist_count - 1
        self.truncated += len(first) + len(second) > room or len(target) > most
        source = [*first[:room], *[self.gist_token] * self.gist_count, *second[: max(room - len(first), 0)], self.end]
        return source, target[:most]

    def _batch(self, examples: Sequence[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        ids, real, labels = (
            padded(rows, filler, multiple=self.pad_to_multiple_of)
            for rows, filler in (
                ([source for source, _ in examples], self.pad),
                ([[1] * len(source) for source, _ in examples], 0),
                ([target for _, target in examples], IGNORED),
            )
        )
        batch = {"input_ids": ids, "attention_mask": real, "labels": labels}
        if self.decoder_start_token_id is not None:
            start = torch.full_like(labels[:, :1], self.decoder_start_token_id)
            moved = torch.cat([start, labels[:, :-1]], dim=1)
            batch["decoder_input_ids"] = moved.masked_fill(moved == IGNORED, self.pad)
        if self.masks:
            batch |= self._masks(ids, real)
        return batch

    def _masks(self, ids: Tensor, real: Tensor) -> dict[str, Tensor]:
        if self.gist_condition == "pos_control" or not self.add_gist_token:
            return {"attention_mask": real, "cross_attention_mask": real}
        # The published code knows padding by its id, forgets it in the cross mask of neg_control, and hides all of a
        # source that was cut before its gist tokens.
        kept = ids != self.pad
        mask = published_mask(ids, self.gist_token, self.gist_condition)[:, 0] * kept[:, None, :]
        cross = seen(ids, self.gist_token, self.gist_condition, together=False)[:, 0, -1]
        if self.gist_condition == "gist":
            cross = cross & kept & (ids == self.gist_token).any(-1, keepdim=True)
        return {"attention_mask": mask, "cross_attention_mask": cross.long()}
