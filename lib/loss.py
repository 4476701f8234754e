"""The loss of a wide vocabulary, a few tokens at a time: on a CPU as fast, in half the memory."""
import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 2 ** 25        # how many exist at once, about, where no other number is asked for


def chunked_loss(head, x, targets, vocab_size, chunk=0):
    """Sum of -log p(target), targets of -1 left out.

    head: a linear layer without bias, of whose rows the first vocab_size (V) count. x: (N, C),
    targets: (N,). chunk: tokens at a time; 0: as many equal parts as keep each near CHUNK_LOGITS.
    """
    if not chunk:
        parts = 1 + len(x) * vocab_size // CHUNK_LOGITS
        chunk = (len(x) + parts - 1) // parts
    if torch.is_grad_enabled() and type(head) is nn.Linear:
        return ChunkedLoss.apply(x, head.weight, targets, vocab_size, chunk)

    def nll(x, targets):
        logits = head(x)[:, :vocab_size]
        return F.cross_entropy(logits.float(), targets, ignore_index=-1, reduction='sum')

    # Evaluation, or a head that is more than its matrix (an adapter): each chunk is computed again
    # in the backward pass.
    pieces = zip(x.split(chunk), targets.split(chunk))
    return sum(checkpoint(nll, *piece, use_reentrant=False) for piece in pieces)


class ChunkedLoss(torch.autograd.Function):
    """What the backward pass needs, the gradients of x (N, C) and of the head's weight (rows, C),
    is computed right away, while the logits of a chunk are there: only those of one chunk (n, V)
    ever exist."""

    @staticmethod
    def forward(ctx, x, weight, targets, V, chunk):
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        wide = torch.promote_types(dtype, torch.float)
        w = weight[:V].to(dtype)
        dx = torch.empty_like(x)
        loss = x.new_zeros((), dtype=wide)
        dw = torch.zeros_like(weight) if weight.requires_grad else None

        for i in range(0, len(x), chunk):
            part = x[i:i + chunk].to(dtype)                                # (n, C)
            target = targets[i:i + chunk, None]                            # (n, 1)
            real = target >= 0
            target = target.clamp(min=0)
            z = part @ w.T                                                 # (n, V): logits
            p = z.softmax(-1, dtype=wide)
            # log p(target) = z(target) - log sum exp z, and the sum is exp(z) / p of any token: of
            # the largest
            top, i_top = z.max(-1, keepdim=True)
            nll = top.to(wide) - p.gather(1, i_top).log() - z.gather(1, target).to(wide)
            loss += torch.where(real, nll, 0.0).sum()
            # the gradient of the logits is p - [target]
            p.scatter_add_(1, target, -torch.ones_like(nll))
            dz = p.mul_(real).to(dtype)
            dx[i:i + chunk] = dz @ w
            if dw is None:
                continue
            if dtype == dw.dtype:
                dw[:V].addmm_(dz.T, part)
            else:
                dw[:V] += dz.T @ part
        ctx.save_for_backward(dx, dw)
        return loss

    @staticmethod
    def backward(ctx, grad):
        """In place, so torch refuses a second backward pass."""
        dx, dw = ctx.saved_tensors
        dx = dx.mul_(grad)
        if dw is not None:
            dw = dw.mul_(grad)
        return dx, dw, None, None, None
