"""The cases of make_goldens.py. A `config` is written to config.json word for word: keys that are
absent, null or in the older place are the point of their case."""

MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-05,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def but(base, drop=(), **changes):
    """The base with some keys changed and some left out."""
    return {k: v for k, v in {**base, **changes}.items() if k not in drop}


DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LENGTHS = [5, 13, 24]

FIVE_EXPERTS = but(MIXTRAL, num_local_experts=5, num_experts_per_tok=3, rope_parameters=DEFAULT_ROPE)


def same_as_five_experts(what, layout):
    return {"what": what, "layout": layout, "config": FIVE_EXPERTS, "lengths": LENGTHS,
            "same_tokens_as": "mixtral_5_experts_top3"}


CASES = {
    "mixtral_odd_heads": {
        "what": "6 query heads on 3 KV heads, head_dim 24 explicit and not hidden / heads; 3 experts; "
                "rope_theta at the top level",
        "lengths": LENGTHS,
        "config": but(MIXTRAL, hidden_size=80, intermediate_size=16, num_attention_heads=6,
                      num_key_value_heads=3, head_dim=24, num_local_experts=3, rope_theta=1000.0),
    },
    "mixtral_5_experts_top3": {
        "what": "5 experts, top 3; rope_parameters; head_dim absent",
        "lengths": LENGTHS, "config": FIVE_EXPERTS,
    },
    "mixtral_merged_experts": same_as_five_experts(
        "mixtral_5_experts_top3 under transformers 5's own names: mlp.gate.weight, "
        "mlp.experts.gate_up_proj [experts, 2 inter, hidden] with w1 above w3, "
        "mlp.experts.down_proj [experts, hidden, inter]", "merged_experts"),
    "mixtral_pytorch_bin": same_as_five_experts(
        "mixtral_5_experts_top3 as pytorch_model.bin, a zip of a pickle and raw storages",
        "pytorch_bin"),
    "mixtral_consolidated_safetensors": same_as_five_experts(
        "mixtral_5_experts_top3 in Mistral's own layout: params.json, feed_forward.experts.E.wN, q "
        "and k rows for rotations of neighbouring pairs", "consolidated_safetensors"),
    "mixtral_consolidated_pth": same_as_five_experts(
        "the same as consolidated.00.pth; the norms are windows of one storage",
        "consolidated_pth"),
    "mixtral_consolidated_merged_pth": same_as_five_experts(
        "the same with the names of the first release: block_sparse_moe.w1, w2, w3 [experts * inter, "
        "hidden] without .weight, w2 transposed", "consolidated_merged_pth"),
    "mixtral_tied": {
        "what": "tied embeddings: no lm_head tensor; a norm epsilon large enough to be seen",
        "lengths": LENGTHS,
        "config": but(MIXTRAL, tie_word_embeddings=True, rms_norm_eps=0.01,
                      rope_parameters=DEFAULT_ROPE),
    },
    "mixtral_sliding": {
        "what": "sliding_window 8 (a token sees itself and the 7 before), prompts shorter and longer",
        "lengths": [5, 8, 9, 40],
        "config": but(MIXTRAL, sliding_window=8, rope_theta=10000.0),
    },
    "mixtral_sharded_f16": {
        "what": "three F16 shards and an index; 2 query heads on 2 KV heads",
        "lengths": LENGTHS, "layout": "sharded",
        "config": but(MIXTRAL, num_attention_heads=2, torch_dtype="float16",
                      rope_parameters=DEFAULT_ROPE),
    },
    "llama_dense": {
        "what": "num_key_value_heads, head_dim and rope settings absent",
        "lengths": LENGTHS,
        "config": but(LLAMA, drop=["num_key_value_heads"]),
    },
    "llama_rope_linear": {
        "what": "linear scaling by 4: the older rope_scaling with `type`, rope_theta at the top level",
        "lengths": LENGTHS,
        "config": but(LLAMA, rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 4.0}),
    },
    "llama_rope_dynamic": {
        "what": "dynamic scaling by 2 of a context of 32. Prompts: inside with all their tokens; "
                "growing out of it; beyond from the start. greedy_ids is transformers with its cache: "
                "the base follows the length, and cached keys keep the base of their time. "
                "fixed_base has one base, of prompt + new tokens, from the first token on",
        "lengths": [4, 8, 20, 40],
        "config": but(LLAMA, max_position_embeddings=32, rope_theta=10000.0,
                      rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
    },
    "llama_rope_llama3": {
        "what": "llama3 scaling in rope_parameters, its three bands all met",
        "lengths": LENGTHS,
        "config": but(LLAMA, rope_parameters={
            "rope_type": "llama3", "rope_theta": 200.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32}),
    },
    "llama_rope_llama3_legacy": {
        "what": "llama3 scaling as LLaMA-3.1 ships it: rope_scaling beside a top-level rope_theta",
        "lengths": LENGTHS,
        "config": but(LLAMA, rope_theta=200.0, rope_scaling={
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32}),
        "same_tokens_as": "llama_rope_llama3",
    },
    "mistral_dense": {
        "what": "MistralForCausalLM with sliding_window null and head_dim null",
        "lengths": LENGTHS,
        "config": but(LLAMA, architectures=["MistralForCausalLM"], model_type="mistral",
                      sliding_window=None, head_dim=None, rms_norm_eps=1e-05, rope_theta=10000.0),
    },
    "mistral_sliding": {
        "what": "MistralForCausalLM with sliding_window 8; float32 weights",
        "lengths": [5, 8, 9, 40],
        "config": but(LLAMA, architectures=["MistralForCausalLM"], model_type="mistral",
                      intermediate_size=48, sliding_window=8, head_dim=8, rms_norm_eps=1e-05,
                      rope_theta=10000.0, torch_dtype="float32"),
    },
}
