"""Fields of config.json that every family treats alike."""

from typing import Any

HARMLESS = frozenset({
    "_name_or_path", "architectures", "attn_implementation", "_attn_implementation_autoset",
    "dtype", "torch_dtype", "transformers_version", "model_type", "use_cache",
    "initializer_range", "problem_type", "id2label", "label2id", "finetuning_task",
    "task_specific_params", "return_dict", "output_attentions", "output_hidden_states",
    "output_past", "torchscript", "use_bfloat16", "chunk_size_feed_forward", "is_decoder",
    "gradient_checkpointing", "tokenizer_class", "bos_token_id", "eos_token_id", "pad_token_id",
    "sep_token_id", "decoder_start_token_id", "max_length", "min_length", "do_sample",
    "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty", "temperature",
    "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id",
    "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty",
    "suppress_tokens", "begin_suppress_tokens", "prefix", "cache_implementation",
    "pretraining_tp", "unsloth_fixed", "unsloth_version", "is_llama_config",
    "transformers.js_config", "n_special", "predict_special_tokens", "_num_labels",
    "num_labels", "max_sequence_length", "_attn_implementation", "_commit_hash",
    "model_max_length", "tf_legacy_loss",
})  # fmt: skip
"""Fields that no logit depends on: names, token ids, sampling and output options."""

REQUIRED_VALUES: dict[str, Any] = {
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
    "cross_attention_hidden_size": None,
    "pruned_heads": {},
    "quantization_config": None,
    "use_bidirectional_attention": None,
}
"""Fields of any family that must have this value (or False), or be absent."""
