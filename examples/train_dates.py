"""Train a small T5 that turns dates as people write them in English into ISO form."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from _common import Batch, accuracy, mask_padding, parse_arguments, save, set_seed, train
from dates_data import samples
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

SEED = 20240503
STEPS = 800
BATCH = 128
VOCABULARY = 160


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train a small BPE tokenizer on both sides of the task."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="never"),
            pre_tokenizers.Punctuation(),
            # A number read digit by digit is copied, not remembered: years never seen still work.
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False)
    texts = [text for pair in islice(samples(SEED, held_out=False), 5000) for text in pair]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=64,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> T5ForConditionalGeneration:
    """Make an untrained T5 of about 200 thousand parameters."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=64,
        d_kv=16,
        num_heads=4,
        d_ff=128,
        num_layers=2,
        num_decoder_layers=2,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=64,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    model = T5ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        max_new_tokens=16,
        do_sample=False,
        num_beams=1,
    )
    return model


def batches(tokenizer: PreTrainedTokenizerFast) -> Iterator[Batch]:
    """Yield training batches without end."""
    stream = samples(SEED + 1, held_out=False)
    while True:
        texts, answers = zip(*islice(stream, BATCH), strict=True)
        inputs = tokenizer(list(texts), padding=True, return_tensors="pt")
        targets = tokenizer(list(answers), padding=True, return_tensors="pt")
        yield {**inputs, "labels": mask_padding(targets["input_ids"], targets["attention_mask"])}


@torch.no_grad()
def correct(
    model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]
) -> list[bool]:
    """Say for each (written, ISO) pair whether the model writes exactly the ISO form."""
    inputs = tokenizer([text for text, _ in pairs], padding=True, return_tensors="pt")
    written = tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True)
    return [got == wanted for got, (_, wanted) in zip(written, pairs, strict=True)]


def main() -> None:
    arguments = parse_arguments(__doc__, "t5-dates")
    set_seed(SEED)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    train(model, batches(tokenizer), steps=STEPS, peak=3e-3, minutes=arguments.minutes)
    save(model, tokenizer, arguments.out)
    held_out = list(islice(samples(SEED + 2, held_out=True), 2000))
    share = accuracy(lambda pairs: correct(model, tokenizer, pairs), held_out)
    print(f"held-out exact match: {share:.4f} of {len(held_out)} dates")


if __name__ == "__main__":
    main()
