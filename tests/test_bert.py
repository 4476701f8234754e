"""bert.py: against transformers in both directions, masks counted, losses and gradients by their definition, tiny odd sizes."""
import ast, dataclasses, math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import bert, bpe, train
from lib import masking, models, spanbert, tasks
from data.rows import Random, keyed
from lib import sentences
from lib.models import layout_of
from lib.export import export_hf
from lib.weights import build_model

tf = pytest.importorskip('transformers')
tf.logging.set_verbosity_error()
tf.utils.logging.disable_progress_bar()

TINY = dict(vocab_size=99, block_size=37, n_layer=2, n_head=3, n_embd=30, n_hidden=41, dropout=0.0, attention_dropout=0.0,
            eot_id=4, pad_id=0, cls_id=1, sep_id=2, mask_id=3)
MODERN = dict(pre_norm=True, positions='rotary', gated=True, bias=False, biases='decoder', n_segments=0, norm_eps=1e-5, pooler='head',
              n_layer=4, window=6, rope_theta=160000.0, rope_theta_local=10000.0)
OBJECTIVES = dict(mlm={}, static=dict(static_masks=3), word=dict(masking='word'), span=dict(masking='span'), sbo=dict(masking='span', sbo=True),
                  nsp=dict(sentences='nsp'), sop=dict(sentences='sop'), sop_span=dict(sentences='sop', masking='span', sbo=True), mae=dict(n_decoder=2),
                  mae_modern=dict(MODERN, n_decoder=1),
                  mae_nsp=dict(n_decoder=1, sentences='nsp'), modern=MODERN, albert=dict(embed_dim=14, share_layers=True),
                  sinusoidal=dict(positions='sinusoidal', mlm_transform=False), roberta=dict(position_offset=2, n_segments=1, vocab_multiple=16))


def small(**changes): return bert.Config(**{**TINY, **changes})


class Words:
    """A tokenizer for tests: ids 10 .. 49 begin a word (' a'), ids 50 .. 98 go on with it ('b')."""
    vocab_size, special = 99, {f'<{i}>': i for i in range(10)}
    def decode_bytes(self, ids): return b''.join(b'' if i < 10 else b' a' if i < 50 else b'b' for i in ids)


def text_of(rows=8, seed=0, low=10, high=99):
    """A draw for `rows` rows of random text, and the text."""
    text = np.random.default_rng(seed).integers(low, high, (2, rows, 400))
    def draw(length, overlap=0, stream=0): return text[stream, :, :length].copy()
    draw.tokenizer = Words()
    return draw, text


def make_batch(config, rows=8, seed=0, step=0):
    return bert.batch(text_of(rows, seed)[0], config, Random(keyed(seed, step, np.arange(rows))))


def tensors(arrays): return [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]


def model_of(config, seed=0, spread=0.1):
    """A model whose every parameter is away from 0 and 1, so that a forgotten bias or norm shows."""
    torch.manual_seed(seed)
    model = bert.Model(config)
    with torch.no_grad():
        for p in model.parameters(): p.add_(spread * torch.randn_like(p))
    return model.eval()


# ---------------------------------------------------------------------------------------------------- Hugging Face

SIZE = dict(vocab_size=99, hidden_size=28, num_hidden_layers=4, num_attention_heads=7, intermediate_size=37, max_position_embeddings=43)
HF = {'Bert': lambda: tf.BertConfig(**SIZE), 'Roberta': lambda: tf.RobertaConfig(**SIZE, type_vocab_size=1, layer_norm_eps=1e-5),
      'Albert': lambda: tf.AlbertConfig(**SIZE, embedding_size=13),
      'DistilBert': lambda: tf.DistilBertConfig(vocab_size=99, dim=28, n_layers=4, n_heads=7, hidden_dim=37, max_position_embeddings=43),
      'ModernBert': lambda: tf.ModernBertConfig(**SIZE, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, local_attention=6)}
HEADS = ('ForMaskedLM', 'ForPreTraining', 'ForSequenceClassification', 'ForTokenClassification', 'ForQuestionAnswering', 'ForMultipleChoice', 'Model')
CASES = [(n, h) for n in HF for h in HEADS if hasattr(tf, n + h)]


def hf_inputs(name, head):
    g = torch.Generator().manual_seed(3)
    ids, mask, segments = torch.randint(5, 99, (3, 13), generator=g), torch.ones(3, 13, dtype=torch.long), torch.zeros(3, 13, dtype=torch.long)
    mask[1, 9:], segments[:, 6:] = 0, 1
    pairs = name in ('Bert', 'Albert')
    theirs = dict(input_ids=ids, attention_mask=mask, **(dict(token_type_ids=segments) if pairs else {}))
    ours = (ids, segments if pairs else None, mask)
    if head == 'ForMultipleChoice': theirs, ours = {k: v[None] for k, v in theirs.items()}, [a if a is None else a[None] for a in ours]
    return theirs, ours, mask.bool()


def hf_model(name, head):
    torch.manual_seed(1)
    config = HF[name]()
    config.num_labels = 5 if head in ('ForSequenceClassification', 'ForTokenClassification') else 2
    model = getattr(tf, name + head)(config).eval()
    with torch.no_grad():
        for p in model.parameters(): p.add_(0.1 * torch.randn_like(p))
    return model


def hf_result(out, real, head):
    if head == 'Model': return out.last_hidden_state[real]
    if head == 'ForQuestionAnswering': return torch.stack((out.start_logits, out.end_logits), 2)[real]
    if head in ('ForSequenceClassification', 'ForMultipleChoice'): return out.logits
    return out[0][real]


@pytest.mark.parametrize('name,head', CASES)
def test_transformers_both_ways(name, head, tmp_path):
    theirs, ours, real = hf_inputs(name, head)
    hf = hf_model(name, head)
    hf.save_pretrained(tmp_path / 'a')
    model, _ = train.load_model(str(tmp_path / 'a'))
    with torch.no_grad():
        want = hf(**theirs)
        x = model.hidden(*ours) if head in ('Model', 'ForPreTraining') else None
        got = x[real] if head == 'Model' else model.logits(*ours)
        if head not in ('ForSequenceClassification', 'ForMultipleChoice', 'Model'): got = got[real]
        assert got.shape == hf_result(want, real, head).shape and (got - hf_result(want, real, head)).abs().max() < 1e-4
        if head == 'ForPreTraining': assert (sentences.pair_logits(model, x) - want[1]).abs().max() < 1e-4
        if head == 'Model' and model.config.kind == 'pooled': assert (model.pooled(x) - want.pooler_output).abs().max() < 1e-4
        export_hf(bert, model, None, str(tmp_path / 'b'))
        again, info = type(hf).from_pretrained(tmp_path / 'b', output_loading_info=True)
        assert not any(info.values()), info
        again = again.eval()(**theirs)
        assert (hf_result(again, real, head) - hf_result(want, real, head)).abs().max() < 1e-4
        if head == 'ForPreTraining': assert (again[1] - want[1]).abs().max() < 1e-4


@pytest.mark.parametrize('T, window', [(37, 8), (33, 16), (16, 8)])
def test_local_layers_cost_what_they_see(T, window, monkeypatch):
    "rows longer than two windows are cut into blocks: nothing but the cost differs from a mask of all pairs"
    c = bert.Config(vocab_size=99, block_size=T, n_layer=3, n_head=3, n_embd=24, n_hidden=48, n_segments=0,
                    positions='rotary', pre_norm=True, window=window, global_every=3)
    encoder, x, real, sizes = bert.Encoder(c).double().eval(), torch.randn(4, T, 24).double(), F.scaled_dot_product_attention, []
    mask = torch.arange(T) < torch.tensor([T, T - 3, window // 2, 1])[:, None]
    def attend(q, k, v, *args):
        sizes.append(k.size(2))
        return real(q, k, v, *args)
    monkeypatch.setattr(F, 'scaled_dot_product_attention', attend)
    for real_ones in (None, mask):
        outs = []
        for positions in (None, torch.arange(T)[None]):                    # given positions need not run on: all pairs
            encoder.zero_grad()
            out = encoder(x, real_ones, positions)
            seen = out if real_ones is None else out[mask]
            seen.square().sum().backward()
            outs.append([seen, *(p.grad.clone() for p in encoder.parameters() if p.grad is not None)])
        for a, b in zip(*outs, strict=True): assert (a - b).abs().max() < 1e-10
        assert not out.isnan().any()
    local = 3 * window // 2 if T > 2 * window else T
    assert sizes == 2 * [T, local, local, T, T, T]


def test_a_residual_stream_in_bf16(residual_streams):
    residual_streams(lambda on: model_of(small(residual_autocast=on, embed_dim=14)), bert.Block, tensors(make_batch(small())), 0.05)


def read_config(config):
    layout = layout_of(bert)
    return layout.build(layout.read_config(config))


def test_old_names_and_dialects(tmp_path):
    """bert-base-uncased's file says gamma and beta and holds more heads than its config names; ModernBERT's config has two dialects."""
    hf = hf_model('Bert', 'ForPreTraining')
    weights = {k.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta'): v for k, v in hf.state_dict().items()}
    weights['bert.embeddings.position_ids'] = torch.arange(43)[None]
    config, state = layout_of(bert).from_hf(dict(hf.config.to_dict(), architectures=['BertForMaskedLM']), weights)
    model = bert.Model(config)
    model.load_state_dict(state, strict=True)
    ids = torch.randint(5, 99, (2, 7))
    assert config.sentences == 'nsp' and (model.eval().logits(ids) - hf(ids)[0]).abs().max() < 1e-4
    new = HF['ModernBert']().to_dict()
    old = {k: v for k, v in new.items() if k not in ('rope_parameters', 'layer_types')} | dict(global_rope_theta=160000.0, local_rope_theta=10000.0, global_attn_every_n_layers=3)
    assert read_config(old) == read_config(new)
    assert read_config(dict(old, global_attn_every_n_layers=1)).window == 0
    assert read_config(dict(old, local_rope_theta=None)).rope_theta_local == 160000.0
    for change, message in ((dict(model_type='xlm'), "'xlm'"), (dict(tie_word_embeddings=False), 'tie_word_embeddings=False'), (dict(hidden_activation='mish'), "'mish'")):
        with pytest.raises(ValueError, match=message): read_config(dict(new, **change))
    with pytest.raises(ValueError, match='lack.*LayerNorm'): layout_of(bert).from_hf(hf.config.to_dict(), {k: v for k, v in hf.state_dict().items() if 'LayerNorm' not in k})
    with pytest.raises(ValueError, match='hold extra.thing'): layout_of(bert).from_hf(hf.config.to_dict(), hf.state_dict() | {'extra.thing': torch.zeros(1)})


def test_our_own_go_to_transformers(tmp_path):
    """What pre-training leaves behind is left behind, the rest gives equal logits; what transformers lacks is refused."""
    ids = torch.randint(5, 99, (2, 13), generator=torch.Generator().manual_seed(0))
    for changes in (dict(masking='span', sbo=True, vocab_multiple=16), MODERN, dict(position_offset=2, n_segments=1, pad_id=1), dict(n_segments=0, pooler='relu')):
        model = model_of(small(**changes))
        export_hf(bert, model, None, str(tmp_path / 'x'))
        hf = tf.AutoModelForMaskedLM.from_pretrained(tmp_path / 'x').eval()
        assert (hf(ids).logits - model.logits(ids)).abs().max() < 1e-4
    for changes, message in ((dict(gated=True), 'gated=True'), (dict(positions='sinusoidal'), 'sinusoidal'), (dict(bias=False), 'no bias in attention'), (dict(mlm_transform=False), 'mlm_transform'),
                             (dict(kind='labelled', n_labels=3, pool='mean'), "pool='mean'")):
        with pytest.raises(ValueError, match=message): layout_of(bert).to_hf(bert.Model(small(**changes)))


# ---------------------------------------------------------------------------------------------------- sizes

def hf_count(cls, **config):
    with torch.device('meta'): model = getattr(tf, cls)(getattr(tf, cls.partition('For')[0] + 'Config')(**config))
    return sum(p.numel() for p in model.parameters())


def bert_size(layers, heads, width, **more):
    return dict(num_hidden_layers=layers, num_attention_heads=heads, hidden_size=width, intermediate_size=4 * width, **more)


ROBERTA, BOUNDARY = dict(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1), 10 * 768 + (3 * 768 + 1) * 768 + 769 * 768 + 4 * 768
PRESETS = {  # preset: its millions in the paper, our exact number, the same model in transformers (and what we have beyond it)
    'bert-tiny': (4.4, 4433468, lambda: hf_count('BertForPreTraining', **bert_size(2, 2, 128))),
    'bert-mini': (11.3, 11267900, lambda: hf_count('BertForPreTraining', **bert_size(4, 4, 256))),
    'bert-small': (29.1, 29058876, lambda: hf_count('BertForPreTraining', **bert_size(4, 8, 512))),
    'bert-medium': (41.7, 41668412, lambda: hf_count('BertForPreTraining', **bert_size(8, 8, 512))),
    'bert-base': (110, 110106428, lambda: hf_count('BertForPreTraining')),
    'bert-large': (340, 336226108, lambda: hf_count('BertForPreTraining', **bert_size(24, 16, 1024))),
    'roberta-base': (125, 124697433, lambda: hf_count('RobertaForMaskedLM', **ROBERTA)),
    'roberta-large': (355, 355412057, lambda: hf_count('RobertaForMaskedLM', **ROBERTA, **bert_size(24, 16, 1024))),
    'spanbert-base': (110, 108340804 + BOUNDARY, lambda: hf_count('BertForMaskedLM', vocab_size=28996) + BOUNDARY),
    'albert-base': (12, 11813810, lambda: hf_count('AlbertForPreTraining', **bert_size(12, 12, 768))),
    'albert-large': (18, 17847474, lambda: hf_count('AlbertForPreTraining', **bert_size(24, 16, 1024))),
    'albert-xlarge': (60, 59021490, lambda: hf_count('AlbertForPreTraining', **bert_size(24, 16, 2048))),
    'albert-xxlarge': (235, 223158450, lambda: hf_count('AlbertForPreTraining', **bert_size(12, 64, 4096))),
    'distilbert': (66, 66985530, lambda: hf_count('DistilBertForMaskedLM')),
    'modern-base': (149, 149655232, lambda: hf_count('ModernBertForMaskedLM')),
    'modern-large': (395, 395881664, lambda: hf_count('ModernBertForMaskedLM', num_hidden_layers=28, hidden_size=1024, num_attention_heads=16, intermediate_size=2624)),
    'crammed': (120, 32768 * 768 + 1 + 16 * (4 * 768 ** 2 + 3 * 768 * 1536 + 4 * 768) - 2 * 768 + 4 * 768, None),
}


@pytest.mark.parametrize('preset', [p for p in bert.presets if p not in ('small', 'maelm-base', 'speedrun-crammed')])
def test_presets_have_the_sizes_of_the_papers(preset):
    millions, exact, theirs = PRESETS[preset]
    with torch.device('meta'): model = bert.Model(bert.Config(**bert.presets[preset]))
    ours = sum(p.numel() for p in model.parameters())
    assert abs(ours / 1e6 / millions - 1) < 0.06
    if exact: assert ours == exact
    if theirs: assert ours == theirs()


def test_presets_and_recipes_name_real_fields():
    fields = {f.name for f in dataclasses.fields(bert.Config)} | {f.name for f in dataclasses.fields(train.Config)}
    for values in (bert.recipe, *bert.recipes.values()): assert set(values) <= fields | {'preset'}
    assert set(bert.recipes) <= set(bert.presets)
    for values in bert.presets.values(): bert.Config(**values)
    tree = ast.parse(open(bert.__file__, encoding='utf-8').read())
    assert imports(tree.body) <= {'torch', 'numpy', 'functools', 'json', 'math', 'dataclasses'}
    inside = [n for n in ast.walk(tree) if n not in tree.body]             # what a function asks for when a flag does
    assert imports(inside) <= {'lib'}


def imports(nodes):
    return {a.name.split('.')[0] for n in nodes if isinstance(n, ast.Import) for a in n.names} | {n.module.split('.')[0] for n in nodes if isinstance(n, ast.ImportFrom)}


# ---------------------------------------------------------------------------------------------------- hidden tokens

def unpack(config, arrays):
    """Arrays by name."""
    names = ['ids', *(['segments'] if config.sentences else []), 'places', *(['edges'] if config.sbo else []), *(['flip'] if config.sentences else []), 'targets']
    assert len(names) == len(arrays)
    return dict(zip(names, arrays))


@pytest.mark.parametrize('name', OBJECTIVES)
def test_a_batch(name):
    """Static shapes, K different places, only real tokens hidden, the original text comes back."""
    config = small(**OBJECTIVES[name])
    a = unpack(config, make_batch(config, rows=32))
    T, K = config.block_size, config.n_masked
    assert a['ids'].shape == (32, T) and a['places'].shape == a['targets'].shape == (32, K) and K == round(0.15 * config.n_text)
    assert (np.diff(a['places'], axis=1) > 0).all()                        # without replacement
    restored, places = a['ids'].copy(), a['places']
    rows = np.arange(32)[:, None]
    held = a['targets'] >= 0
    restored[rows, places] = np.where(held, a['targets'], restored[rows, places])
    assert (restored[:, 0] == 1).all() and (restored == 1).sum() == 32 and (restored == 2).sum() == 32 * (1 + bool(config.sentences))
    assert not np.isin(restored[rows, places], (1, 2)).any()               # never [CLS] or [SEP]
    assert held.mean() > (0.75 if config.masking == 'word' else 0.999)
    if not config.sentences: assert (restored[:, 1:-1] == text_of(32)[1][0, :, :T - 2]).all()
    if config.n_decoder: assert (a['ids'] == restored).all()               # the encoder drops the places, the ids are whole


def test_eighty_ten_ten():
    config = small(block_size=202)
    shares, places = np.zeros(3), np.zeros(200)
    for step in range(20):
        a = unpack(config, make_batch(config, 64, step=step))
        new = np.take_along_axis(a['ids'], a['places'], 1)
        shares += (new == 3).sum(), (new == a['targets']).sum(), ((new != 3) & (new != a['targets'])).sum()
        places += np.bincount(a['places'].ravel() - 1, minlength=200)
    shares /= shares.sum()                                                 # 38,400 hidden tokens; a random one is the old one in 1 of 99
    assert abs(shares - (0.8, 0.1 + 0.1 / 99, 0.1 - 0.2 / 99)).max() < 0.008
    assert abs(places / places.mean() - 1).max() < 0.35                    # every place as often: 192 +- 14 times
    for kept, masked, want in ((0.0, 1.0, 3), (0.0, 0.0, None)):
        a = unpack(config, make_batch(small(block_size=202, mask_share=masked, random_share=kept)))
        new = np.take_along_axis(a['ids'], a['places'], 1)
        assert (new == (a['targets'] if want is None else want)).all()


def test_dynamic_and_static_masks():
    same = lambda c, a, b: (unpack(c, make_batch(c, step=a))['places'] == unpack(c, make_batch(c, step=b))['places']).all(1)
    assert not same(small(), 1, 2).any() and same(small(), 1, 1).all()
    fixed = small(static_masks=1)
    assert same(fixed, 1, 2).all()
    assert 0.05 < np.mean([same(small(static_masks=3), 0, s).mean() for s in range(1, 20)]) < 0.65           # one of three
    # the masks of a text do not depend on where its window begins, but for the share that a window hides
    text = np.random.default_rng(0).integers(10, 99, (1, 500))
    def hidden(shift):
        a = unpack(big, bert.batch(lambda n, overlap=0, stream=0: text[:, shift:shift + n], big, Random(keyed(shift))))
        return set((a['places'][0] - 1 + shift).tolist())
    big = small(block_size=302, static_masks=1)
    a, b = hidden(0), hidden(90)
    common = {p for p in a if 100 <= p < 290}
    assert len(common & b) > 0.85 * len(common)


def test_special_tokens_of_the_text_are_not_hidden():
    config = small(mask_rate=0.5)
    draw, text = text_of()
    text[:, :, ::3] = 4                                                    # documents of two tokens
    for kind in ('token', 'word', 'span'):
        a = unpack(config, bert.batch(draw, dataclasses.replace(config, masking=kind), Random(keyed(0, np.arange(8)))))
        assert not (a['targets'] == 4).any() and (a['targets'] >= 0).mean() > dict(token=0.999, word=0.7, span=0.5)[kind]
    text[:] = 4
    assert (bert.batch(draw, config, Random(keyed(0, np.arange(8))))[-1] == -1).all()


def test_whole_words():
    config = small(masking='word', mask_rate=0.3, mask_share=1.0, random_share=0.0)
    total = 0
    for step in range(10):
        draw, text = text_of(seed=step)
        a = unpack(config, bert.batch(draw, config, Random(keyed(step, np.arange(8)))))
        for ids, original in zip(a['ids'], text[0, :, :35]):
            word = np.cumsum((original < 50) | (np.arange(35) == 0))
            hidden = ids[1:36] == 3
            total += hidden.sum()
            for w in np.unique(word): assert hidden[word == w].all() or not hidden[word == w].any()
    assert total > 0.8 * 10 * 8 * config.n_masked
    draw, text = text_of(low=50)                                           # one endless word: a row still has targets
    assert (bert.batch(draw, config, Random(keyed(1, np.arange(8))))[-1] >= 0).all()
    with pytest.raises(ValueError, match='needs the tokenizer'): bert.batch(lambda *a, **k: text[0, :, :35], config, Random(keyed(1, np.arange(8))))


def test_which_tokens_go_on_with_a_word():
    tokenizer = bpe.train(['the cat sat_on the mats, don\'t 1234\n' * 9], 420)
    begins, ends = masking.word_parts(tokenizer)
    def first(text):
        ids = tokenizer.encode(text)
        return [tokenizer.decode([i]) for k, i in enumerate(ids) if k == 0 or not (begins[i] and ends[ids[k - 1]])]
    assert [t.strip()[:1] for t in first('the cats sat_xy mats, don')] == ['t', 'c', 's', 'm', ',', 'd']
    class Pieces:  # WordPiece: decoding puts spaces between words
        vocab_size, special, tokens = 6, {'[MASK]': 0}, ['[MASK]', 'play', '##ing', ',', 'the', '##é']
        def decode_bytes(self, ids):
            return ''.join(t[2:] if t.startswith('##') else ' ' * (k > 0) + t for k, t in enumerate(self.tokens[i] for i in ids)).encode()
    begins, ends = masking.word_parts(Pieces())
    assert begins.tolist() == [False, False, True, False, False, True] and ends.tolist() == [False, True, True, False, True, True]


def test_spans():
    """Geometric lengths with mean 3.8, exactly K tokens, spans that never touch, each masked as a whole, edges outside."""
    rng, lengths = Random(keyed(0, np.arange(4000))), []
    places, span = spanbert.span_places(rng.random(60), rng.random(400 - 60 + 1), 60, 400)
    assert (np.diff(places, axis=1) > 0).all() and places.min() >= 0 and places.max() < 400
    joined = (np.diff(places, axis=1) == 1) == (np.diff(span, axis=1) == 0)
    assert joined.all()                                                    # neighbours are of one span, and no two spans are neighbours
    for row in span[:1000]: lengths += np.bincount(row)[:-1].tolist()      # the last one may be cut short
    p = 0.2 * 0.8 ** np.arange(10) / (1 - 0.8 ** 10)
    assert abs(np.mean(lengths) - (p * np.arange(1, 11)).sum()) < 0.1 and abs(np.mean(lengths) - 3.8) < 0.15 and max(lengths) == 10
    assert abs(np.bincount(lengths, minlength=11)[1:] / len(lengths) - p).max() < 0.02
    hidden = np.bincount(places.ravel(), minlength=400) / 4000
    assert abs(hidden[20:-20] - 0.15).max() < 0.03
    config = small(masking='span', sbo=True, mask_rate=0.4, random_share=0.0)
    a = unpack(config, make_batch(config, 64))
    mask = np.zeros((64, 37), bool)
    np.put_along_axis(mask, a['places'], True, 1)
    left, right, at = a['edges'].transpose(2, 0, 1)
    rows = np.arange(64)[:, None]
    assert not mask[rows, left].any() and not mask[rows, right].any() and (left >= 0).all() and (right < 37).all()
    assert (left + 1 + at == a['places']).all() and at.max() < 10
    for i in range(64):                                                    # all of a span: [MASK], or unchanged
        for l in np.unique(left[i]):
            new, old = a['ids'][i, a['places'][i, left[i] == l]], a['targets'][i, left[i] == l]
            assert (new == 3).all() or (new == old).all()


@pytest.mark.parametrize('task', ['nsp', 'sop'])
def test_sentence_pairs(task):
    config = small(sentences=task, mask_share=0.0, random_share=0.0)
    a, (first, other) = unpack(config, make_batch(config, 64)), text_of(64)[1]
    assert set(a['flip']) == {0, 1}
    cuts = set()
    for ids, segments, flip, text, random in zip(a['ids'], a['segments'], a['flip'], first, other):
        sep = np.flatnonzero(ids == 2)
        one, two = ids[1:sep[0]], ids[sep[0] + 1:sep[1]]
        n = len(one)
        cuts.add(n)
        assert (segments == (np.arange(37) > sep[0])).all() and sep[1] == 36 and len(one) + len(two) == 34
        if not flip: assert (np.concatenate((one, two)) == text[:34]).all()
        elif task == 'sop': assert (np.concatenate((two, one)) == text[:34]).all()
        else: assert (one == text[:n]).all() and (two == random[n:34]).all()
    assert len(cuts) > 8 and min(cuts) >= 8


def test_rows_do_not_depend_on_the_batch():
    """The masks of a row are the same, alone or among others: what makes accumulation and ranks exact."""
    for changes in OBJECTIVES.values():
        config, (draw, text) = small(**changes), text_of()
        whole = bert.batch(draw, config, Random(keyed(0, 5, np.arange(8))))
        def part(length, overlap=0, stream=0): return text[stream, 3:5, :length].copy()
        part.tokenizer = draw.tokenizer
        for a, b in zip(whole, bert.batch(part, config, Random(keyed(0, 5, np.arange(3, 5))))): assert (a[3:5] == b).all()


def test_missing_special_tokens_are_named():
    with pytest.raises(ValueError, match='no mask token.*--tokenizer=bpe'): make_batch(small(mask_id=-1))
    a = make_batch(small(cls_id=-1, sep_id=-1))
    assert (a[0][:, 0] == 4).all() and (a[0][:, -1] == 4).all()           # the end of a document stands in
    for changes, message in ((dict(sbo=True), '--masking=span'), (dict(masking='words'), "'words'"), (dict(sentences='nsp', n_segments=1), '--n_segments=2'),
                             (dict(n_head=4), 'multiple of n_head=4'), (dict(biases='qkv'), 'qkv is none of'), (dict(mask_rate=1.5), 'share')):
        with pytest.raises(ValueError, match=message): small(**changes)


# ---------------------------------------------------------------------------------------------------- loss

@pytest.mark.parametrize('name', OBJECTIVES)
def test_loss_is_that_of_the_hidden_tokens(name):
    """The loss from K rows of logits equals cross entropy over full logits; counts, totals and parts agree; all gradients are there."""
    config = small(**OBJECTIVES[name])
    model, arrays = model_of(config), make_batch(config)
    a = unpack(config, tensors(arrays))
    n = bert.count(*arrays)
    assert n[0] == (arrays[-1] >= 0).sum() and n[1:] == ((8,) if config.sentences else ())
    with torch.no_grad(): loss, stats = model(*tensors(arrays))
    assert abs(model(*tensors(arrays), totals=torch.tensor([float(x) for x in n]))[0] - loss) < 1e-5
    ids, segments = a['ids'].clone(), a.get('segments')
    if config.n_decoder: ids.scatter_(1, a['places'], 3)
    y = model.logits(ids, segments)
    assert y.shape == (8, 37, 99)
    rows = y.gather(1, a['places'][..., None].expand(-1, -1, 99)).flatten(0, 1)
    mlm = F.cross_entropy(rows, a['targets'].flatten(), ignore_index=-1)
    got = stats.get('mlm_loss', loss)
    assert abs(got - mlm) < 1e-4
    held = a['targets'].flatten() >= 0
    assert abs(stats['accuracy'] - (rows.argmax(1) == a['targets'].flatten())[held].float().mean()) < 1e-6
    assert abs(loss - got - stats.get('sbo_loss', 0) - stats.get('sentence_loss', 0)) < 1e-5
    if config.sentences and not config.n_decoder:
        pair = F.cross_entropy(sentences.pair_logits(model, model.hidden(ids, segments)), a['flip'])
        assert abs(stats['sentence_loss'] - pair) < 1e-5
    model.train()
    totals = torch.tensor([float(x) for x in n])
    sums = lambda parts: [sum(x) for x in zip(*(tuple(model(*tensors(p), totals=totals)[0][None]) for p in parts))][0]
    whole = sums([arrays])
    model.zero_grad(); whole.backward()
    grads = {k: p.grad.clone() for k, p in model.named_parameters()}       # a missing one is an unused parameter
    assert all(g.abs().max() > 0 for k, g in grads.items() if not k.endswith('norm_1.bias'))
    model.zero_grad()
    for i in range(0, 8, 2): model(*tensors([x[i:i + 2] for x in arrays]), totals=totals)[0].backward()
    for k, p in model.named_parameters(): assert (p.grad - grads[k]).abs().max() < 1e-5, k


@pytest.mark.parametrize('name', ['mlm', 'nsp', 'modern', 'crammed'])
def test_the_first_loss_is_ln_v(name):
    config = small(**(dict(bias=False, **OBJECTIVES['sinusoidal']) if name == 'crammed' else OBJECTIVES[name]))
    torch.manual_seed(0)
    loss, stats = bert.Model(config).eval()(*tensors(make_batch(config, 32)))
    assert abs(stats.get('mlm_loss', loss) - math.log(99)) < 0.1
    if config.sentences: assert abs(stats['sentence_loss'] - math.log(2)) < 0.05


def test_initial_weights():
    model = bert.Model(bert.Config(n_layer=1, vocab_size=999))
    w = model.encoder.blocks[0].mlp.up.weight
    assert w.abs().max() <= 0.04 and abs(w.std() - 0.02 * 0.8796) < 2e-4 and model.encoder.blocks[0].norm_1.eps == 1e-12   # cut off at 2 std
    assert model.decoder.weight is model.embeddings.tokens.weight and model.decoder.bias.abs().max() == 0
    blocks = bert.Model(bert.Config(n_layer=8, vocab_size=99, n_embd=192, n_head=3, pre_norm=True)).encoder.blocks
    for layer, std in ((blocks[3].mlp.up, 0.02), (blocks[3].mlp.down, 0.005), (blocks[3].attention.out, 0.005)):
        assert abs(layer.weight.std() - std * 0.8796) < 0.02 * std         # what writes to the residual stream: 1/sqrt(2 L)


@pytest.mark.parametrize('name', ['mlm', 'sop_span', 'mae', 'modern'])
def test_one_batch_is_learned_by_heart(name):
    config = small(**OBJECTIVES[name])
    torch.manual_seed(0)
    model, arrays = bert.Model(config).train(), tensors(make_batch(config, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(120):
        loss, _ = model(*arrays)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    assert loss < 0.05


def test_every_token_sees_every_other():
    model, ids = model_of(small()), torch.randint(10, 99, (1, 20))
    change = ids.clone(); change[0, 12] = 9
    assert ((model.hidden(ids) - model.hidden(change)).abs().amax(2) > 1e-5).all()
    local = model_of(small(**{**MODERN, 'n_layer': 2, 'global_every': 2}))  # layer 1 sees 3 tokens on each side; layer 0 all: switch it off
    local.encoder.blocks[0].attention.out.weight.data.zero_()
    seen = (local.hidden(ids) - local.hidden(change)).abs().amax(2)[0] > 1e-6
    assert seen.nonzero().flatten().tolist() == list(range(9, 16))


@pytest.mark.parametrize('changes', [{}, MODERN, dict(n_decoder=1), dict(position_offset=2, n_segments=1)])
def test_padding_changes_nothing(changes):
    """Rows of any length in one batch equal the rows alone; a row of padding alone gives no NaN, forward or backward."""
    model, ids = model_of(small(**changes)), torch.randint(10, 99, (3, 30))
    ids[:, 3] = 3
    mask = torch.ones(3, 30, dtype=torch.bool)
    mask[1, 11:], mask[2] = False, False
    y, x = model.logits(ids, None, mask), model.hidden(ids, None, mask)
    assert (y[1, :11] - model.logits(ids[1:2, :11])[0]).abs().max() < 1e-5 and (y[:1] - model.logits(ids[:1])).abs().max() < 1e-5
    assert torch.isfinite(y).all() and torch.isfinite(x).all()
    x.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_compiled_is_equal():
    for name in ('modern', 'sop_span'):
        config = small(**OBJECTIVES[name], **({} if name == 'modern' else dict(n_layer=1)))
        model, arrays = model_of(config).train(), tensors(make_batch(config, 4))
        try: fast = torch.compile(model, backend='aot_eager', fullgraph=True)(*arrays, totals=torch.ones(2))
        except torch._dynamo.exc.Unsupported as e: pytest.fail(f'graph break: {e}')
        assert abs(fast[0] - model(*arrays, totals=torch.ones(2))[0]) < 1e-4


def test_checkpointed_activations_change_nothing():
    arrays = tensors(make_batch(small()))
    grads = []
    for on in (False, True):
        model = model_of(small(checkpoint_activations=on)).train()
        model(*arrays)[0].backward()
        grads.append(model.encoder.blocks[0].attention.qkv.weight.grad)
    assert (grads[0] - grads[1]).abs().max() < 1e-6


# ---------------------------------------------------------------------------------------------------- fine-tuning

@pytest.fixture(scope='module')
def tokenizer(): return bpe.byte()


def ready(tokenizer, **changes):
    ids = {r + '_id': getattr(tokenizer, r) for r in ('eot', 'pad', 'cls', 'sep', 'mask')}
    return small(**{'vocab_size': tokenizer.vocab_size, 'block_size': 64, **ids, **changes})


def encoded(examples, tokenizer, config):
    return [dict(row, index=i) for i, e in enumerate(examples) for row in tasks.encode(e, tokenizer, config)]


EXAMPLES = {
    'labelled': [dict(text='good', label=1), dict(text='bad bad', text_b='yes', label=0), dict(text='so so', label=2)],
    'tagged': [dict(tokens=['Ann', 'sees', 'Bob'], tags=[1, 0, 1]), dict(tokens=['He', 'runs'], tags=[0, 0])],
    'qa': [dict(context='Bells ring at noon today.', question='When?', answers=[dict(text='at noon', answer_start=11)]), dict(context='None here.', question='Who?', answers=[])],
    'choice': [dict(text='sky', choices=['blue', 'green', 'red'], label=0), dict(text='grass', choices=['blue', 'green'], label=1)],
}
KINDS = {'labelled': dict(n_labels=3, labels='["zero", "one", "two"]'), 'tagged': dict(n_labels=2, labels='["O", "B-X"]'), 'qa': dict(no_answer=True), 'choice': {}}


@pytest.mark.parametrize('kind', EXAMPLES)
def test_each_kind_learns_its_examples(kind, tokenizer):
    """From examples to predictions: encode, batch, forward, predict. Padding beside other rows does not change a prediction."""
    config = ready(tokenizer, kind=kind, init_std=0.1, **KINDS[kind])      # at 0.02 two texts of three may stay the same to it
    rows = encoded(EXAMPLES[kind], tokenizer, config)
    def draw(*a): raise AssertionError('no running text here')
    draw.examples = lambda: rows
    arrays = models.make_batch(bert, draw, config, None)
    assert arrays[0].shape[-1] % 8 == 0 and arrays[0].shape[-1] - max(len(r['ids']) for r in rows if 'ids' in r) < 8 if kind != 'choice' else arrays[0].shape[:2] == (2, 3)
    assert bert.count(*arrays) == ({'labelled': 3, 'tagged': 5, 'qa': 4, 'choice': 2}[kind],)
    torch.manual_seed(0)
    model = bert.Model(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss, stats = model(*tensors(arrays))
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    assert loss < 0.05 and stats['accuracy'] == 1
    model.eval()
    got = tasks.predict(model, tensors(arrays), rows, tokenizer)
    want = {'labelled': [1, 0, 2], 'tagged': [[1, 0, 1], [0, 0]], 'qa': ['at noon', ''], 'choice': [0, 1]}[kind]
    assert [g['prediction'] for g in got] == want and [g['index'] for g in got] == list(range(len(want)))
    one = tasks.collate(rows[1:2], config)
    alone = tasks.predict(model, tensors(one), rows[1:2], tokenizer)
    assert alone[0]['prediction'] == want[1] and abs(alone[0]['score'] - got[1]['score']) < 1e-3
    named = {'labelled': 'one', 'tagged': ['B-X', 'O', 'B-X']}.get(kind, want[0])
    assert got[0].get('name', want[0]) == named and f'>>> {named} (truth: {named})' in models.show_of(bert)(model, tokenizer, rows)
    parts = [model(*tensors([a[i:i + 1] for a in arrays]), totals=torch.tensor([float(bert.count(*arrays)[0])]))[0] for i in range(len(rows))]
    assert abs(sum(parts) - model(*tensors(arrays))[0]) < 1e-4


def test_regression(tokenizer):
    config = ready(tokenizer, kind='labelled', n_labels=0)
    rows = encoded([dict(text='a', label=2.5), dict(text='b c', label=-1.0)], tokenizer, config)
    arrays = tasks.collate(rows, config)
    assert arrays[-1].dtype == np.float32 and bert.count(*arrays) == (2,)
    torch.manual_seed(0)
    model = bert.Model(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        loss, _ = model(*tensors(arrays))
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    got = [r['prediction'] for r in tasks.predict(model.eval(), tensors(arrays), rows)]
    assert abs(np.subtract(got, [2.5, -1.0])).max() < 0.2
    mse = np.mean(np.square(np.subtract(got, [2.5, -1.0])))
    assert abs(model(*tensors(arrays))[0] - mse) < 1e-5


def test_texts_are_cut_to_the_row(tokenizer):
    config = ready(tokenizer, kind='labelled', n_labels=2, block_size=16)
    row = lambda **e: tasks.encode(dict(e, label=0), tokenizer, config)[0]
    sep = tokenizer.sep
    assert len(row(text='x' * 99)['ids']) == 16 and row(text='x' * 99)['ids'][-1] == sep
    pair = row(text='x' * 99, text_b='abc')                                # the longer one pays
    assert tokenizer.decode([i for i in pair['ids'] if i < 256]) == 'x' * 10 + 'abc' and pair['segments'] == [0] * 12 + [1] * 4
    even = row(text='x' * 99, text_b='y' * 50)['ids']
    assert len(even) == 16 and sorted((even.count(ord('x')), even.count(ord('y')))) == [6, 7]
    roberta = tasks.encode(dict(text='a', text_b='b', label=0), tokenizer, dataclasses.replace(config, double_sep=True))[0]['ids']
    assert roberta == [tokenizer.cls, ord('a'), sep, sep, ord('b'), sep]


def test_offsets(tokenizer):
    wordpiece = bpe.load(str(_vocab())) if _vocab() else None
    for t in (tokenizer, bpe.train(['the café opens at noon, naïve text ' * 20], 440), wordpiece):
        if t is None: continue
        for text in ('the Café opens, at noon', '  naïve\n\ttext 日本 ', '', "don't stop!"):
            ids, spans = tasks.offsets(text, t)
            assert len(ids) == len(spans) and all(0 <= a < b <= len(text) for a, b in spans)
            covered = set().union(*(range(a, b) for a, b in spans)) if spans else set()
            assert all(i in covered for i, c in enumerate(text) if not c.isspace())
            assert ids == t.encode(text)


def _vocab():
    """A small WordPiece vocabulary, if bpe.py reads that format already."""
    import tempfile
    folder = tempfile.mkdtemp()
    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *'abcdefghijklmnopqrstuvwxyz日本!,\'', *('##' + c for c in 'abcdefghijklmnopqrstuvwxyz'), 'the', 'noon']
    with open(folder + '/vocab.txt', 'w') as f: f.write('\n'.join(words) + '\n')
    try: bpe.load(folder + '/vocab.txt')
    except Exception: return ''
    return folder + '/vocab.txt'


def test_long_contexts_go_into_overlapping_windows(tokenizer):
    """Every token of the context is in a window, the answer is found in each window that holds all of it, [CLS] elsewhere; the
    best window of a question gives its answer."""
    config = ready(tokenizer, kind='qa', block_size=32, doc_stride=7)
    context = ' '.join(f'w{i:02d}' for i in range(40))
    rows = tasks.encode(dict(context=context, question='Q?', answers=[dict(text='w17 w18', answer_start=context.index('w17'))]), tokenizer, config)
    first = len('Q?') + 2
    assert all(len(r['ids']) <= 32 and r['first'] == first for r in rows) and len(rows) == -(-(len(context) - 27) // 7) + 1
    starts = [r['spans'][0][0] for r in rows]
    assert rows[-1]['spans'][-1][1] == len(context) and all(b - a <= 8 for a, b in zip(starts, starts[1:]))
    found = 0
    for r in rows:
        whole = r['spans'][0][0] <= context.index('w17') and r['spans'][-1][1] >= context.index('w17') + 7
        assert (r['start'] > 0) == whole
        if whole:
            found += 1
            a, b = r['spans'][r['start'] - first][0], r['spans'][r['end'] - first][1]
            assert context[a:b] == 'w17 w18' and tokenizer.decode(r['ids'][r['start']:r['end'] + 1]).strip() == 'w17 w18'
    assert found >= 2

    class Fixed(torch.nn.Module):  # logits that are highest at the true places, and a little at [CLS]
        def __init__(self, config): super().__init__(); self.config = config
        def logits(self, ids, segments, mask):
            y = torch.zeros(*ids.shape, 2)
            for i, r in enumerate(rows): y[i, r['start'], 0] = y[i, r['end'], 1] = 5.0
            y[:, first + 26, 0] = y[:, first, 1] = 6.0                     # an end before its start is no answer
            return y
    got = tasks.predict(Fixed(config), tensors(tasks.collate(rows, config)), rows)
    best = max(got, key=lambda r: r['score'])
    assert best['prediction'] == 'w17 w18'
    assert tasks.encode(dict(context='', question='Q?', answers=[]), tokenizer, config)[0]['ids'] == [tokenizer.cls, *b'Q?', tokenizer.sep, tokenizer.sep]


def test_a_new_head_on_old_weights(tokenizer):
    """What the trainer keeps, what it starts anew, what it refuses."""
    old = model_of(small(sentences='nsp'))
    onto = lambda **changes: build_model(bert, small(**changes), dict(old.state_dict()), 'old', 7, new_task=True)
    new = onto(kind='labelled', n_labels=4, block_size=20)
    torch.manual_seed(7)
    fresh = bert.Model(small(kind='labelled', n_labels=4, block_size=20)).classifier.weight
    ids = torch.randint(10, 99, (2, 18))
    assert (new.eval().hidden(ids) - old.hidden(ids)).abs().max() < 1e-6 and (new.pooler.weight == old.pooler.weight).all() and (new.classifier.weight == fresh).all()
    with pytest.raises(ValueError, match='Missing key.*encoder.blocks.2'): onto(kind='labelled', n_labels=4, n_layer=3)
    with pytest.raises(ValueError, match=r'tokens.weight.*\[99, 30\].*\[101, 30\]'): onto(kind='labelled', n_labels=4, vocab_size=101)


def test_depths():
    for changes in ({}, dict(embed_dim=12, share_layers=True), MODERN):
        model = bert.Model(small(sentences='' if changes is MODERN else 'nsp', **changes))
        depth = {n: model.depth_of(n) for n, _ in model.named_parameters()}
        L = model.config.n_layer
        assert depth['embeddings.tokens.weight'] == 0 == depth['embeddings.norm.weight'] and depth['encoder.blocks.0.mlp.up.weight'] == 1 and depth['head.dense.weight'] == L + 1
        assert set(depth.values()) >= {0, 1, L + 1} and max(depth.values()) == L + 1
        if not changes: assert set(depth.values()) == set(range(L + 2)) and depth['pooler.weight'] == L + 1
        if 'embed_dim' in changes: assert depth['encoder.project.weight'] == 0


def test_show_fills_what_is_hidden(tokenizer):
    config = ready(tokenizer, n_layer=1)
    text = models.show_of(bert)(model_of(config), tokenizer, np.frombuffer(b'a line of text to hide something in, and more of it', np.uint8))
    assert text.count('[') == text.splitlines()[0].count('[') + 2 and 'of 7 hidden tokens filled' in text


def test_pretraining_through_the_trainer(prepared, tmp_path):
    """train.py on bert.py: falls from ln V, saves, opens again, shows."""
    flags = f'--model=bert --preset=small --data={prepared} --n_layer=1 --n_head=2 --n_embd=32 --n_hidden=32 --block_size=32 --batch_size=16 --max_iters=30 --eval_interval=30'
    got = train.main([*flags.split(), '--eval_iters=16', '--log_interval=30', '--device=cpu', '--compile=false', f'--out_dir={tmp_path}/out'])
    assert got['val_loss'] < 3.8 and 0 < got['val_accuracy'] < 1
    model, tokenizer = train.load_model(f'{tmp_path}/out')
    assert model.config.mask_id == tokenizer.mask and 'hidden tokens filled' in models.show_of(bert)(model, tokenizer, tokenizer.encode('one plus two is three; three minus one is two.'))
