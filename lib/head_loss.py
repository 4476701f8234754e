"""The loss of t5.py's head in fp32 on a CPU, some rows at a time: faster than all rows at once."""
import torch
import torch.nn as nn

ROWS = 192  # rows of logits that exist at once


def fits(head, x):
    """May HeadLoss read the head's matrix? In fp32, if it is not sharded and has no adapter."""
    weight = head.weight
    return (x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled('cpu')
            and type(head) is nn.Linear and type(weight) is nn.Parameter and weight.requires_grad)


class HeadLoss(torch.autograd.Function):
    """Sum of -log softmax(x W^T)[y] over y >= 0, times scale.

    The gradient (p - 1[y]) is made while p is at hand, in a buffer that all rows share: memory
    fresh from the system costs a CPU as much as a third of the multiplications.
    """

    @staticmethod
    def forward(ctx, x, W, V, y, scale):
        """x: (N, C); W: (V or more, C); y: (N,), -1 where there is no target -> the loss, ()"""
        dx = torch.empty_like(x)
        dW = torch.zeros_like(W)
        loss = x.new_zeros(())
        buffer = x.new_empty(min(ROWS, len(x)), V)
        W = W[:V]                                                  # rows of padding have no logit
        for start in range(0, len(x), ROWS):
            part = x[start:start + ROWS]                           # (n, C)
            target = y[start:start + ROWS, None]                   # (n, 1)
            real = target >= 0
            target = target.clamp(min=0)
            z = torch.mm(part, W.t(), out=buffer[:len(part)])      # (n, V): logits
            top, i_top = z.max(dim=1, keepdim=True)
            hit = z.gather(1, target)
            p = torch._softmax(z, 1, False, out=z)                 # in place: z is gone
            log_sum = top - p.gather(1, i_top).log()               # log sum exp z
            loss += ((log_sum - hit) * real).sum()
            p.scatter_add_(1, target, -torch.ones_like(hit))
            if not real.all():
                p.mul_(real)
            torch.mm(p, W, out=dx[start:start + ROWS])
            dW[:V].addmm_(p.t(), part * scale)
        ctx.save_for_backward(dx.mul_(scale), dW)
        return loss * scale

    @staticmethod
    def backward(ctx, grad):
        dx, dW = ctx.saved_tensors
        if grad != 1:
            dx = dx * grad
            dW = dW * grad
        return dx, dW, None, None, None
