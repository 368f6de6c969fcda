"""The zoo: one tiny random model for every supported architecture, built from its config alone.

The table is data; ``build`` turns a row into a seeded float32 model in eval mode. A freshly initialised transformer
attends almost uniformly and its logits are all nearly zero, so a wrong mask or a wrong position hardly moves them.
``amplify`` therefore redraws every parameter at a scale where such mistakes show.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GAIN = 1.5  # scores of std GAIN**2: clearly peaked attention over ten keys, yet no key takes everything
WINDOW = 8  # every attention window, below the lengths the tests use
POSITIONS = 128


@dataclass(frozen=True)
class Entry:
    """One architecture: which classes to build, and from which config."""

    name: str
    role: str  # "encoder" | "decoder" | "seq2seq"
    model_class: str
    config_class: str
    config: Mapping[str, object]
    note: str = ""


def _sizes(**sizes: object) -> dict[str, object]:
    return sizes


def _without(sizes: Mapping[str, object], *absent: str) -> dict[str, object]:
    return {key: value for key, value in sizes.items() if key not in absent}


def _entry(
    role: str,
    name: str,
    stem: str,
    suffix: str,
    base: Mapping[str, object],
    note: str = "",
    **own: object,
) -> Entry:
    config_class = stem + ("TextConfig" if stem in ("Gemma3", "Gemma3n", "Qwen3_5") else "Config")
    return Entry(name, role, stem + suffix, config_class, {**base, **own}, note)


# The spellings under which the families name the same sizes.
_BERT = _sizes(
    vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    max_position_embeddings=POSITIONS, pad_token_id=0, bos_token_id=1, eos_token_id=2, num_labels=3,
)  # fmt: skip
_GPT2 = _sizes(
    vocab_size=99, n_positions=POSITIONS, n_embd=32, n_layer=2, n_head=4, pad_token_id=0, bos_token_id=1, eos_token_id=2
)  # fmt: skip
_LLAMA = _sizes(
    vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=64, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_HEAD_DIM = _sizes(head_dim=8)  # for the families whose default head size is not hidden_size / heads
_FALCON = _sizes(
    vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=512,
    pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_T5 = _sizes(
    vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, relative_attention_num_buckets=8,
    relative_attention_max_distance=16, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, num_labels=3,
)  # fmt: skip
_BART = _sizes(
    vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=POSITIONS, pad_token_id=1, bos_token_id=0,
    eos_token_id=2, decoder_start_token_id=2,
)  # fmt: skip
_VIT = _sizes(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=8, patch_size=4,
    num_channels=3, num_labels=3,
)  # fmt: skip
_SOUND = _sizes(  # a position for every 6 samples, the first for 11
    vocab_size=20, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, conv_dim=[16, 16],
    conv_kernel=[5, 3], conv_stride=[3, 2], num_feat_extract_layers=2, num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2, classifier_proj_size=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, num_labels=3,
)  # fmt: skip
_LINEAR = _sizes(  # the gated delta rule, three layers of four
    num_hidden_layers=4, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
    linear_value_head_dim=8, linear_conv_kernel_dim=4,
)  # fmt: skip
_ONE_LINEAR = _sizes(num_hidden_layers=2, layer_types=["linear_attention", "full_attention"])
_MAMBA = _sizes(
    vocab_size=99, hidden_size=32, state_size=6, num_hidden_layers=2, pad_token_id=0, bos_token_id=1, eos_token_id=2
)
_MAMBA2 = _sizes(  # of Mamba's second kind beside attention
    mamba_n_heads=8,
    mamba_d_head=8,
    mamba_n_groups=2,
    mamba_d_state=6,
    mamba_d_conv=4,
    mamba_expand=2,
    mamba_chunk_size=8,
)
_UNFORCED = _sizes(forced_eos_token_id=None)  # a forced last token would hide whatever the model computed for it
_SLIDING, _FULL = "sliding_attention", "full_attention"


def _encoder(name: str, stem: str, suffix: str = "Model", base: Mapping[str, object] = _BERT, **own: object) -> Entry:
    return _entry("encoder", name, stem, suffix, base, **own)


def _decoder(
    name: str, stem: str, suffix: str = "ForCausalLM", base: Mapping[str, object] = _LLAMA, **own: object
) -> Entry:
    return _entry("decoder", name, stem, suffix, base, **own)


def _seq2seq(name: str, stem: str, base: Mapping[str, object] = _BART, **own: object) -> Entry:
    return _entry("seq2seq", name, stem, "ForConditionalGeneration", base, **own)


ENTRIES: tuple[Entry, ...] = (
    _encoder("bert", "Bert"),
    _encoder("roberta", "Roberta", pad_token_id=1, bos_token_id=0, note="positions count from pad_token_id + 1"),
    _encoder(
        "distilbert", "DistilBert",
        base=_sizes(
            vocab_size=99, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=POSITIONS,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, num_labels=3,
        ),
    ),
    _encoder("albert", "Albert", embedding_size=16, note="one layer's weights, applied twice"),
    _encoder("electra", "Electra", embedding_size=16),
    _encoder("deberta", "Deberta", relative_attention=True, pos_att_type=["c2p", "p2c"], position_biased_input=False),
    _encoder(
        "deberta_v2", "DebertaV2", relative_attention=True, pos_att_type=["c2p", "p2c"], position_biased_input=False,
        position_buckets=WINDOW, share_att_key=True, norm_rel_ebd="layer_norm", note="the v3 settings",
    ),
    _encoder("mpnet", "MPNet", pad_token_id=1, bos_token_id=0, note="positions count from pad_token_id + 1"),
    _encoder(
        "modernbert", "ModernBert", layer_types=[_FULL, _SLIDING], local_attention=WINDOW, cls_token_id=1,
        sep_token_id=2,
    ),
    _encoder("fnet", "FNet", pad_token_id=3, tpu_short_seq_length=POSITIONS, note="takes no attention mask"),
    _encoder(
        "funnel", "Funnel",
        base=_sizes(
            vocab_size=99, block_sizes=[1, 1], num_decoder_layers=1, d_model=32, n_head=4, d_head=8, d_inner=64,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, num_labels=3,
        ),
        note="pools the sequence by two and upsamples it again",
    ),
    _encoder(
        "canine", "Canine", base=_without(_BERT, "vocab_size"), num_hash_buckets=64, num_hash_functions=4,
        local_transformer_stride=WINDOW,
        note="ids are code points: no vocabulary; downsamples the sequence by four",
    ),
    _encoder(
        "longformer", "Longformer", pad_token_id=1, bos_token_id=0, sep_token_id=2, attention_window=[WINDOW, WINDOW]
    ),
    _encoder("t5_encoder", "T5", "EncoderModel", _T5),
    _encoder("vit", "ViT", base=_VIT, note="pixel_values (batch, 3, 8, 8)"),
    _encoder("dinov2", "Dinov2", base=_VIT, note="pixel_values (batch, 3, 8, 8)"),
    _encoder(
        "wav2vec2", "Wav2Vec2", "ForCTC", _SOUND, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True,
        num_hidden_layers=1, adapter_attn_dim=8, note="input_values (batch, samples); the settings of MMS",
    ),
    _encoder(
        "wavlm", "WavLM", base=_SOUND, num_buckets=8, max_bucket_distance=16,
        note="input_values (batch, samples); relative positions, and a norm over all samples, padding too",
    ),
    _decoder("gpt2", "GPT2", "LMHeadModel", _GPT2),
    _decoder(
        "gpt_neo", "GPTNeo",
        base=_sizes(
            vocab_size=99, max_position_embeddings=POSITIONS, hidden_size=32, num_layers=2, num_heads=4,
            intermediate_size=64, attention_types=[[["global", "local"], 1]], window_size=WINDOW, pad_token_id=0,
            bos_token_id=1, eos_token_id=2,
        ),
    ),
    _decoder("gpt_neox", "GPTNeoX", base=_BERT),
    _decoder("gptj", "GPTJ", base=_GPT2, rotary_dim=4),
    _decoder(
        "opt", "OPT",
        base=_sizes(
            vocab_size=99, hidden_size=32, num_hidden_layers=2, ffn_dim=64, num_attention_heads=4,
            word_embed_proj_dim=32, max_position_embeddings=POSITIONS, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        ),
        note="positions count from 2",
    ),
    _decoder(
        "bloom", "Bloom",
        base=_sizes(
            vocab_size=99, hidden_size=32, n_layer=2, n_head=4, pad_token_id=0, bos_token_id=1, eos_token_id=2
        ),
        note="alibi: positions follow from the mask",
    ),
    _decoder("llama", "Llama"),
    _decoder("mistral", "Mistral", sliding_window=WINDOW),
    _decoder("mixtral", "Mixtral", num_local_experts=4, num_experts_per_tok=2),
    _decoder("qwen2", "Qwen2"),
    _decoder("qwen3", "Qwen3", **_HEAD_DIM),
    _decoder(
        "qwen3_moe", "Qwen3Moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True,
        **_HEAD_DIM,
    ),
    _decoder(
        "gemma2", "Gemma2", layer_types=[_SLIDING, _FULL], sliding_window=WINDOW, query_pre_attn_scalar=8,
        attn_logit_softcapping=5.0, final_logit_softcapping=5.0, note="caps low enough to bite", **_HEAD_DIM,
    ),
    _decoder(
        "gemma3_text", "Gemma3", layer_types=[_SLIDING, _SLIDING, _FULL], num_hidden_layers=3, sliding_window=WINDOW,
        query_pre_attn_scalar=8, **_HEAD_DIM,
    ),
    _decoder(
        "gemma3n", "Gemma3n", layer_types=[_SLIDING, _FULL] * 2, num_hidden_layers=4, sliding_window=WINDOW,
        num_kv_shared_layers=2, vocab_size_per_layer_input=99, hidden_size_per_layer_input=8, laurel_rank=4,
        altup_num_inputs=2, activation_sparsity_pattern=[0.9, 0.0, 0.0, 0.0], note="the last layers read others' caches",
        **_HEAD_DIM,
    ),
    _decoder("phi3", "Phi3", sliding_window=WINDOW, original_max_position_embeddings=512),
    _decoder("falcon", "Falcon", base=_FALCON, note="rotary, one shared key-value head"),
    _decoder(
        "falcon_alibi", "Falcon", base=_FALCON, alibi=True, multi_query=False, parallel_attn=False, bias=True,
        note="the falcon-rw settings",
    ),
    _decoder("olmo2", "Olmo2"),
    _decoder(
        "granite", "Granite", embedding_multiplier=4.0, logits_scaling=0.5, residual_multiplier=0.7,
        attention_multiplier=0.3, note="multipliers all differ from the neutral value",
    ),
    _decoder("smollm3", "SmolLM3", no_rope_layers=[1, 0], note="the second layer has no rotary positions"),
    _decoder(
        "gpt_oss", "GptOss", layer_types=[_SLIDING, _FULL], sliding_window=WINDOW, num_local_experts=4,
        num_experts_per_tok=2, note="attention sinks", **_HEAD_DIM,
    ),
    _decoder(
        "qwen3_next", "Qwen3Next", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, decoder_sparse_step=1, note="convolution and recurrent states", **_LINEAR,
    ),
    _decoder("qwen3_5", "Qwen3_5", note="convolution and recurrent states", **(_LINEAR | _ONE_LINEAR)),
    _decoder(
        "olmo_hybrid", "OlmoHybrid", note="convolution and recurrent states",
        **_without(_LINEAR, "head_dim", "linear_num_value_heads"), linear_num_value_heads=2,
    ),
    _decoder(
        "kimi_linear", "KimiLinear", num_hidden_layers=2, layer_types=["linear_attention", _FULL], num_local_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=16, kv_lora_rank=16, qk_rope_head_dim=8, v_head_dim=8,
        qk_nope_head_dim=8, linear_head_dim=8, linear_num_heads=4, note="a decay for each channel",
        base=_LLAMA | {"num_key_value_heads": 4},
    ),
    _decoder("mamba", "Mamba", base=_MAMBA, time_step_rank=4, note="no layer keeps tokens: the mask alone tells how many"),
    _decoder("mamba2", "Mamba2", base=_MAMBA, num_heads=8, head_dim=8, n_groups=2, expand=2, chunk_size=8),
    _decoder(
        "jamba", "Jamba", attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
        num_experts=4, num_experts_per_tok=2, mamba_d_state=6, mamba_d_conv=4, mamba_expand=2, mamba_dt_rank=4,
        note="Mamba beside attention, experts in every second layer",
    ),
    _decoder("falcon_h1", "FalconH1", mamba_d_ssm=64, note="both in every layer", **_MAMBA2),
    _decoder(
        "granitemoehybrid", "GraniteMoeHybrid", layer_types=["mamba", "attention"], num_local_experts=4,
        num_experts_per_tok=2, shared_intermediate_size=32, **_MAMBA2,
    ),
    _decoder(
        "nemotron_h", "NemotronH", num_hidden_layers=4, hybrid_override_pattern="M*-M", mamba_num_heads=8, mamba_head_dim=8,
        n_groups=2, ssm_state_size=6, conv_kernel=4, expand=2, chunk_size=8, note="layers without attention or state",
    ),
    _decoder(
        "lfm2", "Lfm2", num_hidden_layers=3, layer_types=["conv", _FULL, "conv"], conv_L_cache=3,
        note="convolution states alone",
    ),
    _seq2seq("t5", "T5", _T5),
    _seq2seq("mt5", "MT5", _T5, note="gated; transformers always ties its head"),
    _seq2seq("umt5", "UMT5", _T5, note="a relative position bias in every layer"),
    _seq2seq("bart", "Bart", **_UNFORCED),
    _seq2seq("mbart", "MBart", scale_embedding=True, **_UNFORCED),
    _seq2seq(
        "pegasus", "Pegasus", pad_token_id=0, bos_token_id=2, eos_token_id=1, decoder_start_token_id=0,
        scale_embedding=True, **_UNFORCED,
    ),
    _entry(
        "seq2seq", "marian", "Marian", "MTModel", _BART, pad_token_id=98, bos_token_id=1, eos_token_id=0,
        decoder_start_token_id=98, scale_embedding=True, **_UNFORCED,
    ),
    _seq2seq("m2m_100", "M2M100", scale_embedding=True),
    _seq2seq(
        "blenderbot", "Blenderbot", pad_token_id=0, bos_token_id=1, decoder_start_token_id=1, scale_embedding=True,
        encoder_no_repeat_ngram_size=0, **_UNFORCED,
    ),
    _seq2seq("longt5", "LongT5", _T5, local_radius=WINDOW - 1, encoder_attention_type="local"),
    _seq2seq(
        "longt5_global", "LongT5", _T5, local_radius=WINDOW - 1, encoder_attention_type="transient-global",
        global_block_size=4,
    ),
    _seq2seq(
        "led", "LED", base=_without(_BART, "max_position_embeddings"), max_encoder_position_embeddings=POSITIONS,
        max_decoder_position_embeddings=POSITIONS, attention_window=[WINDOW, WINDOW],
    ),
    _seq2seq(
        "whisper", "Whisper", base=_without(_BART, "max_position_embeddings"), num_mel_bins=8, max_source_positions=16,
        max_target_positions=POSITIONS, pad_token_id=0, bos_token_id=1, decoder_start_token_id=3, suppress_tokens=None,
        begin_suppress_tokens=None, note="input_features (batch, 8, 32); the encoder takes no mask",
    ),
)  # fmt: skip

_BY_NAME = {entry.name: entry for entry in ENTRIES}


def names(role: str | None = None) -> list[str]:
    """The names in the table, of one role or of all."""
    return [entry.name for entry in ENTRIES if role in (None, entry.role)]


def class_name(name: str, head: str | None = None) -> str:
    """The transformers class of ``name``, or of its family's ``head``; not every family has every head."""
    base = _BY_NAME[name].model_class
    return base if head is None else re.sub(r"(Encoder|LMHead|MT)?Model$|For[A-Z]\w*$", "", base) + "For" + head


def build(
    name: str, *, seed: int = 0, amplify: float | None = GAIN, head: str | None = None, **sizes: object
) -> PreTrainedModel:
    """The model ``name`` in eval mode and float32; the same seed gives the same weights.

    ``amplify`` is the gain of the weights, ``None`` keeps transformers' own initialisation. ``head`` picks another
    class of the family: ``build("bert", head="SequenceClassification")`` is a BertForSequenceClassification. ``sizes``
    replace attributes of the config.
    """
    entry = _BY_NAME[name]
    config = getattr(transformers, entry.config_class)(**copy.deepcopy({**entry.config, **sizes}))
    with torch.random.fork_rng(devices=[]):  # the caller's random state is not ours to move
        torch.manual_seed(seed)
        model = getattr(transformers, class_name(name, head))(config).float().eval()
    if amplify is not None:
        _amplify(model, seed=seed, gain=amplify)
    return model


def with_cache_name(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """The decoder ``model`` itself, of a class whose forward takes its cache by another name."""
    forward = type(model).forward

    def old(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **rest):
        return forward(self, input_ids, attention_mask, position_ids, past_key_values, **rest)

    def new(self, input_ids=None, attention_mask=None, position_ids=None, cache=None, **rest):
        return forward(self, input_ids, attention_mask, position_ids, cache, **rest)

    def recurrent(self, input_ids=None, attention_mask=None, position_ids=None, cache_params=None, **rest):
        return forward(self, input_ids, attention_mask, position_ids, cache_params, **rest)

    forwards = {"past_key_values": old, "cache": new, "cache_params": recurrent}
    model.__class__ = type("Renamed", (type(model),), {"forward": forwards[name]})
    return model


@torch.no_grad()
def amplify(model: PreTrainedModel, *, seed: int, gain: float = GAIN) -> None:
    """Redraw the parameters of a freshly built ``model`` so that attention is peaked and logits are apart.

    The rule looks at a parameter's kind and shape, never at the architecture. Tied weights are one parameter and stay
    tied; buffers and frozen parameters (sinusoidal positions) are constants of the architecture and stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    head = model.get_output_embeddings()
    seen: set[int] = set()
    for path, module in model.named_modules():
        owner = model.get_submodule(path.rpartition(".")[0])
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            if "bias" in name:
                parameter.copy_(0.1 * noise)
            elif "Norm" in type(module).__name__:
                # Initially one in most families, zero where the module adds the one itself. A random sign is lost on
                # the random matrix that follows, but without it a tied head recognises the very token it was fed.
                sign = torch.randint(2, noise.shape, generator=generator) * 2 - 1
                parameter.copy_(sign * (1 + 0.1 * noise) - (1 - parameter))
            elif parameter.ndim == 1:
                parameter.copy_(noise)  # attention sinks
            elif isinstance(module, nn.Embedding):
                parameter.copy_(noise / float(getattr(module, "embed_scale", 1.0)))
            else:
                inputs = _inputs(module, parameter)
                fan_in = math.prod(parameter.shape[dim] for dim in inputs)
                scale = gain / math.sqrt(fan_in) * _unscaled_query(owner, path.rpartition(".")[2])
                # Centred, or the positive mean of relu and gelu becomes one vector common to every token, and greedy
                # decoding repeats whatever that vector prefers.
                parameter.copy_(scale * (2 if module is head else 1) * (noise - noise.mean(inputs, keepdim=True)))


_amplify = amplify  # inside build the name is the gain


def _inputs(module: nn.Module, weight: torch.Tensor) -> tuple[int, ...]:
    """The dimensions of ``weight`` over which one output sums."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return tuple(range(1, weight.ndim))
    if isinstance(module, Conv1D):  # GPT-2's linear layer, stored transposed
        return (0,)
    # Stacks of expert matrices come in both orientations; the longest side is the input or close to it.
    return (max(range(weight.ndim), key=lambda dim: weight.shape[dim]),) if weight.ndim > 2 else (1,)


def _unscaled_query(attention: nn.Module, name: str) -> float:
    """The factor 1/sqrt(d) for the query projection of an attention that leaves it out of its scores, else 1."""
    if name not in ("q", "q_proj"):
        return 1.0
    if hasattr(attention, "key_value_proj_dim"):  # the T5 lineage
        return 1.0 / math.sqrt(attention.key_value_proj_dim)
    return 1.0 / math.sqrt(attention.head_dim) if type(attention).__name__ == "GPTNeoSelfAttention" else 1.0
