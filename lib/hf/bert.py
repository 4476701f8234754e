"""bert.py as transformers knows it: BERT, RoBERTa, ALBERT, DistilBERT, ModernBERT, with heads."""
import json

from lib.hf import engine
from lib.hf.engine import Always
from lib.hf.engine import Type
from lib.hf.engine import Written
from lib.hf.engine import within

# -------------------------------------------------------------------------------------------- names

EMBEDDINGS = {
    'embeddings.tokens': '~embeddings.word_embeddings',
    'embeddings.positions': '~embeddings.position_embeddings',
    'embeddings.segments': '~embeddings.token_type_embeddings',
    'embeddings.norm': '~embeddings.LayerNorm',
}
BLOCKS = within('encoder.blocks.{}.', '~encoder.layer.{}.', {
    'attention.qkv': 'attention.self.query attention.self.key attention.self.value',
    'attention.out': 'attention.output.dense',
    'norm_1': 'attention.output.LayerNorm',
    'mlp.up': 'intermediate.dense',
    'mlp.down': 'output.dense',
    'norm_2': 'output.LayerNorm',
})
_tops = {'pooler': '~pooler.dense', 'classifier': 'classifier'}
_bert_names = EMBEDDINGS | BLOCKS | _tops | {
    'head.dense': 'cls.predictions.transform.dense',
    'head.norm': 'cls.predictions.transform.LayerNorm',
    'decoder': 'cls.predictions',
    'pair': 'cls.seq_relationship',
}
_roberta_names = EMBEDDINGS | BLOCKS | _tops | {
    'head.dense': 'lm_head.dense',
    'head.norm': 'lm_head.layer_norm',
    'decoder': 'lm_head',
}
_albert_names = EMBEDDINGS | {
    'encoder.project': '~encoder.embedding_hidden_mapping_in',
    **within('encoder.blocks.{}.', '~encoder.albert_layer_groups.{}.albert_layers.0.', {
        'attention.qkv': 'attention.query attention.key attention.value',
        'attention.out': 'attention.dense',
        'norm_1': 'attention.LayerNorm',
        'mlp.up': 'ffn',
        'mlp.down': 'ffn_output',
        'norm_2': 'full_layer_layer_norm',
    }),
    'pooler': '~pooler',
    'classifier': 'classifier',
    'head.dense': 'predictions.dense',
    'head.norm': 'predictions.LayerNorm',
    'decoder': 'predictions',
    'pair': 'sop_classifier.classifier',
}
_distilbert_names = EMBEDDINGS | {
    **within('encoder.blocks.{}.', '~transformer.layer.{}.', {
        'attention.qkv': 'attention.q_lin attention.k_lin attention.v_lin',
        'attention.out': 'attention.out_lin',
        'norm_1': 'sa_layer_norm',
        'mlp.up': 'ffn.lin1',
        'mlp.down': 'ffn.lin2',
        'norm_2': 'output_layer_norm',
    }),
    'pooler': 'pre_classifier',
    'classifier': 'classifier',
    'head.dense': 'vocab_transform',
    'head.norm': 'vocab_layer_norm',
    'decoder': 'vocab_projector',
}
_modernbert_names = {
    'embeddings.tokens': '~embeddings.tok_embeddings',
    'embeddings.norm': '~embeddings.norm',
    **within('encoder.blocks.{}.', '~layers.{}.', {
        'attention.qkv': 'attn.Wqkv',
        'attention.out': 'attn.Wo',
        'norm_1': 'attn_norm',
        'mlp.up': 'mlp.Wi',
        'mlp.down': 'mlp.Wo',
        'norm_2': 'mlp_norm',
    }),
    'encoder.norm': '~final_norm',
    'head.dense': 'head.dense',
    'head.norm': 'head.norm',
    'decoder': 'decoder',
    'classifier': 'classifier',
}

_qa = {'qa': {'classifier': 'qa_outputs'}}
_roberta_heads = _qa | {
    'labelled': {'pooler': 'classifier.dense', 'classifier': 'classifier.out_proj'},
}

# -------------------------------------------------------------------------------------- config.json

_all = {
    'vocab_size': 'vocab_size',
    'max_position_embeddings': 'block_size',
    'initializer_range': 'init_std',
    'pad_token_id': 'pad_id',
    'tie_word_embeddings': Always(True),
    'id2label': Written('id2label'),
    'label2id': Written('label2id'),
    'problem_type': Written('problem_type'),
}
_sizes = _all | {
    'num_hidden_layers': 'n_layer',
    'num_attention_heads': 'n_head',
    'hidden_size': 'n_embd',
    'intermediate_size': 'n_hidden',
}
_bert_keys = _sizes | {
    'hidden_act': 'activation',
    'hidden_dropout_prob': 'dropout',
    'attention_probs_dropout_prob': 'attention_dropout',
    'type_vocab_size': 'n_segments',
    'layer_norm_eps': 'norm_eps',
}
_roberta_keys = _bert_keys | {
    'bos_token_id': 'cls_id',
    'eos_token_id': 'sep_id',
}
_albert_keys = _bert_keys | {
    'embedding_size': 'embed_dim',
    'num_hidden_groups': Always(1),
    'inner_group_num': Always(1),
    'classifier_dropout_prob': Written('dropout'),
}
_distilbert_keys = _all | {
    'n_layers': 'n_layer',
    'n_heads': 'n_head',
    'dim': 'n_embd',
    'hidden_dim': 'n_hidden',
    'activation': 'activation',
    'dropout': 'dropout',
    'attention_dropout': 'attention_dropout',
    'seq_classif_dropout': Written('dropout'),
    'qa_dropout': Written('dropout'),
}
_modernbert_keys = _sizes | {
    'hidden_activation': 'activation',
    'classifier_activation': Written('activation'),
    'norm_eps': 'norm_eps',
    'norm_bias': Written('norm_bias'),
    'attention_bias': Written('attention_bias'),
    'mlp_bias': Written('mlp_bias'),
    'classifier_bias': Written('classifier_bias'),
    'decoder_bias': Written('decoder_bias'),
    'mlp_dropout': 'dropout',
    'embedding_dropout': Written('dropout'),
    'attention_dropout': 'attention_dropout',
    'classifier_pooling': 'pool',
    'local_attention': Written('local_attention'),
    'layer_types': Written('layer_types'),
    'global_attn_every_n_layers': Written('global_attn_every_n_layers'),
    'global_rope_theta': Written('rope_theta'),
    'local_rope_theta': Written('local_rope_theta'),
    'rope_parameters': Written('rope_parameters'),
    'bos_token_id': Written('cls_id'),
    'eos_token_id': Written('sep_id'),
    'cls_token_id': 'cls_id',
    'sep_token_id': 'sep_id',
}

_roberta_silent = dict(double_sep=True, cls_id=0, sep_id=2, mask_id=-1)
_albert_silent = dict(activation='gelu_tanh', dropout=0.0, attention_dropout=0.0, embed_dim=128,
                      share_layers=True)
_distilbert_silent = dict(n_segments=0, pooler='relu')
_modernbert_silent = dict(n_segments=0, positions='rotary', pre_norm=True, norm_eps=1e-5,
                          gated=True, bias=False, pooler='head', dropout=0.0, attention_dropout=0.0,
                          mask_rate=0.3)

# ------------------------------------------------------------------------------------- single types


def read_roberta(hf, fields):
    """Its positions count from the row behind that of the padding."""
    offset = fields.get('pad_id', 0) + 1
    fields['position_offset'] = offset
    fields['block_size'] -= offset


def write_roberta(config):
    offset = config.position_offset
    return dict(pad_id=offset - 1, block_size=config.block_size + offset)


MODERNBERT_BIASES = (  # part of our model, its key, what the key means where it is silent
    ('attention', 'attention_bias', False),
    ('mlp', 'mlp_bias', False),
    ('norm', 'norm_bias', False),
    ('head', 'classifier_bias', False),
    ('decoder', 'decoder_bias', True),
)


def layer_types(n_layer, every):
    """Full attention in layer 0 and every n-th one after it."""
    return ['sliding_attention' if i % every else 'full_attention' for i in range(n_layer)]


def read_modernbert(hf, fields):
    activation = hf.get('hidden_activation', 'gelu')
    if hf.get('classifier_activation', activation) != activation:
        raise ValueError(f'classifier_activation={hf["classifier_activation"]!r} in config.json: '
                         f'bert.py knows only {activation!r}')
    types = hf.get('layer_types')
    if not types:
        types = layer_types(fields['n_layer'], hf.get('global_attn_every_n_layers', 3))
    every = next((i for i in range(1, len(types)) if types[i] == 'full_attention'), len(types))
    if types != layer_types(len(types), every):
        raise ValueError('layer_types in config.json: '
                         'bert.py knows full attention in layer 0 and every n-th one after it')
    fields['global_every'] = every
    fields['window'] = hf.get('local_attention', 128) if every > 1 else 0
    biased = [part for part, key, silent in MODERNBERT_BIASES if hf.get(key, silent)]
    fields['biases'] = ' '.join(biased)
    read_modernbert_rope(hf, fields)
    for field, key in (('cls_id', 'cls_token_id'), ('sep_id', 'sep_token_id')):
        if not isinstance(hf.get(key), int):
            fields.pop(field, None)


def read_modernbert_rope(hf, fields):
    """transformers 4 has global_rope_theta and local_rope_theta, 5 has rope_parameters for both
    kinds of layer."""
    rope = hf.get('rope_parameters') or {}
    for parameters in (hf.get('rope_scaling'), *rope.values()):
        if isinstance(parameters, dict) and parameters.get('rope_type', 'default') != 'default':
            raise ValueError(f'rope_type {parameters["rope_type"]!r} in config.json: '
                             'bert.py knows only default')

    def theta(layers, old_key, silent):
        return float((rope.get(layers) or {}).get('rope_theta') or hf.get(old_key) or silent)
    fields['rope_theta'] = theta('full_attention', 'global_rope_theta', 160000.0)
    local = fields['rope_theta'] if 'global_rope_theta' in hf else 10000.0
    fields['rope_theta_local'] = theta('sliding_attention', 'local_rope_theta', local)


def write_modernbert(config):
    every = config.global_every if config.window else 1
    local = config.rope_theta_local or config.rope_theta
    return {key: config.has_bias(part) for part, key, _ in MODERNBERT_BIASES} | dict(
        local_attention=config.window or 128,
        layer_types=layer_types(config.n_layer, every),
        global_attn_every_n_layers=every,
        local_rope_theta=local,
        rope_parameters={
            'full_attention': dict(rope_type='default', rope_theta=config.rope_theta),
            'sliding_attention': dict(rope_type='default', rope_theta=local),
        },
    )

# ------------------------------------------------------------------------------------------- labels


def read_labels(hf, classifier):
    """id2label of config.json, and the classifier's matrix (n_labels, C) -> fields of Config."""
    n = 0 if classifier is None else len(classifier)
    if n < 2:
        return dict(n_labels=0, labels='')
    names = hf.get('id2label') or {}
    labels = [names.get(str(i), names.get(i, f'LABEL_{i}')) for i in range(n)]
    return dict(n_labels=n, labels=json.dumps(labels))


def write_labels(config):
    """id2label, label2id and problem_type of a classifier; nothing for other heads."""
    if config.kind not in ('labelled', 'tagged'):
        return {}
    labels = [f'LABEL_{i}' for i in range(max(1, config.n_labels))]
    if config.labels:
        labels = json.loads(config.labels)
    return dict(
        id2label={str(i): label for i, label in enumerate(labels)},
        label2id={label: i for i, label in enumerate(labels)},
        problem_type=None if config.n_labels or config.kind == 'tagged' else 'regression',
    )

# --------------------------------------------------------------------------------------- the family


HEADS = {  # end of the class's name in transformers -> Config.kind
    'MaskedLM': 'text',
    'PreTraining': 'text',
    'SequenceClassification': 'labelled',
    'TokenClassification': 'tagged',
    'QuestionAnswering': 'qa',
    'MultipleChoice': 'choice',
}


class Layout(engine.Layout):
    family = 'bert'
    required = ('vocab_size', 'block_size', 'n_layer', 'n_head', 'n_embd', 'n_hidden')
    fixed = dict(position_embedding_type='absolute', is_decoder=False, add_cross_attention=False,
                 tie_word_embeddings=True, num_hidden_groups=1, inner_group_num=1,
                 sinusoidal_pos_embds=False, quantization_config=None)
    activations = {'gelu': 'gelu', 'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh',
                   'relu': 'relu', 'silu': 'silu', 'swish': 'silu'}
    old_names = {'LayerNorm.gamma': 'LayerNorm.weight', 'LayerNorm.beta': 'LayerNorm.bias',
                 '.decoder.bias': '.bias'}
    spare = ('position_ids', 'token_type_ids', 'inv_freq', 'decoder.weight', 'decoder.bias',
             'vocab_projector.weight')
    # heads of a pre-training task, when ours is another
    spare_heads = ('pooler.', 'cls.', 'lm_head.', 'predictions.', 'sop_classifier.', 'vocab_',
                   'head.', 'decoder.')
    vocab_rows = ('embeddings.tokens.weight', 'decoder.bias')
    types = {
        'bert': Type('Bert', 'bert.', _bert_names, _bert_keys, heads=_qa),
        'roberta': Type('Roberta', 'roberta.', _roberta_names, _roberta_keys, _roberta_silent,
                        heads=_roberta_heads, activations={'gelu': 'gelu'}, read=read_roberta,
                        values=write_roberta),
        'albert': Type('Albert', 'albert.', _albert_names, _albert_keys, _albert_silent, heads=_qa),
        'distilbert': Type('DistilBert', 'distilbert.', _distilbert_names, _distilbert_keys,
                           _distilbert_silent, heads=_qa),
        'modernbert': Type('ModernBert', 'model.', _modernbert_names, _modernbert_keys,
                           _modernbert_silent, read=read_modernbert, values=write_modernbert),
    }

    def read_head(self, kind, hf, weights):
        """The head is that of the architecture and of the weights; without any it is the encoder
        alone."""
        architecture = (hf.get('architectures') or [''])[0]
        heads = [head for end, head in HEADS.items() if architecture.endswith('For' + end)]
        head = heads[0] if heads else 'none'
        names = kind.names | (kind.heads or {}).get(head, {})

        def weights_have(module):
            return module in names and names[module].replace('~', '') + '.weight' in weights
        if head == 'none' and weights_have('head.dense') and kind.cls != 'ModernBert':
            head = 'text'
        fields = dict(kind=head)
        if head == 'text' and weights_have('pair') and weights_have('pooler'):
            fields['sentences'] = 'sop' if kind.cls == 'Albert' else 'nsp'
        if head == 'none' and weights_have('pooler'):
            fields['kind'] = 'pooled'
        if head in ('labelled', 'tagged'):
            fields |= read_labels(hf, weights.get(names['classifier'] + '.weight'))
        return fields

    def choose(self, config):
        if config.pre_norm:
            return 'modernbert'
        if config.share_layers:
            return 'albert'
        if config.position_offset:
            return 'roberta'
        return 'bert' if config.n_segments else 'distilbert'

    def suffix(self, kind, config):
        """The end of the class's name, or '' for the encoder alone."""
        if config.kind == 'text':
            return 'PreTraining' if config.sentences and 'pair' in kind.names else 'MaskedLM'
        return engine.first_key_of(HEADS, config.kind) if config.kind in HEADS.values() else ''

    def architecture(self, kind, config):
        suffix = self.suffix(kind, config)
        return f'{kind.cls}For{suffix}' if suffix else f'{kind.cls}Model'

    def values(self, config):
        sizes = dict(n_hidden=config.hidden, embed_dim=config.embed)
        return vars(config) | sizes | write_labels(config)

    def copies(self, config):
        return {'decoder.weight': 'embeddings.tokens.weight'}

    def compared(self, config):
        fields = ('embed', 'hidden', 'positions', 'share_layers', 'pre_norm', 'gated', 'activation',
                  'n_segments', 'mlm_transform', 'norm_eps', 'window')
        if config.kind in ('labelled', 'choice'):
            fields += ('pooler', 'pool')
        return fields

    def further_differences(self, config, theirs, state, outline):
        return [f'no bias in {part}' for part in ('attention', 'mlp', 'norm', 'head', 'decoder')
                if config.has_bias(part) != theirs.has_bias(part)]

    def exported(self, config, state, outline):
        """All but the parts of pre-training that transformers does not know: the boundary
        objective, MAE-LM's decoder, and beside a head for masked words alone what tells whether two
        texts belong together."""
        left = ('boundary.', 'mae.')
        if self.suffix(self.types[self.choose(config)], config) == 'MaskedLM':
            left += ('pair.', 'pooler.')
        left += ('decoder.weight',)                            # a copy of the table
        return {name: w for name, w in state.items() if not name.startswith(left)}
