"""Train a small BERT that gives the verdict of a restaurant review: negative, mixed, or positive."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import torch
from _common import Batch, accuracy, parse_arguments, save, set_seed, train
from reviews_data import LABELS, samples
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

SEED = 20240711
STEPS = 1400
BATCH = 64
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def build_vocabulary() -> dict[str, int]:
    """Return the word pieces: the words of the reviews, and letters from which any other word is spelled.

    The trainer in `tokenizers` is not used because it orders its "##" pieces differently from run to run.
    """
    splitter = pre_tokenizers.BertPreTokenizer()
    reviews = islice(samples(SEED, held_out=False), 5000)
    counts = Counter(word for text, _ in reviews for word, _ in splitter.pre_tokenize_str(text))
    letters = string.ascii_lowercase + string.digits + ".,!?'"
    words = sorted((word for word in counts if word not in letters), key=lambda word: (-counts[word], word))
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *words]
    return {piece: index for index, piece in enumerate(pieces)}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Make a WordPiece tokenizer for the reviews, set up the way BERT's is."""
    tokenizer = Tokenizer(models.WordPiece(build_vocabulary(), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, SPECIAL.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> BertForSequenceClassification:
    """Make an untrained BERT of about 120 thousand parameters."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        # The usual 0.02 suits models twelve times as wide; here it makes the first steps creep.
        initializer_range=0.08,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    return BertForSequenceClassification(config)


def batches(tokenizer: PreTrainedTokenizerFast) -> Iterator[Batch]:
    """Yield training batches without end."""
    stream = samples(SEED + 1, held_out=False)
    while True:
        texts, labels = zip(*islice(stream, BATCH), strict=True)
        yield {**tokenizer(list(texts), padding=True, return_tensors="pt"), "labels": torch.tensor(labels)}


@torch.no_grad()
def correct(
    model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerFast, reviews: list[tuple[str, int]]
) -> list[bool]:
    """Say for each (text, label index) pair whether the model gives that label."""
    inputs = tokenizer([text for text, _ in reviews], padding=True, return_tensors="pt")
    verdicts = model(**inputs).logits.argmax(dim=-1).tolist()
    return [verdict == label for verdict, (_, label) in zip(verdicts, reviews, strict=True)]


def main() -> None:
    arguments = parse_arguments(__doc__, "bert-sentiment")
    set_seed(SEED)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    train(model, batches(tokenizer), steps=STEPS, peak=7e-4, minutes=arguments.minutes)
    save(model, tokenizer, arguments.out)
    held_out = list(islice(samples(SEED + 2, held_out=True), 2000))
    share = accuracy(lambda reviews: correct(model, tokenizer, reviews), held_out)
    print(f"held-out accuracy: {share:.4f} of {len(held_out)} reviews")


if __name__ == "__main__":
    main()
