"""lib/hf: which model file opens a config.json, copies of model files, what config.json means where it is silent."""
import json
import os
import shutil
import sys

import pytest
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import bert
import electra
import gpt
import t5
import train  # noqa: F401
from lib import hf
from lib import models
from lib import weights
from lib.export import export_hf

FILES = dict(gpt=gpt, bert=bert, t5=t5, electra=electra)
SMALL = dict(vocab_size=99, n_layer=1, n_head=2, n_embd=24, n_hidden=37)


def small(family, **more):
    torch.manual_seed(0)
    file = FILES[family]
    return file.Model(file.Config(**SMALL, **more)).eval()


def test_every_type_has_a_family_and_every_family_a_file():
    assert set(hf.families.values()) == set(FILES) == set(hf.layouts)
    for name, file in FILES.items():
        assert file.family == name and not hasattr(file, 'from_hf') and models.layout_of(file).file is file
    for kind, family in hf.families.items():
        assert weights.hf_file(dict(model_type=kind)) is FILES[family]
        assert hf.layouts[family].types[kind].keys['vocab_size'] == 'vocab_size'
    with pytest.raises(ValueError, match="model_type 'zamba'; known: albert, bert"):
        weights.hf_file(dict(model_type='zamba'))


@pytest.mark.parametrize('family', FILES)
def test_a_copy_of_a_model_file_exports_and_opens(family, tmp_path, monkeypatch):
    shutil.copy(FILES[family].__file__, tmp_path / 'mine_hf.py')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    copy = models.import_model('mine_hf')
    try:
        model = small(family)
        mine = copy.Model(copy.Config(**SMALL))
        mine.load_state_dict(model.state_dict())
        export_hf(copy, mine, None, str(tmp_path / 'hf'))
        config, theirs = models.layout_of(FILES[family]).to_hf(model)
        assert json.loads((tmp_path / 'hf' / 'config.json').read_text()) == config
        again, state = models.layout_of(copy).from_hf(config, theirs)
        assert type(again) is copy.Config and state.keys() <= mine.state_dict().keys()
        assert all(torch.equal(w, mine.state_dict()[name]) for name, w in state.items())
    finally:
        sys.modules.pop('mine_hf', None)


def test_a_layout_of_its_own_wins_but_ours_open_first(tmp_path, monkeypatch):
    """An older copy has from_hf, to_hf and hf_types: it is its own layout; a config.json goes to our file."""
    source = open(gpt.__file__, encoding='utf-8').read()
    (tmp_path / 'gpt_old.py').write_text(source + "\n\nhf_types = ('llama', 'mine')\n\n\ndef from_hf(config, weights):\n"
                                                  "    return 'own', weights\n\n\ndef to_hf(model):\n    return {}, {}\n")
    for family in FILES: shutil.copy(FILES[family].__file__, tmp_path)
    monkeypatch.setattr(models, 'HERE', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    try:
        old = models.import_model('gpt_old')
        assert models.layout_of(old) is old
        assert weights.hf_file(dict(model_type='llama')).__name__ == 'gpt'
        assert weights.hf_file(dict(model_type='mine')) is old
    finally:
        sys.modules.pop('gpt_old', None)


def test_where_config_json_is_silent():
    layout = models.layout_of(gpt)
    gpt1 = dict(model_type='openai-gpt', vocab_size=99, n_positions=20, n_layer=1, n_head=2, n_embd=24)
    config = layout.build(layout.read_config(gpt1))                        # transformers' GPT-1 has afn='gelu'
    assert (config.activation, config.post_norm, config.dropout, config.tied) == ('gelu_tanh', True, 0.1, True)
    sizes = dict(vocab_size=99, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=37, max_position_embeddings=20)
    config = layout.build(layout.read_config(dict(sizes, model_type='llama', n_kv_head=None)))
    assert (config.norm_eps, config.tied, config.kv_heads, config.gated, config.activation) == (1e-6, False, 2, True, 'silu')
    layout = models.layout_of(bert)
    config = layout.build(layout.read_config(dict(sizes, model_type='albert')))
    assert (config.activation, config.dropout, config.embed_dim, config.share_layers) == ('gelu_tanh', 0.0, 128, True)


def test_a_classifier_made_from_a_model_of_sentence_pairs_keeps_its_head():
    model = small('bert', kind='labelled', n_labels=3, sentences='nsp')
    config, theirs = models.layout_of(bert).to_hf(model)
    assert config['architectures'] == ['BertForSequenceClassification'] and theirs['classifier.weight'].shape == (3, 24)
    again, state = models.layout_of(bert).from_hf(config, theirs)
    assert (again.kind, again.n_labels) == ('labelled', 3) and torch.equal(state['classifier.weight'], model.state_dict()['classifier.weight'])


def test_writing_draws_no_random_numbers():
    for family in FILES:
        model = small(family)
        before = torch.get_rng_state()
        models.layout_of(FILES[family]).to_hf(model)
        assert torch.equal(before, torch.get_rng_state())
