"""electra.py as transformers knows it: a discriminator, a generator, an encoder with a task's head.

An exported model of ours is two of theirs: the discriminator, and in the folder `generator` inside
it the generator.
"""
import dataclasses

import torch

from lib.hf import engine
from lib.hf.bert import BLOCKS
from lib.hf.bert import EMBEDDINGS
from lib.hf.bert import read_labels
from lib.hf.bert import write_labels
from lib.hf.engine import Always
from lib.hf.engine import Type
from lib.hf.engine import Written

_names = EMBEDDINGS | BLOCKS | {
    'encoder.project': '~embeddings_project',
    'detector.dense': 'discriminator_predictions.dense',
    'detector.out': 'discriminator_predictions.dense_prediction',
    'mlm.head.dense': 'generator_predictions.dense',
    'mlm.head.norm': 'generator_predictions.LayerNorm',
    'mlm.decoder': 'generator_lm_head',
}
_head_names = {
    'labelled': {'pooler': 'classifier.dense', 'classifier': 'classifier.out_proj'},
    'choice': {'pooler': 'sequence_summary.summary', 'classifier': 'classifier'},
    'tagged': {'classifier': 'classifier'},
    'qa': {'classifier': 'qa_outputs'},
}
HEADS = {  # end of the class's name in transformers -> Config.kind
    'SequenceClassification': 'labelled',
    'MultipleChoice': 'choice',
    'TokenClassification': 'tagged',
    'QuestionAnswering': 'qa',
}
_keys = {
    'vocab_size': 'vocab_size',
    'embedding_size': 'embed_dim',
    'hidden_size': 'n_embd',
    'num_hidden_layers': 'n_layer',
    'num_attention_heads': 'n_head',
    'intermediate_size': 'n_hidden',
    'hidden_act': Always('gelu'),
    'hidden_dropout_prob': 'dropout',
    'attention_probs_dropout_prob': 'attention_dropout',
    'max_position_embeddings': 'block_size',
    'type_vocab_size': 'n_segments',
    'initializer_range': 'init_std',
    'layer_norm_eps': 'norm_eps',
    'pad_token_id': 'pad_id',
    'summary_type': Always('first'),
    'summary_use_proj': Always(True),
    'summary_activation': Always('gelu'),
    'summary_last_dropout': Written('dropout'),
    'tie_word_embeddings': Always(True),
    'id2label': Written('id2label'),
    'label2id': Written('label2id'),
    'problem_type': Written('problem_type'),
}
_silent = dict(n_segments=2, norm_eps=1e-12, dropout=0.1, attention_dropout=0.1, init_std=0.02,
               pad_id=0, generator_size=0.0)
_choice_fixed = dict(summary_type='first', summary_use_proj=True, summary_activation='gelu')


class Layout(engine.Layout):
    family = 'electra'
    required = ('vocab_size', 'n_layer', 'n_head', 'n_embd', 'n_hidden', 'embed_dim', 'block_size')
    fixed = dict(hidden_act='gelu', position_embedding_type='absolute', is_decoder=False,
                 add_cross_attention=False, tie_word_embeddings=True, quantization_config=None)
    old_names = {'LayerNorm.gamma': 'LayerNorm.weight', 'LayerNorm.beta': 'LayerNorm.bias'}
    spare = ('embeddings.position_ids', 'embeddings.token_type_ids', 'generator_lm_head.weight')
    # heads when ours is another
    spare_heads = ('discriminator_predictions.', 'generator_', 'classifier.', 'sequence_summary.',
                   'qa_outputs.')
    vocab_rows = ('embeddings.tokens.weight', 'mlm.decoder.bias')
    types = {'electra': Type('Electra', 'electra.', _names, _keys, _silent, heads=_head_names)}

    @property
    def hf_folders(self):
        return {'generator': self.to_hf_generator}

    def from_hf(self, hf, weights):
        """config.json and tensors by name, as save_pretrained writes them -> Config, state dict.

        One folder holds one model: a discriminator or encoder (generator_size=0, which is enough to
        fine-tune), a task's model, or a generator (objective=mlm). Of our two-model export,
        hf['generator'] is the generator's config.json, its tensors are named 'generator/...'."""
        own = {name: w for name, w in weights.items() if not name.startswith('generator/')}
        config, state = super().from_hf(hf, own)
        generator = {name.removeprefix('generator/'): w
                     for name, w in weights.items() if name not in own}
        if not generator or config.kind != 'text' or config.objective != 'electra':
            return config, state
        small, other = super().from_hf(hf['generator'], generator)
        return self.join(config, state, small, other)

    def join(self, config, state, small, other):
        """A discriminator and a generator as one model; their tensors tell what they share."""
        def equal(part):
            return all(name in other and torch.equal(w, other[name])
                       for name, w in state.items() if name.startswith(part))
        share = 'none'
        own = ('mlm.', 'encoder.', 'embeddings.')
        if equal('embeddings.'):
            share = 'embeddings'
            own = ('mlm.', 'encoder.')
            if equal('encoder.'):
                share = 'all'
                own = ('mlm.',)
        config = dataclasses.replace(config, generator_size=small.n_embd / config.n_embd,
                                     generator_heads=small.n_head, generator_layers=small.n_layer,
                                     share=share)
        expected = self.file.generator_config(config)
        for field in vars(expected):
            if getattr(small, field) != getattr(expected, field):
                raise ValueError(f'the generator has {field}={getattr(small, field)}, beside this '
                                 f'discriminator electra.py expects {getattr(expected, field)}')
        return config, state | {'generator.' + name: w
                                for name, w in other.items() if name.startswith(own)}

    def read_head(self, kind, hf, weights):
        suffix = (hf.get('architectures') or [''])[0].rpartition('For')[2]
        head = HEADS.get(suffix, 'text')
        if head == 'choice':
            self.check_fixed(hf, _choice_fixed)
        masked = 'generator_predictions.dense.weight' in weights
        found = 'discriminator_predictions.dense.weight' in weights
        fields = dict(kind=head, generator_size=0.0, objective='electra')
        if head == 'text' and masked and (suffix != 'PreTraining' or not found):
            fields['objective'] = 'mlm'
        if head == 'text' and not masked and not found:
            fields['kind'] = 'none'
        if head in ('labelled', 'tagged'):
            fields |= read_labels(hf, weights.get(_head_names[head]['classifier'] + '.weight'))
        return fields

    def to_hf(self, model):
        """-> config.json as a dict, tensors by name: the discriminator, with the head it has.

        Raises ValueError if transformers has no such model."""
        state = {name: w for name, w in model.state_dict().items()
                 if not name.startswith('generator.')}
        return self.write(model.config, state)

    def to_hf_generator(self, model):
        """The same of the generator, an ElectraForMaskedLM; None if the model has none."""
        if not model.config.has_generator:
            return None
        shared = ('embeddings.', 'encoder.') if model.config.share == 'all' else ('embeddings.',)
        weights = model.state_dict()
        state = {name: w for name, w in weights.items() if name.startswith(shared)}
        state |= {name.removeprefix('generator.'): w
                  for name, w in weights.items() if name.startswith('generator.')}
        return self.write(self.file.generator_config(model.config), state)

    def choose(self, config):
        return 'electra'

    def suffix(self, config):
        """The end of the class's name, or '' for the encoder alone."""
        if config.kind == 'text':
            return 'PreTraining' if config.has_detector else 'MaskedLM'
        return engine.first_key_of(HEADS, config.kind) if config.kind in HEADS.values() else ''

    def architecture(self, kind, config):
        suffix = self.suffix(config)
        return f'ElectraFor{suffix}' if suffix else 'ElectraModel'

    def values(self, config):
        sizes = dict(n_hidden=config.hidden, embed_dim=config.embed, pad_id=max(0, config.pad_id))
        return vars(config) | sizes | write_labels(config)

    def copies(self, config):
        return {'mlm.decoder.weight': 'embeddings.tokens.weight'}

    def compared(self, config):
        return 'activation', 'gated', 'positions', 'pre_norm'

    def further_differences(self, config, theirs, state, outline):
        return [] if config.n_segments else ['n_segments=0, only 1 or more']

    def exported(self, config, state, outline):
        """All but the copy of the table, and the head for masked words of all-tokens-mlm."""
        left = 'mlm.' if self.suffix(config) == 'PreTraining' else 'mlm.decoder.weight'
        return {name: w for name, w in state.items() if not name.startswith(left)}
