"""A checkpoint of a model that says what a test wants, so that it can be seen to call tools.

It looks at its last token alone: attention and feed-forward are zero, an embedding has a one at its
token's own place, and the head's row of the token that comes next has it there too. So each token
stands at one place in one script. A chat whose last message is a script's name gets that script.
"""

import array
import json
import os
import struct

UNKNOWN, EOS = 0, 2
NAMES = ["<unk>", "<s>", "</s>"]


def tokens_of(script, used):
    """Cuts a text into tokens that are not `used`, as short as can be; a first [TOOL_CALLS] is one.

    A character beyond ASCII is its bytes.
    """
    tokens, at = [], 0
    while at < len(script):
        end = at + (len("[TOOL_CALLS]") if script.startswith("[TOOL_CALLS]", at) else 1)
        while end < len(script) and script[at:end] in used.union(tokens):
            end += 1
        token, at = script[at:end], end
        while token in used.union(tokens):  # the text has ended
            token = tokens.pop() + token
        tokens += [token] if token.isascii() else ["<0x%02X>" % byte for byte in token.encode()]
    assert len(used.union(tokens)) == len(used) + len(tokens), tokens
    return tokens


def write(directory, scripts):
    """{name: text} -> a checkpoint with its tokenizer, in float32; returns the directory."""
    os.mkdir(directory)
    names, following = [*NAMES, *scripts], {}
    for name, script in scripts.items():
        last = names.index(name)
        for token in tokens_of(script, set(names)):
            following[last] = last = len(names)
            names.append(token)
        following[last] = EOS
    hidden = -(-len(names) // 64) * 64

    def matrix(ones, scale=1.0):
        values = array.array("f", bytes(4 * hidden * len(names)))
        for row, column in ones:
            values[row * hidden + column] = scale
        return [len(names), hidden], values

    def filled(value, *shape):
        return list(shape), array.array("f", [value]) * (shape[0] * (shape + (1,))[1])

    layer = "model.layers.0."
    tensors = {
        "model.embed_tokens.weight": matrix((i, i) for i in range(len(names))),
        "lm_head.weight": matrix(((after, i) for i, after in following.items()), scale=10),
        "model.norm.weight": filled(1, hidden),
        layer + "input_layernorm.weight": filled(1, hidden),
        layer + "post_attention_layernorm.weight": filled(1, hidden),
        **{layer + "self_attn.%s_proj.weight" % p: filled(0, hidden, hidden) for p in "qkvo"},
        **{layer + "mlp.%s_proj.weight" % p: filled(0, hidden, hidden)
           for p in ("gate", "up", "down")},
    }
    header, data = {}, b""
    for name, (shape, values) in tensors.items():
        begin, data = len(data), data + values.tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    with open(os.path.join(directory, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)

    special = [*range(len(NAMES) + len(scripts)),
               *(i for i, name in enumerate(names) if name == "[TOOL_CALLS]")]
    documents = {
        "config.json": {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
            "hidden_size": hidden, "intermediate_size": hidden, "num_attention_heads": hidden // 64,
            "num_key_value_heads": hidden // 64, "num_hidden_layers": 1, "vocab_size": len(names),
            "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": EOS},
        "tokenizer.json": {
            "added_tokens": [{"id": i, "content": names[i], "special": True} for i in special],
            "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
            "model": {"type": "BPE", "unk_token": NAMES[UNKNOWN], "byte_fallback": True,
                      "vocab": {name: i for i, name in enumerate(names)}, "merges": []}},
        "tokenizer_config.json": {
            "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False,
            "chat_template": "{{ messages[-1].content }}"},
    }
    for name, document in documents.items():
        with open(os.path.join(directory, name), "w") as f:
            json.dump(document, f)
    return directory
