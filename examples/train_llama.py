"""Train a small Llama that tells tiny tales."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from _common import Batch, accuracy, mask_padding, parse_arguments, save, set_seed, train
from tales_data import follows_grammar, samples
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 20240601
STEPS = 900
BATCH = 16
VOCABULARY = 384


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train a BPE tokenizer on the tales.

    It leaves out the bytes that no tale uses: with them, the vocabulary would have no room for whole words.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
        show_progress=False,
    )
    tales = [f"{opening} {rest}" for opening, rest in islice(samples(SEED, held_out=False), 3000)]
    tokenizer.train_from_iterator(tales, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        # Generation continues from the last position, so padding has to come first.
        padding_side="left",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make an untrained Llama of about 170 thousand parameters, with two query heads to each key-value head."""
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        # The usual 0.02 suits models far wider; from there this one takes five times as long to learn to copy names.
        initializer_range=0.1,
        **ids,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**ids, max_new_tokens=80, do_sample=False, num_beams=1)
    return model


def batches(tokenizer: PreTrainedTokenizerFast) -> Iterator[Batch]:
    """Yield training batches without end."""
    stream = samples(SEED + 1, held_out=False)
    while True:
        tales = [f"{opening} {rest}{tokenizer.eos_token}" for opening, rest in islice(stream, BATCH)]
        inputs = tokenizer(tales, padding=True, padding_side="right", return_tensors="pt")
        yield {**inputs, "labels": mask_padding(inputs["input_ids"], inputs["attention_mask"])}


@torch.no_grad()
def correct(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, openings: list[str]) -> list[bool]:
    """Say for each opening whether the model goes on to tell a whole tale that follows the grammar."""
    inputs = tokenizer(openings, padding=True, return_tensors="pt")
    tales = tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True)
    return [follows_grammar(tale) for tale in tales]


def main() -> None:
    arguments = parse_arguments(__doc__, "llama-tales")
    set_seed(SEED)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    train(model, batches(tokenizer), steps=STEPS, peak=3e-3, minutes=arguments.minutes)
    save(model, tokenizer, arguments.out)
    held_out = [opening for opening, _ in islice(samples(SEED + 2, held_out=True), 500)]
    share = accuracy(lambda openings: correct(model, tokenizer, openings), held_out)
    print(f"held-out openings continued within the grammar: {share:.4f} of {len(held_out)}")
    for opening in held_out[:3]:
        inputs = tokenizer(opening, return_tensors="pt")
        print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))


if __name__ == "__main__":
    main()
