"""ELECTRA's ablations (3.4), electra.py's --objective: what the second model learns from the text
with the samples in it, if not to tell each replaced token.

    electra-15      to tell them at the chosen places alone
    replace-mlm     to predict the original tokens there
    all-tokens-mlm  to predict the original tokens everywhere, with a gate that copies the input

Letters: B batch, T tokens, C width, K chosen tokens of a row, V vocabulary.
"""
import torch
from torch.nn import functional as F

from lib import detection


def loss(model, x, ids, places, fake, targets, totals, states_at):
    """x: (B, T, C), states of the text with the samples in it. ids: (B, T), what the generator
    read. places, fake (replaced or not), targets: (B, K). totals, states_at: as in electra.py ->
    loss, stats"""
    objective = model.config.objective
    n_chosen, n_all = totals[0], totals[1]
    if objective == 'replace-mlm':
        y = model.mlm(states_at(x, places)).float()        # (B K, V)
        labels = targets.flatten()
        nll = F.cross_entropy(y, labels, ignore_index=-1, reduction='sum')
        if model.training:
            return nll / n_chosen, {}
        hits = (y.argmax(1) == labels).sum()
        return nll / n_chosen, {'accuracy': hits / n_chosen}

    chosen = targets >= 0
    if objective == 'electra-15':
        states = states_at(x, places).view(*places.shape, -1)
        logit = model.detector(states).float()             # (B, K)
        bce = F.binary_cross_entropy_with_logits(logit, fake.float(), reduction='none')
        total = (bce * chosen).sum() / n_chosen
        label, judged, n = fake, chosen, n_chosen
    else:
        logit = model.detector(x).float()                  # (B, T)
        label = torch.zeros_like(ids, dtype=torch.bool).scatter(1, places, fake)
        judged = torch.ones_like(label)
        before = ids.gather(1, places)
        original = ids.scatter(1, places, torch.where(chosen, targets, before))
        total = copy_or_write(model.mlm(x), logit, original, label) / n_all
        n = n_all
    if model.training:
        return total, {}
    return total, detection.stats(logit, label, judged, n, n_all)


def copy_or_write(y, logit, original, replaced):
    """ELECTRA 3.4, all-tokens MLM: the sum of -log p(x_t) over all tokens, where
    p(x_t) = D [x_t is the input] + (1 - D) softmax(y)_t and 1 - D = sigmoid(logit).
    y: (B, T, V), the others (B, T); replaced: the input is not the original"""
    y = y.flatten(0, 1).float()                            # (B T, V)
    nll = F.cross_entropy(y, original.flatten(), reduction='none')
    written = F.logsigmoid(logit) - nll.view_as(logit)
    copied = F.logsigmoid(-logit)
    either = torch.logaddexp(written, copied)
    return -torch.where(replaced, written, either).sum()
