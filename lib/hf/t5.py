"""t5.py as transformers knows it: T5, T5 v1.1, Flan-T5 and mT5."""
import torch

from lib.hf import engine
from lib.hf.engine import Always
from lib.hf.engine import Type
from lib.hf.engine import Written
from lib.hf.engine import within

_encoder = within('encoder.{}.', 'encoder.block.{}.layer.', {
    'norm_self': '0.layer_norm',
    'attention.q': '0.SelfAttention.q',
    'attention.kv': '0.SelfAttention.k 0.SelfAttention.v',
    'attention.out': '0.SelfAttention.o',
    'norm_mlp': '1.layer_norm',
    'mlp.up': '1.DenseReluDense.wi',
    'mlp.down': '1.DenseReluDense.wo',
})
_decoder = within('decoder.{}.', 'decoder.block.{}.layer.', {
    'norm_self': '0.layer_norm',
    'attention.q': '0.SelfAttention.q',
    'attention.kv': '0.SelfAttention.k 0.SelfAttention.v',
    'attention.out': '0.SelfAttention.o',
    'norm_cross': '1.layer_norm',
    'cross.q': '1.EncDecAttention.q',
    'cross.kv': '1.EncDecAttention.k 1.EncDecAttention.v',
    'cross.out': '1.EncDecAttention.o',
    'norm_mlp': '2.layer_norm',
    'mlp.up': '2.DenseReluDense.wi',
    'mlp.down': '2.DenseReluDense.wo',
})
_gated = {
    **within('encoder.{}.', 'encoder.block.{}.layer.1.DenseReluDense.', {'mlp.up': 'wi_0 wi_1'}),
    **within('decoder.{}.', 'decoder.block.{}.layer.2.DenseReluDense.', {'mlp.up': 'wi_0 wi_1'}),
}
_names = _encoder | _decoder | {
    'tokens': 'shared',
    'head': 'lm_head',
    'encoder_norm': 'encoder.final_layer_norm',
    'decoder_norm': 'decoder.final_layer_norm',
    'encoder_bias': 'encoder.block.0.layer.0.SelfAttention.relative_attention_bias',
    'decoder_bias': 'decoder.block.0.layer.0.SelfAttention.relative_attention_bias',
}
_keys = {
    'is_encoder_decoder': Always(True),
    'vocab_size': 'vocab_size',
    'd_model': 'n_embd',
    'd_kv': 'head_dim',
    'd_ff': 'n_hidden',
    'num_layers': 'n_layer',
    'num_decoder_layers': 'n_decoder_layer',
    'num_heads': 'n_head',
    'relative_attention_num_buckets': 'buckets',
    'relative_attention_max_distance': 'max_distance',
    'dropout_rate': 'dropout',
    'layer_norm_epsilon': 'norm_eps',
    'feed_forward_proj': Written('projection'),
    'tie_word_embeddings': Written('scale_head'),
    'scale_decoder_outputs': Written('scale_head'),
    'n_positions': 'block_size',
    'pad_token_id': 'pad_id',
    'eos_token_id': 'eot_id',
    'decoder_start_token_id': 'start_id',
}
PROJECTIONS = {  # feed_forward_proj -> activation, gated
    'relu': ('relu', False),
    'gelu': ('gelu', False),
    'gelu_new': ('gelu_tanh', False),
    'silu': ('silu', False),
    'gated-relu': ('relu', True),
    'gated-gelu': ('gelu_tanh', True),
    'gated-gelu_new': ('gelu_tanh', True),
    'gated-silu': ('silu', True),
}


def read_projection(hf, fields, silent):
    projection = hf.get('feed_forward_proj', silent)
    if projection not in PROJECTIONS:
        known = ', '.join(PROJECTIONS)
        raise ValueError(f'feed_forward_proj {projection!r} in config.json: t5.py knows {known}')
    fields['activation'], fields['gated'] = PROJECTIONS[projection]


def read_scale(hf, fields, silent):
    """Whether the head is scaled transformers 4 tells by tie_word_embeddings, 5 by
    scale_decoder_outputs."""
    tied = hf.get('tie_word_embeddings', silent) is not False
    fields['scale_head'] = hf.get('scale_decoder_outputs', tied)


def read_tokens(hf, fields):
    """A list of tokens stands for its first one. The first sentinel is the last token below the
    highest multiple of 100: T5's 32099 of 32128, mT5's 250099 of 250112."""
    for field in ('pad_id', 'eot_id', 'start_id', 'n_decoder_layer'):
        if isinstance(fields.get(field), list):
            fields[field] = fields[field][0]
    n = fields['vocab_size']
    fields['sentinel_first'] = min(max(n // 100, 1) * 100, n) - 1
    fields['mask_id'] = fields['sentinel_first']


def read_t5(hf, fields):
    read_projection(hf, fields, 'relu')
    read_scale(hf, fields, True)
    read_tokens(hf, fields)


def read_mt5(hf, fields):
    read_projection(hf, fields, 'gated-gelu')
    read_scale(hf, fields, False)
    read_tokens(hf, fields)


_silent = dict(block_size=512, n_decoder_layer=0, dropout=0.1, norm_eps=1e-6, buckets=32,
               max_distance=128, pad_id=0, eot_id=1, start_id=-1)


class Layout(engine.Layout):
    family = 't5'
    required = ('vocab_size', 'n_layer', 'n_head', 'n_embd', 'head_dim', 'n_hidden')
    # copies, and a table that is never used
    spare = ('embed_tokens.weight', 'EncDecAttention.relative_attention_bias.weight')
    vocab_rows = ('tokens.weight', 'head.weight')
    types = {
        't5': Type('T5ForConditionalGeneration', '', _names, _keys, _silent, read=read_t5),
        'mt5': Type('MT5ForConditionalGeneration', '', _names, _keys, _silent, read=read_mt5),
    }

    def read_head(self, kind, hf, weights):
        """The head's matrix is the table of tokens unless the weights hold another one."""
        head = weights.get('lm_head.weight')
        table = weights.get('shared.weight')
        if head is None or table is None:
            return dict(tied=head is None)
        return dict(tied=head.shape == table.shape and torch.equal(head, table))

    def names(self, kind, config):
        return kind.names | _gated if config.gated else kind.names

    def copies(self, config):
        return {'head.weight': 'tokens.weight'} if config.tied else {}

    def choose(self, config):
        if not config.two or (config.activation, config.gated) not in PROJECTIONS.values():
            raise ValueError(f'transformers has no T5 with architecture={config.architecture}, '
                             f'activation={config.activation}, gated={config.gated}')
        return 't5'

    def values(self, config):
        return vars(config) | dict(
            projection=engine.first_key_of(PROJECTIONS, (config.activation, config.gated)),
            head_dim=config.width,
            n_decoder_layer=config.n_decoder_layer or config.n_layer,
            start_id=config.start,
        )

    def exported(self, config, state, outline):
        """All; blocks that encoder and decoder share are written twice."""
        if not config.shared:
            return state
        encoder = {name.replace('decoder', 'encoder', 1): w for name, w in state.items()
                   if name.startswith('decoder.') and 'cross' not in name}
        return state | encoder
