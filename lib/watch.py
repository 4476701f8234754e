"""What a run keeps an eye on: its clock, the losses since the last line of the log, numbers that
are not finite."""
import statistics
import time

import torch
import torch.distributed as dist

from lib.device import peak_memory


class Clock:
    """Seconds spent on training. It stands still while the run evaluates and saves."""

    def __init__(self, device, seconds):
        self.device = device
        self.seconds = seconds
        self.start()

    def start(self):
        self.started = time.perf_counter()

    def read(self):
        """Waits for the device -> all seconds so far."""
        if self.device.type == 'cuda':
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds += now - self.started
        self.started = now
        return self.seconds


class Meter:
    """Means and speed since the last line of the log, and the usual loss."""
    RECENT = 50         # logged losses that a jump is held against
    FEW = 10            # with fewer of them nothing is called a jump

    def __init__(self, run, progress):
        self.run = run
        self.recent = []
        self.reset(progress)

    def reset(self, progress):
        """Begins a new line of the log."""
        self.sums = None                                 # of the loss and the stats, on the device
        self.step = progress.step
        self.seconds = progress.train_seconds
        self.skipped = progress.skipped

    def add(self, sums, names, grad_norm, good):
        """Counts one step. sums: (1 + stats,) of the loss and the stats that `names` lists. good:
        whether the update was made; if not, its loss is no part of the mean."""
        self.grad_norm = grad_norm
        self.names = names
        if good:
            self.sums = sums if self.sums is None else self.sums + sums

    def row(self, progress, lr):
        """The metrics of the steps since the last reset. lr: the learning rate of the last step."""
        run = self.run
        sums = self.sums.cpu()
        if run.world_size > 1:
            dist.all_reduce(sums)
        steps = progress.step - self.step
        seconds = progress.train_seconds - self.seconds
        updates = steps - (progress.skipped - self.skipped)
        loss, *stats = (sums / updates).tolist()
        rows_per_second = steps * run.config.batch_size / seconds
        row = dict(step=progress.step, tokens=progress.tokens,
                   train_seconds=round(progress.train_seconds, 3), train_loss=loss)
        for name, value in run.feed.summary(dict(zip(self.names, stats))).items():
            row['train_' + name] = value
        row |= dict(lr=lr, grad_norm=self.grad_norm.item(),
                    tokens_per_second=round(rows_per_second * run.tokens_per_row, 1),
                    peak_memory_mb=round(peak_memory(run.device), 1))
        if run.flops_per_row and run.peak_flops:
            row['mfu'] = run.flops_per_row * rows_per_second / run.peak_flops / run.world_size
        if progress.skipped:
            row['skipped'] = progress.skipped
        return row

    def seconds_left(self, progress):
        """An estimate, by the speed since the last reset."""
        config = self.run.config
        per_step = (progress.train_seconds - self.seconds) / (progress.step - self.step)
        left = (config.max_iters - progress.step) * per_step
        return min(left, config.time_limit - progress.train_seconds) if config.time_limit else left

    def forget(self):
        """The loss is another one now."""
        self.recent = []

    def jump(self, loss):
        """Remembers a logged loss. -> the usual loss if this one lies far above it, else None."""
        recent = self.recent
        self.recent = recent[1 - self.RECENT:] + [loss]
        if len(recent) < self.FEW:
            return None
        usual = statistics.mean(recent)
        margin = max(5 * statistics.pstdev(recent), 0.1 * abs(usual))
        return usual if loss > usual + margin else None


class FiniteWatch:
    """Ends a run before a loss or gradient that is not finite is saved or evaluated. With
    --skip_nonfinite the update is left out, and ten such steps in a row end the run."""
    PATIENCE = 10

    def __init__(self, run, progress, log):
        self.run = run
        self.progress = progress
        self.log = log
        # on the device: the host does not wait for it
        self.first_bad = torch.tensor(-1, device=run.device)
        self.in_a_row = 0

    def check_step(self, loss, grad_norm, scaled):
        """Looks at one step -> whether its update may be made. With --skip_nonfinite it counts and
        logs the updates that are left out, and the ranks agree; else a bad step is remembered for
        check(), which on a CPU comes at once.

        loss, grad_norm: tensors on the device. scaled: the scaler of fp16 looks after infinite
        gradients itself.
        """
        config = self.run.config
        finite = torch.isfinite(loss)
        if not scaled:
            finite = finite & torch.isfinite(grad_norm)
        bad = ~finite
        if config.skip_nonfinite:            # here the host waits for the device
            if self.run.world_size > 1:
                bad = bad.int()
                dist.all_reduce(bad, dist.ReduceOp.MAX)
            self.in_a_row = self.in_a_row + 1 if bad else 0
            if self.in_a_row:
                self.progress.skipped += 1
                self.log.say(f'step {self.progress.step}: the loss or gradient is not finite, no '
                             f'update ({self.progress.skipped} skipped so far)')
        if config.skip_nonfinite and self.in_a_row < self.PATIENCE:
            return not self.in_a_row
        # bad steps end the run: remember the first one. A GPU is asked later, by check(), which
        # raises before weights with NaN are saved
        is_first = (bad > 0) & (self.first_bad < 0)
        self.first_bad = torch.where(is_first, self.progress.step, self.first_bad)
        if config.skip_nonfinite or self.run.device.type == 'cpu':
            self.check()
        return True

    def check(self):
        """Raises FloatingPointError if a step since the last check was not finite."""
        if self.run.world_size > 1:
            dist.all_reduce(self.first_bad, dist.ReduceOp.MAX)       # the loss is each rank's own
        step = int(self.first_bad)
        if step < 0:
            return
        config = self.run.config
        saved = self.progress.saved_step
        good = f'{config.out_dir}/ckpt.pt of step {saved}' if saved >= 0 else 'none'
        advice = 'lower --learning_rate or raise --warmup_iters'
        if saved >= 0:
            advice += ' and --resume'
        if self.progress.skipped:
            advice += f' ({self.progress.skipped} updates were skipped)'
        raise FloatingPointError(f'the loss or gradient of step {step} is not finite (learning '
                                 f'rate {self.run.learning_rate(step):.3g}); the last good '
                                 f'checkpoint is {good}: {advice}')
