"""gpt.py as transformers knows it: GPT-1, GPT-2, GPT-NeoX (Pythia), Llama, Mistral, Qwen3."""
import torch

from lib.hf import engine
from lib.hf.engine import Always
from lib.hf.engine import Type
from lib.hf.engine import Written
from lib.hf.engine import renamed
from lib.hf.engine import within

# -------------------------------------------------------------------------------------------- names

_gpt2_names = {
    'tokens': '~wte',
    'positions': '~wpe',
    'norm': '~ln_f',
    'head': 'lm_head',
    **within('blocks.{}.', '~h.{}.', {
        'norm_1': 'ln_1',
        'norm_2': 'ln_2',
        'attention.qkv': 'attn.c_attn',
        'attention.out': 'attn.c_proj',
        'mlp.up': 'mlp.c_fc',
        'mlp.down': 'mlp.c_proj',
    }),
}
_gpt1_names = _gpt2_names | {'tokens': '~tokens_embed', 'positions': '~positions_embed'}
_neox_names = {
    'tokens': '~embed_in',
    'norm': '~final_layer_norm',
    'head': 'embed_out',
    **within('blocks.{}.', '~layers.{}.', {
        'norm_1': 'input_layernorm',
        'norm_2': 'post_attention_layernorm',
        'attention.qkv': 'attention.query_key_value',
        'attention.out': 'attention.dense',
        'mlp.up': 'mlp.dense_h_to_4h',
        'mlp.down': 'mlp.dense_4h_to_h',
    }),
}
_llama_names = {
    'tokens': '~embed_tokens',
    'norm': '~norm',
    'head': 'lm_head',
    **within('blocks.{}.', '~layers.{}.', {
        'norm_1': 'input_layernorm',
        'norm_2': 'post_attention_layernorm',
        'attention.qkv': 'self_attn.q_proj self_attn.k_proj self_attn.v_proj',
        'attention.out': 'self_attn.o_proj',
        'attention.q_norm': 'self_attn.q_norm',
        'attention.k_norm': 'self_attn.k_norm',
        'mlp.up': 'mlp.gate_proj mlp.up_proj',
        'mlp.down': 'mlp.down_proj',
    }),
}

# -------------------------------------------------------------------------------------- config.json

_all = {
    'dtype': Always('float32'),
    'vocab_size': 'vocab_size',
    'bos_token_id': Always(None),
    'eos_token_id': Always(None),
    'tie_word_embeddings': 'tied',
    'initializer_range': Written('init_std'),
}
_gpt2_keys = _all | {
    'n_positions': 'block_size',
    'n_layer': 'n_layer',
    'n_head': 'n_head',
    'n_embd': 'n_embd',
    'n_inner': 'n_hidden',
    'layer_norm_epsilon': 'norm_eps',
    'resid_pdrop': 'dropout',
    'activation_function': 'activation',
    'embd_pdrop': Written('dropout'),
    'attn_pdrop': Written('dropout'),
}
_gpt1_keys = renamed(_gpt2_keys, activation_function='afn')
_sizes = _all | {
    'max_position_embeddings': 'block_size',
    'num_hidden_layers': 'n_layer',
    'num_attention_heads': 'n_head',
    'hidden_size': 'n_embd',
    'intermediate_size': 'n_hidden',
}
# transformers 4 has rope_theta and rope_scaling, 5 has both in rope_parameters: we write both
_rope = {
    'rope_theta': Written('rope_theta'),
    'rope_scaling': Written('rope_stretch'),
    'rope_parameters': Written('rope_parameters'),
}
_neox_keys = _sizes | {
    'layer_norm_eps': 'norm_eps',
    'hidden_act': 'activation',
    'use_parallel_residual': 'parallel',
    **_rope,
    'rotary_pct': Written('rope_fraction'),
    'rotary_emb_base': Written('rope_theta'),
}
_grouped = _sizes | {
    'rms_norm_eps': 'norm_eps',
    'hidden_act': 'activation',
    'num_key_value_heads': 'n_kv_head',
    'head_dim': 'head_dim',
}
_biases = {
    'attention_bias': Written('attention_bias'),
    'mlp_bias': Written('mlp_bias'),
}
_llama_keys = _grouped | _rope | _biases
_mistral_keys = _grouped | {'sliding_window': 'window'} | _rope | _biases

_gpt1_silent = dict(dropout=0.1, post_norm=True)
_neox_silent = dict(positions='rotary', rope_fraction=0.25, parallel=True, activation='gelu',
                    tied=False)
_llama_silent = dict(positions='rotary', norm='rmsnorm', norm_eps=1e-6, activation='silu',
                     gated=True, bias=False, tied=False)
_qwen3_silent = dict(_llama_silent, qk_norm=True, head_dim=128)

_activations = {
    'gelu_new': 'gelu_tanh',
    'gelu_pytorch_tanh': 'gelu_tanh',
    'gelu_fast': 'gelu_tanh',
    'gelu': 'gelu',
    'relu': 'relu',
    'relu2': 'relu2',
    'silu': 'silu',
    'swish': 'silu',
}
_gpt1_activations = {'gelu': 'gelu_tanh', 'relu': 'relu', 'silu': 'silu', 'swish': 'silu'}

# --------------------------------------------------------------------------------- rotary positions

_rope_keys = {  # keys of rope_scaling and of rope_parameters
    'factor': 'rope_factor',
    'low_freq_factor': 'rope_low',
    'high_freq_factor': 'rope_high',
    'original_max_position_embeddings': 'rope_original',
}


def rope_of(hf):
    """rope_scaling of transformers 4 and rope_parameters of transformers 5 in one."""
    return (hf.get('rope_scaling') or {}) | (hf.get('rope_parameters') or {})


def read_rope(hf, fields):
    rope = rope_of(hf)
    scaling = rope.get('rope_type', rope.get('type', 'default'))
    if scaling not in ('default', 'linear', 'llama3'):
        raise ValueError(f'rope_type {scaling!r} in config.json: '
                         'gpt.py knows default, linear and llama3')
    if scaling != 'default':
        fields.update(rope_scaling=scaling, rope_original=fields['block_size'])
        fields.update({field: rope[key] for key, field in _rope_keys.items() if key in rope})
    theta = hf.get('rope_theta', hf.get('rotary_emb_base', 10000.0))
    fields['rope_theta'] = rope.get('rope_theta', theta)


def write_rope(config):
    """-> rope_stretch for transformers 4 and rope_parameters for 5"""
    stretch = {}
    if config.rope_scaling == 'llama3':
        stretch = {key: getattr(config, field) for key, field in _rope_keys.items()}
    elif config.rope_scaling:
        stretch = dict(factor=config.rope_factor)
    if config.rope_scaling:
        stretch['rope_type'] = config.rope_scaling
    parameters = dict(rope_type='default', rope_theta=config.rope_theta) | stretch
    return dict(rope_stretch=stretch or None, rope_parameters=parameters)

# ------------------------------------------------------------------------------------- single types


def read_neox(hf, fields):
    read_rope(hf, fields)
    fields['rope_fraction'] = rope_of(hf).get('partial_rotary_factor', hf.get('rotary_pct', 0.25))
    if not hf.get('attention_bias', True):
        fields.update(bias=False, biases='mlp norm')


def write_neox(config):
    values = write_rope(config)
    values['rope_parameters']['partial_rotary_factor'] = config.rope_fraction
    return values


def read_qwen3(hf, fields):
    read_rope(hf, fields)
    if hf.get('attention_bias'):
        fields['biases'] = 'qkv out'


def read_llama(hf, fields):
    read_qwen3(hf, fields)
    if hf.get('mlp_bias'):
        fields['biases'] = fields.get('biases', '') + ' mlp'


def gpt2_relayout(name, w, config, back):
    """Linear layers of the blocks are stored (in, out) there."""
    return w.t() if name.startswith('blocks.') and w.ndim == 2 else w


def neox_relayout(name, w, config, back):
    """Rows of queries, keys and values are by head there (H, 3, D), ours are (3, H, D)."""
    if '.qkv.' not in name:
        return w
    H = config.n_head
    D = config.width
    return w.unflatten(0, (3, H, D) if back else (H, 3, D)).transpose(0, 1).flatten(0, 2)

# --------------------------------------------------------------------------------------- the family


class Layout(engine.Layout):
    family = 'gpt'
    required = ('vocab_size', 'block_size', 'n_layer', 'n_head', 'n_embd')
    fixed = dict(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False,
                 add_cross_attention=False, quantization_config=None, use_sliding_window=False)
    activations = _activations
    # constants that older versions saved
    spare = ('attn.bias', 'attention.bias', 'masked_bias', 'inv_freq', 'position_ids')
    vocab_rows = ('tokens.weight', 'head.weight')
    types = {
        'gpt2': Type('GPT2LMHeadModel', 'transformer.', _gpt2_names, _gpt2_keys, dict(dropout=0.1),
                     relayout=gpt2_relayout),
        'openai-gpt': Type('OpenAIGPTLMHeadModel', 'transformer.', _gpt1_names, _gpt1_keys,
                           _gpt1_silent, activations=_gpt1_activations, relayout=gpt2_relayout),
        'gpt_neox': Type('GPTNeoXForCausalLM', 'gpt_neox.', _neox_names, _neox_keys, _neox_silent,
                         read=read_neox, values=write_neox, relayout=neox_relayout),
        'llama': Type('LlamaForCausalLM', 'model.', _llama_names, _llama_keys, _llama_silent,
                      read=read_llama, values=write_rope),
        'mistral': Type('MistralForCausalLM', 'model.', _llama_names, _mistral_keys, _llama_silent,
                        read=read_rope, values=write_rope),
        'qwen3': Type('Qwen3ForCausalLM', 'model.', _llama_names, _llama_keys, _qwen3_silent,
                      read=read_qwen3, values=write_rope),
    }

    def read_config(self, hf):
        kinds = sorted(set(hf.get('layer_types') or ()))
        if len(kinds) > 1:
            raise ValueError('layer_types in config.json: '
                             f'gpt.py has one kind of layer, not {" and ".join(kinds)}')
        return super().read_config(hf)

    def choose(self, config):
        shape = (config.positions, config.norm)
        if shape == ('learned', 'layernorm'):
            return 'openai-gpt' if config.post_norm else 'gpt2'
        if shape == ('rotary', 'layernorm'):
            return 'gpt_neox'
        if shape == ('rotary', 'rmsnorm'):
            if config.qk_norm:
                return 'qwen3'
            return 'mistral' if config.window else 'llama'
        raise ValueError(f'transformers has no model for positions={config.positions} '
                         f'with norm={config.norm}')

    def values(self, config):
        return vars(config) | dict(
            n_hidden=config.hidden,
            n_kv_head=config.kv_heads,
            head_dim=config.width,
            window=config.window or None,
            attention_bias=config.has_bias('qkv') or config.has_bias('out'),
            mlp_bias=config.has_bias('mlp'),
        )

    def copies(self, config):
        return {'head.weight': 'tokens.weight'} if config.tied else {}

    def compared(self, config):
        return ('post_norm', 'parallel', 'gated', 'qk_norm', 'window', 'activation',
                'rope_fraction', 'kv_heads', 'width', 'hidden')

    def further_differences(self, config, theirs, state, outline):
        """Tensors that we have and they lack, but for the extra heads of multi-token prediction."""
        known = outline.state_dict()
        return [name for name in state if name not in known and not name.startswith('extra.')]

    def exported(self, config, state, outline):
        """All tensors that they have. Biases that we lack are zeros; a tied head is not written."""
        theirs = outline.state_dict()
        if config.tied:
            del theirs['head.weight']
        return {name: state[name] if name in state else torch.zeros(p.shape)
                for name, p in theirs.items()}
